"""What breaks during an install: links, devices, power, bridges; the install goes on."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from aiocoap import Code
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Relay, Rig, digest_of, eventually, failure, image_of, run_install, until, within

from tinymlaas_device.board import BoardReason, SlotState
from tinymlaas_device.lwm2m import LwM2mDevice
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m import SoftwareRes, UpdateResult, software
from tinymlaas_lwm2m_bridge import (
    InstallRequest,
    Step,
    Transfer,
)
from tinymlaas_lwm2m_bridge.coap.server import Block

IMAGE = image_of(60_000)
DIGEST = digest_of(IMAGE)
OTHER = image_of(50_000, seed=1)
REQUEST = InstallRequest("i-1", "node-1", DIGEST)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE, OTHER))


async def test_a_link_lost_while_pulling_is_resumed_where_the_device_stands(rig: Rig) -> None:
    bridge = await rig.bridge()
    relay = Relay(("127.0.0.1", rig.port))
    async with relay.open():
        board = FaultBoard()
        device = await rig.device(board, server_port=relay.port)
        bridge.endpoint.packages.announce(f"coap://127.0.0.1:{relay.port}")
        await within(device.registered.wait())
        relay.cut_at_bytes = relay.bytes_to_device + 30_000
        events = bridge.install(REQUEST)
        await until(events, Step.DOWNLOADING)
        await eventually(lambda: not relay.up, "the link is cut")
        relay.up = True
        assert (await until(events, Step.READY)).bytes_done == len(IMAGE)
        assert board.written == len(IMAGE)
        # Blocks that were lost on the way are sent again; none that the device had stored is.
        assert bridge.endpoint.packages.bytes_served[DIGEST] <= len(IMAGE) + 6 * 1024
        await device.close()
    await bridge.close()


async def test_a_lost_link_that_stays_away_long_is_shown_as_result_52_and_tried_again(rig: Rig) -> None:
    bridge = await rig.bridge()
    relay = Relay(("127.0.0.1", rig.port))
    async with relay.open():
        board = FaultBoard()
        device = await rig.device(board, server_port=relay.port)
        bridge.endpoint.packages.announce(f"coap://127.0.0.1:{relay.port}")
        await within(device.registered.wait())
        relay.cut_at_bytes = relay.bytes_to_device + 30_000
        events = bridge.install(REQUEST)
        await until(events, Step.DOWNLOADING)

        def shows_connection_lost() -> bool:
            path = software(0, SoftwareRes.UPDATE_RESULT)
            return (device.read(path) or {}).get(path) == UpdateResult.CONNECTION_LOST

        await eventually(shows_connection_lost, "the device gives up")
        written = board.written
        assert 0 < written < len(IMAGE)
        relay.up = True
        await until(events, Step.READY)
        assert board.written == len(IMAGE)
        await device.close()
    await bridge.close()


async def test_a_device_that_vanishes_and_comes_back_goes_on_from_its_flash(rig: Rig) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    board.hold["write"] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    events = bridge.install(REQUEST)
    await until(events, Step.DOWNLOADING)
    await eventually(lambda: "write" in board.calls, "the download runs")
    board.hold.pop("write").set()
    await eventually(lambda: board.written > 5_000, "some bytes are in flash")
    await device.vanish()
    written = board.written
    assert written < len(IMAGE)
    device = await rig.device(board)
    assert (await until(events, Step.READY)).slot == 0
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("cut_after", [1, 30_000, 59_999])
async def test_power_cut_while_writing_costs_no_byte_twice(rig: Rig, cut_after: int) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    board.cut_after = cut_after
    device = await rig.device(board)
    await within(device.registered.wait())
    events = await run_install(bridge, REQUEST)
    assert events[-1].step is Step.READY
    assert board.calls.count("reboot") == 1
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("moment", ["begin", "verify", "self_test", "write"])
async def test_power_cut_at_each_board_call_ends_ready(rig: Rig, moment: str) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    board.fail[moment] = BoardReason.POWER_LOST
    device = await rig.device(board)
    await within(device.registered.wait())
    events = await run_install(bridge, REQUEST)
    assert events[-1].step is Step.READY, events[-1]
    assert "reboot" in board.calls
    assert board.slot(0).state is SlotState.TESTED
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_a_bridge_restarted_in_the_middle_goes_on_from_the_devices_state(rig: Rig, transfer: Transfer) -> None:
    """DO-BRIDGE-008."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    request = InstallRequest("i-1", "node-1", DIGEST, transfer=transfer)
    events = bridge.install(request)
    await until(events, Step.DOWNLOADING)
    await eventually(lambda: board.written > 5_000, "some bytes are in flash")
    await bridge.close()
    bridge = await rig.bridge()
    assert bridge.registration("node-1").endpoint == "node-1"
    again = await run_install(bridge, request)
    assert again[-1].step is Step.READY
    assert board.slot(0).state is SlotState.TESTED
    if transfer is Transfer.PULL:
        assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


