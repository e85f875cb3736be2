"""Each state and each result of object 9, made to happen on a device and read from it (spec, section 6, table of results)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, eventually, image_of, within

from tinymlaas_device.board import BoardReason, SlotState
from tinymlaas_device.lwm2m import LwM2mDevice
from tinymlaas_lwm2m import MlRes as Ml
from tinymlaas_lwm2m import SoftwareRes, UpdateResult, UpdateState, ml, software
from tinymlaas_lwm2m_bridge import Bridge

IMAGE = image_of(5_000)
STATE, RESULT = software(0, SoftwareRes.UPDATE_STATE), software(0, SoftwareRes.UPDATE_RESULT)
REFUSALS = {
    UpdateResult.NOT_ENOUGH_STORAGE: ("begin", BoardReason.NO_SPACE),
    UpdateResult.OUT_OF_MEMORY: ("verify", BoardReason.NOT_ENOUGH_RAM),
    UpdateResult.INTEGRITY_FAILURE: ("verify", BoardReason.BAD_SIGNATURE),
    UpdateResult.UNSUPPORTED_PACKAGE: ("verify", BoardReason.UNSUPPORTED_ISA),
    UpdateResult.DEVICE_ERROR: ("write", BoardReason.FLASH_ERROR),
}
SHOWN_BY = {
    *REFUSALS,
    UpdateResult.INITIAL,
    UpdateResult.DOWNLOADING,
    UpdateResult.INSTALLED,
    UpdateResult.DOWNLOADED_AND_VERIFIED,
    UpdateResult.CONNECTION_LOST,
    UpdateResult.INVALID_URI,
    UpdateResult.INSTALL_FAILURE,
    UpdateResult.UNINSTALL_FAILURE,
}


class Slot:
    """Slot 0 of a device, managed with single operations of the bridge's link."""

    def __init__(self, bridge: Bridge, device: LwM2mDevice) -> None:
        self._bridge = bridge
        self._device = device
        self._node = bridge.registration("node-1")
        bridge.endpoint.packages.offer(digest_of(IMAGE), IMAGE)

    def shows(self) -> tuple[int, int]:
        """(state, result)."""
        values = self._device.read(software(0, SoftwareRes.UPDATE_STATE)) or {}
        values |= self._device.read(RESULT) or {}
        return int(values[STATE]), int(values[RESULT])  # type: ignore[arg-type]

    async def until(self, state: UpdateState, result: UpdateResult) -> None:
        """Wait until the slot shows this."""
        await eventually(lambda: self.shows() == (state, result), f"{state.name}, {result.name}; shows {self.shows()}")

    async def pull(self, uri: str = "") -> None:
        """Write the Package URI."""
        wanted = uri or self._bridge.endpoint.packages.uri(digest_of(IMAGE), self._node)
        path = software(0, SoftwareRes.PACKAGE_URI)
        await within(self._bridge.endpoint.link.write(self._node, path, wanted))

    async def execute(self, resource: SoftwareRes) -> None:
        """Execute a resource; a refusal shows in the slot."""
        await within(self._bridge.endpoint.link.execute(self._node, software(0, resource)))


async def start(tmp_path: Path, board: FaultBoard) -> tuple[Bridge, LwM2mDevice, Slot]:
    rig = Rig(tmp_path, Artifacts(IMAGE))
    bridge = await rig.bridge()
    device = await rig.device(board)
    await within(device.registered.wait())
    return bridge, device, Slot(bridge, device)


async def test_a_good_image_goes_through_every_state(tmp_path: Path) -> None:
    """DO-INST-007, DO-INST-012: results 0, 1, 3, 2 and 0 again."""
    board = FaultBoard()
    board.hold = {"begin": threading.Event(), "verify": threading.Event()}
    bridge, device, slot = await start(tmp_path, board)
    await slot.until(UpdateState.INITIAL, UpdateResult.INITIAL)
    await slot.pull()
    await slot.until(UpdateState.DOWNLOAD_STARTED, UpdateResult.DOWNLOADING)
    board.hold.pop("begin").set()
    await slot.until(UpdateState.DOWNLOADED, UpdateResult.DOWNLOADING)
    board.hold.pop("verify").set()
    await slot.until(UpdateState.DELIVERED, UpdateResult.DOWNLOADED_AND_VERIFIED)
    await slot.execute(SoftwareRes.INSTALL)
    await slot.until(UpdateState.INSTALLED, UpdateResult.INSTALLED)
    assert board.slot(0).state is SlotState.INSTALLED
    assert (device.read(ml(Ml.SLOT_STATE, 0)) or {}) == {ml(Ml.SLOT_STATE, 0): 3}
    await slot.execute(SoftwareRes.UNINSTALL)
    await slot.until(UpdateState.INITIAL, UpdateResult.INITIAL)
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("result", list(REFUSALS))
async def test_each_refusal_of_an_image_is_its_result_and_leaves_nothing(tmp_path: Path, result: UpdateResult) -> None:
    """DO-INST-010: results 50, 51, 53, 54 and 57."""
    call, reason = REFUSALS[result]
    board = FaultBoard()
    board.fail[call] = reason
    bridge, device, slot = await start(tmp_path, board)
    await slot.pull()
    await slot.until(UpdateState.INITIAL, result)
    assert board.slot(0).state is SlotState.EMPTY
    await device.close()
    await bridge.close()


async def test_a_server_that_falls_silent_is_result_52(tmp_path: Path) -> None:
    board = FaultBoard()
    bridge, device, slot = await start(tmp_path, board)
    await slot.pull(f"coap://127.0.0.1:9/p/{digest_of(IMAGE)}")
    await slot.until(UpdateState.INITIAL, UpdateResult.CONNECTION_LOST)
    await device.close()
    await bridge.close()


async def test_a_uri_without_a_digest_is_result_56(tmp_path: Path) -> None:
    """DO-INST-007."""
    bridge, device, slot = await start(tmp_path, FaultBoard())
    await slot.pull("coap://127.0.0.1/image.bin")
    await slot.until(UpdateState.INITIAL, UpdateResult.INVALID_URI)
    await device.close()
    await bridge.close()


async def test_a_board_that_can_not_install_or_uninstall_is_result_58_and_59(tmp_path: Path) -> None:
    board = FaultBoard()
    board.fail_install = True
    bridge, device, slot = await start(tmp_path, board)
    await slot.pull()
    await slot.until(UpdateState.DELIVERED, UpdateResult.DOWNLOADED_AND_VERIFIED)
    await slot.execute(SoftwareRes.INSTALL)
    await slot.until(UpdateState.DELIVERED, UpdateResult.INSTALL_FAILURE)
    board.fail["uninstall"] = BoardReason.FLASH_ERROR
    with pytest.raises(Exception, match="FLASH_ERROR"):
        await slot.execute(SoftwareRes.UNINSTALL)
    await slot.until(UpdateState.DELIVERED, UpdateResult.UNINSTALL_FAILURE)
    await device.close()
    await bridge.close()


def test_every_result_of_the_standard_is_made_to_happen_here() -> None:
    assert set(UpdateResult) == SHOWN_BY
