"""What ONNX Runtime computes on a QDQ graph, over numpy arrays: DequantizeLinear, an operator on reals, QuantizeLinear.

Sums of products are taken exactly, as integers, and become a float32 once; ONNX Runtime rounds each partial sum to float32, in
an order that depends on the machine. The two differ only where a sum lies within that noise of the middle between two steps.
Rounding is to nearest, ties to even (ONNX operator QuantizeLinear).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.graph import Activation

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_BOUNDS = {Activation.RELU: (0.0, None), Activation.RELU6: (0.0, 6.0), Activation.RELU_N1_TO_1: (-1.0, 1.0)}


def dequantize(values: Int64s, scale: float, zero_point: int) -> Floats:
    """(q - zero point) * scale in float32."""
    reals: Floats = (np.asarray(values, np.int64) - zero_point).astype(np.float32) * np.float32(scale)
    return reals


def quantize(reals: npt.ArrayLike, scale: float, zero_point: int, low: int = -128, high: int = 127) -> Int64s:
    """round(x / scale) + zero point, clamped to [low, high]; NaN gives the zero point."""
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.rint(np.asarray(reals, np.float32) / np.float32(scale)).astype(np.float64)
    clipped: Int64s = np.clip(np.nan_to_num(steps, nan=0.0) + zero_point, low, high).astype(np.int64)
    return clipped


def activation_range(activation: Activation, scale: float, zero_point: int) -> tuple[int, int]:
    """The int8 clamp that equals an activation on the reals before QuantizeLinear."""
    low, high = _BOUNDS.get(activation, (None, None))
    first = -128 if low is None else int(quantize(low, scale, zero_point))
    last = 127 if high is None else int(quantize(high, scale, zero_point))
    return first, last


def requantization(
    reals: npt.NDArray[np.float64], out_scale: float, zero_point: int, low: int, high: int
) -> Callable[[Int64s], Int64s]:
    """The map from accumulators [channels, n] to int8 values, where a unit of accumulator is `reals[channel]`.

    The sum, its scale and the division are exact to 53 bits, so that no float32 rounding of ours adds to the reference's.
    """
    slopes = reals / out_scale

    def in_reals(acc: Int64s) -> Int64s:
        clipped: Int64s = np.clip(np.rint(acc * slopes[:, None]) + zero_point, low, high).astype(np.int64)
        return clipped

    return in_reals


def add(
    a: Int64s,
    b: Int64s,
    scales: tuple[float, float, float],
    zeros: tuple[int, int, int],
    low: int,
    high: int,
    sign: int,
) -> Int64s:
    """The int8 sum (sign 1) or difference (sign -1) of two tensors."""
    first, second = dequantize(a, scales[0], zeros[0]), dequantize(b, scales[1], zeros[1])
    return quantize(first + second if sign > 0 else first - second, scales[2], zeros[2], low, high)
