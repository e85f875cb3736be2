"""Reductions over any axes, resizing, and choice along an axis, by loops that are written out for each operator."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from tinymlaas_compiler_tvm import arithmetic, float_arithmetic
from tinymlaas_compiler_tvm.int8.general import proven_requant
from tinymlaas_compiler_tvm.int8.lowering import (
    Lowering,
    memory_strides,
    pointer,
    quantized,
    row_major,
    row_major_name,
    unsupported,
)
from tinymlaas_compiler_tvm.int8.simple import real_pool
from tinymlaas_modelkit.graph import Op, OpKind

_MOST_BITS = 32


def _ints(op: Op, name: str) -> tuple[int, ...]:
    return tuple(int(v) for v in cast("Iterable[Any]", op.attributes[name]))


def mean_multiplier(ratio: float, count: int) -> tuple[int, int]:
    """TFLite's multiplier of a mean: 1 / count is taken into the multiplier of the scales, which is cut, not rounded."""
    multiplier, shift = arithmetic.quantize_multiplier(ratio)
    bits = min(count.bit_length() - 1, _MOST_BITS, 31 + shift)
    return (multiplier << bits) // count, shift - bits


def lower_reduce(state: Lowering, op: Op) -> None:
    """MEAN, REDUCE_MAX and REDUCE_MIN."""
    name, out_name = str(op.inputs[0]), op.outputs[0]
    x, in_scale, in_zero = quantized(state, op, name)
    out, out_scale, out_zero = quantized(state, op, out_name)
    axes = {axis % len(x.shape) for axis in _ints(op, "axes")}
    onnx = state.settings.rounding == "onnx"
    if (
        op.kind is OpKind.MEAN
        and onnx
        and op.attributes.get("order") == "lanes"
        and axes == {1, 2}
        and len(x.shape) == 4
    ):
        real_pool(state, op, (x.shape[1], x.shape[2]), "lanes")
        return
    count = math.prod(x.shape[axis] for axis in axes)
    start, add, head, result = f"{-in_zero * count}", "acc += *x", "", ""
    if op.kind is OpKind.MEAN:
        slope = float(in_scale) / float(out_scale) / count
        if onnx:
            function = float_arithmetic.requantization(np.array([in_scale / count]), out_scale, out_zero, -128, 127)
        else:
            multiplier, shift = mean_multiplier(float(in_scale) / float(out_scale), count)

            def function(acc: Any) -> Any:
                return arithmetic.requantize(acc, multiplier, shift, out_zero, -128, 127)

        head, result = proven_requant(state, op, function, slope, ((-128 - in_zero) * count, (127 - in_zero) * count))
    else:
        if (in_scale, in_zero) != (out_scale, out_zero):
            raise unsupported(op, "another quantization at the output")
        start, sign = ("-128", ">") if op.kind is OpKind.REDUCE_MAX else ("127", "<")
        add, result = f"acc = *x {sign} acc ? *x : acc", "(int8_t)acc"
    target = state.output(out_name)
    steps = memory_strides(state, x)
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    out_steps = memory_strides(state, out)
    places = kept if len(out.shape) != len(x.shape) else range(len(x.shape))
    wide = dict(zip(places, out_steps, strict=True))
    source, lines, at, to = pointer(state.place(name).buffer), [head] if head else [], "", ""
    for axis in kept:
        if x.shape[axis] != 1:
            lines.append(f"for (int32_t i{axis} = 0; i{axis} < {x.shape[axis]}; ++i{axis})")
            at += f" + i{axis} * {steps[axis]}"
            to += f" + i{axis} * {wide[axis]}"
    lines += ["{", f"  int32_t acc = {start};"]
    inner = ""
    for axis in sorted(axes):
        if x.shape[axis] != 1:
            lines.append(f"  for (int32_t i{axis} = 0; i{axis} < {x.shape[axis]}; ++i{axis})")
            inner += f" + i{axis} * {steps[axis]}"
    lines += [
        f"  {{ const int8_t *x = {source}{at}{inner}; {add}; }}",
        f"  *({pointer(target.buffer)}{to}) = {result};",
        "}",
    ]
    state.step(op.kind.lower(), op, "\n  ".join(lines), [name], [out_name])


