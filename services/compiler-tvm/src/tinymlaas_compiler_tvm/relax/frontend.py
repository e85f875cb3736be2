"""An ONNX model as a Relax function of kernels: known values are folded, functions of the standard are expanded.

No text of the file gets into TVM: variables are numbered. A node is, in this order: computed here if all of its inputs are known;
converted, if there is a converter; replaced by its function body, where the ONNX standard defines it as a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.defs
from onnx import helper, numpy_helper

from tinymlaas_compiler_tvm.errors import ModelInvalid, OpUnsupported
from tinymlaas_compiler_tvm.relax.emit import Emitter, Node, Refused, Value, dtype_of, is_constant, shape_of
from tinymlaas_compiler_tvm.relax.operators import CONVERTERS

# Results of random operators are not known at compile time.
_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
# Function bodies that call functions: the standard nests them at most this deep.
_DEPTH = 8
_FOLDED_ELEMENTS = 1 << 22

Environment = dict[str, Value]
Attributes = Mapping[str, onnx.AttributeProto]


def import_model(model: onnx.ModelProto) -> Any:
    """A Relax module whose `main` is a list of `call_tir`; OpUnsupported names the operator that has no kernel."""
    from tvm import relax

    builder = relax.BlockBuilder()
    importer = _Importer(model, Emitter(builder))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    environment: Environment = dict(constants)
    parameters: list[Any] = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = [int(dim.dim_value) for dim in kind.shape.dim]
        dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        variable = relax.Var(f"x{len(parameters)}", relax.TensorType(shape, dtype))
        parameters.append(variable)
        environment[value.name] = variable
    with builder.function("main", params=parameters):
        with builder.dataflow():
            importer.run(model.graph.node, environment, importer.opset, {}, 0)
            results = [importer.result(environment, value.name) for value in model.graph.output]
            output = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(output)
    return builder.get()


class _Importer:
    def __init__(self, model: onnx.ModelProto, emitter: Emitter) -> None:
        self.model = model
        self.emitter = emitter
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        # The node of the model's own graph that is being imported.
        self.current = onnx.NodeProto()

    def result(self, environment: Environment, name: str) -> Value:
        """An output; one that is known at compile time is copied into the arena by a step."""
        value = environment.get(name)
        if value is None:
            raise ModelInvalid("an output is made by nothing", where=name, detail="UNDEFINED_TENSOR")
        if is_constant(value):
            from tvm import topi

            if not value.size:
                raise OpUnsupported(
                    "an output without elements", op="graph", node=name, dtype=str(value.dtype), count=1
                )
            return self.emitter.kernel("constant", topi.identity, value)
        return value

    def run(
        self,
        nodes: Sequence[onnx.NodeProto],
        environment: Environment,
        opset: int,
        attributes: Attributes,
        depth: int,
    ) -> None:
        """Import nodes in order; `attributes` are those that a function's nodes may refer to."""
        for node in nodes:
            if depth == 0:
                self.current = node
            results = self._guarded(node, environment, opset, attributes, depth)
            for name, value in zip(node.output, results, strict=False):
                if name and value is not None:
                    environment[name] = value

    def _guarded(
        self, node: onnx.NodeProto, environment: Environment, opset: int, attributes: Attributes, depth: int
    ) -> list[Value]:
        try:
            return self._node(node, environment, opset, attributes, depth)
        except Refused as error:
            raise self._unsupported(node, str(error)) from error
        except OpUnsupported:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            lines = str(error).strip().splitlines()
            detail = lines[-1] if lines else type(error).__name__
            raise self._unsupported(node, f"a form that the converter does not take: {detail}") from error

    def _unsupported(self, node: onnx.NodeProto, message: str) -> OpUnsupported:
        outer = self.current
        inside = "" if node.op_type == outer.op_type else f"{node.op_type} in the body of "
        count = sum(other.op_type == outer.op_type for other in self.model.graph.node)
        return OpUnsupported(
            f"{inside}{outer.op_type}: {message}",
            op=outer.op_type, node=outer.name or (outer.output[0] if outer.output else ""), dtype="float32", count=count,
        )  # fmt: skip

    def _node(
        self, node: onnx.NodeProto, environment: Environment, opset: int, attributes: Attributes, depth: int
    ) -> list[Value]:
        node = _resolved(node, attributes)
        inputs: list[Value | None] = [environment[name] if name else None for name in node.input]
        if node.op_type == "If":
            return self._branch(node, inputs, environment, opset, attributes, depth)
        if node.op_type == "Constant" or (inputs and node.op_type not in _RANDOM and _all_known(inputs)):
            folded = _fold(node, inputs, opset)
            if folded is not None:
                return folded
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        outputs = len(node.output)
        while outputs and not node.output[outputs - 1]:
            outputs -= 1
        converter = CONVERTERS.get(node.op_type)
        if converter is not None:
            results = converter(self.emitter, Node(node.op_type, inputs, values, opset, outputs))
            if len(results) < outputs:
                raise Refused(f"{outputs} outputs")
            return results
        return self._function(node, inputs, opset, depth)

    def _branch(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
        environment: Environment,
        opset: int,
        attributes: Attributes,
        depth: int,
    ) -> list[Value]:
        """If, where the condition is known (function bodies ask for shapes so)."""
        condition = inputs[0]
        if not isinstance(condition, np.ndarray):
            raise Refused("a condition that is known only at run time")
        name = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        graph = next(attribute.g for attribute in node.attribute if attribute.name == name)
        inner = dict(environment)
        inner.update({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
        self.run(graph.node, inner, opset, attributes, depth + 1)
        return [inner[value.name] for value in graph.output]

    def _function(self, node: onnx.NodeProto, inputs: Sequence[Value | None], opset: int, depth: int) -> list[Value]:
        """The results of the function body that the standard gives for an operator."""
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
        if depth >= _DEPTH:
            raise Refused("function bodies nested too deep")
        body = onnx.FunctionProto()
        if schema.has_context_dependent_function:
            types = [_type(value) if value is not None else onnx.TypeProto().SerializeToString() for value in inputs]
            versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
            if not versions:
                raise Refused("no kernel, and no function body in this operator set")
            body.ParseFromString(
                schema.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), types)
            )
        elif schema.has_function:
            versions = [v for v in schema.function_opset_versions if v <= opset]
            if not versions:
                raise Refused("no kernel, and no function body in this operator set")
            body.ParseFromString(schema.get_function_with_opset_version(max(versions)))
        else:
            raise Refused("no kernel")
        given = {attribute.name: attribute for attribute in node.attribute}
        for name, attribute in schema.attributes.items():
            if name not in given and attribute.default_value.type:
                given[name] = attribute.default_value
        inner: Environment = {}
        for name, value in zip(body.input, inputs, strict=False):
            if value is not None:
                inner[name] = value
        version = next((entry.version for entry in body.opset_import if entry.domain in ("", "ai.onnx")), opset)
        self.run(_without_missing(body.node, inner), inner, version, given, depth + 1)
        return [inner.get(name) for name in body.output]


