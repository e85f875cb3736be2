"""Bridges that share a fleet: a device belongs to the instance that received its last registration.

Each instance holds a lease. What one that died has left, devices and installs, another takes at once when the lease has
run out; a device that merely registers elsewhere is let go by the instance that had it, and only then worked on there.
One that was only slow takes back what it lost, without a stop for its installs, unless the device was heard elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from .core.directory import Directory
from .core.errors import BridgeError, Reason
from .core.installer import Installer
from .fleet_store import FleetStore

log = structlog.get_logger("tinymlaas.bridge.fleet")

LOOK_S = 60.0
"""How often all devices are looked up: one that moved twice before its first bridge looked is not told to that one."""


class Fleet:
    """Keeps this instance's lease, lets go of what moved away and takes what is free. `hold`, `start`, `close`."""

    def __init__(
        self,
        store: FleetStore,
        refresh_keys: Callable[[], None] | None = None,
        *,
        poll_s: float = 1.0,
    ) -> None:
        self._store = store
        self._refresh_keys = refresh_keys
        self._poll_s = poll_s
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self.address: Callable[[], str] = lambda: ""
        """What this instance is called by; others tell it to callers."""
        self._renew_at = 0.0
        self._held_at = 0.0
        self._look_at = 0.0

    def hold(self) -> None:
        """Take the lease, before anything is loaded that others must leave alone."""
        self._store.leases.take()

    def start(self, directory: Directory, installer: Installer) -> None:
        """Look after the fleet from now on."""
        self._directory = directory
        self._installer = installer
        self._held_at = asyncio.get_running_loop().time()
        self._look_at = self._held_at + LOOK_S
        self._task = asyncio.create_task(self._keep(), name="fleet of bridges")

    async def close(self) -> None:
        """Give the lease up: others may have the devices at once. Call it when nothing is worked on here any more."""
        self._stop.set()
        if self._task is not None:
            # Not cancelled: what a thread is doing in the database would go on behind its back.
            await self._task
        with suppress(SQLAlchemyError):
            self._store.leases.release()

    def awaits(self, digest: str) -> bool:
        """Whether an install of an image is open; this instance serves it soon, or may be the next to."""
        return self._store.is_open(digest)

    async def check_here(self, endpoint: str) -> None:
        """DEVICE_ELSEWHERE where the device is registered at another instance, with the address of that one."""
        with suppress(BridgeError):
            self._directory.get(endpoint)
            return
        owner = await asyncio.to_thread(self._store.owner, endpoint)
        if owner is not None:
            raise elsewhere(endpoint, owner.instance, owner.address)

    async def check_free(self, endpoint: str) -> None:
        """DEVICE_ELSEWHERE while another instance has not let go of an install on the device."""
        holder = await asyncio.to_thread(self._store.installing, endpoint)
        if holder is not None:
            raise elsewhere(endpoint, holder, "")

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not await self._stopped():
            try:
                if loop.time() >= self._renew_at:
                    await self._renew()
                    self._renew_at = loop.time() + self._store.leases.seconds / 4
                await self._let_go()
                for record in await asyncio.to_thread(self._store.take_installs):
                    self._installer.take(record)
            except Exception:
                # The database may be away for a while: devices stay whose they are until it is back.
                log.exception("the fleet could not be looked after")

    async def _stopped(self) -> bool:
        """Wait until it is time to look again, or until the end; whether it is the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._stop.wait()
        return self._stop.is_set()

    async def _hold_on(self) -> None:
        """Hold the lease for longer, or again; after a lapse, what others may have taken meanwhile is looked up next."""
        leases, now = self._store.leases, asyncio.get_running_loop().time()
        address = self.address()
        lapsed = now - self._held_at > leases.seconds
        if not await asyncio.to_thread(leases.renew, address):
            lapsed = True
            log.error(
                "the lease was lost: this bridge was too slow, or another one has its name", instance=leases.instance
            )
            await asyncio.to_thread(leases.take, address)
        self._held_at = now
        if lapsed:
            self._look_at = now

    async def _renew(self) -> None:
        await self._hold_on()
        if self._refresh_keys is not None:
            await asyncio.to_thread(self._refresh_keys)
        for name in await asyncio.to_thread(self._store.leases.expired):
            registrations, records = await asyncio.to_thread(self._store.adopt, name)
            if registrations or records:
                log.warning("took over a bridge's devices", instance=name, devices=len(registrations))
            for registration in registrations:
                self._directory.adopt(registration)
            for record in records:
                self._installer.take(record)

    async def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._look_at:
            heard = {registration.endpoint: registration.updated_at for registration in self._directory.all()}
            gone = await asyncio.to_thread(self._store.elsewhere, heard)
            self._look_at = loop.time() + LOOK_S
        else:
            gone = await asyncio.to_thread(self._store.gone)
        if not gone:
            return
        await self._hold_on()  # first, or others would take again what is taken back now
        kept = await asyncio.to_thread(self._store.take_back, self._directory.met(gone))
        for endpoint in kept:
            self._directory.tell_again(endpoint)
        if kept:
            log.warning("took back devices: this bridge was too slow to keep its lease", count=len(kept))
        gone = [endpoint for endpoint in gone if endpoint not in kept]
        for endpoint in gone:
            self._directory.drop(endpoint)
        await self._installer.abandon(set(gone))
        if gone:
            await asyncio.to_thread(self._store.let_go, gone)
            log.info("devices moved to other bridges", count=len(gone))


def elsewhere(endpoint: str, instance: str, address: str) -> BridgeError:
    """The error that sends a caller to another instance."""
    return BridgeError(
        Reason.DEVICE_ELSEWHERE,
        f"{endpoint} is registered at the bridge {instance}",
        device=endpoint,
        instance=instance,
        bridge=address,
    )
