"""The directory of registered devices: who is here, where, until when; watchers are told of each change."""

from __future__ import annotations

import asyncio
import heapq
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from tinymlaas_lwm2m import ObjectLink
from tinymlaas_servicekit.metrics import count

from .errors import BridgeError, Reason
from .registration import DeviceChange, RegisterQuery, Registration, UpdateQuery

Clock = Callable[[], float]
"""Seconds since the epoch; tests bring their own."""

Admission = Callable[[str, str], None]
"""(endpoint, address) → nothing, or a `BridgeError` where whoever speaks from the address may not be the endpoint."""


def admit_anyone(endpoint: str, address: str) -> None:
    """The admission of a bridge whose network is trusted: every address may be every endpoint."""


class RegistrationStore(Protocol):
    """Where registrations outlive the process."""

    def load_registrations(self) -> list[Registration]:
        """All stored registrations."""
        ...

    def put_registration(self, registration: Registration) -> None:
        """Store one, replacing the endpoint's earlier one."""
        ...

    def delete_registration(self, endpoint: str) -> None:
        """Remove an endpoint's registration if there is one."""
        ...


@dataclass(frozen=True)
class DeviceEvent:
    """One change of the directory; `registration` is None only for the event that says that all were told."""

    change: DeviceChange | None
    registration: Registration | None


