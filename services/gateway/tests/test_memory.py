"""What the gateway keeps in memory: bytes within a budget, answers for a moment."""

from __future__ import annotations

import asyncio

import pytest

from tinymlaas_gateway.adapters.memory import ByteCache, Recent


def test_bytes_used_last_stay_within_the_budget() -> None:
    cache = ByteCache(80)
    for key in "abcdefgh":
        cache.put(key, key.encode() * 10)
    assert cache.get("a") == b"a" * 10
    cache.put("i", b"i" * 10)
    assert cache.get("b") is None, "the one that was not used longest goes first"
    assert all(cache.get(key) == key.encode() * 10 for key in "acdefghi")


def test_bytes_put_again_count_once_and_big_ones_are_not_kept() -> None:
    cache = ByteCache(80)
    for _ in range(20):
        cache.put("a", b"a" * 10)
    cache.put("b", b"b" * 10)
    assert cache.get("a") == b"a" * 10
    cache.put("big", b"x" * 11)
    assert cache.get("big") is None


def test_an_answer_holds_for_its_time_and_errors_are_asked_anew() -> None:
    now = 0.0
    asked = 0
    recent: Recent[int] = Recent(1.0, 2, lambda: now)

    async def ask() -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ConnectionError
        return asked

    async def scenario() -> None:
        nonlocal now
        with pytest.raises(ConnectionError):
            await recent.get("k", ask)
        assert [await recent.get("k", ask), await recent.get("k", ask)] == [2, 2]
        now = 1.0
        assert await recent.get("k", ask) == 3
        await recent.get("l", ask)
        await recent.get("m", ask)
        assert await recent.get("k", ask) == 6, "only as many as were asked for are kept"

    asyncio.run(scenario())
