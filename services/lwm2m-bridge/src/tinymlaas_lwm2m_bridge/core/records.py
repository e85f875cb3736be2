"""Device records for watchers: the capabilities of a registration are read once, changes are told in order."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

import structlog

from tinymlaas.registry.v1 import devices_pb2

from .directory import Directory
from .errors import BridgeError
from .registration import DeviceChange, Registration
from .survey import Surveyor

log = structlog.get_logger("tinymlaas.bridge.records")


@dataclass(frozen=True)
class RecordEvent:
    """A change of a device with its record; `change` is None once all devices known at the start were told.

    `record` is None where the device could not be read; it is told all the same, because it is there.
    """

    change: DeviceChange | None
    registration: Registration | None = None
    record: devices_pb2.Device | None = None


class Records:
    """Capability records by registration, read from the device at most once unless `refresh` asks for it."""

    def __init__(
        self,
        directory: Directory,
        surveyor: Surveyor,
        *,
        read_s: float = 10.0,
        concurrency: int = 32,
        limit: int = 20_000,
    ) -> None:
        self._directory = directory
        self._surveyor = surveyor
        self._read_s = read_s
        self._places = asyncio.Semaphore(concurrency)
        self._limit = limit
        self._known: OrderedDict[str, devices_pb2.Device] = OrderedDict()

    async def refresh(self, device: Registration) -> devices_pb2.Device:
        """Read a device afresh and keep what it says; watchers, who were told something else before, are told again."""
        record = await self._surveyor.capabilities(device)
        before = self._known.get(device.id)
        self._known[device.id] = record
        self._known.move_to_end(device.id)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
        if before is not None and before != record:
            self._directory.tell_again(device.endpoint)
        return record

    async def known(self, device: Registration) -> devices_pb2.Device | None:
        """What is known of a device; read where nothing is, None where that fails."""
        if device.id not in self._known:
            try:
                async with self._places, asyncio.timeout(self._read_s):
                    await self.refresh(device)
            except (BridgeError, TimeoutError) as error:
                log.warning("device can't be read", endpoint=device.endpoint, error=str(error) or "timeout")
        return self._known.get(device.id)

    async def watch(self) -> AsyncIterator[RecordEvent]:
        """First every device, then an event with `change` None, then each change; one slow device delays no other."""
        queue: asyncio.Queue[RecordEvent | BridgeError] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(queue), name="device watch")
        try:
            while True:
                event = await queue.get()
                if isinstance(event, BridgeError):
                    raise event
                yield event
        finally:
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, queue: asyncio.Queue[RecordEvent | BridgeError]) -> None:
        last: dict[str, asyncio.Task[None]] = {}
        try:
            async with aclosing(self._directory.watch()) as events:
                async for event in events:
                    if event.change is None or event.registration is None:
                        await asyncio.gather(*last.values())
                        await queue.put(RecordEvent(None))
                        continue
                    endpoint = event.registration.endpoint
                    task = asyncio.create_task(self._tell(event.change, event.registration, last.get(endpoint), queue))
                    last[endpoint] = task
                    task.add_done_callback(partial(_drop, last, endpoint))
        except BridgeError as error:
            await queue.put(error)
        finally:
            for task in list(last.values()):
                task.cancel()

    async def _tell(
        self,
        change: DeviceChange,
        device: Registration,
        before: asyncio.Task[None] | None,
        queue: asyncio.Queue[RecordEvent | BridgeError],
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        record = self._known.get(device.id) if change is DeviceChange.LOST else await self.known(device)
        await queue.put(RecordEvent(change, device, record))


def _drop(last: dict[str, asyncio.Task[None]], endpoint: str, done: asyncio.Task[None]) -> None:
    if last.get(endpoint) is done:
        del last[endpoint]
