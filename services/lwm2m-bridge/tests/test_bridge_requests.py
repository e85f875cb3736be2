"""What callers ask of installs: the same id again, two at once, a cancel at each step, patience that ends."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, eventually, failure, image_of, run_install, until, within

from tinymlaas_device.board import SlotState
from tinymlaas_lwm2m_bridge import (
    BridgeError,
    InstallRequest,
    InstallSettings,
    Reason,
    Step,
)

IMAGE = image_of(60_000)
DIGEST = digest_of(IMAGE)
OTHER = image_of(50_000, seed=1)
REQUEST = InstallRequest("i-1", "node-1", DIGEST)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE, OTHER))


async def test_the_same_install_id_joins_the_running_install(rig: Rig) -> None:
    """DO-BRIDGE-003."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    first = bridge.install(REQUEST)
    await until(first, Step.DOWNLOADING)
    second = await run_install(bridge, REQUEST)
    await until(first, Step.READY)
    assert second[-1].step is Step.READY
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


async def test_installs_on_one_device_run_one_after_the_other(rig: Rig) -> None:
    """DO-BRIDGE-010."""
    bridge = await rig.bridge()
    board = FaultBoard()
    board.hold["verify"] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    await until(bridge.install(REQUEST), Step.DOWNLOADING)
    second = asyncio.create_task(run_install(bridge, InstallRequest("i-2", "node-1", digest_of(OTHER))))
    await eventually(lambda: bridge._store.get_install("i-2") is not None, "the second one is there")
    await eventually(lambda: "verify" in board.calls, "the first one is being verified")
    assert board.calls.count("begin") == 1
    board.hold.pop("verify").set()
    assert (await within(second))[-1].step is Step.READY
    assert board.calls.index("self_test") < len(board.calls) - 1 - board.calls[::-1].index("begin")
    await device.close()
    await bridge.close()


async def test_an_install_id_can_not_be_reused_for_another_request(rig: Rig) -> None:
    """DO-BRIDGE-004."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    with pytest.raises(BridgeError) as caught:
        await run_install(bridge, InstallRequest("i-1", "node-1", digest_of(OTHER)))
    assert (caught.value.code, caught.value.reason) == ("ALREADY_EXISTS", Reason.INSTALL_ID_REUSED)
    await device.close()
    await bridge.close()


async def test_a_second_id_for_the_same_image_transfers_nothing(rig: Rig) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    events = await run_install(bridge, InstallRequest("i-2", "node-1", DIGEST))
    assert events[-1].step is Step.READY
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("step", [Step.DOWNLOADING, Step.DOWNLOADED, Step.DELIVERED, Step.INSTALLED, Step.SELF_TESTING])
async def test_cancel_at_each_step_leaves_an_empty_slot(rig: Rig, step: Step) -> None:
    """DO-INST-013."""
    bridge = await rig.bridge()
    board = FaultBoard()
    call = {Step.DOWNLOADING: "write", Step.DOWNLOADED: "verify", Step.SELF_TESTING: "self_test"}.get(step)
    if call:
        board.hold[call] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    events = bridge.install(REQUEST)
    await until(events, step)
    await bridge.cancel_install("i-1")
    if call:
        board.hold.pop(call).set()
    last = await until(events, Step.CANCELLED)
    assert last.failure is not None
    assert last.failure.reason == Reason.INSTALL_CANCELLED
    assert board.slot(0).state is SlotState.EMPTY
    await bridge.cancel_install("i-1")
    await device.close()
    await bridge.close()


async def test_a_cancel_is_heard_while_the_device_is_away(rig: Rig) -> None:
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    await device.vanish()
    events = bridge.install(REQUEST)
    first = await within(anext(events))
    assert "waiting for the device" in first.detail
    await bridge.cancel_install("i-1")
    await until(events, Step.CANCELLED)
    await bridge.close()


async def test_a_device_that_stays_away_fails_after_the_limit(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Artifacts(IMAGE), install=InstallSettings(poll_s=0.02, offline_s=0.2))
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    await device.vanish()
    events = await run_install(bridge, REQUEST)
    assert failure(events) == (Step.FAILED, Reason.DEVICE_UNREACHABLE)
    await bridge.close()


async def test_a_download_that_stands_still_ends_stuck(tmp_path: Path) -> None:
    """DO-INST-016."""
    rig = Rig(tmp_path, Artifacts(IMAGE), install=InstallSettings(poll_s=0.02, stuck_s=0.2, attempts=2))
    bridge = await rig.bridge()
    board = FaultBoard()
    gate = board.hold["write"] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    events = await run_install(bridge, REQUEST)
    assert failure(events) == (Step.FAILED, Reason.INSTALL_STUCK)
    gate.set()
    await device.close()
    await bridge.close()