class _HeldArtifacts(Artifacts):
    """A store that answers when the gate opens."""

    def __init__(self, *images: bytes) -> None:
        super().__init__(*images)
        self.gate = asyncio.Event()

    async def read(self, digest: str) -> bytes:
        await self.gate.wait()
        return await super().read(digest)


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.AUTO])
async def test_a_device_that_asks_a_bridge_which_has_not_read_the_image_again_asks_later(
    rig: Rig, transfer: Transfer
) -> None:
    """DO-INST-017."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    request = InstallRequest("i-1", "node-1", DIGEST, transfer=transfer)
    events = bridge.install(request)
    await until(events, Step.DOWNLOADING)
    await eventually(lambda: board.written > 5_000, "some bytes are in flash")
    board.hold["write"] = threading.Event()
    await bridge.close()
    rig.artifacts = _HeldArtifacts(IMAGE)
    bridge = await rig.bridge()
    written = board.written
    board.hold.pop("write").set()
    path = software(0, SoftwareRes.UPDATE_RESULT)
    await eventually(lambda: board.written > written or _shown(device, path) != UpdateResult.DOWNLOADING, "it went on")
    await eventually(lambda: _shown(device, path) == UpdateResult.CONNECTION_LOST, "the device gives up for now")
    rig.artifacts.gate.set()
    again = await run_install(bridge, request)
    assert again[-1].step is Step.READY
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


def _shown(device: LwM2mDevice, path: LwPath) -> object:
    return (device.read(path) or {}).get(path)


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.AUTO])
async def test_a_uri_that_has_brought_bytes_is_written_again_after_a_refusal(
    rig: Rig, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-INST-018."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    packages, refusals = bridge.endpoint.packages, [10, 20, 30]
    serve = packages.block

    def refuse_some(digest: str, host: str, etags: tuple[bytes, ...], asked: tuple[int, int] | None) -> Block:
        if refusals and asked is not None and asked[0] == refusals[0] * 1024:
            refusals.pop(0)
            return Block(Code.NOT_FOUND)
        return serve(digest, host, etags, asked)

    monkeypatch.setattr(packages, "block", refuse_some)
    events = await run_install(bridge, InstallRequest("i-1", "node-1", DIGEST, transfer=transfer))
    assert events[-1].step is Step.READY
    assert not refusals
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


async def test_a_uri_that_is_refused_for_good_ends_the_install(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """DO-INST-018: the attempts are bounded."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    packages = bridge.endpoint.packages
    serve = packages.block

    def refuse_the_rest(digest: str, host: str, etags: tuple[bytes, ...], asked: tuple[int, int] | None) -> Block:
        refused = asked is not None and asked[0] >= 10 * 1024
        return Block(Code.NOT_FOUND) if refused else serve(digest, host, etags, asked)

    monkeypatch.setattr(packages, "block", refuse_the_rest)
    assert failure(await run_install(bridge, REQUEST)) == (Step.FAILED, "URI_INVALID")
    assert board.written == 10 * 1024
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("step", [Step.DELIVERED, Step.INSTALLED, Step.SELF_TESTING])
async def test_a_bridge_restarted_after_the_transfer_transfers_nothing_again(rig: Rig, step: Step) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await until(bridge.install(REQUEST), step)
    await bridge.close()
    bridge = await rig.bridge()
    events = await run_install(bridge, REQUEST)
    assert events[-1].step is Step.READY
    assert board.written == len(IMAGE)
    assert board.calls.count("begin") == 1
    await device.close()
    await bridge.close()


async def test_an_open_install_goes_on_after_a_restart_though_nobody_asks(rig: Rig) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await until(bridge.install(REQUEST), Step.DOWNLOADING)
    await bridge.close()
    bridge = await rig.bridge()
    await eventually(lambda: board.slot(0).state is SlotState.TESTED, "the install ends by itself")
    await device.close()
    await bridge.close()
