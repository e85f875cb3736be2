"""What breaks during an install: links, devices, bridges, boards, images; and what is left behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from aiocoap import Code
from fault_board import SPEC, FaultBoard
from lwm2m_rig import Artifacts, Relay, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_device.board import BoardReason, SlotState
from tinymlaas_device.lwm2m import LwM2mDevice
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m import SoftwareRes, UpdateResult, software
from tinymlaas_lwm2m_bridge import (
    Bridge,
    BridgeError,
    InstallEvent,
    InstallRequest,
    InstallSettings,
    Reason,
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


def failure(events: list[InstallEvent]) -> tuple[Step, str]:
    last = events[-1]
    assert last.failure is not None, last
    assert last.failure.help
    return last.step, last.failure.reason


async def until(events: Any, wanted: Step, bytes_done: int = 0) -> InstallEvent:
    """The first event of a running install at a step, with at least so many bytes."""
    while True:
        event: InstallEvent = await within(anext(events))
        assert not event.step.terminal or event.step is wanted, event
        if event.step is wanted and event.bytes_done >= bytes_done:
            return event


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
    await within(bridge.rollback("node-1"))
    assert board.active_slot() == 1
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("step", [Step.DOWNLOADING, Step.DELIVERED, Step.INSTALLED, Step.SELF_TESTING])
async def test_cancel_at_each_step_leaves_an_empty_slot(rig: Rig, step: Step) -> None:
    """DO-INST-013."""
    bridge = await rig.bridge()
    board = FaultBoard()
    call = {Step.DOWNLOADING: "write", Step.SELF_TESTING: "self_test"}.get(step)
    if call:
        board.hold[call] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    events = bridge.install(REQUEST)
    await until(events, step)
    bridge.cancel_install("i-1")
    if call:
        board.hold.pop(call).set()
    last = await until(events, Step.CANCELLED)
    assert last.failure is not None
    assert last.failure.reason == Reason.INSTALL_CANCELLED
    assert board.slot(0).state is SlotState.EMPTY
    bridge.cancel_install("i-1")
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
    bridge.cancel_install("i-1")
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
