"""Functions of TFLite Micro's int8 kernels in fixed point: exponential, logistic, tanh, hard swish, over numpy int64 arrays.

Source: gemmlowp's fixed-point functions as TFLite's reference kernels use them ("integer_ops/logistic", "integer_ops/tanh",
"hard_swish"). Qm.n stands for a 32-bit number with m integer bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import arithmetic

Int64s = npt.NDArray[np.int64]
_MAX = (1 << 31) - 1
_LOW16, _HIGH16 = -(1 << 15), (1 << 15) - 1


def _shift_left_saturating(value: Int64s, exponent: int) -> Int64s:
    shifted: Int64s = np.clip(value << exponent, -_MAX - 1, _MAX)
    return shifted


def exp_of_negative(raw: Int64s, integer_bits: int) -> Int64s:
    """exp of a number at most 0 with that many integer bits, in Q0.31."""
    fraction = 31 - integer_bits
    quarter = 1 << (fraction - 2)
    reduced = (raw & (quarter - 1)) - quarter
    x = _shift_left_saturating(reduced, integer_bits) + (1 << 28)
    mul = arithmetic.doubling_high_multiply
    x2 = mul(x, x)
    x3 = mul(x2, x)
    x4_over_4 = arithmetic.rounding_shift_right(mul(x2, x2), 2)
    poly = arithmetic.rounding_shift_right(mul(x4_over_4 + x3, 715827883) + x2, 1)
    result = 1895147668 + mul(x + poly, 1895147668)
    remainder = reduced - raw
    for exponent, factor in (
        (-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242),
    ):  # fmt: skip
        if exponent < integer_bits:
            result = np.where(remainder & (1 << (fraction + exponent)), mul(result, factor), result)
    exps: Int64s = np.where(raw == 0, _MAX, result)
    return exps


def _reciprocal(x: Int64s) -> Int64s:
    """2 / (1 + x) in Q2.29 for x in [0, 1] in Q0.31: three steps of Newton and Raphson."""
    total = x + _MAX
    half = np.where(total >= 0, (total + 1) // 2, -((1 - total) // 2))
    mul = arithmetic.doubling_high_multiply
    guess = 1515870810 + mul(half, -1010580540)
    for _ in range(3):
        guess = guess + _shift_left_saturating(mul(guess, (1 << 29) - mul(half, guess)), 2)
    return guess


def _scaled_input(x: Int64s, in_scale: float) -> tuple[Int64s, int]:
    """Inputs without zero point in Q4.27, and the magnitude from which on the functions are at their ends."""
    multiplier, shift = arithmetic.quantize_multiplier(float(in_scale) * (1 << 27))
    radius = int(np.floor(15.0 * (1 << 27) / 2.0**shift))
    inside = np.clip(x, -radius, radius)
    return arithmetic.multiply_by_quantized_multiplier(inside, multiplier, shift), radius


def logistic(x: Int64s, in_scale: float) -> Int64s:
    """LOGISTIC of inputs without zero point; outputs have scale 1/256 and zero point -128."""
    raw, radius = _scaled_input(x, in_scale)
    positive = _shift_left_saturating(_reciprocal(exp_of_negative(-np.abs(raw), 4)), 1)
    result = np.where(raw > 0, positive, np.where(raw < 0, _MAX - positive, 1 << 30))
    values = np.clip(arithmetic.rounding_shift_right(result, 23) - 128, -128, 127)
    ends: Int64s = np.where(x <= -radius, -128, np.where(x >= radius, 127, values))
    return ends


def tanh(x: Int64s, in_scale: float) -> Int64s:
    """TANH of inputs without zero point; outputs have scale 1/128 and zero point 0."""
    raw, radius = _scaled_input(x, in_scale)
    # Twice the argument has one integer bit more and the same bits.
    positive = _shift_left_saturating(_reciprocal(exp_of_negative(-np.abs(raw), 5)) - (1 << 29), 2)
    result = np.where(raw == 0, 0, np.where(raw < 0, -positive, positive))
    values = np.clip(arithmetic.rounding_shift_right(result, 24), -128, 127)
    ends: Int64s = np.where(x <= -radius, -128, np.where(x >= radius, 127, values))
    return ends


def _multiplier16(real: float) -> tuple[int, int]:
    multiplier, exponent = arithmetic.quantize_multiplier(real)
    return (_HIGH16 if multiplier >= _MAX - (1 << 15) else (multiplier + (1 << 15)) >> 16), exponent


def _truncated(value: Int64s, divisor: int) -> Int64s:
    quotient: Int64s = np.where(value >= 0, value // divisor, -(-value // divisor))
    return quotient


def _doubling_high_multiply16(a: Int64s, b: int) -> Int64s:
    product = a * b
    rounded = _truncated(product + np.where(product >= 0, 1 << 14, 1 - (1 << 14)), 1 << 15)
    return np.minimum(rounded, _HIGH16)


def hard_swish(x: Int64s, in_scale: float, out_scale: float, out_zero: int) -> Int64s:
    """HARD_SWISH of inputs without zero point, in 16-bit fixed point."""
    fine_scale = np.float32(1.0 / 128.0) * np.float32(in_scale)
    out_multiplier, out_exponent = _multiplier16(float(fine_scale / np.float32(out_scale)))
    relu_multiplier, relu_exponent = _multiplier16(float(fine_scale / np.float32(3.0 / 32768.0)))
    fine = x << 7
    scaled = _doubling_high_multiply16(fine, out_multiplier)
    relu = fine
    if relu_exponent > 0:
        relu = np.clip(relu << (relu_exponent - 1), _LOW16, _HIGH16)
    relu = _doubling_high_multiply16(relu, relu_multiplier)
    if relu_exponent > 0:
        relu = np.clip(relu << 1, _LOW16, _HIGH16)
    if relu_exponent < 0:
        relu = arithmetic.rounding_shift_right(relu, -relu_exponent)
    relu = (relu + (1 << 15)) >> 1
    product = np.minimum(_truncated(relu * scaled, 1 << 15), _HIGH16)
    # The exponent of the output is at most 0: the reference shifts right only.
    result: Int64s = np.clip(arithmetic.rounding_shift_right(product, max(-out_exponent, 0)) + out_zero, -128, 127)
    return result
