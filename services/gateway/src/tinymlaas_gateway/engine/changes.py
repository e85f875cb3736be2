"""Who waits for a change of a build or deployment is woken by it; other gateways' changes are seen by looking anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_servicekit import Cancelled, NotFound

from ..adapters.store import Record, Resources

Body = TypeVar("Body", bound="builds_pb2.Build | deployments_pb2.Deployment")
Result = TypeVar("Result")

LOOK_ANEW_SECONDS = 1.0
SWARM_SECONDS = 0.5


class Changes(Generic[Body]):
    """Watches over the resources of one kind, for coroutines of one event loop."""

    def __init__(self, resources: Resources[Body], loop: asyncio.AbstractEventLoop) -> None:
        self._resources = resources
        self._loop = loop
        self._events: dict[str, set[asyncio.Event]] = {}
        # How often each resource that somebody waits for has changed, and the look at it that is under way.
        self._told: dict[str, int] = {}
        self._looks: dict[str, tuple[int, float, asyncio.Task[Record[Body] | None]]] = {}
        resources.on_change(self._tell)

    def _tell(self, name: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, name)

    def _wake(self, name: str) -> None:
        if name in self._events:
            self._told[name] = self._told.get(name, 0) + 1
        for event in self._events.get(name, ()):
            event.set()

    @contextmanager
    def _subscribed(self, name: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._events.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            listeners = self._events[name]
            listeners.discard(event)
            if not listeners:
                del self._events[name]
                self._told.pop(name, None)
                self._looks.pop(name, None)

    async def _look(self, name: str, age: float = 0.0) -> Record[Body] | None:
        """The record as it is, or was so many seconds ago; who waits for the same resource shares one look.

        Its body must not be changed.
        """
        told, now = self._told.get(name, 0), self._loop.time()
        look = self._looks.get(name)
        if look is None or (now - look[1] >= age and (look[0] != told or look[2].done())):
            look = told, now, asyncio.ensure_future(asyncio.to_thread(self._resources.get, name))
            self._looks[name] = look
        return await asyncio.shield(look[2])

    async def watch(self, name: str) -> AsyncIterator[Record[Body]]:
        """Yield the record now and after each change, the last one when it has ended; NotFound for an unknown name."""
        revision = 0
        with self._subscribed(name) as event:
            while True:
                event.clear()
                record = await self._look(name)
                if record is None:
                    raise NotFound(f"{name} does not exist", metadata={"name": name})
                if record.revision != revision:
                    revision = record.revision
                    yield record
                if record.ended:
                    return
                try:
                    async with asyncio.timeout(LOOK_ANEW_SECONDS):
                        await event.wait()
                except TimeoutError:
                    continue

    async def ended(self, name: str) -> Record[Body]:
        """Wait until the resource has ended."""
        last: Record[Body] | None = None
        async for record in self.watch(name):
            last = record
        assert last is not None
        return last

    async def news(self, name: str, known: Record[Body], left: Callable[[], float]) -> None:
        """Return when the resource is no longer as known, or shall stop, at the latest when no seconds are `left`.

        They are asked for again and again, since a caller's clock may be set, or have slept with its machine.
        """
        with self._subscribed(name) as event:
            while True:
                event.clear()
                record = await self._look(name)
                if record is None or record.revision != known.revision:
                    return
                pause = left()
                if record.cancel_requested != known.cancel_requested or pause <= 0:
                    return
                try:
                    async with asyncio.timeout(min(LOOK_ANEW_SECONDS, pause)):
                        await event.wait()
                except TimeoutError:
                    continue

    async def unless_cancelled(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        """Do the work, but stop it and raise Cancelled as soon as the resource shall stop."""
        return await self.unless(name, work, lambda record: record.cancel_requested)

    async def unless(
        self, name: str, work: Coroutine[Any, Any, Result], stopped: Callable[[Record[Body]], bool]
    ) -> Result:
        """Do the work, but stop it and raise Cancelled as soon as `stopped` holds of the resource, or it is gone."""
        task = asyncio.ensure_future(work)
        try:
            with self._subscribed(name) as event:
                while not task.done():
                    event.clear()
                    record = await self._look(name, SWARM_SECONDS)
                    if record is None or stopped(record):
                        raise Cancelled(f"{name} was cancelled")
                    waiting = asyncio.ensure_future(event.wait())
                    try:
                        await asyncio.wait(
                            {task, waiting}, timeout=LOOK_ANEW_SECONDS, return_when=asyncio.FIRST_COMPLETED
                        )
                    finally:
                        waiting.cancel()
                    if not task.done():  # changes come in swarms
                        await asyncio.wait({task}, timeout=SWARM_SECONDS)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
