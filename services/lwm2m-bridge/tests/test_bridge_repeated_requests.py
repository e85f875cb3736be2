"""Requests that reach a device twice, which rebooted in between and knows no message ids any more: done once, never failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, image_of, run_install, within

from tinymlaas_device.board import SlotState
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Bridge, BridgeError, InstallRequest, Reason, Step
from tinymlaas_lwm2m_bridge.core.registration import Registration

IMAGES = [image_of(20_000), image_of(18_000, seed=1)]


def send_twice(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each Execute is received twice; the answer to the second is the one that arrives. Returns the paths refused then."""
    link, refused = bridge.endpoint.link, list[str]()
    execute = link.execute

    async def twice(device: Registration, path: LwPath, arguments: Any = None) -> None:
        await execute(device, path, arguments)
        try:
            await execute(device, path, arguments)
        except BridgeError:
            refused.append(str(path))
            raise

    monkeypatch.setattr(link, "execute", twice)
    return refused


async def test_what_a_device_did_before_it_refused_the_repetition_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, Artifacts(*IMAGES))
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    refused = send_twice(bridge, monkeypatch)
    for slot, image in enumerate(IMAGES):
        events = await run_install(bridge, InstallRequest(f"i-{slot}", "node-1", digest_of(image)))
        assert (events[-1].step, events[-1].slot) == (Step.READY, slot), events[-1]
        await within(bridge.activate("node-1", slot))
    assert board.written == sum(map(len, IMAGES))
    assert "/9/0/4" in refused, "Install"
    await within(bridge.rollback("node-1"))
    assert board.active_slot() == 0
    await within(bridge.uninstall("node-1", 0))
    assert board.slot(0).state is SlotState.EMPTY
    assert len(refused) >= 4, refused
    await device.close()
    await bridge.close()


async def test_what_a_device_refused_without_doing_it_fails(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Artifacts(*IMAGES))
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    await run_install(bridge, InstallRequest("i-0", "node-1", digest_of(IMAGES[0])))
    await within(bridge.activate("node-1", 0))
    with pytest.raises(BridgeError) as caught:
        await within(bridge.rollback("node-1"))
    assert caught.value.reason == Reason.NO_PREVIOUS_MODULE
    await device.close()
    await bridge.close()
