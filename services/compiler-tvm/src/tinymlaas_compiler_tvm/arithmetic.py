"""TFLite's 8-bit integer arithmetic, as its reference kernels do it, over numpy int64 arrays.

Sources: "TensorFlow Lite 8-bit quantization specification"; Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference" (2018), section 2.2; the doubling high multiply and rounding shift are those of
gemmlowp's fixed point (double rounding). Everything here is exact: float64 only where the reference uses double.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.graph import Activation

Int64s = npt.NDArray[np.int64]


def quantize_multiplier(real: float) -> tuple[int, int]:
    """A positive real as (multiplier, shift): real = multiplier * 2**(shift - 31), multiplier in [2**30, 2**31)."""
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return (1 << 31) - 1, 30
    return multiplier, shift


def doubling_high_multiply(value: Int64s, multiplier: Int64s | int) -> Int64s:
    """round(value * multiplier / 2**31), half towards plus infinity; the one saturating case is both at -2**31."""
    product = np.asarray(value, np.int64) * np.asarray(multiplier, np.int64)
    rounded: Int64s = np.minimum((product + (1 << 30)) >> 31, (1 << 31) - 1)
    return rounded


def rounding_shift_right(value: Int64s, exponent: Int64s | int) -> Int64s:
    """value / 2**exponent rounded to nearest, half away from zero."""
    exponents = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponents) - 1
    remainder = value & mask
    threshold = (mask >> 1) + (value < 0)
    return (value >> exponents) + (remainder > threshold)


def multiply_by_quantized_multiplier(value: Int64s, multiplier: Int64s | int, shift: Int64s | int) -> Int64s:
    """value * multiplier * 2**(shift - 31) with the reference's two roundings; int32 wrap-around is the caller's care."""
    shifts = np.asarray(shift, np.int64)
    left = np.maximum(shifts, 0)
    right = np.maximum(-shifts, 0)
    return rounding_shift_right(doubling_high_multiply(np.asarray(value, np.int64) << left, multiplier), right)


def quantize_value(real: float, scale: float, zero_point: int) -> int:
    """TFLite's Quantize of a bound: zero_point + round(real / scale) in float32, half away from zero."""
    ratio = float(np.float32(real) / np.float32(scale))
    return zero_point + int(math.copysign(math.floor(abs(ratio) + 0.5), ratio))


def activation_range(activation: Activation, scale: float, zero_point: int) -> tuple[int, int]:
    """The int8 clamp of a fused activation (CalculateActivationRangeQuantized)."""
    low, high = -128, 127
    if activation is Activation.RELU:
        low = max(low, quantize_value(0.0, scale, zero_point))
    elif activation is Activation.RELU6:
        low = max(low, quantize_value(0.0, scale, zero_point))
        high = min(high, quantize_value(6.0, scale, zero_point))
    elif activation is Activation.RELU_N1_TO_1:
        low = max(low, quantize_value(-1.0, scale, zero_point))
        high = min(high, quantize_value(1.0, scale, zero_point))
    return low, high


def requantize(
    acc: Int64s, multiplier: Int64s | int, shift: Int64s | int, zero_point: int, low: int, high: int
) -> Int64s:
    """An int32 accumulator as an int8 value of the output's quantization."""
    scaled = multiply_by_quantized_multiplier(acc, multiplier, shift) + zero_point
    return np.clip(scaled, low, high)


@dataclass(frozen=True)
class AddParameters:
    """Multipliers of TFLite's quantized ADD and SUB: inputs shifted left by `bits`, scaled, summed, scaled to the output."""

    zero_point_1: int
    zero_point_2: int
    multiplier_1: int
    shift_1: int
    multiplier_2: int
    shift_2: int
    multiplier_out: int
    shift_out: int
    zero_point_out: int
    low: int
    high: int
    sign: int = 1
    bits: int = 20

    @staticmethod
    def of(
        scales: tuple[float, float, float],
        zero_points: tuple[int, int, int],
        low: int,
        high: int,
        sign: int = 1,
        bits: int = 20,
    ) -> AddParameters:
        """From the scales and zero points of (first, second, output); int8 has 20 `bits`, int16 has 15."""
        first, second, out = scales
        twice_max = 2.0 * max(first, second)
        m1, s1 = quantize_multiplier(first / twice_max)
        m2, s2 = quantize_multiplier(second / twice_max)
        mo, so = quantize_multiplier(twice_max / ((1 << bits) * out))
        return AddParameters(
            zero_points[0], zero_points[1], m1, s1, m2, s2, mo, so, zero_points[2], low, high, sign, bits
        )

    def first(self, a: Int64s) -> Int64s:
        """The scaled first input."""
        return multiply_by_quantized_multiplier((a - self.zero_point_1) << self.bits, self.multiplier_1, self.shift_1)

    def second(self, b: Int64s) -> Int64s:
        """The scaled second input, with SUB's sign."""
        return self.sign * multiply_by_quantized_multiplier(
            (b - self.zero_point_2) << self.bits, self.multiplier_2, self.shift_2
        )

    def apply(self, a: Int64s, b: Int64s) -> Int64s:
        """The int8 sum."""
        total = self.first(a) + self.second(b)
        return requantize(total, self.multiplier_out, self.shift_out, self.zero_point_out, self.low, self.high)


def average_rounded(total: Int64s, count: int, low: int, high: int) -> Int64s:
    """A pool's int8 mean: sum / count rounded half away from zero, clamped."""
    mean = np.where(total > 0, (total + count // 2) // count, -((-total + count // 2) // count))
    return np.clip(mean, low, high)