def lower_gather(state: Lowering, op: Op) -> None:
    """GATHER with constant indices."""
    name = row_major_name(state, op, str(op.inputs[0]))
    x = quantized(state, op, name)
    if x[1:] != quantized(state, op, op.outputs[0])[1:]:
        raise unsupported(op, "another quantization at the output")
    shape = x[0].shape
    axis = int(cast("int", op.attributes["axis"])) % len(shape)
    indices = [index % shape[axis] for index in _ints(op, "indices")]
    offset = state.constant(np.array(indices, np.int32).tobytes())
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    target = state.output(op.outputs[0])
    body = (
        f"const int32_t *index = (const int32_t *)W({offset});\n  int8_t *out = {pointer(target.buffer)};\n"
        f"  for (int32_t i = 0; i < {outer}; ++i)\n  for (int32_t j = 0; j < {len(indices)}; ++j) {{\n"
        f"    const int8_t *x = {pointer(state.place(name).buffer)} + (i * {shape[axis]} + index[j]) * {inner};\n"
        f"    for (int32_t k = {inner}; k; --k) *out++ = *x++;\n  }}"
    )
    state.step("gather", op, body, [name], [op.outputs[0]], constant_bytes=4 * len(indices))


def _nearest(size_in: int, size_out: int, corners: bool, half: bool) -> list[int]:
    """TFLite's choice of neighbours, in float32 as there."""
    if corners and size_out > 1:
        scale = np.float32(size_in - 1) / np.float32(size_out - 1)
    else:
        scale = np.float32(size_in) / np.float32(size_out)
    at = (np.arange(size_out, dtype=np.float32) + np.float32(0.5 if half else 0.0)) * scale
    # Halves go away from zero (TfLiteRound).
    chosen = np.floor(at.astype(np.float64) + 0.5) if corners else np.floor(at)
    return [int(v) for v in np.clip(chosen, 0, size_in - 1)]


