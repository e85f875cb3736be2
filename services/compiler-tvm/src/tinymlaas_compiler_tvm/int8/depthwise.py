"""DEPTHWISE_CONV_2D over planes, one plane at a time, in place where the output planes are no larger."""

from __future__ import annotations

from typing import cast

import numpy as np

from tinymlaas_compiler_tvm.int8 import c_small, dsp_asm, small_asm, small_streams
from tinymlaas_compiler_tvm.int8.channels import Layer, make_layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, image, pointer, quantized, unsupported, words
from tinymlaas_compiler_tvm.int8.matrix import Family, braces, epilogue_of, family_of
from tinymlaas_compiler_tvm.int8.simple import as_planar
from tinymlaas_compiler_tvm.requant import PRE_SHIFT
from tinymlaas_modelkit.graph import Op


def lower_depthwise(state: Lowering, op: Op) -> None:
    """One step for a depthwise convolution (and one before it where the input does not lie in planes)."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    quantized(state, op, in_name)
    filter_data = state.tensor(op.inputs[1]).data
    if filter_data is None:
        raise unsupported(op, "weights are not constant")
    filters = filter_data.astype(np.int64)
    _, kh, kw, out_channels = filters.shape
    layer = make_layer(state, op, filters.reshape(kh * kw, out_channels).T.copy())
    strides = cast("tuple[int, int]", tuple(op.attributes["strides"]))  # type: ignore[arg-type]
    dilations = cast("tuple[int, int]", tuple(op.attributes.get("dilations", (1, 1))))  # type: ignore[arg-type]
    in_name = as_planar(state, op, in_name)
    in_channels = image(state.tensor(in_name))[2]
    height, width, _ = image(state.tensor(out_name))
    grows = state.tensor(out_name).nbytes > state.tensor(in_name).nbytes
    target_is_planar = out_name in state.planar or out_channels == 1 or height * width == 1
    if not target_is_planar:
        # The consumer wants NHWC: planes first, then one copy.
        state.planar.add(out_name)
    three = (kh, kw) == (3, 3) and dilations == (1, 1) and in_channels == out_channels
    fast = three and state.machine.dsp and strides[0] == strides[1] and strides[0] in (1, 2)
    state.output(out_name, over=None if grows or in_channels != out_channels else in_name)
    macs = height * width * int(layer.weights.size)
    if three and family_of(state, layer) is Family.SMALL:
        _lower_small(state, op, in_name, layer, strides, macs)
    elif not (fast and _lower_fast(state, op, in_name, layer, strides[0], macs)):
        _lower_portable(state, op, in_name, layer, (kh, kw), strides, dilations, macs)
    if not target_is_planar:
        copied = as_planar(state, op, out_name, planar=False)
        state.places[out_name] = state.places[copied]
        state.planar.discard(out_name)


def _shapes(state: Lowering, op: Op, in_name: str, stride: int) -> list[dsp_asm.DepthwiseShape]:
    """The layer walked along rows and along columns."""
    ih, iw, _ = image(state.tensor(in_name))
    oh, ow, _ = image(state.tensor(op.outputs[0]))
    top, left, _, _ = cast("tuple[int, int, int, int]", tuple(op.attributes["pads"]))  # type: ignore[arg-type]
    shapes = []
    for in_lines, in_length, lines, length, pad_line, pad_element, turned in (
        (ih, iw, oh, ow, top, left, False),
        (iw, ih, ow, oh, left, top, True),
    ):
        pairs = (length + 1) // 2
        read = 2 * pairs + 2 if stride == 1 else 4 * pairs + 2
        pitch = -(-max(read, pad_element + in_length) // 2) * 2
        shapes.append(
            dsp_asm.DepthwiseShape(
                in_lines, in_length, iw if turned else 1, 1 if turned else iw,
                lines, length, ow if turned else 1, 1 if turned else ow, stride, pad_line, pad_element, pitch,
            )
        )  # fmt: skip
    return shapes


def _cost(shape: dsp_asm.DepthwiseShape) -> tuple[float, int]:
    pairs, odd = divmod(shape.length, 2)
    return shape.lines * (pairs * 22.5 + odd * 13 + 9), shape.pitch


def _lower_fast(state: Lowering, op: Op, in_name: str, layer: Layer, stride: int, macs: int) -> bool:
    """The DSP kernel; False where a line is too long for its immediate offsets."""
    _, _, zero = quantized(state, op, in_name)
    usable = [s for s in _shapes(state, op, in_name, stride) if s.pitch <= 240 and s.in_step < 256 and s.out_step < 256]
    if not usable or not layer.packable:
        return False
    shape = min(usable, key=_cost)
    scratch_lines = max((shape.lines - 1) * stride + 3, shape.pad_line + shape.in_lines)
    # Reading the second element of the last pair may pass the last line by a word.
    scratch = state.program.workspace((scratch_lines * shape.pitch + 4) * 2)
    epilogue = epilogue_of(layer, Family.DSP)
    kernel = dsp_asm.depthwise(shape, epilogue, 4 if state.unroll() >= 8 else 1)
    state.program.asm_kernels[kernel.name] = kernel
    state.use("fill16")
    turned = shape.in_step != 1 or shape.in_line == 1
    parts = []
    for channel in range(layer.weights.shape[0]):
        taps = layer.weights[channel].reshape(3, 3)
        taps = (taps.T if turned else taps) << PRE_SHIFT
        halves = [h for row in taps for h in (row[0], row[1], row[1], row[2])]
        parts.append(np.array(halves, np.int64).astype(np.int16).tobytes())
        values = layer.parameters(channel)
        values.insert(2, int(layer.biases[channel]) << PRE_SHIFT)
        parts.append(words(values))
    data = b"".join(parts)
    stream = state.constant(data)
    fill = (zero & 0xFFFF) * 0x10001
    prototype = f"void {kernel.name}(const int8_t *, int8_t *, const uint8_t *, int32_t *, const uint8_t *);"
    source, target = state.place(in_name), state.place(op.outputs[0])
    body = (
        f"{prototype}\n  tim_fill16({pointer(scratch, 'int32_t')}, (int32_t){fill}u, {scratch.size // 4});\n"
        f"  {kernel.name}({pointer(source.buffer)}, {pointer(target.buffer)}, W({stream}), "
        f"{pointer(scratch, 'int32_t')}, W({stream + len(data)}));"
    )
    state.step("depthwise", op, body, [in_name], [op.outputs[0]], [scratch], len(data), macs)
    return True


def _lower_small(state: Lowering, op: Op, in_name: str, layer: Layer, strides: tuple[int, int], macs: int) -> None:
    """The kernel of Armv6-M, over planes of words."""
    _, _, zero = quantized(state, op, in_name)
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, _ = image(state.tensor(op.outputs[0]))
    top, left, _, _ = cast("tuple[int, int, int, int]", tuple(op.attributes["pads"]))  # type: ignore[arg-type]
    rows = max((oh - 1) * strides[0] + 3, top + ih)
    pitch = max((ow - 1) * strides[1] + 3, left + iw)
    narrow = small_streams.narrow_of(layer)
    kernel = small_asm.depthwise(ow, pitch, strides, max(5 * state.unroll() // 8, 1), narrow.shift, narrow.signed)
    widen = small_asm.widen(iw, pitch)
    for each in (kernel, widen):
        state.program.asm_kernels[each.name] = each
    name = f"tim_planes_{kernel.name[8:]}_{iw}"
    state.define(name, c_small.DEPTHWISE_SMALL.replace("@KERNEL@", kernel.name).replace("@WIDEN@", widen.name))
    data = b"".join(small_streams.depthwise_stream(layer, channel) for channel in range(channels))
    stream = state.constant(data)
    scratch = state.program.workspace(4 * (16 + rows * pitch))
    parameters = 7 if narrow.signed else 5
    values = (channels, ih, ih * iw, oh, oh * ow, rows * pitch, top * pitch + left, zero, parameters)
    source, target = state.place(in_name), state.place(op.outputs[0])
    body = (
        f"static const {name}_desc d = {braces(values)};\n"
        f"  {name}(&d, {pointer(source.buffer)}, {pointer(target.buffer)}, (const int8_t *)W({stream}), "
        f"{pointer(scratch, 'int32_t')});"
    )
    state.step("depthwise", op, body, [in_name], [op.outputs[0]], [scratch], len(data), macs)


def _lower_portable(
    state: Lowering,
    op: Op,
    in_name: str,
    layer: Layer,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    macs: int,
) -> None:
    _, _, zero = quantized(state, op, in_name)
    ih, iw, in_channels = image(state.tensor(in_name))
    oh, ow, out_channels = image(state.tensor(op.outputs[0]))
    top, left, _, _ = cast("tuple[int, int, int, int]", tuple(op.attributes["pads"]))  # type: ignore[arg-type]
    if iw == ow == kernel[1] == 1 and left == 0:
        # A column is a row to the inner loop, which costs less.
        (ih, iw), (oh, ow), (top, left) = (1, ih), (1, oh), (0, top)
        kernel, strides, dilations = kernel[::-1], strides[::-1], dilations[::-1]
    rows = max((oh - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1, top + ih)
    pitch = max((ow - 1) * strides[1] + (kernel[1] - 1) * dilations[1] + 1, left + iw)
    taps = kernel[0] * kernel[1]
    record = 16 + -(-taps // 4) * 4
    parts = []
    for channel in range(out_channels):
        parts.append(words([int(layer.biases[channel]), *layer.portable_parameters(channel)]))
        parts.append(layer.weights[channel].astype(np.int8).tobytes() + b"\0" * (-taps % 4))
    data = b"".join(parts)
    stream = state.constant(data)
    scratch = state.program.workspace(rows * pitch)
    state.use("depthwise_portable")
    values = (
        out_channels, out_channels // in_channels, ih, iw, oh, ow, *kernel, *strides, *dilations, top, left, rows, pitch,
        zero, layer.low, layer.high, record,
    )  # fmt: skip
    source, target = state.place(in_name), state.place(op.outputs[0])
    body = (
        f"static const tim_depthwise_desc d = {braces(values)};\n"
        f"  tim_depthwise(&d, {pointer(source.buffer)}, {pointer(target.buffer)}, W({stream}), {pointer(scratch)});"
    )
    state.step("depthwise", op, body, [in_name], [op.outputs[0]], [scratch], len(data), macs)
