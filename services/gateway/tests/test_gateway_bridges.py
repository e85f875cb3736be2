"""Of several bridges the gateway calls the one that has the device: it is told by a watch, or by the bridge that has not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import gateway_fakes as fakes
import grpc
import pytest
from gateway_world import TOKEN, until

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_gateway.adapters.bridges import BridgeDirectory
from tinymlaas_gateway.adapters.endpoints import Location
from tinymlaas_gateway.adapters.manifest import Entry, Manifest
from tinymlaas_servicekit import NotFound, ServiceSettings, Unavailable

DEVICE = "projects/default/devices/node-1"
INSTALL = bridge_pb2.InstallRequest(install_id="i-1", device=DEVICE, module_sha256="ab" * 32)
INSTALLED = bridge_pb2.InstallResponse.STEP_READY


class OneBridge(bridge_pb2_grpc.BridgeServicer):
    """A bridge that has the device, or knows the address of the one that has."""

    def __init__(self, elsewhere: str = "") -> None:
        self.elsewhere = elsewhere
        self.asked = 0

    async def Activate(self, request: bridge_pb2.ActivateRequest, context: Any) -> devices_pb2.Device:
        self._here()
        return devices_pb2.Device(name=request.device)

    async def Install(self, request: bridge_pb2.InstallRequest, context: Any) -> Any:
        self._here()
        yield bridge_pb2.InstallResponse(step=bridge_pb2.InstallResponse.STEP_READY)

    async def Infer(self, request: bridge_pb2.InferRequest, context: Any) -> bridge_pb2.InferResponse:
        self._here()
        return bridge_pb2.InferResponse(latency=7)

    def _here(self) -> None:
        self.asked += 1
        if self.elsewhere:
            metadata = {"device": "node-1", "instance": "other", "bridge": self.elsewhere}
            raise Unavailable("registered at another instance", "DEVICE_ELSEWHERE", metadata)


class DyingBridge(OneBridge):
    """A bridge whose first stream ends as that of a killed one may."""

    async def Install(self, request: bridge_pb2.InstallRequest, context: Any) -> Any:
        self._here()
        if self.asked == 1:
            await context.abort(grpc.StatusCode.CANCELLED)
        yield bridge_pb2.InstallResponse(step=bridge_pb2.InstallResponse.STEP_READY)

    async def Activate(self, request: bridge_pb2.ActivateRequest, context: Any) -> devices_pb2.Device:
        self._here()
        if self.asked == 3:
            await context.abort(grpc.StatusCode.CANCELLED)
        return devices_pb2.Device(name=request.device)


async def test_a_call_that_is_cancelled_under_us_is_asked_for_again() -> None:
    """DO-BRIDGE-005: only an event says that an install was cancelled, never the end of a call."""
    settings = ServiceSettings(listen="127.0.0.1:0", token=TOKEN, grace_seconds=0.1)  # type: ignore[arg-type]
    bridge = DyingBridge()
    async with fakes.bridge_server(cast(Any, bridge), settings) as here:
        directory = BridgeDirectory(Manifest([Entry(Location(address=here.address))], None), cast(Any, None), [], TOKEN)
        watching = asyncio.create_task(directory.watch())
        try:
            await until(lambda: len(directory._endpoints) == 1, "the bridge is known")
            assert [event.step async for event in directory.install(INSTALL)] == [INSTALLED]
            assert bridge.asked == 2
            assert (await directory.activate(DEVICE, 0)).name == DEVICE
            assert bridge.asked == 4
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


class ForgetfulBridge(OneBridge):
    """A bridge that has not taken the device over yet when it is asked first; `never`: nor later."""

    def __init__(self, never: bool = False) -> None:
        super().__init__()
        self.never = never

    def _here(self) -> None:
        self.asked += 1
        if self.never or self.asked < 3:
            raise NotFound("'node-1' is not registered", "DEVICE_UNKNOWN", {"device": "node-1"}, "Wait.")


@pytest.mark.parametrize("never", [False, True])
async def test_a_device_between_two_bridges_is_waited_for(never: bool) -> None:
    """Its bridge has died, and the next one knows it in a moment; after a while it is an error all the same."""
    settings = ServiceSettings(listen="127.0.0.1:0", token=TOKEN, grace_seconds=0.1)  # type: ignore[arg-type]
    bridge = ForgetfulBridge(never)
    async with fakes.bridge_server(cast(Any, bridge), settings) as here:
        entry = Entry(Location(address=here.address))
        patience = 0.5 if never else 120.0
        directory = BridgeDirectory(Manifest([entry], None), cast(Any, None), [], TOKEN, patience)
        watching = asyncio.create_task(directory.watch())
        try:
            await until(lambda: len(directory._endpoints) == 1, "the bridge is known")
            if not never:
                assert (await directory.activate(DEVICE, 0)).name == DEVICE
                assert bridge.asked == 3
                bridge.asked = 0
                assert [event.step async for event in directory.install(INSTALL)] == [INSTALLED]
                assert bridge.asked == 3
                return
            with pytest.raises(Unavailable, match="not registered"):
                [event async for event in directory.install(INSTALL)]
            with pytest.raises(Unavailable) as refused:
                await directory.activate(DEVICE, 0)
            assert (refused.value.reason, refused.value.metadata, refused.value.help) == (
                "DEVICE_UNKNOWN",
                {"device": "node-1"},
                "Wait.",
            )
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


class NewBridge(OneBridge):
    """A bridge that has taken the device over, which answers it from its next update on."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def _here(self) -> None:
        self.asked += 1
        if self.reason == "DEVICE_UNKNOWN":
            raise NotFound("it is not registered", self.reason)
        if self.asked < 3:
            raise Unavailable("it answers this bridge from its next registration or update on", self.reason)


