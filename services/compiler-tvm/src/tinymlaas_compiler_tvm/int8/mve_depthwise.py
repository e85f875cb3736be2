"""Lowering of depthwise convolutions for cores with MVE."""

from __future__ import annotations

from typing import cast

import numpy as np

from tinymlaas_compiler_tvm.int8.channels import Layer, make_layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, image, pointer, quantized, words
from tinymlaas_compiler_tvm.int8.mve_depthwise_asm import Plane, depthwise, taps, weight_vectors
from tinymlaas_compiler_tvm.int8.mve_layouts import plane_of
from tinymlaas_compiler_tvm.int8.mve_parts import declare, epilogue_of, parameters
from tinymlaas_compiler_tvm.int8.simple import as_planar
from tinymlaas_modelkit.graph import Op

_MAX_CHANNELS = 1 << 14
_TAPS = "void {}(const int8_t **, int8_t *, const uint8_t *, const void *);"
_DEPTHWISE = "void {}(const int8_t *, int8_t *, const uint8_t *, int8_t *);"


def lower_depthwise(state: Lowering, op: Op) -> bool:
    """A depthwise convolution without multiplier: 3 by 3 over planes, any other over channels that lie side by side."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    data = state.tensor(op.inputs[1]).data
    channels, out_channels = image(state.tensor(in_name))[2], image(state.tensor(out_name))[2]
    if data is None or channels != out_channels or channels >= _MAX_CHANNELS:
        return False
    filters = data.astype(np.int64)
    layer = make_layer(state, op, filters.reshape(-1, channels).T.copy())
    plane = plane_of(state.graph, op, out_name in state.planar)
    if plane is not None:
        _planes(state, op, layer, plane)
    else:
        _taps(state, op, layer, filters.shape[1:3])
    return True


def _planes(state: Lowering, op: Op, layer: Layer, plane: Plane) -> None:
    in_name, out_name = as_planar(state, op, str(op.inputs[0])), op.outputs[0]
    channels = layer.weights.shape[0]
    _, _, zero = quantized(state, op, in_name)
    epilogue = epilogue_of(layer)
    name = declare(state, depthwise(plane, channels, zero, epilogue), _DEPTHWISE)
    parts = []
    for c in range(channels):
        parts.append(weight_vectors(layer.weights[c].reshape(3, 3), plane.stride))
        parts.append(words([values[0] for values in parameters(layer, epilogue, c, 1)]))
    data = b"".join(parts)
    stream = state.constant(data)
    source, target = state.place(in_name), state.output(out_name)
    scratch = state.program.workspace(plane.scratch_bytes)
    body = f"{name}({pointer(source.buffer)}, {pointer(target.buffer)}, W({stream}), {pointer(scratch)});"
    macs = plane.rows * plane.columns * int(layer.weights.size)
    state.step("depthwise", op, body, [in_name], [out_name], [scratch], len(data), macs)


# A tap that falls into the padding gets the address of a row of zero points.
_ANY_DESCRIPTION = """
typedef struct { int32_t taps, cs, ih, iw, channels, oh, ow, kh, kw, sh, sw, dh, dw, top, left, ps, zero; } tim_mve_any_desc;
"""
_ANY_DEPTHWISE = """
static NOINLINE void @NAME@(const tim_mve_any_desc *d, const int8_t *in, int8_t *out, const uint8_t *w,
                            const int8_t **table, int8_t *padding) {
  for (int32_t c = 0; c < d->channels; ++c) padding[c] = (int8_t)d->zero;
  for (int32_t y = 0; y < d->oh; ++y)
    for (int32_t x = 0; x < d->ow; ++x, out += d->ps) {
      const int8_t **t = table;
      int32_t row = y * d->sh - d->top;
      for (int32_t i = d->kh; i; --i, row += d->dh) {
        int32_t column = x * d->sw - d->left;
        for (int32_t j = d->kw; j; --j, column += d->dw) {
          uint32_t inside = (uint32_t)row < (uint32_t)d->ih && (uint32_t)column < (uint32_t)d->iw;
          *t++ = inside ? in + (row * d->iw + column) * d->channels : padding;
        }
      }
      @TAPS@(table, out, w, d);
    }
}
"""


def _taps(state: Lowering, op: Op, layer: Layer, kernel_size: tuple[int, ...]) -> None:
    in_name, out_name = as_planar(state, op, str(op.inputs[0]), planar=False), op.outputs[0]
    (ih, iw, channels), (oh, ow, _) = image(state.tensor(in_name)), image(state.tensor(out_name))
    strides = cast("tuple[int, int]", tuple(op.attributes["strides"]))  # type: ignore[arg-type]
    dilations = cast("tuple[int, int]", tuple(op.attributes.get("dilations", (1, 1))))  # type: ignore[arg-type]
    pads = cast("tuple[int, int, int, int]", tuple(op.attributes["pads"]))  # type: ignore[arg-type]
    _, _, zero = quantized(state, op, in_name)
    epilogue = epilogue_of(layer)
    kernel = taps(channels, epilogue)
    state.define("tim_mve_any_desc", _ANY_DESCRIPTION)
    name = f"tim_mve_any_{kernel.name[8:]}"
    state.define(name, _ANY_DEPTHWISE.replace("@TAPS@", declare(state, kernel, _TAPS)))
    count = layer.weights.shape[1]
    padded = np.zeros((-(-channels // 4) * 4, count), np.int8)
    padded[:channels] = layer.weights
    parts = []
    for first in range(0, channels, 4):
        parts.append(np.ascontiguousarray(padded[first : first + 4].T).tobytes())
        parts += [words(values) for values in parameters(layer, epilogue, first, 4)]
    data = b"".join(parts)
    stream = state.constant(data)
    source, target = state.place(in_name), state.output(out_name)
    pixel, channel = state.strides(out_name)
    scratch = [state.program.workspace(4 * count), state.program.workspace(channels)]
    values = (
        count, channel, ih, iw, channels, oh, ow, *kernel_size, *strides, *dilations, pads[0], pads[1], pixel, zero,
    )  # fmt: skip
    body = (
        f"static const tim_mve_any_desc d = {{{', '.join(map(str, values))}}};\n"
        f"  {name}(&d, {pointer(source.buffer)}, {pointer(target.buffer)}, W({stream}), "
        f"{pointer(scratch[0], 'const int8_t *')}, {pointer(scratch[1])});"
    )
    macs = oh * ow * int(layer.weights.size)
    state.step("depthwise", op, body, [in_name], [out_name], scratch, len(data), macs)
