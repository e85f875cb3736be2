"""Make a graph fit TFLite's operators: paddings that SAME and VALID cannot say, and scales that kernels fix or share.

Each rewrite keeps the reals; where TFLite can only round twice (a pool between two scales) the docstring says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymlaas_modelkit.errors import OffendingOperator, UnsupportedOperator
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Quantization, Tensor
from tinymlaas_modelkit.quantization import per_tensor, same_quantization

FIXED_OUTPUT: Mapping[DType, Mapping[OpKind, Quantization]] = {
    DType.INT8: {
        OpKind.SOFTMAX: per_tensor(1 / 256, -128),
        OpKind.LOGISTIC: per_tensor(1 / 256, -128),
        OpKind.TANH: per_tensor(1 / 128, 0),
    },
    DType.INT16: {kind: per_tensor(1 / 32768, 0) for kind in (OpKind.SOFTMAX, OpKind.LOGISTIC, OpKind.TANH)},
}
"""Outputs that the kernels demand (TFLite 8-bit quantization specification, and its 16x8 mode)."""

SHARED_SCALE = frozenset(
    {
        OpKind.AVERAGE_POOL_2D,
        OpKind.MAX_POOL_2D,
        OpKind.RELU6,
        OpKind.RESHAPE,
        OpKind.TRANSPOSE,
        OpKind.GATHER,
        OpKind.REDUCE_MAX,
        OpKind.REDUCE_MIN,
        OpKind.PAD,
        OpKind.SLICE,
        OpKind.STRIDED_SLICE,
        OpKind.SPLIT,
        OpKind.RESIZE_BILINEAR,
        OpKind.RESIZE_NEAREST_NEIGHBOR,
    }
)
"""Operators whose integer kernels copy, clamp or average: input and output have one quantization."""

SHARED_OPERANDS = frozenset({OpKind.CONCATENATION, OpKind.MAXIMUM, OpKind.MINIMUM})
"""Operators whose operands take the quantization of the result."""

NOT_TFLITE = frozenset(
    {
        OpKind.TABLE, OpKind.FOREIGN, OpKind.BATCH_MATMUL, OpKind.DIV, OpKind.GATHER, OpKind.MAXIMUM, OpKind.MINIMUM, OpKind.PRELU,
        OpKind.REDUCE_MAX, OpKind.REDUCE_MIN, OpKind.TRANSPOSE_CONV,
    }
)  # fmt: skip
"""Operators that the writer has no TFLite form for."""

NOT_INT16 = frozenset({OpKind.HARD_SWISH, OpKind.RESIZE_BILINEAR})
"""Operators with an int8 kernel in TFLite Micro and none for int16."""

WEIGHTED = frozenset({OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED})
"""Operators with a filter and a bias, whose only activation is the first input."""

# An int16 result is this much finer than the int8 tensor that it is rounded to, and holds all its reals.
_FINER = 128

WINDOWED = frozenset({OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D})


class _Rewriter:
    def __init__(self, graph: Graph, windows: bool) -> None:
        self.graph = graph
        self.windows = windows
        self.tensors = dict(graph.tensors)
        self.ops: list[Op] = []
        self.offending: list[OffendingOperator] = []
        self.wide: dict[str, str] = {}

    def new(self, name: str, like: Tensor, **changes: Any) -> str:
        unique, number = name, 0
        while unique in self.tensors:
            number += 1
            unique = f"{name}_{number}"
        self.tensors[unique] = dataclasses.replace(like, name=unique, data=None, **changes)
        return unique

    def refuse(self, op: Op, detail: str) -> None:
        first = op.inputs[0]
        dtype = str(self.tensors[first].dtype) if first is not None else "unknown"
        self.offending.append(OffendingOperator(op.kind.value, op.origin, dtype, detail))

    # Padding

    def padding(self, op: Op) -> Op:
        """The operator with pads that are SAME or VALID; other pads become a PAD before it."""
        source = op.inputs[0]
        assert source is not None
        data, out = self.tensors[source], self.tensors[op.outputs[0]]
        pads = trimmed_pads(op, data.shape, out.shape, self.graph)
        if not any(pads) or pads == same_pads_of(op, data.shape, self.graph):
            return dataclasses.replace(op, attributes={**op.attributes, "pads": pads})
        if op.kind is OpKind.AVERAGE_POOL_2D:
            self.refuse(op, f"average over a window with pads {list(pads)}: TFLite knows only SAME and VALID")
            return op
        top, left, bottom, right = pads
        n, h, w, c = data.shape
        padded = self.new(f"{data.name}/padded", data, shape=(n, h + top + bottom, w + left + right, c))
        attributes: dict[str, object] = {"paddings": ((0, 0), (top, bottom), (left, right), (0, 0))}
        if op.kind is OpKind.MAX_POOL_2D:
            attributes["value"] = lowest(data)
        self.ops.append(Op(OpKind.PAD, (data.name,), (padded,), attributes, f"{op.origin}/pad"))
        return dataclasses.replace(
            op, inputs=(padded, *op.inputs[1:]), attributes={**op.attributes, "pads": (0, 0, 0, 0)}
        )

    # Scales

    def requantized(self, name: str, q: Quantization, origin: str, dtype: DType) -> str:
        """The name of an integer tensor under another quantization or element type (adds QUANTIZE)."""
        tensor = self.tensors[name]
        if tensor.dtype is dtype and same_quantization(tensor.quantization, q):
            return name
        if tensor.data is not None:
            from tinymlaas_modelkit.quantization import dequantize, quantize

            assert tensor.quantization is not None
            unique = self.new(f"{name}/rescaled", tensor, quantization=q, dtype=dtype)
            integers = quantize(dequantize(np.asarray(tensor.data), tensor.quantization), q, dtype.value)
            self.tensors[unique] = dataclasses.replace(self.tensors[unique], data=integers)
            return unique
        rescaled = self.new(f"{name}/rescaled", tensor, quantization=q, dtype=dtype)
        self.ops.append(Op(OpKind.QUANTIZE, (name,), (rescaled,), {}, f"{origin}/rescale"))
        return rescaled

    def widened(self, op: Op) -> Op:
        """The operator on int16: int8 activations keep their scale, so that no value changes."""
        names: list[str | None] = list(op.inputs)
        for position in self.operands(op):
            name = op.inputs[position]
            assert name is not None
            q = self.tensors[name].quantization
            if self.tensors[name].dtype is DType.INT16 or q is None:
                continue
            if name not in self.wide:
                self.wide[name] = self.requantized(name, per_tensor(q.scale, 0), op.origin, DType.INT16)
            names[position] = self.wide[name]
        return dataclasses.replace(op, inputs=tuple(names))

    def operands(self, op: Op) -> list[int]:
        """The positions of an operator's activations."""
        return [0] if op.kind in WEIGHTED else [i for i, name in enumerate(op.inputs) if name is not None]

    def computed_in(self, op: Op) -> DType:
        """The element type of an integer operator: that of its input where it only moves, else the widest; FLOAT32 for what
        stays as it is."""
        out = self.tensors[op.outputs[0]]
        integer = out.dtype in FIXED_OUTPUT and out.quantization is not None
        if op.kind in (OpKind.QUANTIZE, OpKind.DEQUANTIZE) or not integer:
            return DType.FLOAT32
        given = [self.tensors[op.inputs[i] or ""].dtype for i in self.operands(op)]
        if op.kind in SHARED_SCALE:
            return given[0]
        return DType.INT16 if DType.INT16 in (out.dtype, *given) else DType.INT8

    def scaled_after(self, op: Op, q: Quantization, dtype: DType) -> None:
        """Add the operator with outputs of `dtype` quantized by `q`, and QUANTIZE to what the graph wants."""
        outputs, rescales = [], []
        for name in op.outputs:
            wanted = self.tensors[name]
            if wanted.dtype is dtype and same_quantization(wanted.quantization, q):
                outputs.append(name)
                continue
            inner = self.new(f"{name}/unscaled", wanted, quantization=q, dtype=dtype)
            outputs.append(inner)
            rescales.append(Op(OpKind.QUANTIZE, (inner,), (name,), {}, f"{op.origin}/rescale"))
        self.ops.append(dataclasses.replace(op, outputs=tuple(outputs)))
        self.ops.extend(rescales)

    def add(self, op: Op) -> None:
        """Add an operator, rewritten where TFLite asks for it."""
        if op.kind in NOT_TFLITE:
            self.refuse(op, "the operator is not written as TFLite")
            return
        if op.kind in WINDOWED and self.windows:
            op = self.padding(op)
        source = op.inputs[0]
        assert source is not None
        own, out = self.tensors[source], self.tensors[op.outputs[0]]
        alike = own.dtype is out.dtype and same_quantization(own.quantization, out.quantization)
        if op.kind is OpKind.AVERAGE_POOL_2D and not alike and whole_window(op, self.tensors):
            # MEAN rounds once, from one scale to the other.
            op = Op(OpKind.MEAN, op.inputs, op.outputs, {"axes": (1, 2), "keep_dims": True}, op.origin)
        dtype = self.computed_in(op)
        if not self.symmetric(op):
            self.refuse(op, "int16 activations have zero point 0 in TFLite")
        elif dtype is DType.FLOAT32:
            self.ops.append(op)
        elif dtype is DType.INT16 and op.kind in NOT_INT16:
            self.refuse(op, "TFLite Micro has no int16 kernel")
        else:
            self.add_integer(self.widened(op) if dtype is DType.INT16 else op, dtype)

    def symmetric(self, op: Op) -> bool:
        """Whether the int16 tensors of an operator have zero point 0."""
        tensors = [self.tensors[name] for name in (*op.inputs, *op.outputs) if name is not None]
        return not any(
            t.dtype is DType.INT16 and t.quantization is not None and np.any(t.quantization.zero_points)
            for t in tensors
        )

    def add_integer(self, op: Op, dtype: DType) -> None:
        """Add an operator whose activations are of `dtype`, with the scales that its kernel asks for."""
        source, out = self.tensors[op.inputs[0] or ""], self.tensors[op.outputs[0]]
        own, wanted = source.quantization, out.quantization
        assert own is not None
        assert wanted is not None
        if out.dtype is not dtype:
            wanted = per_tensor(np.float32(wanted.scale) / np.float32(_FINER), 0)
        if op.kind in FIXED_OUTPUT[dtype]:
            self.scaled_after(op, FIXED_OUTPUT[dtype][op.kind], dtype)
        elif op.kind in SHARED_OPERANDS:
            inputs = tuple(None if i is None else self.requantized(i, wanted, op.origin, dtype) for i in op.inputs)
            self.scaled_after(dataclasses.replace(op, inputs=inputs), wanted, dtype)
        elif op.kind in SHARED_SCALE:
            self.scaled_after(op, own, dtype)
        else:
            self.scaled_after(op, wanted, dtype)


