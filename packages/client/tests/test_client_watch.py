"""A watch goes on over a restart of its server, for as long as one may take."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tinymlaas_client import _requests
from tinymlaas_client._requests import watched
from tinymlaas_servicekit import NotFound, Unavailable


class Server:
    """What a watch meets, try by try: an item, or the code that the call breaks off with. Each try takes `seconds`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: list[grpc.StatusCode | int], seconds: float) -> None:
        self.script, self.seconds, self.now = script, seconds, 0.0
        monkeypatch.setattr(_requests, "monotonic", lambda: self.now)
        monkeypatch.setattr(_requests, "WATCH_PAUSE_SECONDS", 0.0)

    async def watch(self) -> AsyncIterator[int]:
        """One try; it tells items until it breaks off, and ends when nothing is left."""
        while self.script:
            met = self.script.pop(0)
            if not isinstance(met, int):
                self.now += self.seconds
                raise grpc.aio.AioRpcError(met, grpc.aio.Metadata(), grpc.aio.Metadata(), "restarting")
            yield met


AWAY, KILLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED


async def test_a_server_that_is_away_for_less_than_a_minute_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, [1, KILLED, *[AWAY] * 29, 2], 2.0)
    assert [item async for item in watched(server.watch)] == [1, 2]


async def test_the_time_away_counts_anew_once_the_server_has_told_something(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, [AWAY, AWAY, 1, AWAY, AWAY, 2, KILLED, AWAY, 3], 50.0)
    assert [item async for item in watched(server.watch)] == [1, 2, 3]


async def test_a_server_that_stays_away_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, [1, AWAY, AWAY, AWAY, 2], 50.0)
    with pytest.raises(Unavailable):
        [item async for item in watched(server.watch)]
    assert server.script == [2]


async def test_a_refused_watch_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, [grpc.StatusCode.NOT_FOUND, 1], 0.0)
    with pytest.raises(NotFound):
        [item async for item in watched(server.watch)]
    assert server.script == [1]
