"""Checks of an ONNX file that are safe in this process: wire form, versions, names, order, constants, operators.

Clauses: Open Neural Network Exchange intermediate representation specification (IR.md), operator schemas of the onnx
package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from ._dataflow import Step, check_dataflow, find_cycle
from ._limits import Limits
from ._onnx_tensors import check_dims, check_tensor, static_shape
from ._rejection import ModelRejected, Problem
from ._wire import scan_onnx

STANDARD: Final = ""
Values = Mapping[str, npt.NDArray[np.generic]]
_OLDEST_IR: Final = 3
# (operator, place of the scale, place of the zero point); ONNX operator documentation.
_SCALES: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    "QuantizeLinear": ((1, 2),),
    "DequantizeLinear": ((1, 2),),
    "QLinearConv": ((1, 2), (4, 5), (6, 7)),
    "QLinearMatMul": ((1, 2), (4, 5), (6, 7)),
}

# Who may read an infinite constant: operators that select or bound by it (the mask of attention), and those that only
# move it there. As a weight, a scale or a statistic it makes every result infinite or NaN.
_TAKE_INFINITY: Final = frozenset((
    "Add", "Cast", "CastLike", "Clip", "Concat", "Constant", "ConstantOfShape", "Equal", "Expand", "Gather",
    "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mul", "Pad", "Reshape", "Slice",
    "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
))  # fmt: skip


@dataclass(frozen=True)
class CheckedOnnx:
    """An ONNX model whose structure has been checked, with the values of its constants and its declared inputs."""

    model: ModelProto
    opset: int
    constants: Values
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]


def check_onnx_structure(data: bytes, limits: Limits) -> CheckedOnnx:
    """Parse and check everything about an ONNX file that needs no shape inference.

    ModelRejected with the first problem.
    """
    scan_onnx(data, limits)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelRejected(Problem.MALFORMED, "file", "it does not parse as an ONNX model") from error
    if not model.HasField("graph"):
        raise ModelRejected(Problem.NOT_A_MODEL, "file", "it holds no graph")
    domains = _check_versions(model, limits)
    _check_functions(model, limits)
    graph = model.graph
    for node in graph.node:
        _check_node(node, domains, limits)
    constants = _check_constants(graph, limits)
    inputs = _check_borders(graph, constants, limits)
    _check_names(graph, limits)
    steps = [
        Step(_label(node), [name for name in node.input if name], [name for name in node.output if name])
        for node in graph.node
    ]
    check_dataflow(steps, [*inputs, *constants], [value.name for value in graph.output])
    everything = {**constants, **_constant_nodes(graph, limits)}
    infinite = _infinite(graph, everything, limits)
    for node in graph.node:
        _check_infinities(node, infinite)
        _check_scales(node, everything)
        _check_fills(node, everything, limits)
    return CheckedOnnx(model, domains[STANDARD], everything, inputs)


def _label(node: NodeProto) -> str:
    return f"node {node.name or (node.output[0] if node.output else '')} ({node.op_type})"


def _domain(name: str) -> str:
    return STANDARD if name == "ai.onnx" else name


def _check_versions(model: ModelProto, limits: Limits) -> dict[str, int]:
    """Version of each imported domain; OPSET_UNSUPPORTED or MALFORMED."""
    if model.ir_version <= 0:
        raise ModelRejected(Problem.MALFORMED, "ir_version", f"IR version {model.ir_version}")
    if not _OLDEST_IR <= model.ir_version <= onnx.IR_VERSION:
        detail = f"IR version {model.ir_version}, supported are {_OLDEST_IR} to {onnx.IR_VERSION}"
        raise ModelRejected(Problem.OPSET_UNSUPPORTED, "ir_version", detail)
    domains: dict[str, int] = {}
    for entry in model.opset_import:
        domain = _domain(entry.domain)
        if domain in domains or entry.version <= 0:
            raise ModelRejected(
                Problem.MALFORMED, "opset_import", f"domain '{domain}' at version {entry.version}, or twice"
            )
        domains[domain] = entry.version
    if STANDARD not in domains:
        raise ModelRejected(Problem.MALFORMED, "opset_import", "the standard opset is not imported")
    newest = onnx.defs.onnx_opset_version()
    if not limits.opset_min <= domains[STANDARD] <= newest:
        detail = f"opset {domains[STANDARD]}, supported are {limits.opset_min} to {newest}"
        raise ModelRejected(Problem.OPSET_UNSUPPORTED, "opset_import", detail)
    return domains


def _check_functions(model: ModelProto, limits: Limits) -> None:
    """CYCLE if functions call each other in a circle, TOO_MANY_NODES if they expand too far, else OP_UNSUPPORTED."""
    if not model.functions:
        return
    functions = {(_domain(f.domain), f.name): f for f in model.functions}
    if len(functions) != len(model.functions):
        raise ModelRejected(Problem.DUPLICATE_NAME, "functions", "two functions have one name")
    calls = {}
    for key, function in functions.items():
        called = [(_domain(node.domain), node.op_type) for node in _all_nodes(function.node)]
        calls[key] = [name for name in called if name in functions]
    stuck = find_cycle(calls)
    if stuck is not None:
        raise ModelRejected(Problem.CYCLE, f"function {stuck[1]}", "calls itself, or waits for one that does")
    size: dict[tuple[str, str], int] = {}
    pending = list(functions)
    while pending:
        key = pending[-1]
        missing = [name for name in calls[key] if name not in size]
        if missing:
            pending.extend(set(missing))
            continue
        pending.pop()
        size[key] = len(functions[key].node) + sum(size[name] for name in calls[key])
        if size[key] > limits.nodes:
            raise ModelRejected(
                Problem.TOO_MANY_NODES, f"function {key[1]}", f"expands to more than {limits.nodes} nodes"
            )
    name = model.functions[0].name
    raise ModelRejected(Problem.OP_UNSUPPORTED, f"function {name}", "model-local functions: inline them first", op=name)


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """The nodes and those of all subgraphs (bounded: the wire scan has counted them)."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def _check_node(node: NodeProto, domains: Mapping[str, int], limits: Limits) -> None:
    """The operator exists and has no control flow, and its attributes are sound."""
    where = _label(node)
    domain = _domain(node.domain)
    more = {"op": node.op_type, "node": node.name}
    if domain not in domains:
        raise ModelRejected(Problem.MALFORMED, where, f"domain '{domain}' is not imported", **more)
    if domain != STANDARD:
        raise ModelRejected(Problem.OP_UNSUPPORTED, where, f"operator {node.op_type} of domain '{domain}'", **more)
    if not onnx.defs.has(node.op_type, domains[STANDARD], STANDARD):
        detail = f"opset {domains[STANDARD]} has no operator {node.op_type}"
        raise ModelRejected(Problem.NO_SUCH_OP, where, detail, **more)
    schema = onnx.defs.get_schema(node.op_type, domains[STANDARD], STANDARD)
    if schema.deprecated:
        raise ModelRejected(
            Problem.NO_SUCH_OP, where, f"opset {domains[STANDARD]} no longer has {node.op_type}", **more
        )
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        raise ModelRejected(Problem.DUPLICATE_NAME, where, "two attributes have one name")
    if any(a.HasField("g") or len(a.graphs) for a in node.attribute):
        raise ModelRejected(Problem.OP_UNSUPPORTED, where, f"control flow: {node.op_type}", **more)
    if any(d.type == onnx.defs.OpSchema.AttrType.GRAPH and d.required for d in schema.attributes.values()):
        raise ModelRejected(Problem.MALFORMED, where, "its subgraph is missing", **more)
    for attribute in node.attribute:
        _check_attribute(attribute, f"{where} attribute {attribute.name}", limits)


