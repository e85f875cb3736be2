"""Quantized operators in float or int32: QuantizeLinear, DequantizeLinear, QLinear..., DynamicQuantizeLinear.

Rounding is ONNX's: to nearest, ties to even, by a division by the scale in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Converter,
    Emitter,
    Node,
    Refused,
    Value,
    axis_of,
    dtype_of,
    external,
    is_constant,
    known,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.elementwise import f, maximum, minimum
from tinymlaas_compiler_tvm.relax.operators.linear import convolution, matrix_product, shifted

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


def _along(e: Emitter, node: Node, value: Value, rank_of: Value) -> Value:
    """Scales or zero points in a shape that broadcasts: one, one a place of the axis, or one a block."""
    own, shape = shape_of(rank_of), shape_of(value)
    if int(np.prod(shape, dtype=np.int64)) == 1:
        return e.reshape(value, ())
    axis = axis_of(int(node.attribute("axis", 1)), len(own))
    if len(shape) == 1:
        return e.reshape(value, [shape[0] if place == axis else 1 for place in range(len(own))])
    block = int(node.attribute("block_size", 0))
    if not block:
        raise Refused("scales of several dimensions without blocks")
    repeated = np.repeat(known(value, "scales of blocks"), block, axis)
    return np.ascontiguousarray(np.take(repeated, np.arange(own[axis]), axis))


def _rounded(scaled: Any, zero: Any, dtype: str) -> Any:
    """round(scaled) + zero, saturated to an integer type; NaN goes to the zero point's side of 0."""
    low, high = _RANGES[dtype]
    shift = zero.astype("float32")
    whole = external("tim_rintf", scaled) + shift
    return maximum(f(low), minimum(f(high), whole)).astype("int32").astype(dtype)


def quantize(e: Emitter, node: Node) -> list[Value]:
    """QuantizeLinear to int8, uint8 or int16."""
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    if zero is None:
        import onnx

        to = int(node.attribute("output_dtype", 0))
        dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to))) if to else "uint8"
        zero = np.zeros(shape_of(scale), dtype)
    dtype = dtype_of(zero)
    if dtype not in _RANGES:
        raise Refused(f"element type {dtype}")
    x = e.cast(x, "float32")
    scale, zero = _along(e, node, scale, x), _along(e, node, zero, x)
    return [e.elementwise("quantize", lambda a, s, z: _rounded(a / s, z, dtype), x, scale, zero)]


def dequantize(e: Emitter, node: Node) -> list[Value]:
    """DequantizeLinear to float32."""
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    if dtype_of(scale) != "float32":
        raise Refused(f"scale of type {dtype_of(scale)}")
    scale = _along(e, node, scale, x)
    if zero is None:
        return [e.elementwise("dequantize", lambda a, s: a.astype("float32") * s, x, scale)]
    zero = _along(e, node, zero, x)
    return [
        e.elementwise(
            "dequantize", lambda a, s, z: (a.astype("int32") - z.astype("int32")).astype("float32") * s, x, scale, zero
        )
    ]


def dynamic_quantize(e: Emitter, node: Node) -> list[Value]:
    """DynamicQuantizeLinear: uint8 with the scale of the data's own range, which holds 0."""
    x = node.inputs[0]
    axes = range(len(shape_of(x)))
    low = e.reduce("min", x, axes, False, lambda a: a, "min")
    high = e.reduce("max", x, axes, False, lambda a: a, "max")
    scale = e.elementwise("scale", lambda a, b: (maximum(f(0), b) - minimum(f(0), a)) / f(255), low, high)
    zero = e.elementwise(
        "zero_point",
        lambda a, s: (
            maximum(f(0), minimum(f(255), external("tim_rintf", -minimum(f(0), a) / s))).astype("int32").astype("uint8")
        ),
        low,
        scale,
    )
    y = e.elementwise("quantize", lambda a, s, z: _rounded(a / s, z, "uint8"), x, scale, zero)
    return [y, scale, zero]


def quantized_matmul(e: Emitter, node: Node) -> list[Value]:
    """QLinearMatMul: int32 sums, requantized in float."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs[:8]
    if dtype_of(a_scale) != "float32":
        raise Refused(f"scale of type {dtype_of(a_scale)}")
    total = matrix_product(e, shifted(e, a, a_zero, -2), shifted(e, b, b_zero, -1), "int32")
    rank = len(shape_of(total))

    def side(value: Value, axis: int) -> Value:
        count = shape_of(value)
        if len(count) == 1 and count[0] != 1:
            shape = [1] * rank
            shape[axis] = count[0]
            return e.reshape(value, shape)
        return e.reshape(value, ()) if int(np.prod(count, dtype=np.int64)) == 1 else value

    scale = _product(e, side(a_scale, -2), side(b_scale, -1))
    return [_requantized(e, total, scale, side(y_scale, -2), side(y_zero, -2))]


def quantized_conv(e: Emitter, node: Node) -> list[Value]:
    """QLinearConv: int32 sums and bias, requantized in float; weights may have a scale a channel."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    total = convolution(e, node, shifted(e, x, x_zero, 0), shifted(e, w, w_zero, 0), "int32")
    rank = len(shape_of(total))
    if node.input(8) is not None:
        bias = e.reshape(node.inputs[8], (1, shape_of(node.inputs[8])[0], *[1] * (rank - 2)))
        total = e.elementwise("add", lambda s, b: s + b, total, bias)
    if int(np.prod(shape_of(w_scale), dtype=np.int64)) == 1:
        w_scale = e.reshape(w_scale, ())
    else:
        w_scale = e.reshape(w_scale, (1, shape_of(w_scale)[0], *[1] * (rank - 2)))
    scale = _product(e, e.reshape(x_scale, ()), w_scale)
    return [_requantized(e, total, scale, e.reshape(y_scale, ()), e.reshape(y_zero, ()))]


def _product(e: Emitter, a: Value, b: Value) -> Value:
    if is_constant(a) and is_constant(b):
        return np.asarray(a * b)
    return e.elementwise("scales", lambda x, y: x * y, a, b)


def _requantized(e: Emitter, total: Value, scale: Value, y_scale: Value, y_zero: Value) -> Value:
    dtype = dtype_of(y_zero)
    if dtype not in _RANGES:
        raise Refused(f"element type {dtype}")
    return e.elementwise(
        "requantize",
        lambda t, s, o, z: _rounded(t.astype("float32") * s / o, z, dtype),
        total,
        scale,
        y_scale,
        y_zero,
    )


CONVERTERS: dict[str, Converter] = {
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "QLinearConv": quantized_conv,
    "QLinearMatMul": quantized_matmul,
    "QuantizeLinear": quantize,
}
