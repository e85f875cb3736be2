"""Sets of byte ranges, for the certificate checker."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class ByteSet:
    """A set of byte positions, kept as sorted disjoint half-open ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add positions ``start`` to ``end`` (not included); joins ranges that touch."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def covers(self, start: int, end: int) -> bool:
        """Return whether every position from ``start`` to ``end`` (not included) is in the set."""
        index = bisect_right(self._starts, start) - 1
        return start >= end or (index >= 0 and end <= self._ends[index])