def _check_attribute(attribute: AttributeProto, where: str, limits: Limits) -> None:
    if attribute.ref_attr_name:
        raise ModelRejected(Problem.MALFORMED, where, "refers to an attribute of a function outside of one")
    if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
        raise ModelRejected(Problem.OP_UNSUPPORTED, where, "sparse tensors")
    if not np.isfinite(np.array([attribute.f, *attribute.floats], np.float64)).all():
        raise ModelRejected(Problem.BAD_VALUE, where, "holds NaN or infinity")
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        check_tensor(tensor, where, limits)


def _check_constants(graph: GraphProto, limits: Limits) -> dict[str, npt.NDArray[np.generic]]:
    if len(graph.sparse_initializer):
        raise ModelRejected(Problem.OP_UNSUPPORTED, "sparse_initializer", "sparse tensors")
    if len(graph.initializer) > limits.tensors:
        raise ModelRejected(
            Problem.TOO_MANY_TENSORS, "initializers", f"{len(graph.initializer)}, the limit is {limits.tensors}"
        )
    constants: dict[str, npt.NDArray[np.generic]] = {}
    for tensor in graph.initializer:
        where = f"initializer {tensor.name}"
        if not tensor.name:
            raise ModelRejected(Problem.MALFORMED, where, "it has no name")
        values = check_tensor(tensor, where, limits)
        if tensor.name in constants:
            raise ModelRejected(Problem.DUPLICATE_NAME, where, "two initializers have one name")
        constants[tensor.name] = values
    return constants


