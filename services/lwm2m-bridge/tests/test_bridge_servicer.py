"""The gRPC contract of the bridge over loopback, with real devices behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, image_of, within

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_lwm2m import MlRes, ml
from tinymlaas_lwm2m_bridge.servicer import BridgeServicer
from tinymlaas_servicekit import GrpcServer, ServiceError, ServiceSettings, connect, from_rpc_error

IMAGE = image_of(20_000)
DIGEST = digest_of(IMAGE)
NODE = "projects/p/devices/node-1"
Step = bridge_pb2.InstallResponse


@asynccontextmanager
async def served(rig: Rig) -> AsyncIterator[bridge_pb2_grpc.BridgeStub]:
    bridge = await rig.bridge()

    def register(target: grpc.aio.Server) -> list[str]:
        bridge_pb2_grpc.add_BridgeServicer_to_server(BridgeServicer(bridge, "p", lambda: server.address), target)
        return ["tinymlaas.bridge.v1.Bridge"]

    server = GrpcServer(ServiceSettings(listen="127.0.0.1:0", grace_seconds=0), register)
    async with server:
        channel = connect(server.address)
        yield bridge_pb2_grpc.BridgeStub(channel)
        await channel.close()
    await bridge.close()


async def refused(call: object) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE))


async def test_a_watcher_hears_known_devices_then_in_sync_then_changes(rig: Rig) -> None:
    """DO-BRIDGE-001."""
    async with served(rig) as stub:
        first = await rig.device(endpoint="node-1")
        await within(first.registered.wait())
        watch = stub.WatchDevices(bridge_pb2.WatchDevicesRequest(parent="projects/p"))
        events = aiter(watch)
        known = await within(anext(events))
        assert (known.kind, known.device.name) == (bridge_pb2.WatchDevicesResponse.KIND_REGISTERED, NODE)
        assert known.device.capabilities.target.isa == "armv7e-m"
        assert (await within(anext(events))).kind == bridge_pb2.WatchDevicesResponse.KIND_IN_SYNC
        second = await rig.device(endpoint="node-2")
        came = await within(anext(events))
        assert (came.kind, came.device.name) == (
            bridge_pb2.WatchDevicesResponse.KIND_REGISTERED,
            "projects/p/devices/node-2",
        )
        await within(second.registered.wait())  # only then it knows what to deregister
        await second.close()
        gone = await within(anext(events))
        while gone.kind == bridge_pb2.WatchDevicesResponse.KIND_UPDATED:  # a slow machine gives it time to update
            gone = await within(anext(events))
        assert (gone.kind, gone.device.state) == (
            bridge_pb2.WatchDevicesResponse.KIND_LOST,
            devices_pb2.Device.STATE_LOST,
        )
        watch.cancel()
        await first.close()


async def test_capabilities_come_from_the_device_with_their_sources(rig: Rig) -> None:
    async with served(rig) as stub:
        device = await rig.device()
        await within(device.registered.wait())
        record = await within(stub.ReadCapabilities(bridge_pb2.ReadCapabilitiesRequest(device=NODE)))
        target = record.capabilities.target
        assert (target.cpu, target.isa, list(target.features)) == ("cortex-m4", "armv7e-m", ["thumb2", "dsp", "fpu-sp"])
        assert {r.name: (r.total_bytes, r.free_bytes) for r in target.memory_regions} == {
            "ram": (262_144, 245_760),
            "flash": (1_048_576, 131_072),  # a module lies in one slot
        }
        assert list(target.payload_kinds) == [target_pb2.PAYLOAD_KIND_NATIVE]
        assert list(target.runtimes[0].operators) == ["CONV_2D", "SOFTMAX"]
        assert [(p.object_id, p.kind) for p in record.capabilities.peripherals] == [
            (3313, "accelerometer"),
            (3324, "microphone"),
        ]
        assert [(s.index, s.size_bytes, s.state) for s in record.capabilities.slots] == [
            (0, 131_072, devices_pb2.Slot.STATE_EMPTY),
            (1, 131_072, devices_pb2.Slot.STATE_EMPTY),
        ]
        assert record.capabilities.key_ids == ["01" * 8]
        assert set(record.capabilities.sources.values()) == {devices_pb2.SOURCE_REPORTED}
        assert record.bridge.startswith("127.0.0.1:")
        await device.close()


async def test_the_life_of_a_module_over_grpc(rig: Rig) -> None:
    async with served(rig) as stub:
        board = FaultBoard()
        device = await rig.device(board)
        await within(device.registered.wait())
        request = bridge_pb2.InstallRequest(install_id="a", device=NODE, module_sha256=DIGEST)
        steps = [event async for event in stub.Install(request)]
        assert steps[-1].step == Step.STEP_READY
        assert steps[-1].bytes_done == steps[-1].bytes_total == len(IMAGE)
        again = [event async for event in stub.Install(request)]
        assert again == steps
        assert board.written == len(IMAGE)
        active = await within(stub.Activate(bridge_pb2.ActivateRequest(device=NODE, slot=0)))
        assert active.capabilities.slots[0].state == devices_pb2.Slot.STATE_ACTIVE
        assert active.capabilities.slots[0].module_sha256 == DIGEST
        error = await refused(stub.Rollback(bridge_pb2.RollbackRequest(device=NODE)))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NO_PREVIOUS_MODULE")
        stopped = await within(stub.Deactivate(bridge_pb2.DeactivateRequest(device=NODE, slot=0)))
        assert stopped.capabilities.slots[0].state == devices_pb2.Slot.STATE_INSTALLED
        emptied = await within(stub.Uninstall(bridge_pb2.UninstallRequest(device=NODE, slot=0)))
        assert emptied.capabilities.slots[0].state == devices_pb2.Slot.STATE_EMPTY
        await device.close()


async def test_a_watcher_hears_what_a_change_has_made_of_a_device(rig: Rig) -> None:
    """DO-BRIDGE-001: what it was told before, and may record only now, is not its last word."""
    async with served(rig) as stub:
        device = await rig.device()
        await within(device.registered.wait())
        watch = stub.WatchDevices(bridge_pb2.WatchDevicesRequest(parent="projects/p"))
        events = aiter(watch)
        told = await within(anext(events))
        assert told.device.capabilities.slots[0].state == devices_pb2.Slot.STATE_EMPTY
        request = bridge_pb2.InstallRequest(install_id="a", device=NODE, module_sha256=DIGEST)
        assert [event async for event in stub.Install(request)][-1].step == Step.STEP_READY
        await within(stub.Activate(bridge_pb2.ActivateRequest(device=NODE, slot=0)))
        while (
            not told.device.capabilities.slots
            or told.device.capabilities.slots[0].state != devices_pb2.Slot.STATE_ACTIVE
        ):
            told = await within(anext(events))
        watch.cancel()
        await device.close()


async def test_observation_tells_of_each_invocation(rig: Rig) -> None:
    """DO-OBS-001, 003, 004: with how sure the module was, and of which image the counters are."""
    async with served(rig) as stub:
        board = FaultBoard()
        device = await rig.device(board)
        await within(device.registered.wait())
        request = bridge_pb2.InstallRequest(install_id="a", device=NODE, module_sha256=DIGEST)
        assert [event async for event in stub.Install(request)][-1].step == Step.STEP_READY
        await within(stub.Activate(bridge_pb2.ActivateRequest(device=NODE, slot=0)))
        watch = stub.Observe(bridge_pb2.ObserveRequest(device=NODE))
        events = aiter(watch)
        before = await within(anext(events))
        assert (before.invocations, before.self_test_passed, list(before.confidence)) == (0, True, [])
        assert before.module_sha256 == DIGEST
        board.confidence = 0.93
        await device.execute(ml(MlRes.INVOKE), {})
        after = await within(anext(events))
        while not after.confidence:
            after = await within(anext(events))
        assert (after.invocations, after.latency_unit) == (1, "instructions")
        assert list(after.confidence) == [0] * 9 + [1]
        await within(stub.Deactivate(bridge_pb2.DeactivateRequest(device=NODE, slot=0)))
        while after.module_sha256:
            after = await within(anext(events))
        assert list(after.confidence) == [], "they were of a module that is no longer active"
        watch.cancel()
        await device.close()


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("projects/p/devices/nobody", "NOT_FOUND", "DEVICE_UNKNOWN"),
        ("projects/other/devices/node-1", "NOT_FOUND", "DEVICE_UNKNOWN"),
        ("devices/node-1", "INVALID_ARGUMENT", "NAME_INVALID"),
    ],
)
async def test_wrong_device_names_are_refused_with_a_reason(rig: Rig, name: str, code: str, reason: str) -> None:
    async with served(rig) as stub:
        error = await refused(stub.ReadCapabilities(bridge_pb2.ReadCapabilitiesRequest(device=name)))
        assert (error.code, error.reason) == (code, reason)
        assert error.help


async def test_a_failed_install_ends_with_a_status_that_has_code_reason_and_help(rig: Rig) -> None:
    """DO-BRIDGE-011."""
    async with served(rig) as stub:
        device = await rig.device()
        await within(device.registered.wait())
        request = bridge_pb2.InstallRequest(install_id="a", device=NODE, module_sha256="ab" * 32)
        events = [event async for event in stub.Install(request)]
        assert events[-1].step == Step.STEP_FAILED
        assert events[-1].error.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert b"ARTIFACT_NOT_FOUND" in events[-1].error.details[0].value
        await device.close()


async def test_a_client_that_leaves_does_not_stop_the_install(rig: Rig) -> None:
    """DO-BRIDGE-005."""
    async with served(rig) as stub:
        board = FaultBoard()
        device = await rig.device(board)
        await within(device.registered.wait())
        request = bridge_pb2.InstallRequest(install_id="a", device=NODE, module_sha256=DIGEST)
        call = stub.Install(request)
        await within(anext(aiter(call)))
        call.cancel()
        await asyncio.sleep(0)
        events = [event async for event in stub.Install(request)]
        assert events[-1].step == Step.STEP_READY
        assert board.written == len(IMAGE)
        await device.close()
