"""The arena planner: offsets for buffers with lifetimes, so that none that live together overlap.

Best-fit placement in several orders (greedy by size, by lifetime, by area; then seeded local search over orders), ended as
soon as the lower bound, the largest sum of buffers that live at one step, is met.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16
_ROUNDS = 400


@dataclass(frozen=True)
class Request:
    """A buffer to place: `size` bytes, alive from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """Offsets in the order of the requests, the bytes of the whole arena, and the bound that no plan can beat."""

    offsets: tuple[int, ...]
    size: int
    lower_bound: int


def lower_bound(requests: Sequence[Request], alignment: int = ALIGNMENT) -> int:
    """The largest sum of sizes (rounded up to the alignment, but for the last one) alive at one step."""
    best = 0
    for step in {request.first for request in requests}:
        alive = [r.size for r in requests if r.first <= step <= r.last]
        rounded = [-(-size // alignment) * alignment for size in alive]
        # One buffer may end the arena unrounded.
        best = max(best, sum(rounded) - max((r - s for r, s in zip(rounded, alive, strict=True)), default=0))
    return best


def _place(requests: Sequence[Request], order: Sequence[int], alignment: int) -> tuple[list[int], int]:
    offsets = [0] * len(requests)
    placed: list[int] = []
    top = 0
    for index in order:
        request = requests[index]
        busy = sorted(
            (offsets[j], offsets[j] + requests[j].size)
            for j in placed
            if requests[j].first <= request.last and request.first <= requests[j].last
        )
        best, best_gap, cursor = -1, -1, 0
        for start, end in busy:
            gap = start - cursor
            if gap >= request.size and (best < 0 or gap < best_gap):
                best, best_gap = cursor, gap
            cursor = max(cursor, -(-end // alignment) * alignment)
        offsets[index] = cursor if best < 0 else best
        placed.append(index)
        top = max(top, offsets[index] + request.size)
    return offsets, top


def plan_arena(requests: Sequence[Request], alignment: int = ALIGNMENT) -> Plan:
    """The smallest plan found; deterministic for equal requests."""
    if not requests:
        return Plan((), 0, 0)
    bound = lower_bound(requests, alignment)
    indices = range(len(requests))
    keys = (
        lambda i: (-requests[i].size, requests[i].first, i),
        lambda i: (-(requests[i].last - requests[i].first + 1) * requests[i].size, i),
        lambda i: (-(requests[i].last - requests[i].first), -requests[i].size, i),
        lambda i: (requests[i].first, -requests[i].size, i),
        lambda i: (-requests[i].last, -requests[i].size, i),
    )
    best_order: list[int] = []
    best_offsets: list[int] = []
    best = -1
    for key in keys:
        order = sorted(indices, key=key)
        offsets, top = _place(requests, order, alignment)
        if best < 0 or top < best:
            best_order, best_offsets, best = order, offsets, top
    # Seeded: equal requests must give equal plans.
    shuffler = random.Random(0)  # noqa: S311
    for _ in range(_ROUNDS if len(requests) > 1 else 0):
        if best <= bound:
            break
        order = list(best_order)
        i, j = shuffler.randrange(len(order)), shuffler.randrange(len(order))
        order.insert(j, order.pop(i))
        offsets, top = _place(requests, order, alignment)
        if top <= best:
            best_order, best_offsets, best = order, offsets, top
    return Plan(tuple(best_offsets), best, bound)
