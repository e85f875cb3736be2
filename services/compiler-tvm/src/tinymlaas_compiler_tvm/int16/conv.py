"""int16 layers with weights: convolutions through a ring of rows, depthwise ones plane by plane, fully connected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from tinymlaas_compiler_tvm.int8.lowering import Lowering, image, pointer, quantized, unsupported, words
from tinymlaas_compiler_tvm.int8.values import braces
from tinymlaas_compiler_tvm.int16 import c_layers, dsp_asm
from tinymlaas_compiler_tvm.int16.layers import Layer16, general_stream, make_layer, pair_stream, word_stream
from tinymlaas_compiler_tvm.native.program import Buffer
from tinymlaas_modelkit.graph import DType, Op, OpKind

_BYTES = 2
# Steps of four k in the matrix kernels' loops at most.
_MOST_STEPS = 4
# Pixels that the matrix kernel takes at a time.
_PIXELS = 2


def _window(op: Op) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    strides = cast("tuple[int, int]", tuple(op.attributes["strides"]))  # type: ignore[arg-type]
    dilations = cast("tuple[int, int]", tuple(op.attributes.get("dilations", (1, 1))))  # type: ignore[arg-type]
    pads = cast("tuple[int, int, int, int]", tuple(op.attributes.get("pads", (0, 0, 0, 0))))  # type: ignore[arg-type]
    return strides, dilations, pads


def _filters(state: Lowering, op: Op) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    data = state.tensor(op.inputs[1]).data
    if data is None:
        raise unsupported(op, "weights are not constant")
    return data.astype(np.int64)


def _source(state: Lowering, op: Op) -> str:
    name = str(op.inputs[0])
    quantized(state, op, name, DType.INT16)
    return name


def _matrix(state: Lowering, layer: Layer16, template: str, prefix: str, steps: tuple[str, str], moved: str) -> str:
    """Define a matrix kernel whose loop takes as many steps of four k as divide them, and return its name.

    `moved`: the pointers that go two words on a step.
    """
    fours = -(-layer.weights.shape[1] // 4)
    unroll = max(n for n in range(1, min(_MOST_STEPS, state.unroll()) + 1) if fours % n == 0)
    step = steps[0] if state.machine.dsp else steps[1]
    lines = "\n".join(step.replace("@I2@", str(2 * i)).replace("@I@", str(i)) for i in range(unroll))
    moves = " ".join(f"{pointer_name} += {2 * unroll};" for pointer_name in moved)
    name = f"tim_{prefix}_{unroll}_{layer.clamp}"
    state.define(
        name, template.replace("@STEPS@", f"{lines}\n      {moves}").replace("@CLAMP@", layer.clamp), "scale16"
    )
    return name


def lower_conv(state: Lowering, op: Op) -> None:
    """CONV_2D of one image without groups; other forms by the general kernel."""
    in_name, out_name = _source(state, op), op.outputs[0]
    filters = _filters(state, op)
    layer = make_layer(state, op, filters.reshape(filters.shape[0], -1))
    ih, iw, channels = image(state.tensor(in_name))
    if not layer.fits or filters.shape[-1] != channels or state.tensor(in_name).shape[0] != 1:
        _general(state, op, layer, filters)
        return
    oh, ow, out_channels = image(state.tensor(out_name))
    _, kh, kw, _ = filters.shape
    (sh, sw), (dh, dw), (top, left, _, _) = _window(op)
    fast = state.machine.dsp and out_channels % 2 == 0 and layer.clamp != "within"
    padded_columns = max((ow - 1) * sw + (kw - 1) * dw + 1, left + iw)
    padded_rows = (oh - 1) * sh + (kh - 1) * dh + 1
    padded = padded_columns != iw or top > 0 or padded_rows > ih
    pointwise = (kh, kw, sh, sw) == (1, 1, 1, 1) and not padded
    in_place = _in_place(state, op, (kh - 1) * dh + 1, dsp_asm.PIXELS if fast else _PIXELS)
    target = state.output(out_name, over=in_name if in_place else None)
    source = state.place(in_name)
    # Pixels of a pointwise layer are in the patch before they are written over.
    needs_ring = padded or (source.buffer is target.buffer and not pointwise)
    pixel = channels * _BYTES
    row_bytes = padded_columns * pixel if needs_ring else iw * pixel
    # A pixel is in the patch before the rows of the next one come in.
    ring_rows = min(padded_rows, (kh - 1) * dh + 1)
    runs, run_step, run = (1, 0, kw * pixel) if dw == 1 else (kw, dw * pixel, pixel)
    made = (_words if fast else _halfwords)(state, layer, run)
    edges = (top, left * pixel, (padded_columns - left - iw) * pixel) if needs_ring else (0, 0, 0)
    values = (
        ih, iw, pixel, pixel, 1, oh, ow, *edges, row_bytes, ring_rows if needs_ring else 0, 0, sh, sw * pixel,
        kh, dh, runs, run_step, run, made.groups, out_channels,
    )  # fmt: skip
    scratch = [made.patch]
    if needs_ring:
        scratch.append(state.program.workspace(row_bytes * ring_rows + 4))
    body = (
        f"static const tim_conv c = {braces(values)};\n  {made.arguments}\n"
        f"  {made.driver}(&c, {'a' if fast else '&a'}, {pointer(source.buffer)}, {pointer(target.buffer, 'int16_t')}, "
        f"W({state.constant(made.stream)}), {pointer(scratch[1]) if needs_ring else '0'}, "
        f"{pointer(made.patch, 'int32_t' if fast else 'int8_t')});"
    )
    kind = "conv2d_int16_pointwise" if pointwise else "conv2d_int16"
    state.step(kind, op, body, [in_name], [out_name], scratch, len(made.stream), oh * ow * int(layer.weights.size))


@dataclass(frozen=True)
class _Kernels:
    """A driver through the ring with its matrix kernel: their arguments in C, stream, patch, and `groups` of `tim_conv`."""

    driver: str
    arguments: str
    stream: bytes
    patch: Buffer
    groups: int


def _words(state: Lowering, layer: Layer16, run: int) -> _Kernels:
    """Four pixels by two channels in assembly."""
    channels, k = layer.weights.shape
    unroll, turns = dsp_asm.loop_of(k)
    steps = unroll * turns
    kernel = dsp_asm.four_by_two(k, layer.clamp == "positive")
    state.program.asm_kernels[kernel.name] = kernel
    whole = run % 4 == 0
    driver = f"tim_conv16_{'w' if whole else 'b'}_{kernel.name[7:]}"
    gather = c_layers.GATHER_WORDS if whole else c_layers.GATHER_BYTES
    text = c_layers.CONVOLUTION_DSP.replace("@MM@", kernel.name).replace("@GATHER@", gather)
    state.define(driver, text, "conv_common", "spread16")
    data = word_stream(layer, steps)
    arguments = f"static const int32_t a[] = {braces((channels * _BYTES, len(data), steps * 16))};"
    patch = state.program.workspace(steps * 16 + (0 if whole else steps * 4))
    return _Kernels(driver, arguments, data, patch, run // 4 if whole else steps)


def _halfwords(state: Lowering, layer: Layer16, run: int) -> _Kernels:
    """Two pixels by two channels in C."""
    channels, k = layer.weights.shape
    fours = -(-k // 4)
    mm = _matrix(state, layer, c_layers.MATRIX, "mm16", (c_layers.MATRIX_STEP_DSP, c_layers.MATRIX_STEP), "pqh")
    driver = f"tim_conv16_{mm[4:]}"
    state.define(driver, c_layers.CONVOLUTION.replace("@MM@", mm), "conv_common")
    values = (channels, fours, channels, fours * 4 * _BYTES, layer.low, layer.high)
    arguments = f"static const tim_mm16_args a = {braces(values)};"
    return _Kernels(driver, arguments, pair_stream(layer), state.program.workspace(_PIXELS * fours * 4 * _BYTES), fours)


def _in_place(state: Lowering, op: Op, window: int, group: int) -> bool:
    """Whether output pixels, `group` at a time, may be written over rows that the ring has taken in, or pixels in the patch.

    `window`: rows of the input that one output row reads.
    """
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, out_channels = image(state.tensor(out_name))
    if not state.can_overwrite(in_name, state.tensor(out_name).nbytes):
        return False
    (sh, sw), _, (top, left, _, _) = _window(op)
    if window == 1 and (sh, sw, top, left, oh, ow) == (1, 1, 0, 0, ih, iw):
        return out_channels <= channels
    for start in range(0, oh * ow, group):
        last = min(start + group, oh * ow) - 1
        taken = min(max((last // ow) * sh + window - top, 0), ih)
        if (last + 1) * out_channels > taken * iw * channels:
            return False
    return True


def lower_depthwise(state: Lowering, op: Op) -> None:
    """DEPTHWISE_CONV_2D of one image with one output channel an input channel; other forms by the general kernel."""
    in_name, out_name = _source(state, op), op.outputs[0]
    filters = _filters(state, op)
    _, kh, kw, out_channels = filters.shape
    layer = make_layer(state, op, filters.reshape(kh * kw, out_channels).T.copy())
    ih, iw, channels = image(state.tensor(in_name))
    if not layer.fits or channels != out_channels or state.tensor(in_name).shape[0] != 1:
        _general(state, op, layer, filters.transpose(3, 1, 2, 0))
        return
    oh, ow, _ = image(state.tensor(out_name))
    (sh, sw), (dh, dw), (top, left, _, _) = _window(op)
    rows = max((oh - 1) * sh + (kh - 1) * dh + 1, top + ih)
    pitch = max((ow - 1) * sw + (kw - 1) * dw + 1, left + iw)
    paired = state.machine.dsp and channels % 2 == 0
    data = _pairs(layer) if paired else _singles(layer)
    record = 2 * len(data) // channels if paired else len(data) // channels
    target = state.output(out_name, over=in_name if oh * ow <= ih * iw else None)
    scratch = state.program.workspace(rows * pitch * (4 if paired else _BYTES))
    name = f"tim_depthwise16_{'pairs' if paired else 'single'}_{layer.clamp}"
    template = c_layers.DEPTHWISE_PAIRS if paired else c_layers.DEPTHWISE_SINGLE
    state.define(name, template.replace("@CLAMP@", layer.clamp), "depthwise16_common")
    values = (
        channels, ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, top, left, rows, pitch, layer.low, layer.high, record,
    )  # fmt: skip
    body = (
        f"static const tim_depthwise16_desc d = {braces(values)};\n"
        f"  {name}(&d, {pointer(state.place(in_name).buffer, 'int16_t')}, {pointer(target.buffer, 'int16_t')}, "
        f"W({state.constant(data)}), {pointer(scratch, 'tim_i32' if paired else 'int16_t')});"
    )
    macs = oh * ow * int(layer.weights.size)
    state.step("depthwise_int16", op, body, [in_name], [out_name], [scratch], len(data), macs)


def _pairs(layer: Layer16) -> bytes:
    """Per two channels: biases, parameters, then a tap's two weights as halfwords of a word."""
    parts = []
    for c in range(0, layer.weights.shape[0], 2):
        parts.append(words([layer.bias(c), layer.bias(c + 1), layer.parameter(c), layer.parameter(c + 1)]))
        parts.append(np.ascontiguousarray(layer.weights[c : c + 2].T).astype(np.int16).tobytes())
    return b"".join(parts)


