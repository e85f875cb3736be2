"""Object 5: a device that takes modules as part of its firmware only; every state and every result, pulled and pushed."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiocoap
import pytest
from aiocoap import Code, Message, resource
from aiocoap.optiontypes import BlockOption
from lwm2m_rig import Artifacts, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_lwm2m import FirmwareRes, FirmwareResult, FirmwareState, Format, Values, encode, firmware
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Bridge, InstallRequest, Step, Transfer
from tinymlaas_lwm2m_bridge.core.targets import FIRMWARE_RESULTS

IMAGE = image_of(5_000)
REQUEST = InstallRequest("i-1", "node-5", digest_of(IMAGE))
REASONS = {
    FirmwareResult.NOT_ENOUGH_FLASH: "DEVICE_STORAGE_FULL",
    FirmwareResult.OUT_OF_RAM: "DEVICE_OUT_OF_MEMORY",
    FirmwareResult.CONNECTION_LOST: "CONNECTION_LOST",
    FirmwareResult.INTEGRITY_FAILURE: "INTEGRITY_FAILED",
    FirmwareResult.UNSUPPORTED_PACKAGE: "PACKAGE_UNSUPPORTED",
    FirmwareResult.UPDATE_FAILED: "INSTALL_FAILED",
    FirmwareResult.CANCELLED: "DEVICE_ERROR",
}


class FirmwareDevice(resource.Resource):  # type: ignore[misc]
    """States and results of object 5 as its standard draws them; `end` makes a download end, `update_ends` an update."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.result = FirmwareState.IDLE, FirmwareResult.INITIAL
        self.end: FirmwareResult | None = None
        self.update_ends: FirmwareResult | None = FirmwareResult.SUCCESS
        self.data = bytearray()
        self.running = b"factory"
        self.taken: list[str] = []
        self.busy = False
        self.stalls = False

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False

    async def register(self, bridge: Bridge) -> None:
        """Register, as after each boot."""
        self.bridge = bridge
        message = Message(code=Code.POST, uri=f"{bridge.endpoint.address}/rd?ep=node-5&lt=60&lwm2m=1.1&b=U")
        message.payload, message.opt.content_format = b"</3/0>,</5>;ver=1.1,</5/0>", Format.LINK
        assert (await within(self.context.request(message).response)).code is Code.CREATED

    async def render(self, request: Message) -> Message:
        if self.busy:
            return Message(code=Code.SERVICE_UNAVAILABLE)
        path = LwPath.of(request.opt.uri_path)
        if request.code is Code.GET:
            values: Values = {
                firmware(FirmwareRes.STATE): int(self.state),
                firmware(FirmwareRes.UPDATE_RESULT): int(self.result),
            }
            return Message(code=Code.CONTENT, payload=encode(Format.TLV, values, path), content_format=Format.TLV)
        if request.code is Code.PUT and path.resource_id == FirmwareRes.PACKAGE:
            return await self._pushed(request)
        if request.code is Code.PUT and path.resource_id == FirmwareRes.PACKAGE_URI:
            return await self._uri(request.payload.decode())
        if request.code is Code.POST and self.state is FirmwareState.DOWNLOADED:
            self._update()
            return Message(code=Code.CHANGED)
        return Message(code=Code.METHOD_NOT_ALLOWED)

    async def _pushed(self, request: Message) -> Message:
        block = request.opt.block1
        if block.block_number == 0:
            self.data.clear()
            self.state, self.result = FirmwareState.DOWNLOADING, FirmwareResult.INITIAL
        self.data += request.payload
        answer = Message(code=Code.CONTINUE if block.more else Code.CHANGED)
        answer.opt.block1 = block
        if self.stalls and block.block_number == 2:
            await self.bridge.cancel_install("i-1")
        if not block.more:
            self.taken.append("push")
            await self._downloaded()
        return answer

    async def _uri(self, uri: str) -> Message:
        self.data.clear()
        if not uri:
            self.state, self.result = FirmwareState.IDLE, FirmwareResult.INITIAL
            self.taken.append("reset")
            return Message(code=Code.CHANGED)
        if self.end in (FirmwareResult.INVALID_URI, FirmwareResult.UNSUPPORTED_PROTOCOL):
            self.result = self.end
            return Message(code=Code.CHANGED)
        self.state, self.result = FirmwareState.DOWNLOADING, FirmwareResult.INITIAL
        more = not self.stalls
        while more:
            message = Message(code=Code.GET, uri=uri)
            message.opt.block2 = BlockOption.BlockwiseTuple(len(self.data) // 1024, False, 6)
            answer = await self.context.request(message, handle_blockwise=False).response
            assert answer.code is Code.CONTENT
            self.data += answer.payload
            more = answer.opt.block2.more
        if self.stalls:
            return Message(code=Code.CHANGED)
        self.taken.append("pull")
        await self._downloaded()
        return Message(code=Code.CHANGED)

    async def _downloaded(self) -> None:
        if self.end is not None:
            self.state, self.result = FirmwareState.IDLE, self.end
            if self.end is FirmwareResult.CONNECTION_LOST:
                self.end = None
            return
        self.state, self.result = FirmwareState.DOWNLOADED, FirmwareResult.INITIAL

    def _update(self) -> None:
        self.taken.append("update")
        self.state = FirmwareState.UPDATING
        if self.update_ends is not None:
            self.finish(self.update_ends)

    def finish(self, result: FirmwareResult) -> None:
        """End the update: the new firmware is confirmed, or the former one runs again."""
        if result is FirmwareResult.SUCCESS:
            self.running = bytes(self.data)
        deferred = result is FirmwareResult.DEFERRED
        self.state, self.result = FirmwareState.DOWNLOADED if deferred else FirmwareState.IDLE, result


@asynccontextmanager
async def device_of(bridge: Bridge) -> AsyncIterator[FirmwareDevice]:
    """A registered device."""
    device = FirmwareDevice()
    context = await aiocoap.Context.create_server_context(device, bind=("127.0.0.1", 0), transports=["udp6"])
    device.context = context
    try:
        await device.register(bridge)
        yield device
    finally:
        await context.shutdown()


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    started = await Rig(tmp_path, Artifacts(IMAGE)).bridge()
    yield started
    await started.close()


def outcome(events: list[object]) -> tuple[Step, str]:
    last = events[-1]
    return last.step, last.failure.reason if last.failure else ""  # type: ignore[attr-defined]


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_firmware_is_downloaded_updated_and_confirmed(bridge: Bridge, transfer: Transfer) -> None:
    """DO-FW-001, DO-FW-002: idle, downloading, downloaded, updating, idle with result 1."""
    async with device_of(bridge) as device:
        events = await run_install(bridge, InstallRequest("i-1", "node-5", digest_of(IMAGE), transfer=transfer))
        assert outcome(events) == (Step.READY, "")  # type: ignore[arg-type]
        assert device.taken == [transfer.value.lower(), "update"]
        assert device.running == IMAGE
        await within(bridge.activate("node-5", 0))
        again = await run_install(bridge, InstallRequest("i-2", "node-5", digest_of(IMAGE), transfer=transfer))
        assert outcome(again) == (Step.READY, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("result", [r for r in REASONS if r is not FirmwareResult.CONNECTION_LOST])
async def test_each_failed_result_of_object_5_ends_the_install_with_its_reason(
    bridge: Bridge, result: FirmwareResult
) -> None:
    """DO-FW-003."""
    async with device_of(bridge) as device:
        if result is FirmwareResult.UPDATE_FAILED:
            device.update_ends = result
        else:
            device.end = result
        assert outcome(await run_install(bridge, REQUEST)) == (Step.FAILED, REASONS[result])  # type: ignore[arg-type]
        assert device.running == b"factory"


@pytest.mark.parametrize("result", [FirmwareResult.INVALID_URI, FirmwareResult.UNSUPPORTED_PROTOCOL])
async def test_a_device_that_can_not_pull_is_pushed_to(bridge: Bridge, result: FirmwareResult) -> None:
    """DO-FW-003: results 7 and 9."""
    async with device_of(bridge) as device:
        device.end = result
        install = bridge.install(REQUEST)
        steps = []
        async for event in install:
            steps.append(event)
            if event.detail == "push":
                device.end = None
        assert outcome(steps) == (Step.READY, "")  # type: ignore[arg-type]
        assert device.taken == ["push", "update"]


async def test_a_lost_connection_is_tried_again(bridge: Bridge) -> None:
    """DO-FW-003: result 4."""
    async with device_of(bridge) as device:
        device.end = FirmwareResult.CONNECTION_LOST
        assert outcome(await run_install(bridge, REQUEST)) == (Step.READY, "")  # type: ignore[arg-type]
        assert device.taken == ["pull", "pull", "update"]


async def test_an_update_that_reboots_the_device_is_waited_for(bridge: Bridge) -> None:
    """DO-FW-002: the device is away while it boots, registers anew, and shows the result then."""
    async with device_of(bridge) as device:
        device.update_ends = None
        install = bridge.install(REQUEST)
        async for event in install:
            if event.step is Step.DELIVERED:
                break
        await eventually(lambda: device.state is FirmwareState.UPDATING, "it updates")
        device.busy = True
        await eventually(
            lambda: any("waiting" in event.detail for event in bridge._store.events("i-1")), "the install waits"
        )
        device.finish(FirmwareResult.SUCCESS)
        device.busy = False
        await device.register(bridge)
        assert outcome(await run_install(bridge, REQUEST)) == (Step.READY, "")  # type: ignore[arg-type]
        assert device.taken == ["pull", "update"]


async def test_a_deferred_update_is_waited_for(bridge: Bridge) -> None:
    """DO-FW-003: result 11."""
    async with device_of(bridge) as device:
        device.update_ends = FirmwareResult.DEFERRED
        install = bridge.install(REQUEST)
        async for event in install:
            if event.step is Step.DELIVERED:
                break
        await eventually(lambda: device.result is FirmwareResult.DEFERRED, "it is deferred")
        device.finish(FirmwareResult.SUCCESS)
        assert outcome(await run_install(bridge, REQUEST)) == (Step.READY, "")  # type: ignore[arg-type]
        assert device.taken == ["pull", "update"]


async def test_a_cancelled_install_brings_the_device_back_to_idle(bridge: Bridge) -> None:
    """DO-FW-004: but not in the middle of an update."""
    async with device_of(bridge) as device:
        device.update_ends = None
        install = bridge.install(REQUEST)
        async for event in install:
            if event.step is Step.DELIVERED:
                break
        await eventually(lambda: device.state is FirmwareState.UPDATING, "it updates")
        await bridge.cancel_install("i-1")
        device.finish(FirmwareResult.UPDATE_FAILED)
        device.state = FirmwareState.DOWNLOADED
        assert outcome(await run_install(bridge, REQUEST)) == (Step.CANCELLED, "INSTALL_CANCELLED")  # type: ignore[arg-type]
        assert device.taken[-1] == "reset"
        assert (device.state, device.result) == (FirmwareState.IDLE, FirmwareResult.INITIAL)


CANCELLED = (Step.CANCELLED, "INSTALL_CANCELLED")


async def begun(bridge: Bridge, device: FirmwareDevice, state: FirmwareState, transfer: Transfer) -> None:
    """An install that has brought the device into a state."""
    async for _ in bridge.install(InstallRequest("i-1", "node-5", digest_of(IMAGE), transfer=transfer)):
        break
    await eventually(lambda: device.state is state, f"{state.name} is reached")


async def goes_on(bridge: Bridge, device: FirmwareDevice, result: FirmwareResult = FirmwareResult.INITIAL) -> None:
    """The device is idle, and takes the next firmware."""
    assert (device.state, device.result) == (FirmwareState.IDLE, result)
    device.stalls, device.update_ends = False, FirmwareResult.SUCCESS
    events = await run_install(bridge, InstallRequest("i-2", "node-5", digest_of(IMAGE)))
    assert outcome(events) == (Step.READY, "")  # type: ignore[arg-type]
    assert device.running == IMAGE


async def ended(bridge: Bridge, transfer: Transfer = Transfer.AUTO) -> tuple[Step, str]:
    """The end of the install, which its record says too."""
    events = await run_install(bridge, InstallRequest("i-1", "node-5", digest_of(IMAGE), transfer=transfer))
    record = bridge._store.get_install("i-1")
    assert record is not None
    assert record.step is events[-1].step
    return outcome(events)  # type: ignore[arg-type]


async def test_cancelled_while_idle_the_device_is_left_alone(bridge: Bridge) -> None:
    """DO-FW-004: state 0; nothing was written to it yet."""
    async with device_of(bridge) as device:
        device.busy = True
        await begun(bridge, device, FirmwareState.IDLE, Transfer.AUTO)
        await bridge.cancel_install("i-1")
        assert await ended(bridge) == CANCELLED
        assert device.taken == []
        device.busy = False
        await goes_on(bridge, device)


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_cancelled_while_downloading_the_device_is_brought_back_to_idle(
    bridge: Bridge, transfer: Transfer
) -> None:
    """DO-FW-004: state 1. A push is cancelled between two blocks."""
    async with device_of(bridge) as device:
        device.stalls = True
        if transfer is Transfer.PULL:
            await begun(bridge, device, FirmwareState.DOWNLOADING, transfer)
            await bridge.cancel_install("i-1")
        assert await ended(bridge, transfer) == CANCELLED
        assert device.taken == ["reset"]
        assert device.running == b"factory"
        await goes_on(bridge, device)


async def test_cancelled_once_downloaded_the_image_is_dropped_and_not_applied(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-FW-004: state 2; the cancel comes as the device says that it has everything."""
    async with device_of(bridge) as device:
        downloaded = device._downloaded

        async def downloaded_and_cancelled() -> None:
            await downloaded()
            await bridge.cancel_install("i-1")

        monkeypatch.setattr(device, "_downloaded", downloaded_and_cancelled)
        assert await ended(bridge) == CANCELLED
        assert device.taken == ["pull", "reset"]
        assert device.running == b"factory"
        monkeypatch.undo()
        await goes_on(bridge, device)


async def test_cancelled_while_deferred_the_update_is_taken_back(bridge: Bridge) -> None:
    """DO-FW-004: state 2 with result 11; the device has not begun to update."""
    async with device_of(bridge) as device:
        device.update_ends = FirmwareResult.DEFERRED
        await begun(bridge, device, FirmwareState.DOWNLOADED, Transfer.AUTO)
        await eventually(lambda: device.result is FirmwareResult.DEFERRED, "it is deferred")
        await bridge.cancel_install("i-1")
        assert await ended(bridge) == CANCELLED
        assert device.taken == ["pull", "update", "reset"]
        await goes_on(bridge, device)


@pytest.mark.parametrize(
    ("result", "end"),
    [(FirmwareResult.SUCCESS, (Step.READY, "")), (FirmwareResult.UPDATE_FAILED, CANCELLED)],
)
async def test_cancelled_while_updating_the_end_is_what_the_update_comes_to(
    bridge: Bridge, result: FirmwareResult, end: tuple[Step, str]
) -> None:
    """DO-FW-004: state 3; nothing is written to a device that updates, and new firmware that runs is not called cancelled."""
    async with device_of(bridge) as device:
        device.update_ends = None
        await begun(bridge, device, FirmwareState.UPDATING, Transfer.AUTO)
        await eventually(lambda: _install_sent(bridge), "the bridge noted the update")
        await bridge.cancel_install("i-1")
        assert device.taken == ["pull", "update"]
        device.finish(result)
        assert await ended(bridge) == end
        assert device.taken == ["pull", "update"]
        assert device.running == (IMAGE if result is FirmwareResult.SUCCESS else b"factory")
        if result is FirmwareResult.UPDATE_FAILED:
            await goes_on(bridge, device, result)


def _install_sent(bridge: Bridge) -> bool:
    record = bridge._store.get_install("i-1")
    return record is not None and record.install_sent


def test_every_result_of_object_5_has_a_meaning() -> None:
    """DO-FW-003."""
    assert set(FIRMWARE_RESULTS) == set(FirmwareResult)
    assert hashlib.sha256(IMAGE).hexdigest() == REQUEST.digest
