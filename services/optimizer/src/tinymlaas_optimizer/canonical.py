"""One form for models that differ only in names: order, names and provenance of an ONNX file made canonical."""

from __future__ import annotations

from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tinymlaas_optimizer.graphs import ordered

_PRODUCER: Final = "tinymlaas-optimizer"
_IR_VERSION: Final = 8
# int4 tensors, and the opset that has them, came with this version.
_WIDE_IR_VERSION, _WIDE_OPSET = 10, 21


def canonical(model: ModelProto) -> ModelProto:
    """The same model with canonical names and order; inputs and outputs keep their names.

    Nodes stand in an order that only the graph decides; tensors are named after the nodes that write them, constants by
    the order in which they are first read, equal ones once; all values are stored as raw data.
    """
    source = model.graph
    nodes = ordered(source)
    borders = {value.name for value in (*source.input, *source.output)}
    names = {name: name for name in borders}
    constants = {tensor.name: tensor for tensor in source.initializer}
    made: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    initializers: list[TensorProto] = []
    counts: dict[str, int] = {}

    def fresh(prefix: str) -> str:
        while True:
            number = counts.get(prefix, 0)
            counts[prefix] = number + 1
            if f"{prefix}_{number}" not in borders:
                return f"{prefix}_{number}"

    def constant(name: str) -> str:
        values = numpy_helper.to_array(constants[name])
        key = (int(constants[name].data_type), values.shape, values.tobytes())
        if key not in made or name in borders:
            made[key] = name if name in borders else fresh("constant")
            initializers.append(numpy_helper.from_array(values, made[key]))
        return made[key]

    out: list[NodeProto] = []
    for node in nodes:
        copy = NodeProto(op_type=node.op_type, name=fresh(node.op_type.lower()))
        for name in node.input:
            if name in constants and name not in names:
                names[name] = constant(name)
            copy.input.append(names[name] if name else "")
        for position, name in enumerate(node.output):
            if name and name not in names:
                names[name] = f"{copy.name}_out" if position == 0 else f"{copy.name}_out_{position}"
                while names[name] in borders:
                    names[name] += "_"
            copy.output.append(names[name] if name else "")
        copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        for attribute in copy.attribute:
            attribute.ClearField("doc_string")
        out.append(copy)
    for value in source.output:
        if value.name in constants and not any(tensor.name == value.name for tensor in initializers):
            initializers.append(numpy_helper.from_array(numpy_helper.to_array(constants[value.name]), value.name))
    graph: GraphProto = helper.make_graph(out, "model", source.input, source.output, initializers)
    version = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    imports = [helper.make_opsetid("", version)]
    ir_version = _WIDE_IR_VERSION if version >= _WIDE_OPSET else _IR_VERSION
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports, producer_name=_PRODUCER)
