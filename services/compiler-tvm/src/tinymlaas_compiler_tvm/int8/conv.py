"""CONV_2D: pointwise layers over planes in place, every other convolution through a ring of padded rows."""

from __future__ import annotations

from typing import cast

import numpy as np

from tinymlaas_compiler_tvm.int8 import c_long, c_matrix, c_small, c_sparse, dsp_asm, long_asm, sparse, winograd
from tinymlaas_compiler_tvm.int8.channels import Layer, make_layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, image, pointer, quantized, unsupported
from tinymlaas_compiler_tvm.int8.matrix import SPARSE_FAMILIES, Family, Matrix, braces, family_of, make_matrix
from tinymlaas_compiler_tvm.native.program import Buffer
from tinymlaas_modelkit.graph import Op

# Pixels that a kernel takes at a time, and bytes of its patch for each k.
_PIXELS = {
    Family.DSP: 2, Family.LONG: 4, Family.SMALL: 4, Family.PORTABLE: 2, Family.SPARSE: 8, Family.SPARSE_PORTABLE: 8,
}  # fmt: skip
_PATCH = {
    Family.DSP: 4, Family.LONG: 8, Family.SMALL: 8, Family.PORTABLE: 2, Family.SPARSE: 16, Family.SPARSE_PORTABLE: 8,
}  # fmt: skip


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
    if winograd.takes(state, op):
        winograd.lower(state, op, layer)
    elif pointwise and state.place(in_name).planar and channels % 4 == 0:
        _planar_pointwise(state, op, layer)
    else:
        _ring_convolution(state, op, layer, kh, kw)


def _family(state: Lowering, op: Op, layer: Layer) -> Family:
    height, width, _ = image(state.tensor(op.outputs[0]))
    other = family_of(state, layer, compact=state.compact)
    if sparse.matrix_pays(state, layer, height * width, other):
        return Family.SPARSE if state.machine.mainline else Family.SPARSE_PORTABLE
    return other


def _named(kind: str, family: Family) -> str:
    """What reports call a step."""
    return kind + sparse.SPARSE if family in SPARSE_FAMILIES else kind


def _last_pixels(layer: Layer, family: Family) -> int:
    """Bytes behind the patch for the outputs of pixels that fill no group."""
    return _PIXELS[family] * layer.weights.shape[0] if family in SPARSE_FAMILIES else 0


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
    matrix = make_matrix(state, layer, _family(state, op, layer), pixel, channel)
    patch = state.program.workspace(channels * _PATCH[matrix.family] + _last_pixels(layer, matrix.family))
    name = _define_planar(state, matrix)
    inner = channels // 4 if matrix.family is Family.DSP else channels
    calls = []
    for number, part in enumerate(matrix.parts):
        arguments, rest = part.arguments, ""
        if matrix.family is Family.SPARSE:
            arguments, rest = arguments[:3], f", {arguments[3]}"
        values = f"{braces(arguments)}, {plane}, {plane}, {inner}{rest}"
        calls.append(f"static const {name}_desc d{number} = {{{values}}};")
        calls.append(
            f"{name}(&d{number}, {pointer(source.buffer)}, {pointer(target.buffer)} + {part.first_channel * channel}, "
            f"W({part.stream}), {_patch_pointer(matrix, patch)});"
        )
    state.step(
        _named("conv2d_pointwise", matrix.family),
        op,
        "\n  ".join(calls),
        [in_name],
        [out_name],
        [patch],
        matrix.bytes,
        _macs(state, op, layer),
    )


def _patch_pointer(matrix: Matrix, patch: Buffer) -> str:
    portable = matrix.family in (Family.PORTABLE, Family.SPARSE_PORTABLE)
    return pointer(patch) if portable else pointer(patch, "int32_t")


