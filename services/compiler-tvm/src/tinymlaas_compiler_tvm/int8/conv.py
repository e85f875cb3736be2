"""CONV_2D: pointwise layers over planes in place, every other convolution through a ring of padded rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from tinymlaas_compiler_tvm.int8 import c_matrix, dsp_asm
from tinymlaas_compiler_tvm.int8.channels import Layer, make_layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, image, pointer, quantized, unsupported, words
from tinymlaas_modelkit.graph import Op

_REORDER = (0, 2, 1, 3)


def widened_order(k: int) -> list[int]:
    """Positions in a widened patch of `k` values (a multiple of 4): SXTB16 makes (k0, k2), (k1, k3) of four bytes."""
    return [group + i for group in range(0, k, 4) for i in _REORDER]


def pack_halfwords(first: np.ndarray, second: np.ndarray) -> bytes:
    """Two channels' weights [K] as halfwords 256 * first + second in widened order, K padded to a multiple of 4."""
    k = -(-first.size // 4) * 4
    halves = np.zeros(k, np.int64)
    halves[: first.size] = 256 * first + second
    return halves[widened_order(k)].astype(np.int16).tobytes()


def pair_stream(layer: Layer, first: int, second: int) -> bytes:
    """Stream of one channel pair for `dsp_asm.two_by_two`; a channel of -1 is one of zeros."""
    zeros = np.zeros(layer.weights.shape[1], np.int64)
    a = zeros if first < 0 else layer.weights[first]
    b = layer.weights[second]
    bias_a = 0 if first < 0 else int(layer.biases[first])
    bias_b = int(layer.biases[second])
    parts = [words([256 * bias_a + bias_b, bias_b]), pack_halfwords(a, b)]
    for channel in (first, second):
        parts.append(words(layer.parameters(channel)))
    return b"".join(parts)


def portable_pair_stream(layer: Layer, first: int, second: int) -> bytes:
    """Stream of one channel pair for the portable `tim_mm`."""
    zeros = np.zeros(layer.weights.shape[1], np.int64)
    a = zeros if first < 0 else layer.weights[first]
    interleaved = np.stack([a, layer.weights[second]], axis=1).astype(np.int8).tobytes()
    bias_a = 0 if first < 0 else int(layer.biases[first])
    parts = [words([bias_a, int(layer.biases[second])]), interleaved + b"\0" * (-len(interleaved) % 8)]
    for channel in (first, second):
        parts.append(words(layer.portable_parameters(channel)))
    return b"".join(parts)


@dataclass(frozen=True)
class Matrix:
    """A matrix kernel chosen for a layer: its streams (even channels, odd last one or None) and the C of its arguments."""

    kernel: str
    stream: int
    odd_stream: int | None
    bytes: int
    arguments: tuple[int, ...]
    odd_arguments: tuple[int, ...]


def epilogue_of(layer: Layer) -> dsp_asm.Epilogue:
    """The epilogue of a layer's DSP kernels."""
    clamp = None if (layer.low, layer.high) == (-128, 127) else (layer.low, layer.high)
    return dsp_asm.Epilogue(layer.fitted.shift, layer.signed, clamp)


def _unroll(eights: int, limit: int) -> int:
    return max((u for u in range(1, limit + 1) if eights % u == 0), default=0) if eights else 0


def make_matrix(state: Lowering, op: Op, layer: Layer, pixel_stride: int, channel_stride: int) -> Matrix:
    """Kernel, streams and arguments of a layer whose outputs lie at these strides."""
    channels, k = layer.weights.shape
    even = channels - channels % 2
    if state.machine.dsp:
        if not layer.packable:
            raise unsupported(op, "weight -128 can't be packed")
        pairs = [pair_stream(layer, c, c + 1) for c in range(0, even, 2)]
        odd = pair_stream(layer, -1, channels - 1) if channels % 2 else b""
        fours = -(-k // 4)
        eights, tail = divmod(fours, 2)
        unroll = _unroll(eights, state.settings.unroll)
        kernel = dsp_asm.two_by_two(unroll, eights == unroll, bool(tail), epilogue_of(layer))
        state.program.asm_kernels[kernel.name] = kernel
        patch_bytes = 64 // 2 * eights
        arguments: tuple[int, ...] = (pixel_stride, channel_stride, sum(map(len, pairs)), patch_bytes)
        odd_arguments: tuple[int, ...] = (pixel_stride, 0, len(odd), patch_bytes)
        name = kernel.name
    else:
        state.use("portable_mm")
        pairs = [portable_pair_stream(layer, c, c + 1) for c in range(0, even, 2)]
        odd = portable_pair_stream(layer, -1, channels - 1) if channels % 2 else b""
        tail_arguments = (-(-k // 4) * 4, layer.low, layer.high)
        arguments = (pixel_stride, channel_stride, len(pairs), *tail_arguments)
        odd_arguments = (pixel_stride, 0, 1, *tail_arguments)
        name = "tim_mm"
    stream = state.constant(b"".join(pairs)) if pairs else 0
    odd_stream = state.constant(odd) if odd else None
    size = sum(map(len, pairs)) + len(odd)
    return Matrix(name, stream, odd_stream, size, arguments, odd_arguments)


def braces(values: tuple[int, ...]) -> str:
    """A C initializer."""
    return "{" + ", ".join(str(value) for value in values) + "}"


def _window(op: Op) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    strides = cast("tuple[int, int]", tuple(op.attributes["strides"]))  # type: ignore[arg-type]
    dilations = cast("tuple[int, int]", tuple(op.attributes.get("dilations", (1, 1))))  # type: ignore[arg-type]
    pads = cast("tuple[int, int, int, int]", tuple(op.attributes.get("pads", (0, 0, 0, 0))))  # type: ignore[arg-type]
    return strides, dilations, pads


def lower_conv(state: Lowering, op: Op) -> None:
    """One step for a convolution."""
    in_name = str(op.inputs[0])
    quantized(state, op, in_name)
    filter_data = state.tensor(op.inputs[1]).data
    if filter_data is None:
        raise unsupported(op, "weights are not constant")
    filters = filter_data.astype(np.int64)
    layer = make_layer(state, op, filters.reshape(filters.shape[0], -1))
    _, kh, kw, _ = filters.shape
    strides, _, pads = _window(op)
    pointwise = (kh, kw) == (1, 1) and strides == (1, 1) and not any(pads)
    channels = image(state.tensor(in_name))[2]
    if pointwise and state.place(in_name).planar and channels % 4 == 0:
        _planar_pointwise(state, op, layer)
    else:
        _ring_convolution(state, op, layer, kh, kw)


def _macs(state: Lowering, op: Op, layer: Layer) -> int:
    height, width, _ = image(state.tensor(op.outputs[0]))
    return height * width * int(layer.weights.size)


def _planar_pointwise(state: Lowering, op: Op, layer: Layer) -> None:
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    height, width, channels = image(state.tensor(in_name))
    plane = height * width
    shrinking = layer.weights.shape[0] <= channels and out_name in state.planar and layer.weights.shape[0] % 2 == 0
    source = state.place(in_name)
    target = state.output(out_name, over=in_name if shrinking else None)
    pixel, channel = state.strides(out_name)
    matrix = make_matrix(state, op, layer, pixel, channel)
    patch = state.program.workspace(channels * (4 if state.machine.dsp else 2))
    calls = []
    jobs = [(matrix.stream, matrix.arguments, 0)] if layer.weights.shape[0] > 1 else []
    if matrix.odd_stream is not None:
        jobs.append((matrix.odd_stream, matrix.odd_arguments, (layer.weights.shape[0] - 1) * channel))
    for number, (stream, arguments, shift) in enumerate(jobs):
        if state.machine.dsp:
            kernel = dsp_asm.gather_planar()
            state.program.asm_kernels[kernel.name] = kernel
            name = f"tim_planar_{matrix.kernel[4:]}"
            state.define(name, c_matrix.PLANAR_DSP.replace("@MM@", matrix.kernel))
            values = f"{braces(arguments)}, {plane}, {plane}, {channels // 4}"
            scratch = pointer(patch, "int32_t")
        else:
            name = "tim_planar"
            state.define(name, c_matrix.PLANAR_PORTABLE, "portable_mm")
            values = f"{braces(arguments)}, {plane}, {plane}, {channels}"
            scratch = pointer(patch)
        calls.append(f"static const {name}_desc d{number} = {{{values}}};")
        calls.append(
            f"{name}(&d{number}, {pointer(source.buffer)}, {pointer(target.buffer)} + {shift}, W({stream}), {scratch});"
        )
    state.step(
        "conv2d_pointwise",
        op,
        "\n  ".join(calls),
        [in_name],
        [out_name],
        [patch],
        matrix.bytes,
        _macs(state, op, layer),
    )


def _ring_convolution(state: Lowering, op: Op, layer: Layer, kh: int, kw: int) -> None:
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    _, _, zero = quantized(state, op, in_name)
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, out_channels = image(state.tensor(out_name))
    (sh, sw), (dh, dw), (top, left, _, _) = _window(op)
    source = state.place(in_name)
    in_pixel, in_channel = state.strides(in_name)
    padded_columns = max((ow - 1) * sw + (kw - 1) * dw + 1, left + iw)
    padded_rows = (oh - 1) * sh + (kh - 1) * dh + 1
    right = padded_columns - left - iw
    # Two pixels may lie in neighbouring rows of the output, so the ring holds one output row's step more.
    ring_rows = min(padded_rows, (kh - 1) * dh + 1 + (sh if ow % 2 else 0))
    needs_ring = padded_columns != iw or top > 0 or padded_rows > ih or (source.planar and channels > 1)
    in_place = _row_by_row_in_place(state, op, (oh, ow, out_channels), (ih, iw, channels), top, ring_rows)
    if in_place:
        needs_ring = True
    target = state.output(out_name, over=in_name if in_place else None)
    if source.buffer is target.buffer and not needs_ring:
        needs_ring = True
    out_pixel, out_channel = state.strides(out_name)
    matrix = make_matrix(state, op, layer, out_pixel, out_channel)
    row_bytes = padded_columns * channels
    if not needs_ring:
        top, left, right, row_bytes = 0, 0, 0, iw * channels
    runs, run_step, run = (1, 0, kw * channels) if dw == 1 else (kw, dw * channels, channels)
    k = layer.weights.shape[1]
    fours = -(-k // 4)
    straight = state.machine.dsp and runs == 1 and run % 4 == 0 and dh == 1
    values = (
        ih, iw, channels, in_pixel, in_channel, oh, ow, top, left * channels, right * channels,
        row_bytes, ring_rows if needs_ring else 0, zero, sh, sw * channels, kh, dh, runs, run_step, run,
        run // 4 if straight else fours, out_pixel,
    )  # fmt: skip
    # The bytes of one pixel are put together behind the patch where a run is no multiple of a word.
    patch = state.program.workspace(fours * 16 + (0 if straight else fours * 4) if state.machine.dsp else fours * 8)
    scratch = [patch]
    ring_pointer = "0"
    if needs_ring:
        ring = state.program.workspace(row_bytes * ring_rows + 4)
        scratch.append(ring)
        ring_pointer = pointer(ring)
    state.use("conv_common")
    lines = [f"static const tim_conv c = {braces(values)};"]
    jobs = [(matrix.stream, matrix.arguments, 0)] if out_channels > 1 else []
    if matrix.odd_stream is not None:
        jobs.append((matrix.odd_stream, matrix.odd_arguments, (out_channels - 1) * out_channel))
    if in_place and len(jobs) > 1:
        raise unsupported(op, "odd channel count in place")
    for number, (stream, arguments, shift) in enumerate(jobs):
        if state.machine.dsp:
            run_kernel = dsp_asm.gather_run(16)
            state.program.asm_kernels[run_kernel.name] = run_kernel
            name = f"tim_conv_{'r' if straight else 'b'}_{matrix.kernel[4:]}"
            gather = c_matrix.GATHER_RUNS if straight else c_matrix.GATHER_BYTES
            state.define(
                name, c_matrix.CONV_DSP.replace("@MM@", matrix.kernel).replace("@GATHER@", gather), "conv_common"
            )
            lines.append(f"static const int32_t a{number}[4] = {braces(arguments)};")
            patch_pointer = pointer(patch, "int32_t")
            call = f"{name}(&c, a{number}"
        else:
            name = "tim_conv_run"
            state.define(name, c_matrix.CONV_PORTABLE, "conv_common", "portable_mm")
            lines.append(f"static const tim_mm_args a{number} = {braces(arguments)};")
            patch_pointer = pointer(patch)
            call = f"{name}(&c, &a{number}"
        lines.append(
            f"{call}, {pointer(source.buffer)}, {pointer(target.buffer)} + {shift}, W({stream}), "
            f"{ring_pointer}, {patch_pointer});"
        )
    state.step("conv2d", op, "\n  ".join(lines), [in_name], [out_name], scratch, matrix.bytes, _macs(state, op, layer))


def _row_by_row_in_place(
    state: Lowering,
    op: Op,
    out_image: tuple[int, int, int],
    in_image: tuple[int, int, int],
    top: int,
    ring_rows: int,
) -> bool:
    """Whether output rows may be written over input rows that the ring has taken in already."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    (oh, ow, out_channels), (ih, iw, channels) = out_image, in_image
    if (state.place(in_name).planar and channels > 1) or (out_name in state.planar and out_channels > 1):
        return False
    if out_channels % 2 or ow % 2 or not state.can_overwrite(in_name, state.tensor(out_name).nbytes):
        return False
    (sh, _), _, _ = _window(op)
    for y in range(oh):
        taken = min(max(y * sh + ring_rows - top, 0), ih)
        if (y + 1) * ow * out_channels > taken * iw * channels:
            return False
    return True