def _without_missing(nodes: Sequence[onnx.NodeProto], known: Mapping[str, Value]) -> list[onnx.NodeProto]:
    """Nodes of a body with inputs that were omitted by the caller made empty."""
    made = set(known)
    result = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [name if name in made else "" for name in node.input]
        made.update(node.output)
        result.append(copy)
    return result


def _resolved(node: onnx.NodeProto, attributes: Attributes) -> onnx.NodeProto:
    """A node whose attributes are values, not references to those of the function around."""
    if not any(attribute.ref_attr_name for attribute in node.attribute):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.add().CopyFrom(attribute)
        elif attribute.ref_attr_name in attributes:
            made = copy.attribute.add()
            made.CopyFrom(attributes[attribute.ref_attr_name])
            made.name = attribute.name
    return copy


def _all_known(inputs: Sequence[Value | None]) -> bool:
    return all(value is None or is_constant(value) for value in inputs)


def _fold(node: onnx.NodeProto, inputs: Sequence[Value | None], opset: int) -> list[Value] | None:
    """The outputs of a node of known inputs, by the reference implementation; None where that has none."""
    from onnx.reference import ReferenceEvaluator

    if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
        return None
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        return [numpy_helper.to_array(node.attribute[0].t)]
    # Optional outputs that nobody wants have no names; the evaluator needs a graph that lists the others.
    feeds, names = {}, []
    for number, value in enumerate(inputs):
        names.append("" if value is None else f"i{number}")
        if value is not None:
            feeds[f"i{number}"] = value
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = "n"
    copy.input[:] = names
    copy.output[:] = [f"o{number}" if name else "" for number, name in enumerate(node.output)]
    wanted = [name for name in copy.output if name]
    try:
        graph = helper.make_graph(
            [copy],
            "g",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in feeds.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in wanted],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(None, feeds)
    except Exception:
        return None
    if any(not isinstance(value, np.ndarray | np.generic) or np.size(value) > _FOLDED_ELEMENTS for value in found):
        return None
    by_name = dict(zip(wanted, (np.asarray(value) for value in found), strict=True))
    return [by_name.get(name) for name in copy.output]


def _type(value: Value) -> bytes:
    """A value's ONNX type."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(value)))
    made: bytes = helper.make_tensor_type_proto(kind, shape_of(value)).SerializeToString()
    return made
