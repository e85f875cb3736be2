"""Bridges: watched for devices, which go into the catalogue, and called for the devices that they own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import grpc
import grpc.aio
import structlog

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_servicekit import Cancelled, Internal, ServiceError, TlsFiles, Unavailable, from_rpc_error

from .catalogue import Catalogue, patiently
from .endpoints import AWAY, Endpoint, unless_closed
from .manifest import Entry, Manifest

log = structlog.get_logger("tinymlaas.gateway")
Result = TypeVar("Result")

LOOK_SECONDS = 1.0
BRIDGE = "lwm2m-bridge"
"""Name that a bridge's certificate has, where its manifest entry says no other."""
RECONNECT_SECONDS = 1.0
CALL_SECONDS = 300.0
# Sleeping devices answer at their next registration update; a bridge that restarts is back within this time.
PATIENCE_SECONDS = 120.0
INFER_PATIENCE_SECONDS = 45.0


if TYPE_CHECKING:
    AsyncBridge: TypeAlias = bridge_pb2_grpc.BridgeAsyncStub
else:
    AsyncBridge = bridge_pb2_grpc.BridgeStub


def _async(channel: grpc.aio.Channel) -> AsyncBridge:
    return bridge_pb2_grpc.BridgeStub(channel)


class BridgeDirectory:
    """The bridges that are there, by manifest; which one owns a device is learned from what they tell."""

    def __init__(
        self,
        manifest: Manifest,
        catalogue: Catalogue,
        projects: list[str],
        token: str | None = None,
        patience: float = PATIENCE_SECONDS,
        *,
        tls: TlsFiles | None = None,
    ) -> None:
        self._tls = tls
        self._manifest = manifest
        self._catalogue = catalogue
        self._projects = projects
        self._token = token
        self._patience = patience
        self._endpoints: dict[Entry, Endpoint] = {}
        self._watchers: dict[tuple[Entry, str], asyncio.Task[None]] = {}
        self._owners: dict[str, Entry] = {}
        # Devices that the registry could not record the last time for a fault of its own.
        self._refused: set[str] = set()

    async def watch(self) -> None:
        """Keep one watch per bridge and project, until cancelled; what goes wrong in one look is logged."""
        try:
            while True:
                try:
                    self._look()
                except Exception:
                    log.exception("bridges could not be looked at")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._watchers.values():
                task.cancel()
            await asyncio.gather(*self._watchers.values(), return_exceptions=True)
            for endpoint in self._endpoints.values():
                await endpoint.close()

    def _look(self) -> None:
        """Begin a watch for what the manifest lists anew and again where one broke; end those of what it lists no more."""
        entries = self._manifest.entries()
        for entry in entries:
            if entry not in self._endpoints:
                self._endpoints[entry] = Endpoint(
                    f"bridge {entry.label}",
                    entry.location,
                    entry.token or self._token,
                    tls=self._tls,
                    peer=entry.peer or BRIDGE,
                )
            for project in self._projects:
                key = (entry, project)
                if key not in self._watchers or self._watchers[key].done():
                    self._watchers[key] = asyncio.create_task(self._watch_one(entry, project))
        for key in [key for key in self._watchers if key[0] not in entries]:
            self._watchers.pop(key).cancel()

    async def _watch_one(self, entry: Entry, project: str) -> None:
        """Follow one bridge's devices; begins again whenever the stream ends."""
        request = bridge_pb2.WatchDevicesRequest(parent=f"projects/{project}")
        while True:
            try:
                stub = _async(self._endpoints[entry].channel())
                with unless_closed(f"bridge {entry.label}"):
                    async for event in stub.WatchDevices(request):
                        await self._take(entry, project, event)
            except (grpc.RpcError, ServiceError) as error:
                log.debug("bridge away", bridge=entry.label, error=str(error)[:200])
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _take(self, entry: Entry, project: str, event: bridge_pb2.WatchDevicesResponse) -> None:
        """Write what a bridge told of a device into the catalogue; which module is active is kept by digest."""
        if event.kind == bridge_pb2.WatchDevicesResponse.KIND_IN_SYNC or not event.HasField("device"):
            return
        device = event.device
        if not device.name.startswith(f"projects/{project}/devices/"):
            log.warning("a bridge told of a device of another project", bridge=entry.label, device=device.name[:200])
            return
        self._owners[device.name] = entry
        if event.kind == bridge_pb2.WatchDevicesResponse.KIND_LOST:
            device.state = devices_pb2.Device.STATE_LOST
        try:
            await self._catalogue.tell_device(device)
            self._refused.discard(device.name)
        except ServiceError as error:
            fault = isinstance(error, Internal) and device.name not in self._refused
            if fault:
                self._refused.add(device.name)
            if fault or isinstance(error, AWAY):
                raise  # the watch begins again, with all devices; one that cannot be recorded must not keep back the others
            log.warning("a device was not recorded", device=device.name, error=str(error)[:500])

    def any_channel(self) -> grpc.aio.Channel:
        """Channel to one of the bridges, for what all of them know; BRIDGE_UNAVAILABLE where there is none."""
        for endpoint in self._endpoints.values():
            return endpoint.channel()
        raise Unavailable("no bridge is there", "BRIDGE_UNAVAILABLE", help="Start a bridge, then call again.")

    def _stub(self, device: str) -> AsyncBridge:
        entry = self._owners.get(device)
        if entry is None:
            entries = list(self._endpoints)
            if len(entries) != 1:  # with one bridge only, it is that one, even before it told of the device
                raise Unavailable(
                    f"no bridge has told of {device}",
                    "BRIDGE_UNKNOWN",
                    {"device": device},
                    "Start the bridge that owns the device.",
                )
            entry = entries[0]
        return _async(self._endpoints[entry].channel())

    async def _call(self, device: str, call: Callable[[AsyncBridge], Awaitable[Result]]) -> Result:
        """A repeatable call for a device that a bridge has told of, repeated for a while while it or the bridge is away."""

        async def attempt() -> Result:
            try:
                return await call(self._stub(device))
            except grpc.RpcError as error:
                raise self._told(device, error) from error

        return await patiently(attempt, self._patience)

    def _told(self, device: str, error: grpc.RpcError) -> ServiceError:
        """What a bridge answered on a device; the one that it named as the device's own is noted (DO-BRIDGE-012).

        A device that is not registered is away: its bridge has died and the next one has not taken it over yet, or its
        lifetime ran out and it registers again.
        """
        told = from_rpc_error(error)
        if told.reason == "DEVICE_UNKNOWN":
            return Unavailable(told.message, told.reason, told.metadata, told.help)
        if told.reason == "DEVICE_ELSEWHERE":
            for entry in self._endpoints:
                if entry.location.resolve() == told.metadata.get("bridge"):
                    self._owners[device] = entry
        return told

    async def install(self, request: bridge_pb2.InstallRequest) -> AsyncIterator[bridge_pb2.InstallResponse]:
        """Follow an install to its terminal step; asked again, with the same id, whenever the bridge went away.

        One that sleeping devices keep waiting says nothing for hours: only the time counts in which the bridge or the device
        is away.
        """
        loop = asyncio.get_running_loop()
        away: float | None = None
        while True:
            began = loop.time()
            try:
                with unless_closed("the bridge"):
                    async for event in self._stub(request.device).Install(request):
                        away = None
                        yield event
                return
            except (grpc.RpcError, ServiceError) as error:
                told = self._told(request.device, error) if isinstance(error, grpc.RpcError) else error
                now = loop.time()
                if away is None or now - began > self._patience:  # a call that lasted so long was a connection
                    away = now
                # CANCELLED is how a stream of a bridge that dies can end; an install that was cancelled ends with an event.
                if not isinstance(told, Unavailable | Cancelled) or now - away > self._patience:
                    raise told from error
            await asyncio.sleep(RECONNECT_SECONDS)

    async def cancel_install(self, device: str, install_id: str) -> None:
        """Stop an install at the next safe point."""
        request = bridge_pb2.CancelInstallRequest(install_id=install_id)
        await self._call(device, lambda stub: stub.CancelInstall(request, timeout=CALL_SECONDS))

    async def activate(self, device: str, slot: int) -> devices_pb2.Device:
        """Make the module of a slot the active one."""
        request = bridge_pb2.ActivateRequest(device=device, slot=slot)
        return await self._call(device, lambda stub: stub.Activate(request, timeout=CALL_SECONDS))

    async def deactivate(self, device: str, slot: int) -> devices_pb2.Device:
        """Stop the module of a slot."""
        request = bridge_pb2.DeactivateRequest(device=device, slot=slot)
        return await self._call(device, lambda stub: stub.Deactivate(request, timeout=CALL_SECONDS))

    async def rollback(self, device: str, leave: str) -> devices_pb2.Device:
        """Go back to the module that was active before, if the one with the digest `leave` is active.

        A bridge from before that condition does not look: after a call that broke off, the caller asks which module is active
        before it asks again.
        """
        request = bridge_pb2.RollbackRequest(device=device, active_module_sha256=leave)
        try:
            with unless_closed("the bridge"):
                answer: devices_pb2.Device = await self._stub(device).Rollback(request, timeout=CALL_SECONDS)
            return answer
        except grpc.RpcError as error:
            raise self._told(device, error) from error

    async def read_capabilities(self, device: str) -> devices_pb2.Device:
        """Read a device afresh."""
        request = bridge_pb2.ReadCapabilitiesRequest(device=device)
        return await self._call(device, lambda stub: stub.ReadCapabilities(request, timeout=CALL_SECONDS))

    async def infer(self, device: str, inputs: tensor_pb2.TensorValues) -> bridge_pb2.InferResponse:
        """Run one inference with the active module; a bridge or device that is away is waited for, a little.

        A device that its bridge has taken over from another one answers it from the next update of its registration on.
        """
        request = bridge_pb2.InferRequest(device=device, inputs=inputs)

        async def attempt() -> bridge_pb2.InferResponse:
            try:
                answer: bridge_pb2.InferResponse = await self._stub(device).Infer(request, timeout=CALL_SECONDS)
                return answer
            except grpc.RpcError as error:
                told = self._told(device, error)
                raise (from_rpc_error(error) if told.reason == "DEVICE_UNKNOWN" else told) from error

        return await patiently(attempt, min(self._patience, INFER_PATIENCE_SECONDS))

    async def observe(self, device: str) -> AsyncIterator[bridge_pb2.ObserveResponse]:
        """What a device counts, now and at each change; ServiceErrors when the bridge or the device went away."""
        try:
            with unless_closed("the bridge"):
                async for seen in self._stub(device).Observe(bridge_pb2.ObserveRequest(device=device)):
                    yield seen
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
