"""What a device counts of its modules: which resources tell it, and what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from tinymlaas_lwm2m import MlRes, SelfTestResult, SlotState, Value, Values, ml, multiple
from tinymlaas_module import TENTHS

T = TypeVar("T")

TELEMETRY = tuple(
    ml(resource)
    for resource in (
        MlRes.SLOT_STATE,
        MlRes.MODULE_DIGEST,
        MlRes.SELF_TEST_RESULT,
        MlRes.INVOCATIONS,
        MlRes.LAST_LATENCY,
        MlRes.LATENCY_UNIT,
        MlRes.ERROR_COUNT,
        MlRes.LAST_ERROR,
        MlRes.CONFIDENCE,
    )
)
"""What is observed: not the whole object, whose lists of operators and keys would be sent again with each inference."""


@dataclass(frozen=True)
class Observation:
    """What a device counts; `latency_unit` names the unit of `last_latency`.

    `confidence` counts runs by tenths, empty where the device does not; `active` is the digest of the active image.
    """

    invocations: int
    errors: int
    last_latency: int
    latency_unit: str
    self_test_passed: bool
    last_error: str
    confidence: tuple[int, ...] = ()
    active: bytes | None = None


def observation_of(values: Values) -> Observation:
    """What the telemetry of a device says; what it does not tell, or not as it should, counts as nothing."""
    tests = multiple(values, ml(MlRes.SELF_TEST_RESULT))
    return Observation(
        invocations=counter(values.get(ml(MlRes.INVOCATIONS))),
        errors=counter(values.get(ml(MlRes.ERROR_COUNT))),
        last_latency=counter(values.get(ml(MlRes.LAST_LATENCY))),
        latency_unit=str(values.get(ml(MlRes.LATENCY_UNIT), "")),
        self_test_passed=any(result == SelfTestResult.PASSED for result in tests.values()),
        last_error=str(values.get(ml(MlRes.LAST_ERROR), ""))[:256],
        confidence=_histogram(multiple(values, ml(MlRes.CONFIDENCE))),
        active=_active(values),
    )


def counter(value: Value | None) -> int:
    """A count that fits the contract's field, 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else 0


def _histogram(counts: Mapping[int, Value]) -> tuple[int, ...]:
    """Counts of the ten tenths; a device that names others counts in another way, and is not understood."""
    if not counts or not all(0 <= index < TENTHS for index in counts):
        return ()
    return tuple(counter(counts.get(index)) for index in range(TENTHS))


def _active(values: Values) -> bytes | None:
    """Digest of the image that is active; None where none is or it is not told."""
    states = multiple(values, ml(MlRes.SLOT_STATE)) or {0: SlotState.ACTIVE}  # static firmware has no slots
    for slot, state in states.items():
        digest = values.get(ml(MlRes.MODULE_DIGEST, slot))
        if state == SlotState.ACTIVE and isinstance(digest, bytes) and len(digest) == 32:
            return digest
    return None


async def until(end: asyncio.Task[None], items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The items of a generator, which is closed once `end` is done, even while it waits for the next item."""
    async with aclosing(items):
        while not end.done():
            following = asyncio.ensure_future(anext(items))
            try:
                await asyncio.wait({following, end}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    return
                try:
                    item = following.result()
                except StopAsyncIteration:
                    return
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            yield item
