"""Values computed at compile time: tables of elementwise functions, exponentials, and addition in one multiply a side or less."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import arithmetic, fixed_point, float_arithmetic
from tinymlaas_modelkit.graph import Op, OpKind

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
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


def tabled_add(
    wanted: Int64s, scales: tuple[float, float, float], low: int, high: int, sign: int
) -> tuple[bool, int, int, Int64s] | None:
    """(swapped, beta, shift, table) with clamp((table[a] + b * beta) >> shift) = wanted[a, b], a and b changed over if swapped.

    For scales whose ties no single line meets: the table, 256 values of 32 bits in the order of a's bytes, is free in every a.
    """
    reals = scales[0] / scales[2], sign * scales[1] / scales[2]
    for swapped, real, values in ((False, reals[1], wanted), (True, reals[0], wanted.T)):
        shift = 20 - int(np.ceil(np.log2(max(abs(each) for each in reals))))
        if not 1 <= shift <= 30:
            continue
        for nudge in (0, 1, -1, 2, -2):
            beta = round(real * 2.0**shift) + nudge
            base = _ALL[None, :] * beta
            least = np.where(values > low, (values << shift) - base, -(1 << 60)).max(axis=1)
            greatest = np.where(values < high, ((values + 1) << shift) - 1 - base, 1 << 60).min(axis=1)
            if np.any(least > greatest):
                continue
            # Where all outputs are the greatest there is no upper bound, and so on.
            table = np.clip((least + greatest) >> 1, least, least + (1 << shift))
            table = np.where(least < -(1 << 59), greatest - (1 << shift), table)
            sums = table[:, None] + base
            if abs(int(sums.min())) < 1 << 31 and abs(int(sums.max())) < 1 << 31:
                return swapped, beta, shift, np.roll(table, 128)
    return None


def softmax_exps(scale: float, beta: float) -> Int64s:
    """exp of the differences 0, -1, ... that TFLite's softmax does not drop, in Q0.31."""
    real = min(float(beta) * float(scale) * (1 << 26), float(_MAX))
    multiplier, shift = arithmetic.quantize_multiplier(real)
    radius = int(np.floor(31.0 * (1 << 26) / (1 << shift)))
    differences = -np.arange(0, min(radius, 255) + 1, dtype=np.int64)
    return fixed_point.exp_of_negative(arithmetic.doubling_high_multiply(differences << shift, multiplier), 5)


def real_exps(scale: float, beta: float) -> Floats:
    """exp of the differences 0 to -255 as reals."""
    exps: Floats = np.exp(-np.arange(256) * float(np.float32(scale)) * beta).astype(np.float32)
    return exps


def _given(op: Op) -> Int64s:
    return np.frombuffer(cast("bytes", op.attributes["table"]), np.int8).astype(np.int64)


def _attribute(op: Op, name: str) -> float:
    return float(np.float32(cast("float", op.attributes[name])))


def unary_table(op: Op, in_scale: float, in_zero: int, out_scale: float, out_zero: int) -> Int64s | None:
    """The int8 outputs for -128 .. 127, bit by bit those of TFLite Micro; None where it has no such function."""
    ratio = float(np.float32(in_scale) / np.float32(out_scale))
    x = _ALL - in_zero
    match op.kind:
        case OpKind.TABLE:
            return _given(op)
        case OpKind.QUANTIZE:
            multiplier, shift = arithmetic.quantize_multiplier(in_scale / out_scale)
            return arithmetic.requantize(x, multiplier, shift, out_zero, -128, 127)
        case OpKind.RELU:
            multiplier, shift = arithmetic.quantize_multiplier(ratio)
            low = max(-128, arithmetic.quantize_value(0.0, out_scale, out_zero))
            return arithmetic.requantize(x, multiplier, shift, out_zero, low, 127)
        case OpKind.RELU6 if (in_scale, in_zero) == (out_scale, out_zero):
            # TFLite's kernel clamps and never rescales.
            high = min(127, arithmetic.quantize_value(6.0, in_scale, in_zero))
            clamped: Int64s = np.clip(_ALL, max(-128, in_zero), high)
            return clamped
        case OpKind.LEAKY_RELU:
            slope = np.float32(in_scale) * np.float32(_attribute(op, "alpha")) / np.float32(out_scale)
            below = arithmetic.multiply_by_quantized_multiplier(x, *arithmetic.quantize_multiplier(float(slope)))
            above = arithmetic.multiply_by_quantized_multiplier(x, *arithmetic.quantize_multiplier(ratio))
            leaky: Int64s = np.clip(np.where(x >= 0, above, below) + out_zero, -128, 127)
            return leaky
        case OpKind.LOGISTIC if (out_scale, out_zero) == (1 / 256, -128):
            return fixed_point.logistic(x, in_scale)
        case OpKind.TANH if (out_scale, out_zero) == (1 / 128, 0):
            return fixed_point.tanh(x, in_scale)
        case OpKind.HARD_SWISH:
            return fixed_point.hard_swish(x, in_scale, out_scale, out_zero)
    return None


def _hard_swish(x: Floats) -> Floats:
    part = np.clip(x / np.float32(6.0) + np.float32(0.5), np.float32(0.0), np.float32(1.0))
    return cast("Floats", x * part)


_REAL: dict[OpKind, Callable[[Floats, Op], npt.ArrayLike]] = {
    OpKind.QUANTIZE: lambda x, _: x,
    OpKind.RELU: lambda x, _: np.maximum(x, 0),
    OpKind.RELU6: lambda x, _: np.clip(x, 0, 6),
    OpKind.LEAKY_RELU: lambda x, op: np.where(x >= 0, x, x * np.float32(_attribute(op, "alpha"))),
    OpKind.LOGISTIC: lambda x, _: 1 / (1 + np.exp(-x.astype(np.float64))),
    OpKind.TANH: lambda x, _: np.tanh(x.astype(np.float64)),
    OpKind.HARD_SWISH: lambda x, _: _hard_swish(x),
}


def real_table(op: Op, in_scale: float, in_zero: int, out_scale: float, out_zero: int) -> Int64s | None:
    """The int8 outputs for -128 .. 127 of the function on reals, quantized; None for a function that is not known."""
    if op.kind is OpKind.TABLE:
        return _given(op)
    function = _REAL.get(op.kind)
    if function is None:
        return None
    reals = float_arithmetic.dequantize(_ALL, in_scale, in_zero)
    return float_arithmetic.quantize(np.asarray(function(reals, op), np.float32), out_scale, out_zero)
