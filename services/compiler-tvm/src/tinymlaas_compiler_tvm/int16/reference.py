"""TFLite's 16x8 arithmetic as its reference kernels do it, over numpy int64 arrays.

Source: TensorFlow Lite's `MultiplyByQuantizedMultiplier` of a 64-bit accumulator (the multiplier loses its low 16 bits), and the
int16 softmax with two tables of 513 values between which it interpolates. Everything here is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_modelkit.graph import Activation

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
LOW, HIGH = -(1 << 15), (1 << 15) - 1
_STEPS = 512


def reduced_multiplier(real: float) -> tuple[int, int]:
    """A positive real as (multiplier below 2**15, shift to the right of the rounded product)."""
    multiplier, shift = arithmetic.quantize_multiplier(real)
    reduced = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    return reduced, 15 - shift


def requantize(acc: Int64s, reduced: Int64s | int, shift: Int64s | int, low: int, high: int) -> Int64s:
    """A 64-bit accumulator as an int16 value: one rounding, halves upward."""
    shifts = np.asarray(shift, np.int64)
    scaled: Int64s = (acc * np.asarray(reduced, np.int64) + (np.int64(1) << (shifts - 1))) >> shifts
    return np.clip(scaled, low, high)


def activation_range(activation: Activation, scale: float) -> tuple[int, int]:
    """The int16 clamp of a fused activation (CalculateActivationRangeQuantized)."""
    bounds = {
        Activation.NONE: (None, None),
        Activation.RELU: (0.0, None),
        Activation.RELU6: (0.0, 6.0),
        Activation.RELU_N1_TO_1: (-1.0, 1.0),
    }
    low, high = bounds[activation]
    least = LOW if low is None else max(LOW, arithmetic.quantize_value(low, scale, 0))
    return least, HIGH if high is None else min(HIGH, arithmetic.quantize_value(high, scale, 0))


def _rounded(values: Floats) -> Floats:
    """To the nearest integer, halves away from zero."""
    whole: Floats = np.trunc(values)
    away = np.abs(values - whole) >= np.float32(0.5)
    return np.asarray(whole + np.where(away, np.sign(values), np.float32(0)), np.float32)


def _table(scale: np.float32, zero: int, function: Callable[[Floats], Floats]) -> Int64s:
    """513 samples of a function on [scale * (-32768 - zero), scale * (32767 - zero)], in float32 as there.

    Outputs have 2**15 steps a unit; each sample gives way by half of what the straight line misses in the middle.
    """
    one = np.float32
    least, greatest = one(scale * one(LOW - zero)), one(scale * one(HIGH - zero))
    out_scale = one(2.0) / one(HIGH - LOW)
    inverse = one(HIGH - LOW + 1) / one(out_scale * one(HIGH) - out_scale * one(LOW))
    step = one((greatest - least) / one(_STEPS))
    half = one(step / one(2))
    places = np.arange(_STEPS + 1, dtype=np.float32)
    starts = np.asarray(least + places * step, np.float32)
    sampled = np.asarray(function(starts) * inverse, np.float32)
    samples, following = _rounded(sampled[:-1]), sampled[1:]
    middle = _rounded(np.asarray(function(np.asarray(starts[:-1] + half, np.float32)) * inverse, np.float32))
    between = _rounded(np.asarray((following + samples) / one(2), np.float32))
    values = samples - _rounded(np.asarray((between - middle) / one(2), np.float32))
    last = _rounded(np.asarray(function(np.asarray([greatest], np.float32)) * inverse, np.float32))
    table: Int64s = np.clip(np.concatenate([values, last]), LOW, HIGH).astype(np.int64)
    return table


def softmax_tables() -> tuple[Int64s, Int64s]:
    """exp(x) on [-10, 0] and 1 / (1 + x) on [0, 1], as TFLite's int16 softmax looks them up."""
    span = np.float32(HIGH - LOW)
    exps = _table(np.float32(10.0) / span, HIGH, lambda x: np.exp(x.astype(np.float64)).astype(np.float32))
    inverses = _table(
        np.float32(1.0) / span, LOW, lambda x: np.asarray(np.float32(1) / (np.float32(1) + x), np.float32)
    )
    return exps, inverses


def look_up(value: Int64s, table: Int64s) -> Int64s:
    """Between two samples of a table; the upper 9 bits of an int16 value choose them."""
    index, offset = 256 + (value >> 7), value & 0x7F
    result: Int64s = table[index] + (((table[index + 1] - table[index]) * offset + 64) >> 7)
    return result


def softmax(x: Int64s, scale: float, beta: float) -> Int64s:
    """SOFTMAX over the last axis; outputs have scale 1/32768."""
    exps, inverses = softmax_tables()
    multiplier, shift = arithmetic.quantize_multiplier(float(scale) * float(beta) / (10.0 / 65535.0))
    differences = x - x.max(axis=-1, keepdims=True)
    scaled = arithmetic.multiply_by_quantized_multiplier(differences, multiplier, shift)
    values = look_up(np.clip(scaled + HIGH, LOW, HIGH), exps)
    result = np.empty_like(values)
    for place in np.ndindex(values.shape[:-1]):
        total = int(values[place].sum())
        headroom = 32 - total.bit_length()
        shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
        inverse = int(look_up(np.array([min(max(shifted - (1 << 15) - (1 << 16), LOW), HIGH)]), inverses)[0])
        right = 31 - headroom
        result[place] = np.clip((values[place] * inverse + (1 << (right - 1))) >> right, 0, HIGH)
    return result
