"""Values computed at compile time: tables of elementwise functions, exponentials, and addition in one multiply a side."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_modelkit.graph import Op, OpKind

Int64s = npt.NDArray[np.int64]
_ALL = np.arange(-128, 128, dtype=np.int64)
_MAX = (1 << 31) - 1


def add_table(parameters: arithmetic.AddParameters) -> Int64s:
    """TFLite's sum of all 256 x 256 pairs."""
    return parameters.apply(_ALL[:, None], _ALL[None, :])


def linear_add(
    wanted: Int64s, scales: tuple[float, float, float], zeros: tuple[int, int, int], low: int, high: int, sign: int
) -> tuple[int, int, int, int] | None:
    """(alpha, beta, gamma, shift) with clamp((a * alpha + b * beta + gamma) >> shift) = wanted[a, b], tried on all pairs."""
    real_a, real_b = scales[0] / scales[2], sign * scales[1] / scales[2]
    largest = max(abs(real_a), abs(real_b))
    for bits in (21, 22, 20, 19):
        shift = bits - int(np.ceil(np.log2(largest)))
        if not 1 <= shift <= 30:
            continue
        for nudge_a in (0, 1, -1, 2, -2):
            for nudge_b in (0, 1, -1, 2, -2):
                alpha = round(real_a * 2.0**shift) + nudge_a
                beta = round(real_b * 2.0**shift) + nudge_b
                # Offsets for which every pair comes out right form an interval.
                base = _ALL[:, None] * alpha + _ALL[None, :] * beta
                least = np.where(wanted > low, (wanted << shift) - base, -(1 << 60)).max()
                greatest = np.where(wanted < high, ((wanted + 1) << shift) - 1 - base, 1 << 60).min()
                if least > greatest:
                    continue
                gamma = int((least + greatest) >> 1)
                values = base + gamma
                if abs(int(values.min())) < 1 << 31 and abs(int(values.max())) < 1 << 31:
                    return alpha, beta, gamma, shift
    return None


def _shift_left_saturating(value: Int64s, exponent: int) -> Int64s:
    shifted: Int64s = np.clip(value << exponent, -_MAX - 1, _MAX)
    return shifted


def exp_of_negative(raw: Int64s) -> Int64s:
    """gemmlowp's exp of a Q5.26 number at most 0, in Q0.31."""
    quarter = 1 << 24
    reduced = (raw & (quarter - 1)) - quarter
    x = _shift_left_saturating(reduced, 5) + (1 << 28)
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
        result = np.where(remainder & (1 << (26 + exponent)), mul(result, factor), result)
    exps: Int64s = np.where(raw == 0, _MAX, result)
    return exps


def softmax_exps(scale: float, beta: float) -> Int64s:
    """exp of the differences 0, -1, ... that TFLite's softmax does not drop, in Q0.31."""
    real = min(float(beta) * float(scale) * (1 << 26), float(_MAX))
    multiplier, shift = arithmetic.quantize_multiplier(real)
    radius = int(np.floor(31.0 * (1 << 26) / (1 << shift)))
    differences = -np.arange(0, min(radius, 255) + 1, dtype=np.int64)
    return exp_of_negative(arithmetic.doubling_high_multiply(differences << shift, multiplier))


def unary_table(op: Op, in_scale: float, in_zero: int, out_scale: float, out_zero: int) -> Int64s | None:
    """The int8 outputs for -128 .. 127; None where the reference's bits are not reproduced yet."""
    if op.kind is OpKind.QUANTIZE:
        multiplier, shift = arithmetic.quantize_multiplier(in_scale / out_scale)
        return arithmetic.requantize(_ALL - in_zero, multiplier, shift, out_zero, -128, 127)
    if op.kind is OpKind.RELU:
        multiplier, shift = arithmetic.quantize_multiplier(float(np.float32(in_scale) / np.float32(out_scale)))
        low = max(-128, arithmetic.quantize_value(0.0, out_scale, out_zero))
        return arithmetic.requantize(_ALL - in_zero, multiplier, shift, out_zero, low, 127)
    if op.kind is OpKind.RELU6 and (in_scale, in_zero) == (out_scale, out_zero):
        # TFLite's kernel clamps and never rescales.
        clamped: Int64s = np.clip(_ALL, max(-128, in_zero), min(127, arithmetic.quantize_value(6.0, in_scale, in_zero)))
        return clamped
    if op.kind is OpKind.LEAKY_RELU:
        alpha = float(np.float32(cast("float", op.attributes["alpha"])))
        m_alpha, s_alpha = arithmetic.quantize_multiplier(
            float(np.float32(in_scale) * np.float32(alpha) / np.float32(out_scale))
        )
        m_one, s_one = arithmetic.quantize_multiplier(float(np.float32(in_scale) / np.float32(out_scale)))
        x = _ALL - in_zero
        scaled = np.where(
            x >= 0,
            arithmetic.multiply_by_quantized_multiplier(x, m_one, s_one),
            arithmetic.multiply_by_quantized_multiplier(x, m_alpha, s_alpha),
        )
        leaky: Int64s = np.clip(scaled + out_zero, -128, 127)
        return leaky
    return None
