"""What the kernels of `small_asm` read: weights in groups of four whose sums fit 16 bits, and parameters as `narrow` has them."""

from __future__ import annotations

import numpy as np

from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import words
from tinymlaas_compiler_tvm.narrow import Narrow

# |x| is at most 128, and a lower half holds sums below 2**15 in size.
_MOST = 255
_GROUP = 4
# Of the patch, for each k.
PATCH_BYTES = 8


def narrow_of(layer: Layer) -> Narrow:
    """The layer's requantization; its family is the small one."""
    if layer.narrow is None:
        raise ValueError("the layer has no requantization in 32 bits")
    return layer.narrow


def limited(weights: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Weights [K], a multiple of four, of which no four sum up to more than 255 in size, and what is over: (k, weight)."""
    kept = weights.copy()
    over = []
    for start in range(0, kept.size, _GROUP):
        group = kept[start : start + _GROUP]
        while (excess := int(np.abs(group).sum()) - _MOST) > 0:
            place = int(np.abs(group).argmax())
            taken = int(np.sign(group[place])) * min(excess, abs(int(group[place])))
            group[place] -= taken
            over.append((start + place, taken))
    return kept, over


def channel_stream(layer: Layer, channel: int) -> bytes:
    """One channel for `small_asm.matrix`: weights, how many are over and those, negated base, span, offset, low, high[, ...]."""
    weights = layer.weights[channel]
    kept, over = limited(np.pad(weights, (0, -weights.size % _GROUP)))
    narrow = narrow_of(layer)
    values = [len(over), *((weight << 16) + PATCH_BYTES * k for k, weight in over)]
    values += [int(layer.biases[channel] - narrow.bases[channel]), int(narrow.spans[channel])]
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
