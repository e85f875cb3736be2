"""Requantization where a product has 32 bits (Armv6-M), proven equal to the reference as in `requant`.

Outputs change only on a part of the accumulators: from the least that gives more than the least output, to the least that
gives the greatest. With u = acc - base clamped to that part, [0, span], an output is the top byte of

    u * high + ((u * low) >> shift) + offset + (u >= corner ? extra : 0)        (modulo 2**32)

`high` and `low` together are the output step a unit of accumulator times 2**24; `shift` is at most what keeps u * low below
2**32. The corner lies where accumulators become positive: the reference rounds halves away from zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm.requant import Steps

Int64s = npt.NDArray[np.int64]
_TOP = 24
_STEP = 1 << _TOP
_MOST_SHIFT = 24
_COMMON_SHIFT = 13
_LIMIT = 1 << 40
_NUDGES = (0, *(sign * size for size in range(1, 24) for sign in (1, -1)))


@dataclass(frozen=True)
class Narrow:
    """Parameters of a layer: base, span, high, low, offset, corner and extra a channel, and the shift of all."""

    bases: Int64s
    spans: Int64s
    highs: Int64s
    lows: Int64s
    offsets: Int64s
    corners: Int64s
    extras: Int64s
    shift: int

    @property
    def signed(self) -> bool:
        """Whether positive accumulators have an offset of their own."""
        return bool(np.any(self.extras))

    @property
    def uniform(self) -> bool:
        """Whether all channels are requantized by the same numbers."""
        columns = (self.bases, self.spans, self.highs, self.lows, self.offsets, self.corners, self.extras)
        return all(bool(np.all(values == values[0])) for values in columns)

    def repeated(self, channels: int) -> Narrow:
        """The first channel's numbers for so many channels."""
        columns = (self.bases, self.spans, self.highs, self.lows, self.offsets, self.corners, self.extras)
        bases, spans, highs, lows, offsets, corners, extras = (np.repeat(values[:1], channels) for values in columns)
        return Narrow(bases, spans, highs, lows, offsets, corners, extras, self.shift)


def fit(steps: Steps, acc_low: Int64s, acc_high: Int64s) -> Narrow | None:
    """Parameters proven on [acc_low, acc_high] a channel; None if some channel has none."""
    channels = acc_low.size
    active = [steps.at[c][(steps.at[c] > acc_low[c]) & (steps.at[c] <= acc_high[c])] for c in range(channels)]
    bases = np.array([at[0] - 1 if at.size else acc_low[c] for c, at in enumerate(active)], np.int64)
    spans = np.array([at[-1] - bases[c] if at.size else 0 for c, at in enumerate(active)], np.int64)
    finest = min(32 - int(spans.max(initial=1)).bit_length(), _MOST_SHIFT)
    for signed, shift in ((signed, shift) for signed in (False, True) for shift in _shifts(finest)):
        corners = np.maximum(-bases, 0) if signed else np.zeros(channels, np.int64)
        found = []
        for c, at in enumerate(active):
            one = _fit_channel(at - bases[c], int(corners[c]), float(steps.slope[c]), shift)
            if one is None:
                break
            found.append(one)
        if len(found) == channels:
            multipliers, offsets, extras = (np.array([each[i] for each in found], np.int64) for i in range(3))
            least = steps.low + (steps.at <= acc_low[:, None]).sum(axis=1)
            offsets = (offsets + (least << _TOP)) & 0xFFFFFFFF
            highs, lows = multipliers >> shift, multipliers % (1 << shift)
            return Narrow(bases, spans, highs, lows, offsets, corners, extras, shift)
    return None


def _shifts(finest: int) -> tuple[int, ...]:
    """First the one that most layers can have, since layers of one shift share their kernels."""
    return (_COMMON_SHIFT, finest) if finest > _COMMON_SHIFT else (finest,)


def _product(u: Int64s, multiplier: int, shift: int) -> Int64s:
    product: Int64s = u * (multiplier >> shift) + ((u * (multiplier % (1 << shift))) >> shift)
    return product


def _fit_channel(at: Int64s, corner: int, slope: float, shift: int) -> tuple[int, int, int] | None:
    """(multiplier, offset, extra) for steps at these u, the first at 1; `extra` counts from `corner` on, 0 has none."""
    if not at.size:
        return 0, 0, 0
    centre = round(slope * 2.0 ** (_TOP + shift))
    levels = np.arange(1, at.size + 1, dtype=np.int64) << _TOP
    # At these u an output is at least, and at most, so much.
    lower_at, lower = np.append(at, 0), np.append(levels, 0)
    upper_at, upper = np.append(at - 1, at[-1]), np.append(levels, levels[-1] + _STEP) - 1
    for nudge in _NUDGES:
        multiplier = centre + nudge
        if not 0 <= multiplier < 1 << (32 + shift):
            continue
        least, greatest = lower - _product(lower_at, multiplier, shift), upper - _product(upper_at, multiplier, shift)
        split = corner or at[-1] + 1
        # What lies below u = 0 is the offset's top byte.
        low = max(int(least[lower_at < split].max()), 0)
        high = min(int(greatest[upper_at < split].min()), _STEP - 1)
        beyond_low = int(least[lower_at >= split].max(initial=-_LIMIT))
        beyond_high = int(greatest[upper_at >= split].min(initial=_LIMIT))
        if low <= high and beyond_low <= beyond_high:
            offset = (low + high) >> 1
            inside = beyond_low > -_LIMIT and beyond_high < _LIMIT
            return multiplier, offset, ((beyond_low + beyond_high) >> 1) - offset if inside else 0
    return None


def apply(narrow: Narrow, acc: Int64s) -> Int64s:
    """The function as kernels compute it, for accumulators [channels, n]; for tests."""
    u = np.minimum(acc - narrow.bases[:, None], narrow.spans[:, None])
    total = u * narrow.highs[:, None] + ((u * narrow.lows[:, None]) >> narrow.shift) + narrow.offsets[:, None]
    total = total + np.where(u >= narrow.corners[:, None], narrow.extras[:, None], 0)
    top = (np.where(u < 0, narrow.offsets[:, None], total) & 0xFFFFFFFF) >> _TOP
    values: Int64s = np.where(top > 127, top - 256, top)
    return values