def _check_borders(graph: GraphProto, constants: Values, limits: Limits) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each true input (one without an initializer), by name."""
    for side, values in (("inputs", graph.input), ("outputs", graph.output)):
        if len(values) > limits.inputs_outputs + (len(constants) if side == "inputs" else 0):
            raise ModelRejected(Problem.TOO_MANY_TENSORS, side, f"{len(values)}, the limit is {limits.inputs_outputs}")
        names = [value.name for value in values]
        if len(set(names)) != len(names):
            raise ModelRejected(Problem.DUPLICATE_NAME, side, "two of them have one name")
        if not all(names):
            raise ModelRejected(Problem.MALFORMED, side, "one of them has no name")
    if not graph.output:
        raise ModelRejected(Problem.NO_OUTPUT, "graph", "the graph has no outputs")
    inputs = {}
    for value in graph.input:
        where = f"input {value.name}"
        dtype, shape = static_shape(value, where, limits)
        if value.name not in constants:
            inputs[value.name] = (dtype, shape)
        elif constants[value.name].shape != shape or constants[value.name].dtype != dtype:
            raise ModelRejected(Problem.SHAPE_MISMATCH, where, "its initializer has another type or shape")
    if not inputs:
        raise ModelRejected(Problem.NO_INPUT, "graph", "the graph has no inputs")
    return inputs


def _check_names(graph: GraphProto, limits: Limits) -> None:
    """MODEL_TOO_LARGE for a name over the limit, TOO_MANY_TENSORS for too many of them."""
    names = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    names.update(value.name for value in (*graph.input, *graph.output, *graph.value_info))
    names.update(tensor.name for tensor in graph.initializer)
    if len(names) > 2 * limits.tensors:
        raise ModelRejected(Problem.TOO_MANY_TENSORS, "graph", f"{len(names)} names")
    for name in names:
        if len(name.encode()) > limits.name_bytes:
            raise ModelRejected(
                Problem.MODEL_TOO_LARGE, f"name {name}", f"names have at most {limits.name_bytes} bytes"
            )


def _constant_nodes(graph: GraphProto, limits: Limits) -> dict[str, npt.NDArray[np.generic]]:
    """Values of Constant nodes that hold a tensor, already checked with their attributes."""
    return {
        node.output[0]: check_tensor(attribute.t, _label(node), limits)
        for node in graph.node
        if node.op_type == "Constant" and len(node.output) == 1
        for attribute in node.attribute
        if attribute.name == "value" and attribute.HasField("t")
    }


def _infinite(graph: GraphProto, constants: Values, limits: Limits) -> frozenset[str]:
    """Names of the constants that hold an infinity, ConstantOfShape's among them."""
    fills = {
        name: check_tensor(attribute.t, _label(node), limits)
        for node in graph.node
        if node.op_type == "ConstantOfShape"
        for attribute in node.attribute
        if attribute.HasField("t")
        for name in node.output
    }
    return frozenset(
        name
        for name, values in (*constants.items(), *fills.items())
        if values.dtype.kind == "f" and np.isinf(values).any()
    )


