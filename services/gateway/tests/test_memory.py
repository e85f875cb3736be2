"""What the gateway keeps in memory: bytes within a budget, answers for a moment; and what it writes together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from tinymlaas_gateway.adapters.group import Group
from tinymlaas_gateway.adapters.memory import ByteCache, Derived, Recent


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


def test_what_follows_from_a_thing_is_forgotten_with_it() -> None:
    kept: Derived[str] = Derived(2)
    old, new = ("a plugin",), ("a plugin", "another")
    kept.put(old, "x", "of the old")
    assert kept.get(old, "x") == "of the old"
    assert kept.get(new, "x") is None
    kept.put(new, "y", "of the new")
    assert kept.get(old, "x") is None
    assert kept.get(old, "y") is None
    assert kept.get(new, "y") == "of the new"
    kept.put(new, "z", "")
    assert kept.get(new, "y") == "of the new"
    kept.put(new, "w", "third")
    assert kept.get(new, "z") is None, "the one that was not used longest goes first"


async def test_what_comes_while_a_group_is_written_is_written_together_next() -> None:
    groups: list[list[int]] = []
    begun, go = threading.Event(), threading.Event()

    def write(items: Sequence[int]) -> list[int]:
        groups.append(list(items))
        begun.set()
        assert go.wait(60)
        return [item * 10 for item in items]

    group = Group(write)
    calls = [asyncio.create_task(group(0))]
    async with asyncio.timeout(60):
        await asyncio.to_thread(begun.wait, 60)
        calls += [asyncio.create_task(group(item)) for item in range(1, 6)]
        await asyncio.sleep(0)
        calls[3].cancel()  # its item is written all the same, as nobody knows how far it has come
        go.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert groups == [[0], [1, 2, 3, 4, 5]]
    assert [r for r in results if not isinstance(r, BaseException)] == [0, 10, 20, 40, 50]


async def test_of_a_group_only_what_is_wrong_fails() -> None:
    begun, go = threading.Event(), threading.Event()

    def write(items: Sequence[int]) -> list[int]:
        begun.set()
        assert go.wait(60)
        if 3 in items:
            raise ValueError("three")
        return list(items)

    group = Group(write)
    calls = [asyncio.create_task(group(0))]
    await asyncio.to_thread(begun.wait, 60)
    calls += [asyncio.create_task(group(item)) for item in range(1, 5)]
    await asyncio.sleep(0)
    go.set()
    async with asyncio.timeout(60):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(result) for result in results] == ["0", "1", "2", "three", "4"]
