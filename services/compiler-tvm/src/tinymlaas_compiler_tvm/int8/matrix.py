"""Matrix kernels: all output channels of a few pixels, in the family of kernels that a core and a layer allow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tinymlaas_compiler_tvm.int8 import dsp_asm, long_asm, long_streams, small_asm, small_streams, sparse_asm
from tinymlaas_compiler_tvm.int8.asm_text import Epilogue
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, words
from tinymlaas_compiler_tvm.int8.sparse_streams import channel_stream, unbiased
from tinymlaas_compiler_tvm.native.program import AsmKernel

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


class Family(StrEnum):
    """Kernels by what they need: DSP instructions, 64-bit multiply-accumulate on Thumb-2, Armv6-M, or nothing but C.

    SPARSE needs what LONG does, and leaves out zeros as SPARSE_PORTABLE does: a choice of its own (`sparse`).
    """

    DSP = "dsp"
    LONG = "long"
    SMALL = "small"
    PORTABLE = "portable"
    SPARSE = "sparse"
    SPARSE_PORTABLE = "sparse portable"


SPARSE_FAMILIES = (Family.SPARSE, Family.SPARSE_PORTABLE)


def family_of(state: Lowering, layer: Layer, *, compact: bool = False) -> Family:
    """The fastest family that computes the layer exactly; with `compact` none whose weights and parameters take more flash."""
    if state.machine.dsp and layer.packable:
        return Family.DSP
    if state.machine.mainline and long_streams.fits_fields(layer):
        return Family.LONG
    if layer.packable and layer.narrow is not None and not compact:
        return Family.SMALL
    return Family.PORTABLE


def epilogue_of(layer: Layer, family: Family, uniform: bool = False) -> Epilogue:
    """The epilogue of a layer's assembly kernels; those of the DSP family start sums at the bias.

    `uniform`: the kernel can do with one set of parameters.
    """
    clamp = None if (layer.low, layer.high) == (-128, 127) else (layer.low, layer.high)
    return Epilogue(
        layer.fitted.shift, layer.signed, clamp, layer.biased and family is Family.LONG, uniform and layer.uniform
    )


@dataclass(frozen=True)
class Part:
    """One call of a driver: the channels from `first_channel` on, their stream and the C of the kernel's arguments."""

    first_channel: int
    stream: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Matrix:
    """Kernels chosen for a layer (`small`: for a rest of one or two pixels), and their calls."""

    family: Family
    kernel: str
    small: str
    parts: tuple[Part, ...]
    bytes: int


def _unroll(eights: int, limit: int) -> int:
    return max((u for u in range(1, limit + 1) if eights % u == 0), default=0) if eights else 0


def make_matrix(state: Lowering, layer: Layer, family: Family, pixel_stride: int, channel_stride: int) -> Matrix:
    """Kernels, streams and arguments of a layer whose outputs lie at these strides."""
    if family in SPARSE_FAMILIES:
        return _sparse_matrix(state, layer, family, pixel_stride, channel_stride)
    if family is Family.SMALL:
        return _small_matrix(state, layer, pixel_stride, channel_stride)
    channels, k = layer.weights.shape
    pack = {
        Family.DSP: pair_stream,
        Family.LONG: long_streams.pair_stream,
        Family.PORTABLE: portable_pair_stream,
    }[family]
    even = channels - channels % 2
    streams = [(0, b"".join(pack(layer, c, c + 1) for c in range(0, even, 2)), channel_stride)] if even else []
    if channels % 2:
        # The missing partner is a channel of zeros, whose outputs the last channel's overwrite.
        streams.append((channels - 1, pack(layer, -1, channels - 1), 0))
    epilogue = epilogue_of(layer, family)
    unroll = state.unroll()
    small = ""
    if family is Family.DSP:
        eights, tail = divmod(-(-k // 4), 2)
        repeated = _unroll(eights, unroll)
        kernels = [dsp_asm.two_by_two(repeated, eights == repeated, bool(tail), epilogue)]
    elif family is Family.LONG:
        kernels = [long_asm.two_by_four(k, unroll, epilogue), long_asm.two_by_two(k, min(unroll, 8), epilogue)]
        small = kernels[1].name
    else:
        state.use("portable_mm")
        kernels = []
    for kernel in kernels:
        state.program.asm_kernels[kernel.name] = kernel
    parts = []
    for first, data, distance in streams:
        if family is Family.DSP:
            arguments: tuple[int, ...] = (pixel_stride, distance, len(data), 64 // 2 * (-(-k // 4) // 2))
        elif family is Family.LONG:
            arguments = (pixel_stride, 2 * pixel_stride, 3 * pixel_stride, distance, len(data))
        else:
            pairs = even // 2 if distance else 1
            arguments = (pixel_stride, distance, pairs, -(-k // 4) * 4, layer.low, layer.high)
        parts.append(Part(first, state.constant(data), arguments))
    name = kernels[0].name if kernels else "tim_mm"
    return Matrix(family, name, small, tuple(parts), sum(len(data) for _, data, _ in streams))


def _sparse_matrix(state: Lowering, layer: Layer, family: Family, pixel_stride: int, channel_stride: int) -> Matrix:
    channels = layer.weights.shape[0]
    portable = family is Family.SPARSE_PORTABLE
    data = b"".join(channel_stream(layer, channel, portable) for channel in range(channels))
    arguments: tuple[int, ...] = (pixel_stride, channel_stride, len(data), channels)
    name = "tim_mm8"
    if portable:
        state.use("sparse_mm")
        arguments = (*arguments, layer.low, layer.high)
    else:
        kernel = sparse_asm.matrix(epilogue_of(unbiased(layer), family), state.machine.dsp)
        state.program.asm_kernels[kernel.name] = kernel
        name = kernel.name
    return Matrix(family, name, "", (Part(0, state.constant(data), arguments),), len(data))


def _small_matrix(state: Lowering, layer: Layer, pixel_stride: int, channel_stride: int) -> Matrix:
    fours = -(-layer.weights.shape[1] // 4)
    narrow = small_streams.narrow_of(layer)
    chunk = small_streams.best_chunk(layer)
    unit = small_streams.words_of(chunk)

    def made(pixels: int, limit: int) -> AsmKernel:
        turn = 4 * unit * small_asm.unrolled(fours // unit, max(limit // unit, 1))
        return small_asm.matrix(turn, chunk, pixels, narrow.shift, narrow.signed)

    # The kernel of four pixels can do a rest, too; where flash is short it does.
    kernel = made(4, 1 if state.settings.compact else state.unroll())
    rest = kernel if state.settings.compact else made(2, 2)
    for each in (kernel, rest, small_asm.pack()):
        state.program.asm_kernels[each.name] = each
    data = b"".join(small_streams.channel_stream(layer, channel, chunk) for channel in range(layer.weights.shape[0]))
    # Each chunk adds 2**15.
    start = -(fours * 4 // chunk << 15)
    sizes = (fours * 4 * small_streams.PATCH_BYTES, len(data), start)
    part = Part(0, state.constant(data), (pixel_stride, channel_stride, *sizes))
    return Matrix(Family.SMALL, kernel.name, rest.name, (part,), len(data))


def braces(values: tuple[int, ...]) -> str:
    """A C initializer."""
    return "{" + ", ".join(str(value) for value in values) + "}"