def _fixed_point(size_in: int, size_out: int, corners: bool, half: bool) -> list[tuple[int, int, int]]:
    """TFLite's (first, second, weight of the second in 1/1024) of each position."""
    if corners and size_out > 1:
        scale = ((size_in - 1) * 1024 + (size_out - 1) // 2) // (size_out - 1)
    else:
        scale = (size_in * 1024 + size_out // 2) // size_out
    found = []
    for position in range(size_out):
        at = position * scale + (scale // 2 - 512 if half else 0)
        first = max(int(at / 1024), 0)
        second = min(int((at + 1023) / 1024), size_in - 1)
        found.append((first, second, at - 1024 * first))
    return found


def _on_reals(size_in: int, size_out: int, corners: bool, half: bool) -> list[tuple[int, int, float, float]]:
    """ONNX Runtime's (first, second, weight of the first, weight of the second) of each position, in float32."""
    found = []
    scale = np.float32(size_out) / np.float32(size_in)
    for position in range(size_out):
        if corners:
            at = np.float32(0.0 if size_out == 1 else position * (size_in - 1) / (size_out - 1))
        elif half:
            at = (np.float32(position) + np.float32(0.5)) / scale - np.float32(0.5)
        else:
            at = np.float32(position) / scale
        inside = np.float32(min(max(float(at), 0.0), size_in - 1))
        first = min(int(inside), size_in - 1)
        second = min(first + 1, size_in - 1)
        weights = (
            (0.5, 0.5)
            if first == second
            else (abs(float(inside - np.float32(second))), abs(float(inside - np.float32(first))))
        )
        found.append((first, second, *weights))
    return found


def lower_resize(state: Lowering, op: Op) -> None:
    """RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR of any number of images."""
    name = row_major_name(state, op, str(op.inputs[0]))
    x, in_scale, in_zero = quantized(state, op, name)
    out, out_scale, out_zero = quantized(state, op, op.outputs[0])
    images, ih, iw, channels = x.shape
    _, oh, ow, _ = out.shape
    flags = bool(op.attributes["align_corners"]), bool(op.attributes["half_pixel_centers"])
    nearest, onnx = op.kind is OpKind.RESIZE_NEAREST_NEIGHBOR, state.settings.rounding == "onnx"
    if (nearest or not onnx) and (in_scale, in_zero) != (out_scale, out_zero):
        raise unsupported(op, "another quantization at the output")
    target = state.output(op.outputs[0])
    lines = [f"int8_t *out = {pointer(target.buffer)};", f"const int8_t *in = {pointer(state.place(name).buffer)};"]
    loops = [
        f"for (int32_t n = 0; n < {images}; ++n, in += {ih * iw * channels})",
        f"for (int32_t y = 0; y < {oh}; ++y)",
        f"for (int32_t x = 0; x < {ow}; ++x)",
    ]
    steps = row_major(x.shape)
    if nearest:
        data = np.array(
            [*(r * steps[1] for r in _nearest(ih, oh, *flags)), *(c * channels for c in _nearest(iw, ow, *flags))]
        )
        offset = state.constant(data.astype(np.int32).tobytes())
        lines.append(f"const int32_t *at = (const int32_t *)W({offset});")
        lines += [
            *loops,
            f"{{ const int8_t *s = in + at[y] + at[{oh} + x]; for (int32_t c = {channels}; c; --c) *out++ = *s++; }}",
        ]
    else:
        table = _on_reals if onnx else _fixed_point
        rows, columns = table(ih, oh, *flags), table(iw, ow, *flags)
        places = [v for r in rows for v in (r[0] * steps[1], r[1] * steps[1])]
        places += [v for c in columns for v in (c[0] * channels, c[1] * channels)]
        offset = state.constant(np.array(places, np.int32).tobytes())
        lines.append(f"const int32_t *at = (const int32_t *)W({offset});")
        if onnx:
            state.program.uses_float = True
            state.use("real")
            data = np.array([w for entry in (*rows, *columns) for w in entry[2:]], np.float32)
            body = (
                f"const float *v = w + 2 * y, *h = w + 2 * ({oh} + x);\n"
                "    float a = tim_real(s[r[0] + q[0]], Z, S), b = tim_real(s[r[0] + q[1]], Z, S);\n"
                "    float c = tim_real(s[r[1] + q[0]], Z, S), d = tim_real(s[r[1] + q[1]], Z, S);\n"
                "    float sum = h[0] * v[0] * a + h[1] * v[0] * b + h[0] * v[1] * c + h[1] * v[1] * d;\n"
                f"    *out++ = tim_steps(sum / {float(np.float32(out_scale)).hex()}f, {out_zero}, -128, 127);"
            ).replace("Z, S", f"{in_zero}, {float(np.float32(in_scale)).hex()}f")
            ctype = "float"
            lines.insert(0, "#pragma clang fp contract(off)\n")
        else:
            data = np.array([entry[2] for entry in (*rows, *columns)], np.int32)
            body = (
                f"int32_t v = w[y], h = w[{oh} + x];\n"
                "    int32_t sum = (s[r[0] + q[0]] * (1024 - h) + s[r[0] + q[1]] * h) * (1024 - v)\n"
                "      + (s[r[1] + q[0]] * (1024 - h) + s[r[1] + q[1]] * h) * v;\n"
                "    *out++ = (int8_t)((sum + (sum > 0 ? 1 << 19 : -(1 << 19))) / (1 << 20));"
            )
            ctype = "int32_t"
        weights = state.constant(data.tobytes())
        lines.append(f"const {ctype} *w = (const {ctype} *)W({weights});")
        lines += [
            *loops,
            f"for (int32_t k = 0; k < {channels}; ++k) {{",
            f"  const int8_t *s = in + k; const int32_t *r = at + 2 * y, *q = at + 2 * ({oh} + x);",
            f"  {body}",
            "}",
        ]
    state.step(op.kind.lower(), op, "\n  ".join(lines), [name], [op.outputs[0]])
