"""Write the graph as an ONNX file: float, or int8 and int16 as QuantizeLinear and DequantizeLinear around each operator."""

from __future__ import annotations

import onnx
from onnx import helper

from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind
from tinymlaas_modelkit.onnx_writer._context import Context, Value, onnx_type
from tinymlaas_modelkit.onnx_writer._ops import WRITERS

__all__ = ["write_onnx"]

OPSET = 13
"""The first with per-channel DequantizeLinear; HardSwish asks for 14."""

WIDE_OPSET = 21
"""The first whose QuantizeLinear takes int16."""

IR_VERSION = 8
PRODUCER = "TinyMLaaS"


def write_onnx(graph: Graph) -> bytes:
    """The ONNX file of a graph (opset 13, 14 with HardSwish, 21 with int16, or that of its FOREIGN operators).

    UnsupportedOperator where a FOREIGN operator of an older version means something else under that one. Equal graphs give
    equal bytes. Inputs and outputs keep names, shapes and types; layouts inside become NCHW where ONNX wants it.
    """
    context = Context(graph, _opset(graph))
    context.taken.update((*graph.inputs, *graph.outputs))
    for name in graph.inputs:
        context.values[name] = Value(name, context.identity(name))
    for op in graph.ops:
        WRITERS[op.kind](context, op)
    for name in graph.outputs:
        if name in graph.inputs:
            continue
        value = context.values[name]
        if value.name != name:
            move = [value.perm.index(p) for p in context.identity(name)]
            context.node("Transpose", [value.name], name, perm=move)
    infos = {
        name: helper.make_tensor_value_info(name, onnx_type(graph.tensors[name].dtype), list(graph.tensors[name].shape))
        for name in (*graph.inputs, *graph.outputs)
    }
    proto = helper.make_graph(
        context.nodes,
        "main",
        [infos[n] for n in graph.inputs],
        [infos[n] for n in graph.outputs],
        list(context.initializers.values()),
    )
    model = helper.make_model(proto, producer_name=PRODUCER, opset_imports=[helper.make_opsetid("", context.opset)])
    model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(model.opset_import))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _opset(graph: Graph) -> int:
    """The version of the operator set that the graph's operators ask for."""
    swish = any(op.kind is OpKind.HARD_SWISH for op in graph.ops)
    wide = any(_is_wide(graph, op) for op in graph.ops)
    least = WIDE_OPSET if wide else OPSET + 1 if swish else OPSET
    return max([least, *(int(str(op.attributes["opset"])) for op in graph.ops if op.kind is OpKind.FOREIGN)])


def _is_wide(graph: Graph, op: Op) -> bool:
    """Whether an operator is written with a QuantizeLinear or DequantizeLinear of ONNX's own on int16."""
    used = [graph.tensors[name] for name in (*op.inputs, *op.outputs) if name is not None]
    if op.kind is not OpKind.FOREIGN:
        return any(t.dtype is DType.INT16 and t.quantization is not None for t in used)
    serialized = op.attributes["node"]
    assert isinstance(serialized, bytes)
    node = onnx.NodeProto.FromString(serialized)
    own = not node.domain and node.op_type in ("QuantizeLinear", "DequantizeLinear")
    return own and any(t.dtype is DType.INT16 for t in used)
