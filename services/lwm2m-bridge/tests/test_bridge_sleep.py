"""Queue mode: a device that sleeps is asked nothing, and work for it waits for its next update without running out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Relay, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_lwm2m_bridge import Bridge, BridgeError, InstallRequest, InstallSettings, Reason, Step

IMAGE = image_of(5_000)
REQUEST = InstallRequest("i-1", "node-1", digest_of(IMAGE))
NO_PATIENCE = InstallSettings(poll_s=0.02, stuck_s=2.0, offline_s=0.0)
AWAKE_S = 93.0


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE), install=NO_PATIENCE)


def waits(bridge: Bridge, install_id: str = "i-1") -> bool:
    return any(event.detail.startswith("waiting") for event in bridge._store.events(install_id))


async def test_an_install_for_a_sleeping_device_sends_nothing_and_goes_on_at_its_next_update(rig: Rig) -> None:
    """DO-QUEUE-001, DO-QUEUE-002: also beyond the limit for devices that are away."""
    bridge = await rig.bridge()
    async with Relay(("127.0.0.1", rig.port)).open() as relay:
        device = await rig.device(server_port=relay.port, lifetime_s=3600, queue_mode=True)
        await within(device.registered.wait())
        assert bridge.registration("node-1").queue_mode
        await within(bridge.read_capabilities("node-1"))
        rig.clock.now += AWAKE_S
        sent = relay.datagrams_to_device
        install = asyncio.create_task(run_install(bridge, REQUEST))
        await eventually(lambda: waits(bridge), "the install waits")
        assert relay.datagrams_to_device == sent
        device.wake()
        assert (await within(install))[-1].step is Step.READY
        await device.close()
    await bridge.close()


async def test_a_device_that_has_just_answered_listens_still(rig: Rig) -> None:
    """DO-QUEUE-001."""
    bridge = await rig.bridge()
    device = await rig.device(lifetime_s=3600, queue_mode=True)
    await within(device.registered.wait())
    rig.clock.now += AWAKE_S - 1
    await within(bridge.read_capabilities("node-1"))
    rig.clock.now += AWAKE_S - 1
    assert (await run_install(bridge, REQUEST))[-1].step is Step.READY
    await device.close()
    await bridge.close()


async def test_a_change_of_a_sleeping_device_waits_for_its_update(rig: Rig) -> None:
    """DO-QUEUE-002."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board, lifetime_s=3600, queue_mode=True)
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    rig.clock.now += AWAKE_S
    activation = asyncio.create_task(bridge.activate("node-1", 0))
    await asyncio.sleep(0)
    assert "activate" not in board.calls
    device.wake()
    await within(activation)
    assert board.active_slot() == 0
    await device.close()
    await bridge.close()


async def test_a_device_without_queue_mode_is_asked_at_any_time_and_runs_out_of_it(rig: Rig) -> None:
    """DO-INST-014: the other side of the same limit."""
    bridge = await rig.bridge()
    device = await rig.device(lifetime_s=3600)
    await within(device.registered.wait())
    rig.clock.now += AWAKE_S
    await within(bridge.read_capabilities("node-1"))
    await device.vanish()
    events = await run_install(bridge, REQUEST)
    assert events[-1].failure is not None
    assert events[-1].failure.reason == Reason.DEVICE_UNREACHABLE
    await bridge.close()


async def test_a_sleeping_device_that_is_lost_is_unknown(rig: Rig) -> None:
    """DO-QUEUE-003."""
    bridge = await rig.bridge()
    device = await rig.device(lifetime_s=200, queue_mode=True)
    await within(device.registered.wait())
    await device.vanish()
    rig.clock.now += 201
    with pytest.raises(BridgeError) as caught:
        await within(bridge.read_capabilities("node-1"))
    assert caught.value.reason == Reason.DEVICE_UNKNOWN
    await bridge.close()
