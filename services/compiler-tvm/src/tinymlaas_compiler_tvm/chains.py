"""Functions of one int8 tensor that are written as several operators on reals: one table of 256 values each.

DequantizeLinear, then any operators element by element with scalar constants, then QuantizeLinear: Gelu, HardSigmoid, Swish, a
square root and their like. The operators are run once on all 256 values, at compile time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from tinymlaas_compiler_tvm import float_arithmetic
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Tensor
from tinymlaas_modelkit.onnx_reader import ELEMENTWISE
from tinymlaas_modelkit.onnx_writer import write_onnx

_UNARY = frozenset(
    {
        OpKind.RELU, OpKind.RELU6, OpKind.LEAKY_RELU, OpKind.LOGISTIC, OpKind.TANH, OpKind.HARD_SWISH, OpKind.ADD, OpKind.SUB,
        OpKind.MUL, OpKind.DIV, OpKind.MINIMUM, OpKind.MAXIMUM, OpKind.PRELU, OpKind.QUANTIZE, OpKind.DEQUANTIZE,
    }
)  # fmt: skip
_LONGEST = 32


def with_tables(graph: Graph) -> Graph:
    """The same function with each chain from one int8 tensor to another as a TABLE."""
    makers = {name: op for op in graph.ops for name in op.outputs}
    found: dict[str, Op] = {}
    for op in graph.ops:
        if op.kind is OpKind.QUANTIZE and op.inputs[0] is not None:
            table = _chain(graph, makers, op)
            if table is not None:
                found[op.outputs[0]] = table
    if not found:
        return graph
    ops = [found.get(op.outputs[0], op) for op in graph.ops]
    return _without_unused(dataclasses.replace(graph, ops=tuple(ops)))


def _chain(graph: Graph, makers: Mapping[str, Op], last: Op) -> Op | None:
    """The table of the operators that end in `last`, if they start at one int8 tensor."""
    members: dict[int, Op] = {}
    sources: set[str] = set()
    todo = [last]
    while todo:
        op = todo.pop()
        if id(op) in members:
            continue
        if len(members) >= _LONGEST or not _is_elementwise(op):
            return None
        members[id(op)] = op
        for name in op.inputs:
            if name is None:
                continue
            tensor = graph.tensor(name)
            if tensor.is_constant:
                if tensor.elements != 1:
                    return None
            elif tensor.dtype is DType.INT8:
                sources.add(name)
            elif name in makers:
                todo.append(makers[name])
            else:
                return None
    out = graph.tensor(last.outputs[0])
    if len(sources) != 1 or out.dtype is not DType.INT8 or len(members) < 2:
        return None
    source = graph.tensor(next(iter(sources)))
    if source.quantization is None or source.quantization.scales.size != 1 or source.shape != out.shape:
        return None
    values = _evaluate(graph, [op for op in graph.ops if id(op) in members], source, last)
    return None if values is None else Op(OpKind.TABLE, (source.name,), last.outputs, {"table": values}, last.origin)


def _is_elementwise(op: Op) -> bool:
    node = op.attributes.get("node")
    if isinstance(node, bytes):
        proto = onnx.NodeProto.FromString(node)
        return proto.op_type in ELEMENTWISE and len(op.outputs) == 1
    return op.kind in _UNARY


def _evaluate(graph: Graph, ops: list[Op], source: Tensor, last: Op) -> bytes | None:
    """The results for -128 to 127, reals by ONNX's reference evaluator; None where it can't tell."""
    inner = [op for op in ops if op.kind not in (OpKind.DEQUANTIZE, OpKind.QUANTIZE)]
    starts = [op.outputs[0] for op in ops if op.kind is OpKind.DEQUANTIZE]
    made = {name for op in ops for name in op.outputs}
    result, out = last.inputs[0], graph.tensor(last.outputs[0]).quantization
    if result is None or out is None or source.quantization is None or (not inner and result not in starts):
        return None
    tensors = {}
    for name in {name for op in inner for name in (*op.inputs, *op.outputs) if name is not None}:
        tensor = graph.tensor(name)
        if name in made:
            tensor = dataclasses.replace(tensor, shape=(256,))
        elif tensor.data is not None:
            tensor = dataclasses.replace(tensor, shape=(), data=np.asarray(tensor.data).reshape(()))
        tensors[name] = tensor
    every = np.arange(-128, 128, dtype=np.int64)
    reals = float_arithmetic.dequantize(every, source.quantization.scale, source.quantization.zero_point)
    if inner:
        starts = [name for name in starts if name in tensors]
        try:
            with np.errstate(all="ignore"):
                model = onnx.load_from_string(write_onnx(Graph(tensors, tuple(inner), tuple(starts), (result,))))
                values = list(ReferenceEvaluator(model).run(None, dict.fromkeys(starts, reals)))
        except Exception:
            return None
        reals = np.asarray(values[0])
    if reals.dtype != np.float32 or reals.shape != (256,):
        return None
    return float_arithmetic.quantize(reals, out.scale, out.zero_point).astype(np.int8).tobytes()


def _without_unused(graph: Graph) -> Graph:
    needed, kept = set(graph.outputs), []
    for op in reversed(graph.ops):
        if needed.intersection(op.outputs):
            kept.append(op)
            needed.update(name for name in op.inputs if name is not None)
    return dataclasses.replace(graph, ops=tuple(reversed(kept)))
