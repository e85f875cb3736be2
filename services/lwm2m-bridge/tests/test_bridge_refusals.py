"""What a device, a board or the bridge refuses: each with its reason, and what is left behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from fault_board import SPEC, FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, failure, image_of, run_install, until, within

from tinymlaas_device.board import BoardReason, SlotState
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m import SoftwareRes, UpdateResult, software
from tinymlaas_lwm2m_bridge import (
    Bridge,
    BridgeError,
    InstallRequest,
    Reason,
    Step,
    Transfer,
)

IMAGE = image_of(60_000)
DIGEST = digest_of(IMAGE)
OTHER = image_of(50_000, seed=1)
REQUEST = InstallRequest("i-1", "node-1", DIGEST)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE, OTHER))


RESULTS = [
    ("begin", BoardReason.NO_SPACE, Reason.DEVICE_STORAGE_FULL, 50),
    ("begin", BoardReason.NOT_ENOUGH_RAM, Reason.DEVICE_OUT_OF_MEMORY, 51),
    ("verify", BoardReason.BAD_IMAGE, Reason.INTEGRITY_FAILED, 53),
    ("verify", BoardReason.BAD_SIGNATURE, Reason.INTEGRITY_FAILED, 53),
    ("verify", BoardReason.UNKNOWN_KEY, Reason.INTEGRITY_FAILED, 53),
    ("verify", BoardReason.DOWNGRADE, Reason.INTEGRITY_FAILED, 53),
    ("verify", BoardReason.UNSUPPORTED_ISA, Reason.PACKAGE_UNSUPPORTED, 54),
    ("write", BoardReason.FLASH_ERROR, Reason.DEVICE_ERROR, 57),
]


@pytest.mark.parametrize(("call", "board_reason", "reason", "result"), RESULTS)
@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_each_refusal_of_a_board_is_a_result_code_and_a_reason(
    rig: Rig, call: str, board_reason: BoardReason, reason: Reason, result: int, transfer: Transfer
) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    board.fail[call] = board_reason
    board.sticky = True
    device = await rig.device(board)
    await within(device.registered.wait())
    events = await run_install(bridge, InstallRequest("i-1", "node-1", DIGEST, transfer=transfer))
    assert failure(events) == (Step.FAILED, reason)
    assert events[-1].failure is not None
    assert events[-1].failure.metadata["update_result"] == str(result)
    assert events[-1].failure.metadata["device_reason"] == board_reason.value
    assert board.slot(0).state is SlotState.EMPTY
    await device.close()
    await bridge.close()


async def test_an_install_that_the_board_fails_is_result_58(rig: Rig) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    board.fail_install = True
    device = await rig.device(board)
    await within(device.registered.wait())
    events = await run_install(bridge, REQUEST)
    assert failure(events) == (Step.FAILED, Reason.INSTALL_FAILED)
    assert events[-1].failure is not None
    assert events[-1].failure.metadata["update_result"] == "58"
    await device.close()
    await bridge.close()


async def test_an_uninstall_that_the_board_fails_is_result_59(rig: Rig) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    board.fail["uninstall"] = BoardReason.FLASH_ERROR
    with pytest.raises(BridgeError) as caught:
        await within(bridge.uninstall("node-1", 0))
    assert caught.value.reason == Reason.UNINSTALL_FAILED
    path = software(0, SoftwareRes.UPDATE_RESULT)
    assert (device.read(path) or {})[path] == UpdateResult.UNINSTALL_FAILURE
    await within(bridge.uninstall("node-1", 0))
    assert board.slot(0).state is SlotState.EMPTY
    await device.close()
    await bridge.close()


async def test_a_device_that_can_not_use_the_uri_gets_a_push_instead(rig: Rig) -> None:
    bridge = await rig.bridge()
    bridge.endpoint.packages.announce("coaps://127.0.0.1:1")
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    refused = await run_install(bridge, InstallRequest("i-0", "node-1", DIGEST, transfer=Transfer.PULL))
    assert failure(refused) == (Step.FAILED, Reason.URI_INVALID)
    events = await run_install(bridge, REQUEST)
    assert events[-1].step is Step.READY
    assert {event.detail for event in events if event.step is Step.DOWNLOADING} == {"pull", "push"}
    await device.close()
    await bridge.close()


async def test_a_failed_self_test_leaves_the_active_module_and_an_empty_slot(rig: Rig) -> None:
    """DO-ACT-002."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    await within(bridge.activate("node-1", 0))
    board.self_test_passes = False
    events = await run_install(bridge, InstallRequest("i-2", "node-1", digest_of(OTHER)))
    assert failure(events) == (Step.FAILED, Reason.SELF_TEST_FAILED)
    assert "expected 9" in events[-1].detail
    assert board.active_slot() == 0
    assert board.slot(1).state is SlotState.EMPTY
    with pytest.raises(BridgeError) as caught:
        await within(bridge.activate("node-1", 1))
    assert caught.value.reason == Reason.SLOT_EMPTY
    await device.close()
    await bridge.close()


