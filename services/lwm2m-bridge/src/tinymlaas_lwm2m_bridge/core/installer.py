"""Installs by their ids: started, joined, followed, cancelled, taken up again; what one does is `install_run`'s."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import structlog

from tinymlaas_servicekit.telemetry import traced, traceparent

from .directory import Clock, Directory
from .errors import BridgeError, Reason
from .install_record import InstallEvent, InstallRecord, InstallRequest
from .install_run import InstallRun, InstallSettings, Site
from .ports import ArtifactSource, DeviceLink, ImageCheck, InstallLog, InstallStore, PackageServer
from .sleep import Sleepers
from .survey import Surveyor

log = structlog.get_logger("tinymlaas.bridge.install")

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Installer:
    """Runs installs; one at a time for each device, `concurrency` at a time in all."""

    def __init__(
        self,
        directory: Directory,
        link: DeviceLink,
        packages: PackageServer,
        artifacts: ArtifactSource,
        check: ImageCheck,
        store: InstallStore,
        log_of_installs: InstallLog,
        surveyor: Surveyor,
        sleepers: Sleepers,
        clock: Clock,
        settings: InstallSettings,
    ) -> None:
        self._directory = directory
        self._packages = packages
        self._store = store
        self._log = log_of_installs
        self._clock = clock
        places = asyncio.Semaphore(settings.concurrency)
        self._site = Site(
            directory, link, packages, artifacts, check, log_of_installs, surveyor, sleepers, clock, settings, places
        )
        self._opening: dict[InstallRequest, asyncio.Task[None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends = 0
        self._endpoints: dict[str, str] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._device_locks: dict[str, asyncio.Lock] = {}

    def resume(self) -> int:
        """Take up every install that a former process left open; give their number."""
        records = self._store.open_installs()
        for record in records:
            self._start(record)
        return len(records)

    def take(self, record: InstallRecord) -> None:
        """Go on with an install that another instance has left."""
        if record.request.install_id not in self._tasks:
            self._start(record)

    async def abandon(self, endpoints: set[str]) -> None:
        """Stop to work on devices that are another instance's now; their installs stay open in the store."""
        # Those that are just begun first: none starts behind the back of this.
        await _end([task for request, task in self._opening.items() if request.endpoint in endpoints])
        await _end([task for name, task in self._tasks.items() if self._endpoints[name] in endpoints])

    def running(self) -> int:
        """How many installs are worked on, waiting ones among them."""
        return len(self._tasks)

    def device_lock(self, endpoint: str) -> asyncio.Lock:
        """The lock that whoever changes a device's modules holds."""
        return self._device_locks.setdefault(endpoint, asyncio.Lock())

    async def close(self) -> None:
        """Stop all tasks; the installs stay open in the store."""
        await _end(list(self._opening.values()))
        await _end(list(self._tasks.values()))

    async def install(self, request: InstallRequest) -> AsyncIterator[InstallEvent]:
        """Start an install, or join the one with that id; yields its timeline from the start to its end.

        Leaving the iterator does not stop the install. An install that has ended is told again and does nothing.
        DEVICE_ELSEWHERE where the install goes on elsewhere, or after this process: ask again with the same id.
        """
        if not _ID.fullmatch(request.install_id):
            raise BridgeError(
                Reason.ARGUMENT_INVALID, "install_id must be 1 to 128 of A-Z a-z 0-9 _ -", field="install_id"
            )
        if not _DIGEST.fullmatch(request.digest):
            raise BridgeError(Reason.ARGUMENT_INVALID, "a digest is 64 lower-case hex digits", field="module_sha256")
        opening = self._opening.get(request)
        if opening is None:
            opening = asyncio.create_task(self._open(request), name=f"begin of install {request.install_id}")
            self._opening[request] = opening
            opening.add_done_callback(lambda _: self._opening.pop(request, None))
        try:
            # A caller that leaves now stops nothing either: what is recorded is worked on.
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            if not opening.cancelled():
                raise
            raise _elsewhere(request.install_id) from None
        async for event in self._follow(request.install_id):
            yield event

    async def cancel(self, install_id: str) -> None:
        """Ask an install to stop at the next safe point. Repeatable; without effect on one that has ended."""
        record = await self._read(install_id)
        if record is None:
            raise BridgeError(Reason.INSTALL_UNKNOWN, "no such install", install_id=install_id[:128])
        if record.step.terminal:
            return
        if install_id not in self._tasks:
            self._start(record)
        self._cancels[install_id].set()

    async def _open(self, request: InstallRequest) -> None:
        """Work on an install from now on, unless it has ended."""
        record = await self._read(request.install_id)
        if record is None:
            self._directory.get(request.endpoint)
            now = self._clock()
            record = await self._log.begin(InstallRecord(request, created_at=now, updated_at=now, trace=traceparent()))
        if record.request != request:
            raise BridgeError(
                Reason.INSTALL_ID_REUSED, "the id belongs to another request", install_id=request.install_id
            )
        if not record.step.terminal and request.install_id not in self._tasks:
            self._start(record)

    async def _read(self, install_id: str) -> InstallRecord | None:
        """The record of an install, which none of the runs that ended meanwhile has changed since."""
        while True:
            ends = self._ends
            record = await self._log.read(install_id)
            if ends == self._ends:
                return record

    async def _follow(self, install_id: str) -> AsyncIterator[InstallEvent]:
        told = 0
        while True:
            changed = self._changed.get(install_id)
            if changed is not None:
                changed.clear()
            for event in await self._log.events(install_id, told):
                told += 1
                yield event
                if event.step.terminal:
                    return
            if changed is None:
                raise _elsewhere(install_id)
            await changed.wait()

    def _start(self, record: InstallRecord) -> None:
        install_id = record.request.install_id
        self._changed.setdefault(install_id, asyncio.Event())
        self._cancels[install_id] = asyncio.Event()
        # A device that pulls goes on while a bridge starts again, perhaps before the bridge has read the image.
        self._packages.expect(record.request.digest)
        task = asyncio.create_task(self._guard(record), name=f"install {install_id}")
        self._tasks[install_id] = task
        self._endpoints[install_id] = record.request.endpoint
        task.add_done_callback(lambda _: self._ended(record.request))

    def _wake(self, install_id: str) -> None:
        changed = self._changed.get(install_id)
        if changed is not None:
            changed.set()

    def _ended(self, request: InstallRequest) -> None:
        install_id = request.install_id
        self._ends += 1
        self._packages.withdraw(request.digest)
        self._tasks.pop(install_id, None)
        self._endpoints.pop(install_id, None)
        self._cancels.pop(install_id, None)
        changed = self._changed.pop(install_id, None)
        if changed is not None:
            changed.set()

    async def _guard(self, record: InstallRecord) -> None:
        request = record.request
        with traced("install", record.trace, device=request.endpoint, install_id=request.install_id):
            await self._drive(record)

    async def _drive(self, record: InstallRecord) -> None:
        async with self.device_lock(record.request.endpoint):
            install_id = record.request.install_id
            run = InstallRun(self._site, record, self._cancels[install_id], lambda: self._wake(install_id))
            try:
                await run.drive()
            except BridgeError as error:
                await run.fail(error)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if isinstance(getattr(error, "reason", None), str) and isinstance(getattr(error, "code", None), str):
                    await run.fail(_adopt(error))
                    return
                log.exception("install failed unexpectedly", install_id=record.request.install_id)
                await run.fail(BridgeError("INTERNAL_ERROR", "the bridge failed; its log says why"))


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _elsewhere(install_id: str) -> BridgeError:
    return BridgeError(Reason.DEVICE_ELSEWHERE, "the install goes on at another instance", install_id=install_id)


def _adopt(error: Exception) -> BridgeError:
    """An error of a package below, which has the same attributes, as one of the bridge's."""
    metadata = {str(key): str(value) for key, value in getattr(error, "metadata", {}).items()}
    return BridgeError(
        getattr(error, "reason"),  # noqa: B009 - the attributes are checked by the caller
        getattr(error, "detail", "") or str(error),
        code=getattr(error, "code"),  # noqa: B009
        help=str(getattr(error, "help", "")),
        **metadata,
    )
