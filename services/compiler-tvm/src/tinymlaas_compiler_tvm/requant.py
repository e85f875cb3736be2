"""Requantization in two instructions, proven equal to the reference for every accumulator that can occur.

The reference maps an int32 accumulator to an int8 value by a monotone step function f. The kernels compute

    g(acc) = clamp((((acc * 256 * multiplier) >> 32) + offset - (acc < 0 ? negative : 0)) >> shift)

with (multiplier, offset, negative) a channel and, mostly, one `shift` for the whole layer: on Arm DSP cores that is SMMLA and
SSAT. Where the channels' scales differ too much, each has its own shift, one instruction more. `negative` is needed only where
outputs below the zero point survive the clamp, as the reference rounds halves away from zero. Both functions are monotone, so
they are equal if and only if they step at the same accumulators: at most 255 places a channel. `fit` looks for parameters and
proves them at those places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
# Accumulators are multiplied by 2**PRE_SHIFT first: packing two int8 weights in a halfword brings that factor for nothing.
PRE_SHIFT = 8
_COMMON_SHIFTS = (11, 10, 12, 9, 13)
_BIG = np.int64(1) << 62


@dataclass(frozen=True)
class Steps:
    """Where the reference steps: `at[c, i]` is the least accumulator whose value is at least `low + 1 + i`.

    An accumulator range's end + 1 stands for "not in the range". `low` and `high` are the clamp; `slope[c]` is the output
    step a unit of accumulator.
    """

    at: Int64s
    low: int
    high: int
    slope: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Parameters of g for one layer: a channel's shift, multiplier, offset and correction of negative values."""

    shifts: Int64s
    multipliers: Int64s
    offsets: Int64s
    negatives: Int64s | None

    @property
    def shift(self) -> int:
        """The shift of all channels, or -1 if they differ."""
        return int(self.shifts[0]) if (self.shifts == self.shifts[0]).all() else -1


def find_steps(
    function: Callable[[Int64s], Int64s],
    slope: npt.NDArray[np.float64],
    acc_low: Int64s,
    acc_high: Int64s,
    low: int,
    high: int,
) -> Steps:
    """The steps of `function`, which maps accumulators [channels, n] to int8 values, over [acc_low, acc_high] a channel."""
    levels = np.arange(low + 1, high + 1, dtype=np.int64)[None, :]
    shape = (acc_low.size, levels.size)
    below = np.broadcast_to(acc_low[:, None] - 1, shape).copy()
    above = np.broadcast_to(acc_high[:, None] + 1, shape).copy()
    # Invariant: the step lies in (below, above]; `above` beyond acc_high means "never reached".
    while True:
        open_ = above - below > 1
        if not open_.any():
            break
        middle = (below + above) >> 1
        at_least = function(middle) >= levels
        above = np.where(open_ & at_least, middle, above)
        below = np.where(open_ & ~at_least, middle, below)
    return Steps(above, low, high, slope)


def _high_word(acc: Int64s, multiplier: Int64s) -> Int64s:
    return (acc * multiplier[:, None]) >> (32 - PRE_SHIFT)


def _offset_bounds(
    steps: Steps, multipliers: Int64s, shifts: Int64s, acc_low: Int64s, acc_high: Int64s
) -> tuple[Int64s, Int64s]:
    """Least and greatest offset for which g equals f on all of [acc_low, acc_high]; an empty range bounds nothing."""
    levels = np.arange(steps.low + 1, steps.high + 1, dtype=np.int64)[None, :] << shifts[:, None]
    low, high = acc_low[:, None], acc_high[:, None]
    some = low <= high
    # The least accumulator at or above the level, and the greatest below it, as far as the range has them.
    least_at = np.maximum(steps.at, low)
    greatest_below = np.minimum(steps.at - 1, high)
    lower = np.where(some & (steps.at <= high), levels - _high_word(least_at, multipliers), -_BIG)
    upper = np.where(some & (steps.at > low), levels - 1 - _high_word(greatest_below, multipliers), _BIG)
    # A clamp to a single value has no levels and bounds nothing.
    return lower.max(axis=1, initial=-_BIG), upper.min(axis=1, initial=_BIG)