def _define_planar(state: Lowering, matrix: Matrix) -> str:
    """The driver over planes for a matrix kernel."""
    if matrix.family is Family.PORTABLE:
        state.define("tim_planar", c_matrix.PLANAR_PORTABLE, "portable_mm")
        return "tim_planar"
    if matrix.family is Family.SPARSE_PORTABLE:
        state.define("tim_planar8", c_sparse.PLANAR_SPARSE_C, "sparse_mm")
        return "tim_planar8"
    name = f"tim_planar_{matrix.kernel[4:]}"
    if matrix.family is Family.SMALL:
        state.define(name, _with_kernels(c_small.PLANAR_SMALL, matrix), "small_common")
        return name
    if matrix.family is Family.SPARSE:
        state.define(name, c_sparse.PLANAR_SPARSE.replace("@MM@", matrix.kernel), "sparse_planes")
        return name
    if matrix.family is Family.LONG:
        state.define(name, _with_kernels(c_long.PLANAR_LONG, matrix), "long_pack")
    else:
        kernel = dsp_asm.gather_planar()
        state.program.asm_kernels[kernel.name] = kernel
        state.define(name, c_matrix.PLANAR_DSP.replace("@MM@", matrix.kernel))
    return name


def _with_kernels(template: str, matrix: Matrix) -> str:
    return template.replace("@MM4@", matrix.kernel).replace("@MM2@", matrix.small)


def _define_ring(state: Lowering, matrix: Matrix, straight: bool) -> str:
    """The driver through a ring of rows for a matrix kernel."""
    if matrix.family is Family.PORTABLE:
        state.define("tim_conv_run", c_matrix.CONV_PORTABLE, "conv_common", "portable_mm")
        return "tim_conv_run"
    if matrix.family is Family.SPARSE_PORTABLE:
        state.define("tim_conv8", c_sparse.CONV_SPARSE_C, "conv_common", "sparse_mm")
        return "tim_conv8"
    if matrix.family is Family.SMALL:
        name = f"tim_conv_{matrix.kernel[4:]}"
        state.define(name, _with_kernels(c_small.CONV_SMALL, matrix), "small_gather")
        return name
    if matrix.family is Family.SPARSE:
        kernel = long_asm.pack_four_runs(16)
        state.program.asm_kernels[kernel.name] = kernel
        name = f"tim_conv_{matrix.kernel[4:]}"
        state.define(name, c_sparse.CONV_SPARSE.replace("@MM@", matrix.kernel), "conv_common", "sparse_common")
        return name
    if matrix.family is Family.LONG:
        kernel = long_asm.pack_four_runs()
        state.program.asm_kernels[kernel.name] = kernel
        name = f"tim_conv_{matrix.kernel[4:]}"
        state.define(name, _with_kernels(c_long.CONV_LONG, matrix), "conv_common", "long_pack")
        return name
    kernel = dsp_asm.gather_run(16)
    state.program.asm_kernels[kernel.name] = kernel
    name = f"tim_conv_{'r' if straight else 'b'}_{matrix.kernel[4:]}"
    gather = c_matrix.GATHER_RUNS if straight else c_matrix.GATHER_BYTES
    state.define(name, c_matrix.CONV_DSP.replace("@MM@", matrix.kernel).replace("@GATHER@", gather), "conv_common")
    return name


