"""Where other parts listen: a fixed address, or a file that a supervisor writes anew when a part was restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from tinymlaas_servicekit import Cancelled, DeadlineExceeded, TlsFiles, Unavailable, connect

CLOSE_GRACE_SECONDS = 60.0
AWAY = (Unavailable, Cancelled, DeadlineExceeded)
"""How a call ends whose server is away, dies under it or hangs: a repeatable one is made again.

A call that we cancel ourselves raises CancelledError instead of Cancelled.
"""


@contextmanager
def unless_closed(what: str) -> Iterator[None]:
    """Surrounds calls: Unavailable / CHANNEL_CLOSED for the CancelledError of one whose channel was closed under it.

    A channel is closed when the part moves or its certificates change. The CancelledError of a task that is cancelled passes.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable(
            f"the connection to {what} was closed during a call", "CHANNEL_CLOSED", {"part": what}, "Call again."
        ) from error


@dataclass(frozen=True, slots=True)
class Location:
    """A fixed address (`host:port`, `unix:/path`), or a file that holds it; exactly one is set."""

    address: str = ""
    address_file: Path | None = None

    def resolve(self) -> str | None:
        """The address now, None while the file is not there (the part is not up)."""
        if self.address_file is None:
            return self.address
        try:
            return self.address_file.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None


class Endpoint:
    """A channel to a location that follows it when it moves. Calls under way on the old channel may end."""

    def __init__(
        self,
        what: str,
        location: Location,
        token: str | None = None,
        max_message_bytes: int = 4 << 20,
        *,
        tls: TlsFiles | None = None,
        peer: str = "",
    ) -> None:
        self._what = what
        self._location = location
        self._token = token
        self._max_message_bytes = max_message_bytes
        self._tls, self._peer = tls, peer
        self._address: str | None = None
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """The channel to where the part listens now; Unavailable while it is not up."""
        address = self._location.resolve()
        if address is None:
            raise Unavailable(
                f"{self._what} is not up", "NOT_UP", {"part": self._what}, f"Start {self._what}, then call again."
            )
        if self._channel is None or address != self._address:
            if self._channel is not None:
                task = asyncio.create_task(self._channel.close(CLOSE_GRACE_SECONDS))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            self._channel = connect(
                address, self._token, tls=self._tls, peer=self._peer, max_message_bytes=self._max_message_bytes
            )
            self._address = address
        return self._channel

    async def close(self) -> None:
        """End the channel and those that are still closing."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
