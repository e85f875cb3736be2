"""Installs between a real bridge and a real LwM2M device over UDP on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, image_of, run_install, within

from tinymlaas_device.board import SlotState
from tinymlaas_lwm2m_bridge import InstallRequest, Step, Transfer

IMAGE = image_of(40_000)
DIGEST = digest_of(IMAGE)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE))


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH, Transfer.AUTO])
async def test_a_module_is_transferred_verified_installed_and_tested_but_not_activated(
    rig: Rig, transfer: Transfer
) -> None:
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    events = await run_install(bridge, InstallRequest("i-1", "node-1", DIGEST, transfer=transfer))
    steps = [event.step for event in events]
    assert steps[-1] is Step.READY, events[-1]
    assert list(dict.fromkeys(steps))[-4:] == [Step.DELIVERED, Step.INSTALLED, Step.SELF_TESTING, Step.READY]
    assert events[-1].bytes_done == events[-1].bytes_total == len(IMAGE)
    assert board.slot(0).state is SlotState.TESTED
    assert board.slot(0).digest == bytes.fromhex(DIGEST)
    assert board.active_slot() is None
    assert board.written == len(IMAGE)
    await within(bridge.activate("node-1", 0))
    assert board.active_slot() == 0
    await device.close()
    await bridge.close()
