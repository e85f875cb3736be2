"""What is written and read of installs, in threads: a slow database delays an install and not the bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from .core.install_record import InstallEvent, InstallRecord

T = TypeVar("T")

THREADS = 4
"""Each holds a connection to the database while it works."""


class EventStore(Protocol):
    """A store whose calls wait for the database."""

    def get_install(self, install_id: str) -> InstallRecord | None:
        """The record of an install, or None."""
        ...

    def begin_install(self, record: InstallRecord) -> InstallRecord:
        """Store the record of a new install, unless its id has one; the one that is stored."""
        ...

    def note_install(self, record: InstallRecord | None, event: InstallEvent | None) -> None:
        """Store a record, and append to its timeline, both or none."""
        ...

    def events(self, install_id: str, skip: int = 0) -> list[InstallEvent]:
        """Timeline of an install without its first `skip` entries."""
        ...


class ThreadedInstallLog:
    """Implements `InstallLog`; one install awaits each of its calls, so what it writes keeps its order."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, "installs")

    async def read(self, install_id: str) -> InstallRecord | None:
        """See `InstallLog`."""
        return await self._in_thread(partial(self._store.get_install, install_id))

    async def begin(self, record: InstallRecord) -> InstallRecord:
        """See `InstallLog`."""
        return await self._in_thread(partial(self._store.begin_install, record))

    async def note(self, record: InstallRecord | None, event: InstallEvent | None) -> None:
        """See `InstallLog`."""
        await self._in_thread(partial(self._store.note_install, record, event))

    async def events(self, install_id: str, skip: int) -> list[InstallEvent]:
        """See `InstallLog`."""
        return await self._in_thread(partial(self._store.events, install_id, skip))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """The result of a call; cancelled, it ends only once the call has, however often it is cancelled."""
        work = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._threads, call))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                try:
                    await asyncio.wait({work})
                except asyncio.CancelledError:
                    continue
            raise
