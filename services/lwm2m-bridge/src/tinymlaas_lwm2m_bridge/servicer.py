"""gRPC servicer of tinymlaas.bridge.v1.Bridge: maps messages, nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf import empty_pb2, timestamp_pb2
from google.rpc import status_pb2

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_servicekit import adapt, parse_name
from tinymlaas_servicekit.resource_names import DEVICE, PROJECT

from .bridge import Bridge
from .core.errors import BridgeError, Reason
from .core.install_record import Failure, InstallEvent, InstallRequest, Step, Transfer
from .core.registration import DeviceChange, Registration
from .core.telemetry import Observation

_Event = bridge_pb2.WatchDevicesResponse
_KINDS = {
    DeviceChange.REGISTERED: _Event.KIND_REGISTERED,
    DeviceChange.UPDATED: _Event.KIND_UPDATED,
    DeviceChange.LOST: _Event.KIND_LOST,
}
_STEPS = {
    Step.ACCEPTED: bridge_pb2.InstallResponse.STEP_UNSPECIFIED,
    Step.DOWNLOADING: bridge_pb2.InstallResponse.STEP_DOWNLOADING,
    Step.DOWNLOADED: bridge_pb2.InstallResponse.STEP_DOWNLOADED,
    Step.DELIVERED: bridge_pb2.InstallResponse.STEP_DELIVERED,
    Step.INSTALLED: bridge_pb2.InstallResponse.STEP_INSTALLED,
    Step.SELF_TESTING: bridge_pb2.InstallResponse.STEP_SELF_TESTING,
    Step.READY: bridge_pb2.InstallResponse.STEP_READY,
    Step.FAILED: bridge_pb2.InstallResponse.STEP_FAILED,
    Step.CANCELLED: bridge_pb2.InstallResponse.STEP_CANCELLED,
}
_TRANSFERS = {
    bridge_pb2.InstallRequest.TRANSFER_UNSPECIFIED: Transfer.AUTO,
    bridge_pb2.InstallRequest.TRANSFER_PULL: Transfer.PULL,
    bridge_pb2.InstallRequest.TRANSFER_PUSH: Transfer.PUSH,
}


class BridgeServicer(bridge_pb2_grpc.BridgeServicer):
    """Serves the devices of one project; `address` gives what this bridge instance is called by."""

    def __init__(self, bridge: Bridge, project: str, address: Callable[[], str]) -> None:
        self._bridge = bridge
        self._project = project
        self._address = address

    async def WatchDevices(
        self, request: bridge_pb2.WatchDevicesRequest, context: Any
    ) -> AsyncIterator[bridge_pb2.WatchDevicesResponse]:
        """Every device of the project, then KIND_IN_SYNC, then each change."""
        mine = parse_name(PROJECT, request.parent)["project"] == self._project
        async for event in self._bridge.watch_devices():
            if event.change is None or event.registration is None:
                yield _Event(kind=_Event.KIND_IN_SYNC)
            elif mine:
                lost = event.change is DeviceChange.LOST
                device = devices_pb2.Device()
                if event.record is not None:
                    device.CopyFrom(event.record)
                device.MergeFrom(self._short(event.registration, lost))
                yield _Event(kind=_KINDS[event.change], device=device)

    async def ReadCapabilities(self, request: bridge_pb2.ReadCapabilitiesRequest, context: Any) -> devices_pb2.Device:
        """The device's record, afresh."""
        return await self._device(await self._endpoint(request.device))

    async def Install(
        self, request: bridge_pb2.InstallRequest, context: Any
    ) -> AsyncIterator[bridge_pb2.InstallResponse]:
        """The install's timeline until its end."""
        if request.transfer not in _TRANSFERS:
            raise BridgeError(Reason.ARGUMENT_INVALID, "unknown transfer", field="transfer")
        wanted = InstallRequest(
            install_id=request.install_id,
            endpoint=await self._endpoint(request.device),
            digest=request.module_sha256,
            slot=request.slot if request.HasField("slot") else None,
            transfer=_TRANSFERS[request.transfer],
        )
        async for event in self._bridge.install(wanted):
            yield _progress(event)

    async def CancelInstall(self, request: bridge_pb2.CancelInstallRequest, context: Any) -> empty_pb2.Empty:
        """Stop an install at the next safe point."""
        await self._bridge.cancel_install(request.install_id)
        return empty_pb2.Empty()

    async def Activate(self, request: bridge_pb2.ActivateRequest, context: Any) -> devices_pb2.Device:
        """Make a slot's module the active one."""
        endpoint = await self._endpoint(request.device)
        await self._bridge.activate(endpoint, request.slot)
        return await self._device(endpoint)

    async def Deactivate(self, request: bridge_pb2.DeactivateRequest, context: Any) -> devices_pb2.Device:
        """Take a slot's module out of use."""
        endpoint = await self._endpoint(request.device)
        await self._bridge.deactivate(endpoint, request.slot)
        return await self._device(endpoint)

    async def Rollback(self, request: bridge_pb2.RollbackRequest, context: Any) -> devices_pb2.Device:
        """Back to the module before."""
        endpoint = await self._endpoint(request.device)
        await self._bridge.rollback(endpoint, request.active_module_sha256)
        return await self._device(endpoint)

    async def Uninstall(self, request: bridge_pb2.UninstallRequest, context: Any) -> devices_pb2.Device:
        """Empty a slot."""
        endpoint = await self._endpoint(request.device)
        await self._bridge.uninstall(endpoint, request.slot)
        return await self._device(endpoint)

    async def Observe(
        self, request: bridge_pb2.ObserveRequest, context: Any
    ) -> AsyncIterator[bridge_pb2.ObserveResponse]:
        """Counters now and at each change."""
        async with aclosing(self._bridge.observe(await self._endpoint(request.device))) as observations:
            async for seen in observations:
                yield _counters(seen)

    async def Infer(self, request: bridge_pb2.InferRequest, context: Any) -> bridge_pb2.InferResponse:
        """One inference with the active module."""
        result = await self._bridge.infer(await self._endpoint(request.device), tuple(request.inputs.tensors))
        return bridge_pb2.InferResponse(
            outputs=tensor_pb2.TensorValues(tensors=result.outputs),
            latency=result.latency,
            latency_unit=result.latency_unit,
        )

    async def _endpoint(self, name: str) -> str:
        """Endpoint of a device of this bridge's project; DEVICE_UNKNOWN for another's, DEVICE_ELSEWHERE for a peer's."""
        ids = parse_name(DEVICE, name)
        if ids["project"] != self._project:
            raise BridgeError(Reason.DEVICE_UNKNOWN, "this bridge has no devices of that project", device=name)
        await self._bridge.fleet.check_here(ids["device"])
        return ids["device"]

    async def _device(self, endpoint: str) -> devices_pb2.Device:
        device = devices_pb2.Device()
        device.CopyFrom(await self._bridge.read_capabilities(endpoint))
        device.MergeFrom(self._short(self._bridge.registration(endpoint), False))
        return device

    def _short(self, registration: Registration, lost: bool) -> devices_pb2.Device:
        """What the registration alone says of a device."""
        return devices_pb2.Device(
            name=f"projects/{self._project}/devices/{registration.endpoint}",
            state=devices_pb2.Device.STATE_LOST if lost else devices_pb2.Device.STATE_REGISTERED,
            bridge=self._address(),
            last_seen_time=_timestamp(registration.updated_at),
        )


def _counters(seen: Observation) -> bridge_pb2.ObserveResponse:
    return bridge_pb2.ObserveResponse(
        invocations=seen.invocations,
        errors=seen.errors,
        last_latency=seen.last_latency,
        latency_unit=seen.latency_unit,
        self_test_passed=seen.self_test_passed,
        time=_timestamp(time.time()),
        confidence=seen.confidence,
        last_error=seen.last_error,
        module_sha256=seen.active.hex() if seen.active is not None else "",
    )


def _progress(event: InstallEvent) -> bridge_pb2.InstallResponse:
    message = bridge_pb2.InstallResponse(
        step=_STEPS[event.step],
        bytes_done=event.bytes_done,
        bytes_total=event.bytes_total,
        detail=event.detail,
        slot=event.slot or 0,
        time=_timestamp(event.time),
    )
    if event.failure is not None:
        message.error.CopyFrom(_status(event.failure))
    return message


def _status(failure: Failure) -> status_pb2.Status:
    """A failure in the wire form that all services' errors have."""
    error = adapt(failure.error())
    assert error is not None, "every BridgeError has a code and a reason"
    return error.to_status()


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    whole = int(seconds)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