async def test_the_module_before_stays_until_the_third_one_needs_its_slot(rig: Rig) -> None:
    third = image_of(30_000, seed=2)
    rig.artifacts.images[digest_of(third)] = third
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    for number, (image, slot) in enumerate([(IMAGE, 0), (OTHER, 1), (third, 0)]):
        events = await run_install(bridge, InstallRequest(f"i-{number}", "node-1", digest_of(image)))
        assert (events[-1].step, events[-1].slot) == (Step.READY, slot)
        await within(bridge.activate("node-1", slot))
    await within(asyncio.gather(*(bridge.rollback("node-1", digest_of(third)) for _ in range(3))))
    assert board.active_slot() == 1, "DO-ACT-007: asked for three times at once, done once"
    await within(bridge.rollback("node-1", digest_of(third)))
    assert board.active_slot() == 1
    await device.close()
    await bridge.close()


async def test_a_module_bigger_than_every_slot_is_refused_with_numbers(rig: Rig) -> None:
    bridge = await rig.bridge()
    device = await rig.device(FaultBoard(slot_sizes=(4096, 8192)))
    await within(device.registered.wait())
    events = await run_install(bridge, REQUEST)
    assert failure(events) == (Step.FAILED, Reason.DOES_NOT_FIT)
    assert events[-1].failure is not None
    assert events[-1].failure.metadata == {"region": "slot", "need": "60000", "have": "8192"}
    await device.close()
    await bridge.close()


async def test_bytes_that_are_not_what_their_digest_says_never_leave_the_bridge(rig: Rig) -> None:
    rig.artifacts.images[DIGEST] = IMAGE[:-1] + b"\x00"
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    assert failure(await run_install(bridge, REQUEST)) == (Step.FAILED, Reason.DIGEST_MISMATCH)
    assert board.calls == []
    assert not bridge.endpoint.packages.bytes_served
    await device.close()
    await bridge.close()


async def test_an_image_that_is_no_module_never_leaves_the_bridge(rig: Rig) -> None:
    from tinymlaas_lwm2m_bridge import SignedImages

    rig.check = SignedImages("00" * 32)
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    assert failure(await run_install(bridge, REQUEST)) == (Step.FAILED, "BAD_MAGIC")
    assert not bridge.endpoint.packages.bytes_served
    await device.close()
    await bridge.close()


async def test_activate_is_refused_before_a_passed_self_test_by_bridge_and_device(rig: Rig) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    board.hold["self_test"] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    events = bridge.install(REQUEST)
    await until(events, Step.SELF_TESTING)
    link, registration = bridge.endpoint.link, bridge.registration("node-1")
    board.hold.pop("self_test").set()
    await until(events, Step.READY)
    await within(bridge.uninstall("node-1", 0))
    with pytest.raises(BridgeError) as caught:
        await within(link.execute(registration, LwPath(9, 0, SoftwareRes.ACTIVATE)))
    assert caught.value.metadata["coap_code"] == "4.05"
    await device.close()
    await bridge.close()


async def test_a_device_without_object_9_can_not_be_installed_on(rig: Rig) -> None:
    bridge: Bridge = await rig.bridge()
    device = await rig.device(FaultBoard(SPEC, slot_sizes=()))
    await within(device.registered.wait())
    assert failure(await run_install(bridge, REQUEST)) == (Step.FAILED, Reason.INSTALL_UNSUPPORTED)
    await device.close()
    await bridge.close()
