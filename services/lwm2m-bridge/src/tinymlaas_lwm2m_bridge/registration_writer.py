"""Registrations on their way to the store: what changes while one transaction runs goes together into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import structlog

from .core.registration import Registration

log = structlog.get_logger("tinymlaas.bridge.store")

RETRY_S = 1.0


class BatchStore(Protocol):
    """A store that writes many registrations in one transaction."""

    def load_registrations(self) -> list[Registration]:
        """All stored registrations."""
        ...

    def write_registrations(self, changes: Mapping[str, Registration | None]) -> None:
        """Store or, where None, remove registrations by endpoint, all or none."""
        ...


class RegistrationWriter:
    """Implements `RegistrationStore` without waiting; `written` tells when the store has what was put so far.

    A device is answered after that, so an answer is never about a registration that a crash would lose. The store works in
    a thread: a slow disk or database delays answers and not the bridge. What could not be written is tried again.
    """

    def __init__(self, store: BatchStore, *, retry_s: float = RETRY_S) -> None:
        self._store = store
        self._retry_s = retry_s
        self._changes: dict[str, Registration | None] = {}
        self._next: asyncio.Future[None] | None = None
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "registrations")

    def load_registrations(self) -> list[Registration]:
        """All stored registrations."""
        return self._store.load_registrations()

    def put_registration(self, registration: Registration) -> None:
        """Store one soon, replacing the endpoint's earlier one."""
        self._changes[registration.endpoint] = registration
        self._work.set()

    def delete_registration(self, endpoint: str) -> None:
        """Remove an endpoint's registration soon."""
        self._changes[endpoint] = None
        self._work.set()

    def written(self) -> asyncio.Future[None]:
        """Done once all that was put before is in the store; raises what the store raised. One future for a whole batch."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            # Whoever asked may be gone when the store fails; the log has the error.
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._work.set()
        return self._next

    async def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="writer of registrations")

    async def close(self) -> None:
        """Write what is left and stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._changes:
            await self._write()
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            # Shielded: a transaction that has begun is waited for, so that `close` never writes beside it.
            writing = asyncio.ensure_future(self._write())
            try:
                failed = not await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing
                raise
            if failed:
                await asyncio.sleep(self._retry_s)
                self._work.set()

    async def _write(self) -> bool:
        """One transaction; False where the store failed, and what it did not take waits for the next one."""
        changes, self._changes = self._changes, {}
        told, self._next = self._next, None
        try:
            if changes:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._store.write_registrations, changes)
        except Exception as error:
            log.exception("registrations can't be stored", count=len(changes))
            self._changes = changes | self._changes
            if told is not None and not told.done():
                told.set_exception(error)
            return False
        if told is not None and not told.done():
            told.set_result(None)
        return True