def _singles(layer: Layer16) -> bytes:
    """Per channel: bias, parameter, weights, padding to 4 bytes."""
    parts = []
    for channel, weights in enumerate(layer.weights):
        parts.append(words([layer.bias(channel), layer.parameter(channel)]))
        parts.append(weights.astype(np.int8).tobytes() + b"\0" * (-weights.size % 4))
    return b"".join(parts)


def _general(state: Lowering, op: Op, layer: Layer16, weights: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
    """A convolution with filters [O, kh, kw, depth] by plain loops and 64-bit accumulators."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    images, ih, iw, channels = state.tensor(in_name).shape
    _, oh, ow, out_channels = state.tensor(out_name).shape
    _, kh, kw, depth = weights.shape
    (sh, sw), (dh, dw), (top, left, _, _) = _window(op)
    data = general_stream(layer)
    target = state.output(out_name)
    values = (
        images, ih, iw, channels, oh, ow, out_channels, kh, kw, depth, out_channels // (channels // depth), sh, sw, dh, dw,
        top, left, layer.low, layer.high, len(data) // out_channels,
    )  # fmt: skip
    state.use("conv16_general")
    body = (
        f"static const tim_conv16_general_desc d = {braces(values)};\n"
        f"  tim_conv16_general(&d, {pointer(state.place(in_name).buffer, 'int16_t')}, {pointer(target.buffer, 'int16_t')}, "
        f"W({state.constant(data)}));"
    )
    macs = images * oh * ow * int(layer.weights.size)
    kind = "depthwise_int16" if op.kind is OpKind.DEPTHWISE_CONV_2D else "conv2d_int16"
    state.step(kind, op, body, [in_name], [out_name], [], len(data), macs)


def lower_dense(state: Lowering, op: Op) -> None:
    """FULLY_CONNECTED: rows of int16 straight from where they lie, or from a padded copy where a row is no whole words."""
    in_name, out_name = _source(state, op), op.outputs[0]
    weights = _filters(state, op)
    layer = make_layer(state, op, weights)
    channels, k = weights.shape
    rows = state.tensor(in_name).elements // k
    if rows * k != state.tensor(in_name).elements:
        raise unsupported(op, "input is no multiple of the weights' depth")
    macs = rows * channels * k
    source = state.place(in_name)
    if not layer.fits:
        data = general_stream(layer)
        target = state.output(out_name)
        values = (
            1, rows, 1, k, rows, 1, channels, 1, 1, k, channels, 1, 1, 1, 1, 0, 0, layer.low, layer.high, len(data) // channels,
        )  # fmt: skip
        state.use("conv16_general")
        body = (
            f"static const tim_conv16_general_desc d = {braces(values)};\n"
            f"  tim_conv16_general(&d, {pointer(source.buffer, 'int16_t')}, {pointer(target.buffer, 'int16_t')}, "
            f"W({state.constant(data)}));"
        )
        state.step("dense_int16", op, body, [in_name], [out_name], [], len(data), macs)
        return
    fours = -(-k // 4)
    name = _matrix(state, layer, c_layers.ROW, "dense16", (c_layers.ROW_STEP_DSP, c_layers.ROW_STEP), "ph")
    data = pair_stream(layer)
    target = state.output(out_name)
    lines = [f"static const tim_mm16_args a = {braces((channels, fours, 0, 0, layer.low, layer.high))};"]
    lines.append(f"for (int32_t i = 0; i < {rows}; ++i) {{")
    row, scratch = f"{pointer(source.buffer, 'int16_t')} + i * {k}", []
    if k % 4:
        # What stands behind the row is multiplied by zero.
        scratch = [state.program.workspace(fours * 4 * _BYTES)]
        state.use("copy16")
        lines.append(f"  tim_copy16({pointer(scratch[0], 'int16_t')}, {row}, {k});")
        row = pointer(scratch[0], "int16_t")
    at = state.constant(data)
    lines += [f"  {name}({row}, W({at}), {pointer(target.buffer, 'int16_t')} + i * {channels}, &a);", "}"]
    state.step("dense_int16", op, "\n  ".join(lines), [in_name], [out_name], scratch, len(data), macs)