def _rows_spanned(group: int, oh: int, ow: int) -> int:
    """The most rows beyond its first that a group of neighbouring pixels, in row order, reaches into."""
    last = oh * ow - 1
    return max(min(start + group - 1, last) // ow - start // ow for start in range(0, oh * ow, group))


def _ring_convolution(state: Lowering, op: Op, layer: Layer, kh: int, kw: int) -> None:
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    _, _, zero = quantized(state, op, in_name)
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, _ = image(state.tensor(out_name))
    (sh, sw), (dh, dw), (top, left, _, _) = _window(op)
    source = state.place(in_name)
    in_pixel, in_channel = state.strides(in_name)
    padded_columns = max((ow - 1) * sw + (kw - 1) * dw + 1, left + iw)
    padded_rows = (oh - 1) * sh + (kh - 1) * dh + 1
    right = padded_columns - left - iw
    family = _family(state, op, layer)
    # Pixels that are taken together may lie in neighbouring rows of the output; the ring holds the rows of all.
    ring_rows = min(padded_rows, (kh - 1) * dh + 1 + sh * _rows_spanned(_PIXELS[family], oh, ow))
    needs_ring = padded_columns != iw or top > 0 or padded_rows > ih or (source.planar and channels > 1)
    in_place = _in_place(state, op, (kh - 1) * dh + 1, _PIXELS[family])
    if in_place:
        needs_ring = True
    target = state.output(out_name, over=in_name if in_place else None)
    if source.buffer is target.buffer and not needs_ring:
        needs_ring = True
    out_pixel, out_channel = state.strides(out_name)
    matrix = make_matrix(state, layer, family, out_pixel, out_channel)
    row_bytes = padded_columns * channels
    if not needs_ring:
        top, left, right, row_bytes = 0, 0, 0, iw * channels
    runs, run_step, run = (1, 0, kw * channels) if dw == 1 else (kw, dw * channels, channels)
    k = layer.weights.shape[1]
    fours = -(-k // 4)
    straight = family is Family.DSP and runs == 1 and run % 4 == 0 and dh == 1
    values = (
        ih, iw, channels, in_pixel, in_channel, oh, ow, top, left * channels, right * channels,
        row_bytes, ring_rows if needs_ring else 0, zero, sh, sw * channels, kh, dh, runs, run_step, run,
        run // 4 if straight else fours, out_pixel,
    )  # fmt: skip
    # The bytes of one pixel are put together behind the patch where a run is no multiple of a word.
    behind = 0 if straight or family is not Family.DSP else fours * 4
    patch = state.program.workspace(fours * 4 * _PATCH[family] + behind + _last_pixels(layer, family))
    scratch = [patch]
    ring_pointer = "0"
    if needs_ring:
        ring = state.program.workspace(row_bytes * ring_rows + 4)
        scratch.append(ring)
        ring_pointer = pointer(ring)
    state.use("conv_common")
    lines = [f"static const tim_conv c = {braces(values)};"]
    name = _define_ring(state, matrix, straight)
    argument_types = {
        Family.PORTABLE: "tim_mm_args", Family.SMALL: "tim_small_args", Family.SPARSE_PORTABLE: "tim_mm8_args",
    }  # fmt: skip
    argument_type = argument_types.get(family, "int32_t")
    size = "[]" if argument_type == "int32_t" else ""
    if in_place and len(matrix.parts) > 1:
        raise unsupported(op, "odd channel count in place")
    for number, part in enumerate(matrix.parts):
        lines.append(f"static const {argument_type} a{number}{size} = {braces(part.arguments)};")
        lines.append(
            f"{name}(&c, {'' if size else '&'}a{number}, {pointer(source.buffer)}, "
            f"{pointer(target.buffer)} + {part.first_channel * out_channel}, W({part.stream}), "
            f"{ring_pointer}, {_patch_pointer(matrix, patch)});"
        )
    kind = _named("conv2d", family)
    state.step(kind, op, "\n  ".join(lines), [in_name], [out_name], scratch, matrix.bytes, _macs(state, op, layer))


def _in_place(state: Lowering, op: Op, window: int, group: int) -> bool:
    """Whether output pixels, `group` at a time, may be written over input rows that the ring has taken in already.

    `window`: rows of the input that one output row reads.
    """
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, out_channels = image(state.tensor(out_name))
    if (state.place(in_name).planar and channels > 1) or (out_name in state.planar and out_channels > 1):
        return False
    if out_channels % 2 or not state.can_overwrite(in_name, state.tensor(out_name).nbytes):
        return False
    (sh, _), _, (top, _, _, _) = _window(op)
    for start in range(0, oh * ow, group):
        last = min(start + group, oh * ow) - 1
        taken = min(max((last // ow) * sh + window - top, 0), ih)
        if (last + 1) * out_channels > taken * iw * channels:
            return False
    return True