def lowest(tensor: Tensor) -> float:
    """The smallest real that a tensor can hold."""
    if tensor.quantization is None:
        return float(np.finfo(np.float32).min)
    return tensor.quantization.scale * (int(np.iinfo(tensor.dtype.value).min) - tensor.quantization.zero_point)


def whole_window(op: Op, tensors: dict[str, Tensor]) -> bool:
    """Whether a pool's window is the whole image and nothing is clamped."""
    source = op.inputs[0]
    assert source is not None
    shape = tensors[source].shape
    return (
        tuple(shape[1:3]) == op.attributes["kernel"]
        and op.attributes["activation"] == "NONE"
        and tensors[op.outputs[0]].shape[1:3] == (1, 1)
    )


def _ints(op: Op, name: str) -> tuple[int, ...]:
    values = op.attributes[name]
    assert isinstance(values, tuple)
    return values


def reach_of(op: Op, graph: Graph) -> tuple[int, int]:
    """Rows and columns of the input that one output looks at."""
    if op.kind in (OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D):
        kh, kw = _ints(op, "kernel")
        return kh, kw
    filter_name = op.inputs[1]
    assert filter_name is not None
    _, kh, kw, _ = graph.tensors[filter_name].shape
    dh, dw = _ints(op, "dilations")
    return (kh - 1) * dh + 1, (kw - 1) * dw + 1


