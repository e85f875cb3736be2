"""Lowering for cores with MVE: convolutions, fully connected layers, means and additions.

Each `lower_...` gives whether it has lowered the operator; where it has not, the kernels of cores without MVE do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_compiler_tvm.int8 import mve_asm, tables
from tinymlaas_compiler_tvm.int8.channels import Layer, make_layer
from tinymlaas_compiler_tvm.int8.lowering import Lower, Lowering, activation_of, image, pointer, quantized, words
from tinymlaas_compiler_tvm.int8.mve_asm import LANES, MveEpilogue
from tinymlaas_compiler_tvm.int8.mve_depthwise import lower_depthwise
from tinymlaas_compiler_tvm.int8.mve_parts import declare, epilogue_of, parameters
from tinymlaas_compiler_tvm.int8.simple import as_planar
from tinymlaas_modelkit.graph import Op, OpKind

_SCATTER_LIMIT = 1 << 16
_MAX_STEPS = 255
_MATRIX = "void {}(const int8_t *, const int8_t *, int8_t *, const uint8_t *, const void *);"
_ROW = "void {}(const int8_t *, int8_t *, const uint8_t *, const void *);"


_ARGUMENTS = """
typedef struct { uint16_t at[8]; int32_t bytes, step, last; } tim_mve_args;
"""

# Pixels are read where they lie; two at a time, in the order of rows.
_POINTS = """
typedef struct { tim_mve_args pair, one; int32_t ow, left, row, col, ps; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w) {
  int32_t x = 0, left = d->left;
  const int8_t *row = in;
  for (; left > 0; left -= 2) {
    const int8_t *p = row + x * d->col, *q = p;
    if (++x == d->ow) { x = 0; row += d->row; }
    if (left > 1) {
      q = row + x * d->col;
      if (++x == d->ow) { x = 0; row += d->row; }
    }
    @MM@(p, q, out, w, left > 1 ? &d->pair : &d->one);
    out += 2 * d->ps;
  }
}
"""

# Patches of two pixels are put together from padded rows that stand in a ring (or from the input where nothing is padded).
_PATCHES = """
typedef struct { tim_mve_args pair, one; tim_conv c; int32_t depth; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int8_t *ring,
                            int8_t *patch) {
  const tim_conv *c = &d->c;
  int32_t y = 0, x = 0, filled = 0;
  const int8_t *base = c->ring_rows ? ring : in;
  for (int32_t left = c->oh * c->ow; left > 0; left -= 2) {
    for (int32_t half = 0; half < 2 && half < left; ++half) {
      int32_t row = y * c->row_step, rows = c->kh, slot = row;
      if (c->ring_rows) {
        for (; filled < row + c->kh; ++filled) tim_ring_row(c, in, ring, filled);
        slot = row % c->ring_rows;
        if (rows > c->ring_rows - slot) rows = c->ring_rows - slot;
      }
      const int8_t *s = base + x * c->col_step;
      int8_t *t = tim_mve_rows(patch + half * d->depth, s + slot * c->row_bytes, c->run, rows, c->row_bytes);
      if (rows < c->kh) tim_mve_rows(t, s, c->run, c->kh - rows, c->row_bytes);
      if (++x == c->ow) { x = 0; ++y; }
    }
    @MM@(patch, left > 1 ? patch + d->depth : patch, out, w, left > 1 ? &d->pair : &d->one);
    out += 2 * c->out_ps;
  }
}
"""


def _vector_copies(state: Lowering) -> None:
    """Let rows be copied by vectors wherever a C kernel copies bytes."""
    if "copy" not in state.program.c_kernels:
        name = declare(state, mve_asm.copy(), "void {}(int8_t *, const int8_t *, int32_t);")
        state.define("copy", f"#define TIM_COPY {name}")


def _stream(layer: Layer, epilogue: MveEpilogue, group: int) -> bytes:
    """Weights by vectors of 16, `group` channels side by side, and their parameters kind by kind."""
    channels, depth = layer.weights.shape
    steps = -(-depth // LANES)
    weights = np.zeros((-(-channels // group) * group, steps * LANES), np.int8)
    weights[:channels, :depth] = layer.weights
    parts = []
    for first in range(0, weights.shape[0], group):
        block = weights[first : first + group].reshape(group, steps, LANES)
        parts.append(np.ascontiguousarray(block.transpose(1, 0, 2)).tobytes())
        parts += [words(values) for values in parameters(layer, epilogue, first, group)]
    return b"".join(parts)


def _arguments(offsets: list[int], size: int, step: int, last: int) -> str:
    return f"{{{{{', '.join(map(str, offsets))}}}, {size}, {step}, {last}}}"


def _pairs(pixel: int, channel: int, count: int, size: int, both: bool) -> str:
    """Arguments of a matrix kernel for two pixels, or for one that is computed twice."""
    offsets = [c * channel + (p * pixel if both else 0) for c in range(4) for p in range(2)]
    rest = count % 4 or 4
    return _arguments(offsets, size, 4 * channel, (1 << 4 * rest) - 1)


def lower_conv(state: Lowering, op: Op) -> bool:
    """A convolution without dilation, pixels two by two."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    data = state.tensor(op.inputs[1]).data
    strides = cast("tuple[int, int]", tuple(op.attributes["strides"]))  # type: ignore[arg-type]
    dilations = cast("tuple[int, int]", tuple(op.attributes.get("dilations", (1, 1))))  # type: ignore[arg-type]
    pads = cast("tuple[int, int, int, int]", tuple(op.attributes.get("pads", (0, 0, 0, 0))))  # type: ignore[arg-type]
    channels = image(state.tensor(in_name))[2]
    oh, ow, out_channels = image(state.tensor(out_name))
    plane = 1 if out_name not in state.planar else oh * ow
    if data is None or dilations != (1, 1) or data.shape[3] != channels or 4 * plane >= _SCATTER_LIMIT:
        return False
    if -(-data[0].size // LANES) > _MAX_STEPS or out_channels >= _SCATTER_LIMIT // 4:
        return False
    filters = data.astype(np.int64)
    quantized(state, op, in_name)
    layer = make_layer(state, op, filters.reshape(out_channels, -1))
    _, kh, kw, _ = filters.shape
    in_name = as_planar(state, op, in_name, planar=False)
    if (kh, kw) == (1, 1) and not any(pads):
        _points(state, op, in_name, layer, strides)
    else:
        _patches(state, op, in_name, layer, (kh, kw), strides, pads)
    return True


def _points(state: Lowering, op: Op, in_name: str, layer: Layer, strides: tuple[int, int]) -> None:
    """A pointwise layer: pixels are read in place."""
    out_name = op.outputs[0]
    _, iw, channels = image(state.tensor(in_name))
    oh, ow, out_channels = image(state.tensor(out_name))
    epilogue = epilogue_of(layer)
    kernel = mve_asm.matrix(channels, out_channels % 4 != 0, epilogue, padded=False)
    name = f"tim_mve_points_{kernel.name[8:]}"
    state.define("tim_mve_args", _ARGUMENTS)
    state.define(name, _POINTS.replace("@MM@", declare(state, kernel, _MATRIX)))
    data = _stream(layer, epilogue, 4)
    stream = state.constant(data)
    source, target = state.place(in_name), state.output(out_name)
    pixel, channel = state.strides(out_name)
    both, one = (_pairs(pixel, channel, out_channels, len(data), each) for each in (True, False))
    values = f"{ow}, {oh * ow}, {strides[0] * iw * channels}, {strides[1] * channels}, {pixel}"
    body = (
        f"static const {name}_desc d = {{{both}, {one}, {values}}};\n"
        f"  {name}(&d, {pointer(source.buffer)}, {pointer(target.buffer)}, W({stream}));"
    )
    macs = oh * ow * int(layer.weights.size)
    state.step("conv2d_pointwise", op, body, [in_name], [out_name], [], len(data), macs)


def _patches(
    state: Lowering,
    op: Op,
    in_name: str,
    layer: Layer,
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> None:
    """Any other convolution: rows in a ring, patches of two pixels; over its own input where rows are taken in before."""
    out_name = op.outputs[0]
    _, _, zero = quantized(state, op, in_name)
    (ih, iw, channels), (oh, ow, out_channels) = image(state.tensor(in_name)), image(state.tensor(out_name))
    (kh, kw), (sh, sw), (top, left, _, _) = kernel_size, strides, pads
    columns = max((ow - 1) * sw + kw, left + iw)
    padded_rows = (oh - 1) * sh + kh
    ring_rows = min(padded_rows, kh + (sh if ow % 2 else 0))
    in_place = _over_itself(state, op, in_name, (oh, ow, out_channels), (ih, iw, channels), top, sh, ring_rows)
    needs_ring = in_place or columns != iw or top > 0 or padded_rows > ih
    source = state.place(in_name)
    target = state.output(out_name, over=in_name if in_place else None)
    pixel, channel = state.strides(out_name)
    epilogue = epilogue_of(layer)
    depth = layer.weights.shape[1]
    room = -(-depth // LANES) * LANES
    kernel = mve_asm.matrix(depth, out_channels % 4 != 0, epilogue, padded=True)
    rows = mve_asm.rows()
    _vector_copies(state)
    state.use("conv_common")
    state.define("tim_mve_args", _ARGUMENTS)
    declare(state, rows, "int8_t *{}(int8_t *, const int8_t *, int32_t, int32_t, int32_t);")
    name = f"tim_mve_patches_{kernel.name[8:]}"
    state.define(name, _PATCHES.replace("@MM@", declare(state, kernel, _MATRIX)))
    data = _stream(layer, epilogue, 4)
    stream = state.constant(data)
    scratch = [state.program.workspace(2 * room)]
    ring_pointer = "0"
    right = (columns - left - iw) * channels
    row_bytes = columns * channels
    if needs_ring:
        scratch.append(state.program.workspace(row_bytes * ring_rows))
        ring_pointer = pointer(scratch[1])
    else:
        top, left, right, row_bytes, ring_rows = 0, 0, 0, iw * channels, 0
    described = {
        "ih": ih, "iw": iw, "channels": channels, "ps": channels, "cs": 1, "oh": oh, "ow": ow, "pad_top": top,
        "left": left * channels, "right": right, "row_bytes": row_bytes, "ring_rows": ring_rows, "zero": zero,
        "row_step": sh, "col_step": sw * channels, "kh": kh, "run": kw * channels, "out_ps": pixel,
    }  # fmt: skip
    conv = ", ".join(f".{name} = {value}" for name, value in described.items())
    both, one = (_pairs(pixel, channel, out_channels, len(data), each) for each in (True, False))
    body = (
        f"static const {name}_desc d = {{{both}, {one}, {{{conv}}}, {room}}};\n"
        f"  {name}(&d, {pointer(source.buffer)}, {pointer(target.buffer)}, W({stream}), {ring_pointer}, "
        f"{pointer(scratch[0])});"
    )
    macs = oh * ow * int(layer.weights.size)
    state.step("conv2d", op, body, [in_name], [out_name], scratch, len(data), macs)


def _over_itself(
    state: Lowering,
    op: Op,
    in_name: str,
    out_image: tuple[int, int, int],
    in_image: tuple[int, int, int],
    top: int,
    row_stride: int,
    ring_rows: int,
) -> bool:
    """Whether output rows may be written over input rows that the ring has taken in already."""
    (oh, ow, out_channels), (ih, iw, channels) = out_image, in_image
    out_name = op.outputs[0]
    if out_name in state.planar or ow % 2 or not state.can_overwrite(in_name, state.tensor(out_name).nbytes):
        return False
    taken = [min(max(y * row_stride + ring_rows - top, 0), ih) for y in range(oh)]
    return all((y + 1) * ow * out_channels <= rows * iw * channels for y, rows in enumerate(taken))


def lower_dense(state: Lowering, op: Op) -> bool:
    """A fully connected layer: eight channels at a time, the row read where it lies."""
    data = state.tensor(op.inputs[1]).data
    if data is None or -(-data.shape[-1] // LANES) > _MAX_STEPS:
        return False
    in_name, out_name = as_planar(state, op, str(op.inputs[0]), planar=False), op.outputs[0]
    quantized(state, op, in_name)
    layer = make_layer(state, op, data.astype(np.int64))
    channels, depth = layer.weights.shape
    rows, rest = divmod(state.tensor(in_name).elements, depth)
    if rest:
        return False
    epilogue = epilogue_of(layer)
    state.define("tim_mve_args", _ARGUMENTS)
    name = declare(state, mve_asm.dense(depth, channels % 8 != 0, epilogue), _ROW)
    stream_data = _stream(layer, epilogue, 8)
    stream = state.constant(stream_data)
    source, target = state.place(in_name), state.output(out_name)
    valid = [i < (channels % 8 or 8) for pair in range(4) for i in (pair, pair + 4)]
    mask = sum(3 << 2 * lane for lane, stored in enumerate(valid) if stored)
    arguments = _arguments([0, 4, 1, 5, 2, 6, 3, 7], len(stream_data), 8, mask)
    body = (
        f"static const tim_mve_args a = {arguments};\n  for (int32_t i = 0; i < {rows}; ++i)\n"
        f"    {name}({pointer(source.buffer)} + i * {depth}, {pointer(target.buffer)} + i * {channels}, W({stream}), &a);"
    )
    state.step("dense", op, body, [in_name], [out_name], [], len(stream_data), rows * channels * depth)
    return True


def lower_add(state: Lowering, op: Op) -> bool:
    """ADD and SUB of two tensors of one shape and layout, with one linear form where that is exact for all pairs of values."""
    names = [str(name) for name in op.inputs[:2]]
    if any(state.tensor(name).is_constant for name in names):
        return False
    (a, a_scale, a_zero), (b, b_scale, b_zero) = (quantized(state, op, name) for name in names)
    out, out_scale, out_zero = quantized(state, op, op.outputs[0])
    planar = {state.place(name).planar for name in names}
    if a.shape != b.shape or planar != {op.outputs[0] in state.planar} or state.settings.rounding != "tflite":
        return False
    low, high = arithmetic.activation_range(activation_of(op), out_scale, out_zero)
    sign = -1 if op.kind is OpKind.SUB else 1
    scales, zeros = (a_scale, b_scale, out_scale), (a_zero, b_zero, out_zero)
    parameters = arithmetic.AddParameters.of(scales, zeros, low, high, sign)
    linear = tables.linear_add(tables.add_table(parameters), scales, zeros, low, high, sign)
    shifts = (parameters.shift_1, parameters.shift_2)
    if linear is None and (max(shifts) > 0 or all(shifts)):
        return False
    sources = [state.place(name).buffer for name in names]
    over = next((name for name in names if state.can_overwrite(name, out.nbytes)), None)
    target = state.output(op.outputs[0], over=over)
    if linear is not None:
        alpha, beta, gamma, shift = linear
        kernel = mve_asm.add()
        values = [out.elements, alpha, beta, gamma, -shift, low, high]
    else:
        shifted = 1 if shifts[0] else 2 if shifts[1] else 0
        kernel = mve_asm.add_exact(shifted, op.kind is OpKind.SUB)
        first, second = -a_zero * (1 << 20), -b_zero * (1 << 20)
        out_shift = parameters.shift_out
        values = [
            out.elements, first, parameters.multiplier_1, second, parameters.multiplier_2, sum(shifts),
            parameters.multiplier_out, max(out_shift, 0), min(out_shift, 0), out_zero, low, high,
        ]  # fmt: skip
    name = declare(state, kernel, "void {}(const int8_t *, const int8_t *, int8_t *, const int32_t *);")
    body = (
        f"static const int32_t d[{len(values)}] = {{{', '.join(map(str, values))}}};\n"
        f"  {name}({pointer(sources[0])}, {pointer(sources[1])}, {pointer(target.buffer)}, d);"
    )
    state.step("add", op, body, names, [op.outputs[0]])
    return True


_MEANS = """
static NOINLINE void tim_mve_means(const int8_t *in, int8_t *out, int32_t *sums, int32_t pixels, int32_t channels,
                                   int32_t lo, int32_t hi) {
  tim_mve_sums(in, sums, pixels, channels);
  int32_t half = pixels / 2;
  do {
    int32_t s = *sums++, v = s > 0 ? (s + half) / pixels : -((half - s) / pixels);
    *out++ = (int8_t)tim_clamp(v, lo, hi);
  } while (--channels);
}
"""


def lower_average(state: Lowering, op: Op) -> bool:
    """The mean of each channel over a whole image, where channels lie side by side in fours."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    first, in_scale, in_zero = quantized(state, op, in_name)
    _, out_scale, out_zero = quantized(state, op, out_name)
    height, width, channels = image(first)
    whole = tuple(op.attributes["kernel"]) == (height, width)  # type: ignore[arg-type]
    padded = any(op.attributes.get("pads", ()))  # type: ignore[arg-type]
    same = (in_scale, in_zero) == (out_scale, out_zero)
    if not whole or padded or not same or state.place(in_name).planar or channels % 4 or height * width == 1:
        return False
    if state.settings.rounding != "tflite":
        return False
    low, high = arithmetic.activation_range(activation_of(op), out_scale, out_zero)
    declare(state, mve_asm.sums(), "void {}(const int8_t *, int32_t *, int32_t, int32_t);")
    state.define("tim_mve_means", _MEANS, "requant")
    source, target = state.place(in_name), state.output(out_name)
    scratch = state.program.workspace(4 * channels)
    body = (
        f"tim_mve_means({pointer(source.buffer)}, {pointer(target.buffer)}, {pointer(scratch, 'int32_t')}, "
        f"{height * width}, {channels}, {low}, {high});"
    )
    state.step("average_pool", op, body, [in_name], [out_name], [scratch])
    return True


def before(ours: Callable[[Lowering, Op], bool], theirs: Lower) -> Lower:
    """Lower with MVE where the machine has it and the kernel takes the operator, else as other cores do."""

    def lower(state: Lowering, op: Op) -> None:
        if not (state.machine.mve and ours(state, op)):
            theirs(state, op)

    return lower


MVE_OPERATORS: dict[OpKind, Callable[[Lowering, Op], bool]] = {
    OpKind.ADD: lower_add,
    OpKind.AVERAGE_POOL_2D: lower_average,
    OpKind.CONV_2D: lower_conv,
    OpKind.DEPTHWISE_CONV_2D: lower_depthwise,
    OpKind.FULLY_CONNECTED: lower_dense,
    OpKind.SUB: lower_add,
}
