"""Convolutions in any form, and products of two computed matrices, by plain loops."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from tinymlaas_compiler_tvm import arithmetic, float_arithmetic, requant
from tinymlaas_compiler_tvm.int8.channels import make_layer
from tinymlaas_compiler_tvm.int8.lowering import (
    Lower,
    Lowering,
    pointer,
    quantized,
    row_major,
    row_major_name,
    unsupported,
    words,
)
from tinymlaas_compiler_tvm.int8.values import braces
from tinymlaas_modelkit.graph import Op, OpKind

Int64s = np.ndarray[Any, np.dtype[np.int64]]


def _pair(op: Op, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(v) for v in cast("tuple[int, ...]", op.attributes.get(name, default)))


def lower_general_conv(state: Lowering, op: Op) -> None:
    """CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV with any number of images and groups."""
    name, out_name = row_major_name(state, op, str(op.inputs[0])), op.outputs[0]
    x, _, zero = quantized(state, op, name)
    filters = state.tensor(op.inputs[1]).data
    if filters is None:
        raise unsupported(op, "weights are not constant")
    weights = filters.astype(np.int64)
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        weights = weights.transpose(3, 1, 2, 0)
    layer = make_layer(state, op, weights.reshape(weights.shape[0], -1))
    out_channels, kh, kw, depth = weights.shape
    images, ih, iw, channels = x.shape
    _, oh, ow, _ = state.tensor(out_name).shape
    groups = channels // depth
    top, left, *_ = _pair(op, "pads", (0, 0, 0, 0))
    parts = []
    taps = kh * kw * depth
    for channel in range(out_channels):
        parts.append(words([int(layer.biases[channel]), *layer.portable_parameters(channel)]))
        parts.append(layer.weights[channel].astype(np.int8).tobytes() + b"\0" * (-taps % 4))
    data = b"".join(parts)
    stream = state.constant(data)
    target = state.output(out_name)
    state.planar.discard(out_name)
    state.places[out_name] = type(target)(target.buffer, planar=False)
    values = [
        images, ih, iw, channels, oh, ow, out_channels, kh, kw, depth, out_channels // groups,
        *_pair(op, "strides", (1, 1)), *_pair(op, "dilations", (1, 1)), top, left, zero, layer.low, layer.high,
        int(op.kind is OpKind.TRANSPOSE_CONV), len(data) // out_channels,
    ]  # fmt: skip
    state.use("conv_general")
    body = (
        f"static const tim_conv_general_desc d = {braces(values)};\n"
        f"  tim_conv_general(&d, {pointer(state.place(name).buffer)}, {pointer(target.buffer)}, W({stream}));"
    )
    macs = images * oh * ow * int(layer.weights.size)
    state.step(str(op.kind).lower(), op, body, [name], [out_name], [], len(data), macs)


def or_general(fast: Lower) -> Lower:
    """The fast kernels where they take the form of a convolution, plain loops elsewhere."""

    def lower(state: Lowering, op: Op) -> None:
        x, filters = state.tensor(op.inputs[0]), state.tensor(op.inputs[1])
        grouped = op.kind is OpKind.CONV_2D and filters.shape[-1] != x.shape[-1]
        smallest = int(np.asarray(filters.data).min(initial=0)) if filters.data is not None else 0
        if grouped or x.shape[0] != 1 or smallest < -127:
            lower_general_conv(state, op)
        else:
            fast(state, op)

    return lower


def single_requant(
    state: Lowering, op: Op, real: float, out_scale: float, out_zero: int, limits: tuple[int, int]
) -> tuple[str, str]:
    """C of (declarations, expression of `acc`) that turns an accumulator within `limits`, of step `real`, into int8.

    With fixed point `real` / `out_scale` is quantized as TFLite's kernels do, with ONNX's rounding the result is exact.
    """
    if state.settings.rounding == "onnx":
        function = float_arithmetic.requantization(np.array([real]), out_scale, out_zero, -128, 127)
    else:
        multiplier, shift = arithmetic.quantize_multiplier(real / out_scale)

        def function(acc: Int64s) -> Int64s:
            return arithmetic.requantize(acc, multiplier, shift, out_zero, -128, 127)

    return proven_requant(state, op, function, real / out_scale, limits)


def proven_requant(state: Lowering, op: Op, function: Any, slope: float, limits: tuple[int, int]) -> tuple[str, str]:
    """C of (declarations, expression of `acc`) that equals a monotone function of accumulators within `limits`."""
    low, high = (np.array([limit], np.int64) for limit in limits)
    if max(-limits[0], limits[1]) >= 1 << (31 - requant.PRE_SHIFT):
        raise unsupported(op, "accumulators may pass 23 bits")
    steps = requant.find_steps(function, np.array([slope]), low, high, -128, 127)
    fitted = requant.fit_best(steps, low, high)
    if fitted is None:
        raise unsupported(op, "no exact requantization was found")
    negative = 0 if fitted.negatives is None else int(fitted.negatives[0])
    values = [int(fitted.multipliers[0]), int(fitted.offsets[0]), negative * 32 + int(fitted.shifts[0])]
    state.use("portable_requant")
    return f"static const int32_t p[3] = {braces(values)};", "tim_requant(acc, p, -128, 127)"


def lower_batch_matmul(state: Lowering, op: Op) -> None:
    """BATCH_MATMUL of two computed tensors."""
    names = [row_major_name(state, op, str(name)) for name in op.inputs[:2]]
    (a, sa, za), (b, sb, zb) = (quantized(state, op, name) for name in names)
    out, so, zo = quantized(state, op, op.outputs[0])
    if len(a.shape) != len(b.shape) or len(a.shape) < 2 or any(state.tensor(n).is_constant for n in names):
        raise unsupported(op, "operands of different rank")
    adjoint = [bool(op.attributes[flag]) for flag in ("adj_x", "adj_y")]
    rows, columns = out.shape[-2:]
    depth = a.shape[-2] if adjoint[0] else a.shape[-1]
    limit = depth * 255 * 255
    head, result = single_requant(state, op, float(sa) * float(sb), so, zo, (-limit, limit))
    steps = [[0 if n == 1 else s for n, s in zip(t.shape, row_major(t.shape), strict=True)][:-2] for t in (a, b)]
    row_a, inner_a = (1, a.shape[-1]) if adjoint[0] else (a.shape[-1], 1)
    inner_b, column_b = (1, b.shape[-1]) if adjoint[1] else (b.shape[-1], 1)
    target = state.output(op.outputs[0])
    lines = [head, f"int8_t *out = {pointer(target.buffer)};"]
    at = ["", ""]
    for number, extent in enumerate(out.shape[:-2]):
        lines.append(f"for (int32_t i{number} = 0; i{number} < {extent}; ++i{number})")
        for side in (0, 1):
            at[side] += f" + i{number} * {steps[side][number]}" if steps[side][number] else ""
    sources = [pointer(state.place(name).buffer) for name in names]
    lines += [
        f"for (int32_t r = 0; r < {rows}; ++r)",
        f"for (int32_t c = 0; c < {columns}; ++c) {{",
        f"  const int8_t *x = {sources[0]}{at[0]} + r * {row_a}, *y = {sources[1]}{at[1]} + c * {column_b};",
        "  int32_t acc = 0;",
        f"  for (int32_t k = {depth}; k; --k, x += {inner_a}, y += {inner_b}) acc += (*x - {za}) * (*y - {zb});",
        f"  *out++ = {result};",
        "}",
    ]
    macs = math.prod(out.shape) * depth
    state.step("batch_matmul", op, "\n  ".join(lines).replace("- -", "+ "), names, [op.outputs[0]], macs=macs)