@pytest.mark.parametrize("reason", ["DEVICE_UNREACHABLE", "DEVICE_UNKNOWN"])
async def test_an_inference_waits_for_a_device_that_changes_bridges_and_not_for_one_that_nobody_knows(
    reason: str,
) -> None:
    settings = ServiceSettings(listen="127.0.0.1:0", token=TOKEN, grace_seconds=0.1)  # type: ignore[arg-type]
    bridge = NewBridge(reason)
    async with fakes.bridge_server(cast(Any, bridge), settings) as here:
        directory = BridgeDirectory(Manifest([Entry(Location(address=here.address))], None), cast(Any, None), [], TOKEN)
        watching = asyncio.create_task(directory.watch())
        try:
            await until(lambda: len(directory._endpoints) == 1, "the bridge is known")
            if reason == "DEVICE_UNREACHABLE":
                assert (await directory.infer(DEVICE, tensor_pb2.TensorValues())).latency == 7
                assert bridge.asked == 3
            else:
                with pytest.raises(NotFound):
                    await directory.infer(DEVICE, tensor_pb2.TensorValues())
                assert bridge.asked == 1
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_bridge_that_says_where_the_device_is_is_asked_once() -> None:
    """DO-BRIDGE-012."""
    settings = ServiceSettings(listen="127.0.0.1:0", token=TOKEN, grace_seconds=0.1)  # type: ignore[arg-type]
    right, wrong = OneBridge(), OneBridge()
    async with (
        fakes.bridge_server(cast(Any, right), settings) as here,
        fakes.bridge_server(cast(Any, wrong), settings) as there,
    ):
        wrong.elsewhere = here.address
        entries = [Entry(Location(address=there.address)), Entry(Location(address=here.address))]
        directory = BridgeDirectory(Manifest(entries, None), cast(Any, None), [], TOKEN)
        watching = asyncio.create_task(directory.watch())
        try:
            await until(lambda: len(directory._endpoints) == 2, "both bridges are known")
            directory._owners[DEVICE] = entries[0]
            assert (await directory.activate(DEVICE, 0)).name == DEVICE
            assert (wrong.asked, right.asked) == (1, 1)
            # The device moves on: an install finds it again in the same way.
            right.elsewhere, wrong.elsewhere = there.address, ""
            assert [event.step async for event in directory.install(INSTALL)] == [INSTALLED]
            assert (wrong.asked, right.asked) == (2, 2)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
