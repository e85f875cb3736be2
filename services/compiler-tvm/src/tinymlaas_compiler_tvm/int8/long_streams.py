"""What the kernels of `long_asm` and `long_depthwise` read: weights and parameters of channels, byte by byte."""

from __future__ import annotations

import numpy as np

from tinymlaas_compiler_tvm import requant
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import words

# A field of 23 bits holds sums below 2**22 in size, and those times 512 are still 32-bit numbers.
_EXTRA = 1
_FIELD = 1 << (31 - requant.PRE_SHIFT - _EXTRA)


def fits_fields(layer: Layer) -> bool:
    """Whether every sum of products that can occur stays inside a field, with its bias and without."""
    extremes = np.stack([layer.weights * -128, layer.weights * 127])
    low, high = extremes.min(axis=0).sum(axis=1), extremes.max(axis=0).sum(axis=1)
    lowest, highest = np.minimum(low, low + layer.biases), np.maximum(high, high + layer.biases)
    return bool(lowest.min(initial=0) > -_FIELD and highest.max(initial=0) < _FIELD)


def parameter_values(layer: Layer, channel: int) -> list[int]:
    """A channel's multiplier, offset[, negative][, bias * 512][, shift]; zeros for a channel of -1.

    The kernels multiply accumulators by 512 where `requant` has 256: twice the offsets and one more shift are the same
    function, since floor(floor(x) / n) = floor(x / n).
    """
    fitted = layer.fitted
    if channel < 0:
        return [0] * (2 + int(layer.signed) + int(layer.biased) + int(fitted.shift < 0))
    values = [int(fitted.multipliers[channel]), int(fitted.offsets[channel]) << _EXTRA]
    if fitted.negatives is not None:
        values.append(int(fitted.negatives[channel]) << _EXTRA)
    if layer.biased:
        values.append(int(layer.biases[channel]) << (requant.PRE_SHIFT + _EXTRA))
    if fitted.shift < 0:
        values.append(int(fitted.shifts[channel]) + _EXTRA)
    return values


def parameters(layer: Layer, channel: int) -> bytes:
    """`parameter_values` as the streams hold them."""
    return words(parameter_values(layer, channel))


def pair_stream(layer: Layer, first: int, second: int) -> bytes:
    """Two channels for `two_by_four` and `two_by_two`: weights side by side, then parameters; the first of -1 is zeros."""
    a = np.zeros(layer.weights.shape[1], np.int64) if first < 0 else layer.weights[first]
    weights = np.stack([a, layer.weights[second]], axis=1).astype(np.int8).tobytes()
    return weights + b"\0" * (-len(weights) % 4) + parameters(layer, first) + parameters(layer, second)


def dense_stream(layer: Layer) -> bytes:
    """Four channels a time for `dense`, the last ones padded with channels of zeros."""
    channels, k = layer.weights.shape
    total = -(-channels // 4) * 4
    weights = np.zeros((total, k), np.int64)
    weights[:channels] = layer.weights
    parts = []
    for c in range(0, total, 4):
        w0, w1, w2, w3 = weights[c : c + 4]
        parts.append(np.stack([w0 + 128, w3, w2 + 128, w1], axis=1).astype(np.uint8).tobytes())
        parts += [parameters(layer, channel if channel < channels else -1) for channel in range(c, c + 4)]
    return b"".join(parts)
