"""What happens to a quantized graph before its operators become kernels: whose rounding it follows, and shared scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tinymlaas_compiler_tvm.chains import with_tables
from tinymlaas_compiler_tvm.parts import Numerics, NumericsClass
from tinymlaas_modelkit.errors import UnsupportedOperator
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Quantization, Tensor
from tinymlaas_modelkit.quantization import dequantize, quantize, same_quantization
from tinymlaas_modelkit.tflite_writer import legalize

# Operators that move or compare integers: with ONNX's rounding, another quantization at the output is a step of its own.
_MOVING = frozenset(
    {
        OpKind.MAX_POOL_2D, OpKind.RESHAPE, OpKind.TRANSPOSE, OpKind.PAD, OpKind.SLICE, OpKind.STRIDED_SLICE, OpKind.SPLIT,
        OpKind.RESIZE_NEAREST_NEIGHBOR, OpKind.GATHER, OpKind.REDUCE_MAX, OpKind.REDUCE_MIN,
    }
)  # fmt: skip
# Steps by which a value may differ from ONNX Runtime's where float32 noise tips a rounding somewhere before it: the largest
# that was seen inside the zoo's models on all labelled samples.
_SLIP = 2


def prepare(graph: Graph, rounding: str) -> tuple[Graph, str]:
    """The graph in forms that kernels take, and the rounding that it follows: `tflite` only where TFLite can say it all."""
    graph = with_tables(graph)
    if any(tensor.dtype is DType.FLOAT32 and not tensor.is_constant for tensor in graph.tensors.values()):
        rounding = "onnx"
    if rounding == "tflite":
        try:
            return legalize(graph, windows=False), "tflite"
        except UnsupportedOperator:
            return _shared_scales(graph), "onnx"
    return _shared_scales(graph), "onnx"


def numerics_of(graph: Graph, rounding: str) -> NumericsClass:
    """What is claimed of a module's outputs.

    With ONNX's rounding every layer is the exact result rounded once. ONNX Runtime adds float32 values, whose noise of about
    1e-5 steps tips some of a million roundings; a table or a softmax behind one makes its step larger.
    """
    if rounding == "tflite":
        return NumericsClass(Numerics.BIT_EXACT, "tflite")
    if all(graph.tensor(name).dtype is DType.INT8 for name in graph.outputs):
        return NumericsClass(
            Numerics.WITHIN_LSB, "onnx", lsb=min(max(_slip(graph, name) for name in graph.outputs), 255)
        )
    absolute = 2 * _SLIP * _step_before(graph, graph.outputs)
    return NumericsClass(Numerics.WITHIN_TOLERANCE, "onnx", relative=1e-4, absolute=max(absolute, 1e-5))


def _step_before(graph: Graph, names: Sequence[str]) -> float:
    """The largest step of the int8 tensors that the last operators on reals read."""
    makers = {name: op for op in graph.ops for name in op.outputs}
    todo, seen, largest = list(names), set[str](), 0.0
    while todo:
        name = todo.pop()
        tensor = graph.tensor(name)
        if name in seen or tensor.is_constant:
            continue
        seen.add(name)
        if tensor.dtype is DType.INT8 and tensor.quantization is not None:
            largest = max(largest, tensor.quantization.scale)
        elif name in makers:
            todo += [source for source in makers[name].inputs if source is not None]
    return largest


def _slip(graph: Graph, name: str) -> int:
    maker = next((op for op in graph.ops if name in op.outputs), None)
    out = graph.tensor(name).quantization
    if maker is None or maker.inputs[0] is None or out is None:
        return _SLIP
    source = graph.tensor(maker.inputs[0]).quantization
    if maker.kind in _MOVING and source is not None:
        return _slip(graph, maker.inputs[0])
    # The slope of a softmax or a logistic is at most a quarter; of other functions of one value here at most 1.2.
    steep = {
        OpKind.SOFTMAX: 0.25,
        OpKind.LOGISTIC: 0.25,
        OpKind.TANH: 1.0,
        OpKind.HARD_SWISH: 1.2,
        OpKind.QUANTIZE: 1.0,
    }
    if maker.kind in steep and source is not None:
        return max(_SLIP, int(np.ceil(_SLIP * steep[maker.kind] * source.scale / out.scale)) + 1)
    return _SLIP


class _Scales:
    def __init__(self, graph: Graph) -> None:
        self.tensors = dict(graph.tensors)
        self.ops: list[Op] = []

    def like(self, name: str, tensor: Tensor, quantization: Quantization) -> str:
        unique, number = name, 0
        while unique in self.tensors:
            number += 1
            unique = f"{name}_{number}"
        data = None
        if tensor.data is not None and tensor.quantization is not None:
            data = quantize(dequantize(np.asarray(tensor.data), tensor.quantization), quantization)
        self.tensors[unique] = dataclasses.replace(tensor, name=unique, quantization=quantization, data=data)
        return unique

    def add(self, op: Op) -> None:
        out = self.tensors[op.outputs[0]]
        first = None if op.inputs[0] is None else self.tensors[op.inputs[0]].quantization
        if out.dtype is not DType.INT8 or out.quantization is None or first is None:
            self.ops.append(op)
        elif op.kind in _MOVING:
            inner, rescales = [], []
            for name in op.outputs:
                tensor = self.tensors[name]
                if same_quantization(tensor.quantization, first):
                    inner.append(name)
                    continue
                inner.append(self.like(f"{name}/unscaled", tensor, first))
                rescales.append(Op(OpKind.QUANTIZE, (inner[-1],), (name,), {}, op.origin))
            self.ops += [dataclasses.replace(op, outputs=tuple(inner)), *rescales]
        elif op.kind is OpKind.CONCATENATION:
            names = []
            for name in filter(None, op.inputs):
                tensor = self.tensors[name]
                if same_quantization(tensor.quantization, out.quantization):
                    names.append(name)
                    continue
                names.append(self.like(f"{name}/rescaled", tensor, out.quantization))
                if tensor.data is None:
                    self.ops.append(Op(OpKind.QUANTIZE, (name,), (names[-1],), {}, op.origin))
            self.ops.append(dataclasses.replace(op, inputs=tuple(names)))
        else:
            self.ops.append(op)


def _shared_scales(graph: Graph) -> Graph:
    scales = _Scales(graph)
    for op in graph.ops:
        scales.add(op)
    return Graph(scales.tensors, tuple(scales.ops), graph.inputs, graph.outputs)