class Directory:
    """Registered devices, kept in memory for speed and in a store for restarts.

    A device that registers again replaces its earlier registration. An expired one is forgotten at `expire`; until
    then a lookup already answers as if it were gone.
    """

    def __init__(
        self,
        store: RegistrationStore,
        clock: Clock,
        *,
        admit: Admission = admit_anyone,
        max_devices: int = 20_000,
        watcher_backlog: int = 10_000,
    ) -> None:
        self._store = store
        self._clock = clock
        self._admit = admit
        self._max_devices = max_devices
        self._watcher_backlog = watcher_backlog
        self._by_endpoint: dict[str, Registration] = {}
        self._endpoint_of_id: dict[str, str] = {}
        self._expiries: list[tuple[float, str]] = []
        self._watchers: set[asyncio.Queue[DeviceEvent]] = set()
        # When devices first registered or updated here, not at another instance or at the one that had this name before.
        self._met: dict[str, float] = {}
        self._moved: dict[str, asyncio.Event] = {}
        for registration in store.load_registrations():
            self._keep(registration)

    def __len__(self) -> int:
        return len(self._by_endpoint)

    def register(
        self, query: RegisterQuery, objects: tuple[ObjectLink, ...], address: str, local_address: str
    ) -> Registration:
        """Take a device in and return its registration with a new id; LIMIT_EXCEEDED when the directory is full."""
        self._admit(query.endpoint, address)
        before = self._by_endpoint.get(query.endpoint)
        if before is None and len(self._by_endpoint) >= self._max_devices:
            raise BridgeError(Reason.LIMIT_EXCEEDED, "too many devices", limit="max_devices", value=self._max_devices)
        now = self._clock()
        registration = Registration(
            id=secrets.token_hex(8),
            endpoint=query.endpoint,
            address=address,
            local_address=local_address,
            lifetime_s=query.lifetime_s,
            version=query.version,
            binding=query.binding,
            queue_mode=query.queue_mode,
            objects=objects,
            registered_at=now,
            updated_at=now,
        )
        if before is not None:
            del self._endpoint_of_id[before.id]
        self._keep(registration)
        self._met.setdefault(registration.endpoint, registration.updated_at)
        self._store.put_registration(registration)
        self._tell(DeviceChange.REGISTERED, registration)
        return registration

    def update(
        self,
        registration_id: str,
        query: UpdateQuery,
        objects: tuple[ObjectLink, ...] | None,
        address: str,
        local_address: str,
    ) -> Registration:
        """Extend a registration, with changes; DEVICE_UNKNOWN makes the device register anew (clause 6.2.2)."""
        before = self._of_id(registration_id)
        self._admit(before.endpoint, address)
        registration = replace(
            before,
            lifetime_s=query.lifetime_s or before.lifetime_s,
            binding=query.binding or before.binding,
            objects=before.objects if objects is None else objects,
            address=address,
            local_address=local_address,
            updated_at=self._clock(),
        )
        self._keep(registration)
        self._met.setdefault(registration.endpoint, registration.updated_at)
        self._store.put_registration(registration)
        self._tell(DeviceChange.UPDATED, registration)
        return registration

    def deregister(self, registration_id: str, address: str) -> Registration:
        """Forget a device at its own wish, told from `address`."""
        registration = self._of_id(registration_id)
        self._admit(registration.endpoint, address)
        self._forget(registration)
        return registration

    def adopt(self, registration: Registration) -> None:
        """Take in a device that was registered at another instance, and is this one's in the store already."""
        before = self._by_endpoint.get(registration.endpoint)
        if before is not None:
            if before.updated_at >= registration.updated_at:
                return
            del self._endpoint_of_id[before.id]
        self._keep(registration)
        self._met.pop(registration.endpoint, None)
        self._tell(DeviceChange.REGISTERED, registration)

    def knows_this_instance(self, registration: Registration) -> bool:
        """False for one made at an instance that is gone, whose device may answer only there until it registers or updates."""
        met = self._met.get(registration.endpoint)
        return met is not None and registration.updated_at >= met

    def met(self, endpoints: Iterable[str]) -> dict[str, Registration]:
        """Those of the devices that registered or updated here, and not only at another instance."""
        found = (self._by_endpoint.get(endpoint) for endpoint in endpoints)
        return {kept.endpoint: kept for kept in found if kept is not None and self.knows_this_instance(kept)}

    def tell_again(self, endpoint: str) -> None:
        """Tell watchers of a device anew: another instance had told of it as its own, or it says other things of itself."""
        registration = self._by_endpoint.get(endpoint)
        if registration is not None:
            self._tell(DeviceChange.UPDATED, registration)

    def drop(self, endpoint: str) -> None:
        """Forget a device that is another instance's now; that one tells its watchers."""
        registration = self._by_endpoint.pop(endpoint, None)
        self._met.pop(endpoint, None)
        self._wake(endpoint)
        if registration is not None:
            del self._endpoint_of_id[registration.id]

    def get(self, endpoint: str) -> Registration:
        """The registration of a device; DEVICE_UNKNOWN where there is none or it has expired."""
        registration = self._by_endpoint.get(endpoint)
        if registration is None or registration.expires_at <= self._clock():
            raise BridgeError(Reason.DEVICE_UNKNOWN, f"{endpoint[:128]!r} is not registered", device=endpoint[:128])
        return registration

    def all(self) -> list[Registration]:
        """All registrations that have not expired, by endpoint."""
        now = self._clock()
        return sorted((r for r in self._by_endpoint.values() if r.expires_at > now), key=lambda r: r.endpoint)

    def expire(self) -> list[Registration]:
        """Forget and return every device whose lifetime has passed."""
        now = self._clock()
        lost: list[Registration] = []
        while self._expiries and self._expiries[0][0] <= now:
            _, endpoint = heapq.heappop(self._expiries)
            registration = self._by_endpoint.get(endpoint)
            if registration is not None and registration.expires_at <= now:
                self._forget(registration)
                lost.append(registration)
        return lost

    def next_expiry(self) -> float | None:
        """Earliest time at which `expire` may have something to do, or None."""
        return self._expiries[0][0] if self._expiries else None

    async def watch(self) -> AsyncGenerator[DeviceEvent, None]:
        """First every device, then an event with `change` None, then each change.

        A watcher that falls too far behind gets WATCHER_TOO_SLOW rather than unbounded memory or silent gaps.
        """
        queue: asyncio.Queue[DeviceEvent] = asyncio.Queue(self._watcher_backlog)
        known = self.all()
        self._watchers.add(queue)
        try:
            for registration in known:
                yield DeviceEvent(DeviceChange.REGISTERED, registration)
            yield DeviceEvent(None, None)
            while True:
                if queue not in self._watchers and queue.empty():
                    raise BridgeError(Reason.WATCHER_TOO_SLOW, f"more than {self._watcher_backlog} changes behind")
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def wait_for_update(self, endpoint: str, seen: Registration | None) -> Registration:
        """Return as soon as the device registers or updates after `seen`."""
        queue: asyncio.Queue[DeviceEvent] = asyncio.Queue(self._watcher_backlog)
        self._watchers.add(queue)
        try:
            while True:
                with suppress(BridgeError):
                    present = self.get(endpoint)
                    if seen is None or present != seen:
                        return present
                await queue.get()
        finally:
            self._watchers.discard(queue)

    async def moved(self, seen: Registration) -> None:
        """Return once a device is no longer where it was `seen`: registered anew, at another address, elsewhere, or not at all."""
        while (present := self._by_endpoint.get(seen.endpoint)) is not None:
            if (present.id, present.address) != (seen.id, seen.address):
                return
            await self._moved.setdefault(seen.endpoint, asyncio.Event()).wait()

    def _of_id(self, registration_id: str) -> Registration:
        endpoint = self._endpoint_of_id.get(registration_id)
        if endpoint is None:
            raise BridgeError(Reason.DEVICE_UNKNOWN, "no such registration")
        return self.get(endpoint)

    def _keep(self, registration: Registration) -> None:
        self._by_endpoint[registration.endpoint] = registration
        self._wake(registration.endpoint)
        self._endpoint_of_id[registration.id] = registration.endpoint
        heapq.heappush(self._expiries, (registration.expires_at, registration.endpoint))
        if len(self._expiries) > 4 * len(self._by_endpoint) + 64:
            # Each update leaves its old entry behind; without this the heap would grow with the number of updates.
            self._expiries = [(r.expires_at, r.endpoint) for r in self._by_endpoint.values()]
            heapq.heapify(self._expiries)

    def _wake(self, endpoint: str) -> None:
        """Let those look again who wait for a device to move."""
        if self._moved and (waiting := self._moved.pop(endpoint, None)) is not None:
            waiting.set()

    def _forget(self, registration: Registration) -> None:
        self._met.pop(registration.endpoint, None)
        del self._by_endpoint[registration.endpoint]
        del self._endpoint_of_id[registration.id]
        self._wake(registration.endpoint)
        self._store.delete_registration(registration.endpoint)
        self._tell(DeviceChange.LOST, registration)

    def _tell(self, change: DeviceChange, registration: Registration) -> None:
        count("tinymlaas.registrations", change=change.value)
        for queue in list(self._watchers):
            try:
                queue.put_nowait(DeviceEvent(change, registration))
            except asyncio.QueueFull:
                self._watchers.discard(queue)