def same_pads_of(op: Op, shape: tuple[int, ...], graph: Graph) -> tuple[int, int, int, int]:
    """The pads that SAME stands for."""
    from tinymlaas_modelkit.tflite_reader._context import same_pads

    sh, sw = _ints(op, "strides")
    return same_pads((shape[1], shape[2]), reach_of(op, graph), (sh, sw))


def trimmed_pads(op: Op, shape: tuple[int, ...], out: tuple[int, ...], graph: Graph) -> tuple[int, int, int, int]:
    """The pads without rows and columns at the end that no window reaches."""
    top, left, bottom, right = _ints(op, "pads")
    reach, (sh, sw) = reach_of(op, graph), _ints(op, "strides")
    used_bottom = (out[1] - 1) * sh + reach[0] - (shape[1] + top)
    used_right = (out[2] - 1) * sw + reach[1] - (shape[2] + left)
    return top, left, min(bottom, max(used_bottom, 0)), min(right, max(used_right, 0))


def legalize(graph: Graph, *, windows: bool = True) -> Graph:
    """The same graph in operators that TFLite has; UnsupportedOperator lists what cannot be said in TFLite.

    Without `windows` the paddings stay as they are, for kernels that take any.
    """
    rewriter = _Rewriter(graph, windows)
    for op in graph.ops:
        rewriter.add(op)
    if rewriter.offending:
        raise UnsupportedOperator(rewriter.offending)
    return Graph(rewriter.tensors, tuple(rewriter.ops), graph.inputs, graph.outputs)
