"""What the kernels of `small_asm` read: weights in chunks whose sums fit 16 bits, and parameters as `narrow` has them."""

from __future__ import annotations

import math

import numpy as np

from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import words
from tinymlaas_compiler_tvm.narrow import Narrow

# |x| is at most 128, and a lower half holds sums below 2**15 in size.
_MOST = 255
# How many products share a sum before its halves are taken apart.
CHUNKS = (4, 6, 8, 12, 16, 24)
# Instructions for four pixels: taking a chunk's sums apart, a product that is over, a batch of these.
_CHUNK_COST, _OVER_COST, _BATCH_COST = 6, 12, 16
# Of the patch, for each k.
PATCH_BYTES = 8


def narrow_of(layer: Layer) -> Narrow:
    """The layer's requantization; its family is the small one."""
    if layer.narrow is None:
        raise ValueError("the layer has no requantization in 32 bits")
    return layer.narrow


def limited(weights: np.ndarray, chunk: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Weights [K], a multiple of `chunk`, of which no chunk sums up to more than 255 in size, and what is over: (k, weight)."""
    kept = weights.copy()
    over = []
    groups = kept.reshape(-1, chunk)
    for number in np.flatnonzero(np.abs(groups).sum(axis=1) > _MOST):
        group = groups[number]
        while (excess := int(np.abs(group).sum()) - _MOST) > 0:
            place = int(np.abs(group).argmax())
            taken = int(np.sign(group[place])) * min(excess, abs(int(group[place])))
            group[place] -= taken
            over.append((int(number) * chunk + place, taken))
    return kept, over


def batches(over: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """What is over, in batches that sum up to at most 255 in size."""
    found: list[list[tuple[int, int]]] = []
    room = 0
    for k, weight in over:
        if abs(weight) > room:
            found.append([])
            room = _MOST
        found[-1].append((k, weight))
        room -= abs(weight)
    return found


def words_of(chunk: int) -> int:
    """Words of four weights that make up whole chunks."""
    return math.lcm(chunk, 4) // 4


def best_chunk(layer: Layer) -> int:
    """The size of chunks that costs a layer the fewest instructions."""

    padded = np.abs(np.pad(layer.weights, ((0, 0), (0, -layer.weights.shape[1] % 4))))

    def cost(chunk: int) -> int:
        falling = -np.sort(-padded.reshape(padded.shape[0], -1, chunk), axis=2)
        excess = falling.sum(axis=2) - _MOST
        before = falling.cumsum(axis=2) - falling
        over = int((before < excess[:, :, None]).sum())
        totals = np.maximum(excess, 0).sum(axis=1)
        return int(_CHUNK_COST * excess.size + _OVER_COST * over + _BATCH_COST * (-(-totals // _MOST)).sum())

    fours = -(-layer.weights.shape[1] // 4)
    return min((chunk for chunk in CHUNKS if fours % words_of(chunk) == 0), key=cost)


def channel_stream(layer: Layer, channel: int, chunk: int) -> bytes:
    """One channel for `small_asm.matrix`: weights, span * 2, batches of what is over, negated base, offset, low, high[, ...].

    Where something is over 1 is added to the second; a batch begins with its count, and 0 ends them.
    """
    weights = layer.weights[channel]
    kept, over = limited(np.pad(weights, (0, -weights.size % 4)), chunk)
    narrow = narrow_of(layer)
    values = [2 * int(narrow.spans[channel]) + bool(over)]
    for batch in batches(over):
        values += [len(batch), *((weight << 16) + PATCH_BYTES * k for k, weight in batch)]
    values += [0] if over else []
    values.append(int(layer.biases[channel] - narrow.bases[channel]))
    values += [int(each[channel]) for each in (narrow.offsets, narrow.lows, narrow.highs)]
    if narrow.signed:
        values += [int(narrow.corners[channel]), int(narrow.extras[channel])]
    return kept.astype(np.int8).tobytes() + words(values)


def depthwise_stream(layer: Layer, channel: int) -> bytes:
    """One channel for `small_asm.depthwise`: nine weights and padding, then its block's parameters."""
    narrow = narrow_of(layer)
    values = [int(layer.biases[channel] - narrow.bases[channel]), int(narrow.spans[channel])]
    values += [int(each[channel]) for each in (narrow.lows, narrow.highs, narrow.offsets)]
    if narrow.signed:
        values += [int(narrow.corners[channel]), int(narrow.extras[channel])]
    taps: bytes = layer.weights[channel].astype(np.int8).tobytes()
    return taps + b"\0" * 3 + words(values)
