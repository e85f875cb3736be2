"""What is written and read of installs, in threads: a slow database delays an install and not the bridge."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import structlog

from tinymlaas_servicekit import Unavailable

from .core.install_record import InstallEvent, InstallRecord
from .in_threads import carried_out

log = structlog.get_logger("tinymlaas.bridge.install")

THREADS = 4
"""Each holds a connection to the database while it works."""
_PAUSE_S = 1.0


class EventStore(Protocol):
    """A store whose calls wait for the database; Unavailable where it stays away for long."""

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
        # Apart: who asks is told after a while that the database is away, however many installs wait to write.
        self._noted = ThreadPoolExecutor(THREADS, "installs")
        self._asked = ThreadPoolExecutor(THREADS, "callers")

    async def read(self, install_id: str) -> InstallRecord | None:
        """See `InstallLog`."""
        return await carried_out(self._asked, partial(self._store.get_install, install_id))

    async def begin(self, record: InstallRecord) -> InstallRecord:
        """See `InstallLog`."""
        return await carried_out(self._asked, partial(self._store.begin_install, record))

    async def note(self, record: InstallRecord | None, event: InstallEvent | None) -> None:
        """See `InstallLog`."""
        while True:
            try:
                return await carried_out(self._noted, partial(self._store.note_install, record, event))
            except Unavailable as error:
                # Only a cancel ends this: to fail the install would be to record the outage as its outcome.
                log.warning("an install waits for the database", error=str(error))
            await asyncio.sleep(_PAUSE_S)

    async def events(self, install_id: str, skip: int) -> list[InstallEvent]:
        """See `InstallLog`."""
        return await carried_out(self._asked, partial(self._store.events, install_id, skip))

    def close(self) -> None:
        """End the threads."""
        self._noted.shutdown()
        self._asked.shutdown()