def fit(steps: Steps, acc_low: Int64s, acc_high: Int64s, shifts: Int64s, signed: bool) -> Fit | None:
    """Parameters of g at those shifts, proven on [acc_low, acc_high] a channel; None if some channel has none.

    `signed` allows an offset of its own for negative accumulators, which costs two instructions an output. Precondition:
    |acc| < 2**23, so that acc * 256 is an int32.
    """
    real = steps.slope * 2.0 ** (32 - PRE_SHIFT + shifts)
    if real.size and real.max() >= 2**31 - 64:
        return None
    base = np.maximum(np.rint(real).astype(np.int64), 0)
    ranges = [(acc_low, acc_high)]
    if signed:
        minus_one, zero = np.full_like(acc_low, -1), np.zeros_like(acc_low)
        ranges = [(np.maximum(acc_low, zero), acc_high), (acc_low, np.minimum(acc_high, minus_one))]
    multipliers = base.copy()
    offsets = [np.zeros_like(base) for _ in ranges]
    missing = np.ones(base.shape, np.bool_)
    limit = np.int64(1) << 29
    for nudge in (0, 1, -1, 2, -2, 3, -3, 5, -5, 8, -8, 13, -13, 21, -21):
        candidate = np.maximum(base + nudge, 0)
        bounds = [_offset_bounds(steps, candidate, shifts, *each) for each in ranges]
        bounds = [(np.maximum(least, -limit), np.minimum(greatest, limit)) for least, greatest in bounds]
        found = missing & np.all([least <= greatest for least, greatest in bounds], axis=0)
        multipliers = np.where(found, candidate, multipliers)
        offsets = [
            np.where(found, (least + greatest) >> 1, old)
            for old, (least, greatest) in zip(offsets, bounds, strict=True)
        ]
        missing &= ~found
        if not missing.any():
            return Fit(shifts, multipliers, offsets[0], offsets[0] - offsets[1] if signed else None)
    return None


def _finest(slope: npt.NDArray[np.float64]) -> Int64s:
    """The largest shifts at which the multipliers stay below 2**31."""
    with np.errstate(divide="ignore"):
        best = np.floor(np.log2((2**31 - 64) / (slope * 2.0 ** (32 - PRE_SHIFT))))
    return np.minimum(np.where(slope > 0, best, 14), 20).astype(np.int64)


def shifts_to_try(steps: Steps) -> list[Int64s]:
    """Shifts worth trying: one for all channels, then each channel's own.

    First those that most layers can have, since layers of one shift share their kernels; then the most precise ones.
    """
    finest = _finest(steps.slope)
    best = int(finest.min()) if steps.slope.max(initial=0.0) <= 0 else int(finest[steps.slope > 0].min())
    wanted = dict.fromkeys(shift for shift in (*_COMMON_SHIFTS, best, best - 1) if 1 <= shift <= best)
    same = [np.full(finest.shape, shift, np.int64) for shift in wanted]
    return [*same, np.maximum(finest, 1)]


def fit_best(steps: Steps, acc_low: Int64s, acc_high: Int64s) -> Fit | None:
    """The cheapest parameters: unsigned before signed, one shift before many."""
    for signed in (False, True):
        for shifts in shifts_to_try(steps):
            fitted = fit(steps, acc_low, acc_high, shifts, signed)
            if fitted is not None:
                return fitted
    return None


def apply(fitted: Fit, acc: Int64s, low: int, high: int) -> Int64s:
    """g, as the kernels compute it, for accumulators [channels, n]; for tests and for constant folding."""
    word = _high_word(acc, fitted.multipliers) + fitted.offsets[:, None]
    if fitted.negatives is not None:
        word = word - np.where(acc < 0, fitted.negatives[:, None], 0)
    clipped: Int64s = np.clip(word >> fitted.shifts[:, None], low, high)
    return clipped
