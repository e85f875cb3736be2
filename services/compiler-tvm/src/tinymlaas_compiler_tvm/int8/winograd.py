"""CONV_2D of 3 x 3 by Winograd's F(2x2, 3x3) in integers: 16 products for four outputs where the direct way has 36.

With G doubled, 4 U = (2G) g (2G)^T is an integer of at most 9 * 128, V = B^T d B one of at most 4 * 128, and A^T (4 U V) A is
exactly 4 times the accumulator. Sums on the way may pass 32 bits: they are right modulo 2**32, and 4 (even 256) times the
accumulator is an int32, which `channels.make_layer` proves of every layer from its weights' L1 norms. So the outputs are those
of the direct kernels, bit by bit. Weights take 16 halfwords for 9 bytes, which is why only the objective `latency` asks for it.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm.int8 import c_winograd, winograd_asm
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, image, pointer, quantized, words
from tinymlaas_compiler_tvm.int8.matrix import Family, braces, epilogue_of, widened_order
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind

STEP = "conv2d_winograd"
_G2 = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int64)
# Weights times 2**4 are int16 still; multipliers times 2**2 make up the rest of 256 = 4 * 2**4 * 2**2.
_WEIGHT_SHIFT, _MULTIPLIER_SHIFT = 4, 2


def suits(graph: Graph, op: Op) -> bool:
    """Whether a convolution has the form that the kernels take: 3 x 3, stride 1, channels in fours."""
    if op.kind is not OpKind.CONV_2D or not graph.tensor(str(op.inputs[1])).is_constant:
        return False
    weights, source = graph.tensor(str(op.inputs[1])), graph.tensor(str(op.inputs[0]))
    channels = image(source)[2]
    return (
        source.dtype is DType.INT8
        and weights.shape[1:] == (3, 3, channels)
        and all(tuple(op.attributes.get(name, (1, 1))) == (1, 1) for name in ("strides", "dilations"))  # type: ignore[arg-type]
        and channels % 4 == 0
        and channels <= winograd_asm.MOST_CHANNELS
    )


def transformed(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """4 U of filters [..., 3, 3, channels]: [..., 4, 4, channels]."""
    made: npt.NDArray[np.int64] = np.einsum("ai,...ijk,bj->...abk", _G2, weights, _G2)
    return made


def _folds(layer: Layer) -> bool:
    """Whether weights and multipliers can take over all of the factor that requantization wants."""
    return bool(layer.fitted.multipliers.max(initial=0) < 1 << (31 - _MULTIPLIER_SHIFT))


def pair_stream(layer: Layer, first: int, second: int) -> bytes:
    """Stream of one channel pair for `winograd_asm.product`; a channel of -1 is one of zeros."""
    channels = layer.weights.shape[1] // 9
    weight_shift, multiplier_shift = (_WEIGHT_SHIFT, _MULTIPLIER_SHIFT) if _folds(layer) else (0, 0)
    u = np.zeros((2, 4, 4, channels), np.int64)
    for number, channel in enumerate((first, second)):
        if channel >= 0:
            u[number] = transformed(layer.weights[channel].reshape(3, 3, channels)) << weight_shift
    # [position, pair of k, channel of the two, k of the pair]
    places = np.stack([u[:, row, column] for row, column in winograd_asm.POSITIONS])[:, :, widened_order(channels)]
    halves = places.reshape(16, 2, channels // 2, 2).transpose(0, 2, 1, 3)
    parts = [halves.astype(np.int16).tobytes()]
    for channel in (first, second):
        bias = 0 if channel < 0 else int(layer.biases[channel]) << (2 + weight_shift)
        multiplier, *others = layer.parameters(channel)
        parts.append(words([bias, multiplier << multiplier_shift, *others]))
    return b"".join(parts)


def takes(state: Lowering, op: Op) -> bool:
    """Whether the operator at hand was chosen."""
    return op.outputs[0] in state.settings.winograd and suits(state.graph, op)


def lower(state: Lowering, op: Op, layer: Layer) -> None:
    """One step for a convolution that `takes` is true of."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    _, _, zero = quantized(state, op, in_name)
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, outputs = image(state.tensor(out_name))
    top, left, _, _ = cast("tuple[int, int, int, int]", tuple(op.attributes.get("pads", (0, 0, 0, 0))))  # type: ignore[arg-type]
    columns = 4 * -(-ow // 4) + 2
    source = state.place(in_name)
    in_pixel, in_channel = state.strides(in_name)
    target = state.output(out_name, over=in_name if _in_place(state, op, top) else None)
    out_pixel, out_channel = state.strides(out_name)
    even = outputs - outputs % 2
    stream = b"".join(pair_stream(layer, c, c + 1) for c in range(0, even, 2))
    parts = [(0, 0, len(stream), out_channel, 1)] if even else []
    if outputs % 2:
        # The missing partner is a channel of zeros, whose outputs the last channel's overwrite.
        last = pair_stream(layer, -1, outputs - 1)
        parts.append((outputs - 1, len(stream), len(last), 0, 0))
        stream += last
    kernels = (
        winograd_asm.transform(channels),
        winograd_asm.product(
            channels, 0 if _folds(layer) else winograd_asm.PLAIN_SHIFT, epilogue_of(layer, Family.DSP)
        ),
    )
    state.program.asm_kernels |= {kernel.name: kernel for kernel in kernels}
    row_bytes = columns * channels
    ring = state.program.workspace(4 * row_bytes)
    scratch = state.program.workspace(16 * winograd_asm.position_bytes(channels))
    workspaces = [ring, scratch]
    edge_pointer = "0"
    if oh % 2 or ow % 4:
        workspaces.append(state.program.workspace(8 * outputs))
        edge_pointer = pointer(workspaces[-1])
    walk = (
        ih, iw, channels, in_pixel, in_channel, oh, ow, top, left * channels, (columns - left - iw) * channels,
        row_bytes, 4, zero,
    )  # fmt: skip
    descriptions = []
    for channel, offset, size, distance, step in parts:
        inside = (out_pixel, 3 * out_pixel, ow * out_pixel, distance, size)
        edge = (outputs, 3 * outputs, 4 * outputs, step, size)
        descriptions.append(f"{{{channel}, {offset}, {braces(inside)}, {braces(edge)}}}")
    name = f"tim_winograd_{kernels[1].name.removeprefix('tim_wino_mm_')}"
    text = c_winograd.CONV_WINOGRAD.replace("@IN@", kernels[0].name).replace("@MM@", kernels[1].name)
    state.define(name, text, "winograd_common")
    body = (
        f"static const tim_winograd c = {{{braces(walk)}, {out_pixel}, {out_channel}, {outputs}, {len(parts)}, "
        f"{{{', '.join(descriptions)}}}}};\n  "
        f"{name}(&c, {pointer(source.buffer)}, {pointer(target.buffer)}, W({state.constant(stream)}), {pointer(ring)}, "
        f"{pointer(scratch, 'int32_t')}, {edge_pointer});"
    )
    macs = oh * ow * int(layer.weights.size)
    state.step(STEP, op, body, [in_name], [out_name], workspaces, len(stream), macs)


def _in_place(state: Lowering, op: Op, top: int) -> bool:
    """Whether two output rows at a time may be written over input rows that the ring has taken in already."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    ih, iw, channels = image(state.tensor(in_name))
    oh, ow, outputs = image(state.tensor(out_name))
    if state.place(in_name).planar or (out_name in state.planar and outputs > 1):
        return False
    if not state.can_overwrite(in_name, state.tensor(out_name).nbytes):
        return False
    return all(min(y + 2, oh) * ow * outputs <= min(max(y + 4 - top, 0), ih) * iw * channels for y in range(0, oh, 2))