def _check_infinities(node: NodeProto, infinite: frozenset[str]) -> None:
    """BAD_VALUE for an operator that computes with an infinite constant."""
    named = next((name for name in node.input if name in infinite), None)
    if named is not None and node.op_type not in _TAKE_INFINITY:
        raise ModelRejected(Problem.BAD_VALUE, _label(node), f"reads constant {named}, which holds infinity")


def _check_scales(node: NodeProto, constants: Values) -> None:
    """BAD_VALUE for a scale that is not positive; SHAPE_MISMATCH for zero points of another shape."""
    for scale_at, zero_at in _SCALES.get(node.op_type, ()):
        scale = constants.get(node.input[scale_at]) if scale_at < len(node.input) else None
        zero = constants.get(node.input[zero_at]) if zero_at < len(node.input) else None
        if scale is None:
            continue
        if scale.size == 0 or not (scale.astype(np.float64) >= np.finfo(np.float32).tiny).all():
            raise ModelRejected(Problem.BAD_VALUE, _label(node), "a scale is zero, negative or too small")
        if zero is not None and zero.size != scale.size:
            raise ModelRejected(Problem.SHAPE_MISMATCH, _label(node), f"{scale.size} scales, {zero.size} zero points")


def _check_fills(node: NodeProto, constants: Values, limits: Limits) -> None:
    """TENSOR_TOO_LARGE for operators that make a big tensor out of a small constant, before anyone folds them."""
    given = [constants.get(name) for name in node.input]
    if node.op_type in ("ConstantOfShape", "Expand", "Tile") and any(
        x is not None and x.size > limits.rank for x in given[-1:]
    ):
        raise ModelRejected(Problem.BAD_SHAPE, _label(node), f"makes a tensor of more than {limits.rank} dimensions")
    shape: list[int] | None = None
    if node.op_type == "ConstantOfShape" and given and given[0] is not None:
        shape = [int(dim) for dim in given[0].reshape(-1)]
    elif node.op_type == "Expand" and len(given) > 1 and given[1] is not None:
        shape = [int(dim) for dim in given[1].reshape(-1)]
    elif node.op_type == "Tile" and len(given) > 1 and given[0] is not None and given[1] is not None:
        repeats = [int(times) for times in given[1].reshape(-1)]
        if len(repeats) != given[0].ndim:
            raise ModelRejected(Problem.SHAPE_MISMATCH, _label(node), "one repeat for each dimension is needed")
        shape = [dim * times for dim, times in zip(given[0].shape, repeats, strict=True)]
    elif node.op_type == "Range" and all(x is not None and x.size == 1 for x in given):
        start, limit, delta = (float(x.reshape(-1)[0]) for x in given if x is not None)
        steps = (limit - start) / delta if delta else 0.0
        if not np.isfinite(steps):
            raise ModelRejected(Problem.BAD_VALUE, _label(node), f"counts from {start} to {limit} by {delta}")
        shape = [max(0, ceil(steps))]
    elif node.op_type in ("RandomNormal", "RandomUniform"):
        shape = [int(dim) for attribute in node.attribute if attribute.name == "shape" for dim in attribute.ints]
    if shape is not None:
        check_dims(shape, 1, _label(node), limits, empty=True)
