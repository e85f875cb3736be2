"""Two bridges that share a fleet: a device moves with its registration, and what a killed bridge left goes on at the other.

The database is what both share; the relay plays the load balancer in front of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from coap_packets import CON, GET, MAX_AGE, URI_PATH, Packet, Wire, code
from fault_board import FaultBoard
from lwm2m_rig import DEADLINE_S, Artifacts, Relay, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_device.board import SlotState
from tinymlaas_device.lwm2m import LwM2mDevice
from tinymlaas_lwm2m_bridge import Bridge, BridgeError, InstallEvent, InstallRequest, Step

IMAGE = image_of(60_000)
REQUEST = InstallRequest("i-1", "node-1", digest_of(IMAGE))


@dataclass
class Two:
    """Two bridges, a device behind a relay that leads to the first, and the device's board."""

    first: Bridge
    second: Bridge
    relay: Relay
    device: LwM2mDevice
    board: FaultBoard
    running: list[Bridge] = field(default_factory=list)

    async def close(self, bridge: Bridge) -> None:
        """Stop one of them."""
        self.running.remove(bridge)
        await bridge.close()

    async def turn(self, bridge: Bridge) -> None:
        """Lead the device's datagrams to a bridge."""
        port = int(bridge.endpoint.address.rsplit(":", 1)[1])
        bridge.endpoint.packages.announce(f"coap://127.0.0.1:{self.relay.port}")
        await self.relay.turn(("127.0.0.1", port))


@pytest.fixture
async def two(tmp_path: Path, database_url: str) -> AsyncIterator[Two]:
    rig = Rig(tmp_path, Artifacts(IMAGE), database_url=database_url)
    first, second = await rig.bridge(instance="first"), await rig.bridge(instance="second")
    first.fleet.address, second.fleet.address = (lambda: "first:1"), (lambda: "second:1")
    port = int(first.endpoint.address.rsplit(":", 1)[1])
    relay, board = Relay(("127.0.0.1", port)), FaultBoard()
    async with relay.open():
        device = await rig.device(board, server_port=relay.port, lifetime_s=2)
        made = Two(first, second, relay, device, board, [first, second])
        await made.turn(first)
        await within(device.registered.wait())
        yield made
        await device.close()
    for bridge in list(made.running):
        await made.close(bridge)


async def reach(events: AsyncIterator[InstallEvent], step: Step) -> None:
    async for event in events:
        if event.step is step:
            return
    raise AssertionError(f"the timeline ended before {step}")


async def installed(bridge: Bridge) -> list[InstallEvent]:
    """The timeline of the install, asked for again while it is DEVICE_ELSEWHERE, as callers do: that is UNAVAILABLE."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await run_install(bridge, REQUEST)
            except BridgeError as error:
                if error.reason != "DEVICE_ELSEWHERE":
                    raise
            await asyncio.sleep(0.05)


def kill(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others see of a bridge that was killed: its lease is neither renewed nor given up."""
    monkeypatch.setattr(bridge.fleet._store.leases, "renew", lambda address=None: True)
    monkeypatch.setattr(bridge.fleet._store.leases, "release", lambda: None)


async def test_a_killed_bridge_s_device_and_install_go_on_at_the_other(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-012."""
    two.relay.cut_at_bytes = two.relay.bytes_to_device + 20_000
    events = two.first.install(REQUEST)
    await within(reach(events, Step.DOWNLOADING))
    await eventually(lambda: not two.relay.up, "the link is cut in the middle of the download")
    kill(two.first, monkeypatch)
    await two.close(two.first)
    await eventually(lambda: len(two.second.directory) == 1, "the other bridge took the device")
    await two.turn(two.second)
    two.relay.up = True
    timeline = await run_install(two.second, REQUEST)
    assert timeline[-1].step is Step.READY, timeline[-1]
    assert timeline[0].step is Step.ACCEPTED or timeline[0].step is Step.DOWNLOADING
    assert two.board.slot(0).state is SlotState.TESTED
    assert two.board.slot(0).digest == bytes.fromhex(REQUEST.digest)
    await within(two.second.activate("node-1", 0))
    assert two.board.active_slot() == 0


async def test_a_device_that_knows_only_the_bridge_that_died_is_asked_again_once_it_has_come(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-012. A device answers 4.01 to any server but its own; no relay hides here that another one asks."""
    rig = Rig(tmp_path, Artifacts(IMAGE), database_url=database_url)
    first, second = await rig.bridge(instance="first"), await rig.bridge(instance="second")
    board = FaultBoard()
    device = await rig.device(board, server_port=int(first.endpoint.address.rsplit(":", 1)[1]))
    await within(device.registered.wait())
    kill(first, monkeypatch)
    await first.close()
    await eventually(lambda: len(second.directory) == 1, "the other bridge took the device")
    said: list[InstallEvent] = []

    async def follow() -> None:
        async for event in second.install(REQUEST):
            said.append(event)

    following = asyncio.create_task(follow())
    await eventually(lambda: any("next registration" in event.detail for event in said), "the device refused")
    await device.close()
    device = await rig.device(board, server_port=int(second.endpoint.address.rsplit(":", 1)[1]))
    await within(following)
    assert said[-1].step is Step.READY, said[-1]
    await device.close()
    await second.close()


async def test_a_device_that_knows_only_the_bridge_that_had_this_name_before_is_asked_again_once_it_has_come(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-012. A pod of the same name has another address; what it asks before the device came is unreachable, no refusal."""
    rig = Rig(tmp_path, Artifacts(IMAGE), database_url=database_url)
    before = await rig.bridge(instance="bridge-0")
    board = FaultBoard()
    device = await rig.device(board, server_port=int(before.endpoint.address.rsplit(":", 1)[1]))
    await within(device.registered.wait())
    kill(before, monkeypatch)
    await before.close()
    after = await rig.bridge(instance="bridge-0")
    assert len(after.directory) == 1
    with pytest.raises(BridgeError, match="next registration") as refused:
        await within(after.activate("node-1", 0))
    assert refused.value.reason == "DEVICE_UNREACHABLE"
    assert refused.value.code == "UNAVAILABLE"
    await device.close()
    device = await rig.device(board, server_port=int(after.endpoint.address.rsplit(":", 1)[1]))
    timeline = await run_install(after, REQUEST)
    assert timeline[-1].step is Step.READY, timeline[-1]
    await device.close()
    await after.close()


async def test_a_bridge_that_has_not_taken_an_install_yet_asks_the_device_to_ask_again(two: Two) -> None:
    """DO-INST-017: 5.03 with Max-Age for the image of an install that the other bridge has; 4.04 for what nobody installs."""

    async def answer(digest: str) -> tuple[int, dict[int, bytes]]:
        wire = await Wire().open()
        server = ("127.0.0.1", int(two.second.endpoint.address.rsplit(":", 1)[1]))
        path = ((URI_PATH, b"p"), (URI_PATH, digest.encode()))
        wire.send(Packet(CON, GET, 7, b"\x01", path), server)
        packet = await within(wire.take())
        wire.close()
        return packet.code, dict(packet.options)

    two.relay.cut_at_bytes = two.relay.bytes_to_device + 20_000
    events = two.first.install(REQUEST)
    await within(reach(events, Step.DOWNLOADING))
    await eventually(lambda: not two.relay.up, "the link is cut in the middle of the download")
    assert await answer(REQUEST.digest) == (code("5.03"), {MAX_AGE: b"\x01"})
    assert (await answer("ab" * 32))[0] == code("4.04")
    assert (await answer(REQUEST.digest[:40]))[0] == code("4.04")
    two.relay.up = True
    assert (await run_install(two.first, REQUEST))[-1].step is Step.READY
    assert (await answer(REQUEST.digest))[0] == code("4.04")


async def test_strangers_questions_are_not_all_looked_up(two: Two) -> None:
    """Beyond a bound in a second the answer is to ask again."""
    looked_up: list[str] = []
    packages = two.second.endpoint.packages
    packages._clock = lambda: 1.0
    packages.awaited_elsewhere = lambda digest: bool(looked_up.append(digest))  # type: ignore[func-returns-value]
    codes = [packages.block(f"{number:064x}", "192.0.2.1", (), None).code for number in range(200)]
    assert 0 < len(looked_up) < 100
    assert {int(found) for found in codes[: len(looked_up)]} == {code("4.04")}
    assert {int(found) for found in codes[len(looked_up) :]} == {code("5.03")}


async def test_a_device_that_registers_at_another_bridge_is_let_go_with_its_install(two: Two) -> None:
    """DO-BRIDGE-012."""
    await eventually(lambda: len(two.first.directory) == 1, "registered")
    two.relay.cut_at_bytes = two.relay.bytes_to_device + 20_000
    events = two.first.install(REQUEST)
    await within(reach(events, Step.DOWNLOADING))
    await eventually(lambda: not two.relay.up, "the link is cut in the middle of the download")
    await two.turn(two.second)
    two.relay.up = True
    await eventually(lambda: len(two.second.directory) == 1, "the device registered at the other bridge")
    await eventually(lambda: len(two.first.directory) == 0, "the first bridge let it go")
    with pytest.raises(BridgeError) as caught:
        await within(reach(events, Step.READY))
    assert caught.value.reason == "DEVICE_ELSEWHERE"
    assert caught.value.code == "UNAVAILABLE"
    timeline = await installed(two.second)
    assert timeline[-1].step is Step.READY, timeline[-1]
    assert two.board.slot(0).digest == bytes.fromhex(REQUEST.digest)


def stall(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Keep a bridge from looking after its lease, as a machine does that has no time for it, until the result is set."""
    go_on, gone = threading.Event(), bridge.fleet._store.gone

    def slow() -> list[str]:
        assert go_on.wait(DEADLINE_S)
        return gone()

    monkeypatch.setattr(bridge.fleet._store, "gone", slow)
    return go_on


async def test_a_bridge_that_was_too_slow_for_its_lease_goes_on_with_its_devices_and_installs(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-013. The device hears of nothing, and whoever follows the install neither."""
    rig = Rig(tmp_path, Artifacts(IMAGE), database_url=database_url)
    slow, quick = await rig.bridge(instance="slow"), await rig.bridge(instance="quick")
    relay, board = Relay(("127.0.0.1", int(slow.endpoint.address.rsplit(":", 1)[1]))), FaultBoard()
    async with relay.open():
        slow.endpoint.packages.announce(f"coap://127.0.0.1:{relay.port}")
        device = await rig.device(board, server_port=relay.port, lifetime_s=3600)
        await within(device.registered.wait())
        registration = slow.registration("node-1").id
        relay.cut_at_bytes = relay.bytes_to_device + 20_000
        events = slow.install(REQUEST)
        await within(reach(events, Step.DOWNLOADING))
        await eventually(lambda: not relay.up, "the link is cut in the middle of the download")
        go_on = stall(slow, monkeypatch)
        await eventually(lambda: quick._installer.running() == 1, "the quick bridge took the device and its install")
        watched = slow.watch_devices()
        assert [(await within(anext(watched))).registration is None for _ in range(2)] == [False, True]
        go_on.set()
        told = await within(anext(watched))
        assert (told.registration and told.registration.id) == registration, "who followed the quick bridge comes back"
        await eventually(lambda: len(quick.directory) == 0, "the quick bridge gave the device back")
        relay.up = True
        await within(reach(events, Step.READY))
        assert slow.registration("node-1").id == registration
        await eventually(lambda: not slow._installer.running() + quick._installer.running(), "nobody works on it")
        assert board.slot(0).digest == bytes.fromhex(REQUEST.digest)
        await device.close()
    await slow.close()
    await quick.close()


async def test_of_bridges_that_were_slow_in_turn_the_one_that_heard_the_device_has_it_again(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-012, 013: each of two is taken over by the next, and each one lets go or takes back."""
    rig = Rig(tmp_path, Artifacts(IMAGE), database_url=database_url)
    slow = await rig.bridge(instance="1-slow")
    device = await rig.device(FaultBoard(), server_port=int(slow.endpoint.address.rsplit(":", 1)[1]), lifetime_s=3600)
    await within(device.registered.wait())
    second = await rig.bridge(instance="2-slow")
    let_first = stall(slow, monkeypatch)
    await eventually(lambda: len(second.directory) == 1, "the second bridge took the device")
    third = await rig.bridge(instance="3-quick")
    let_second = stall(second, monkeypatch)
    await eventually(lambda: len(third.directory) == 1, "the third bridge took the device")
    let_second.set()
    await eventually(lambda: len(second.directory) == 0, "the second bridge let it go, which has not heard of it")
    let_first.set()
    bridges = (slow, second, third)
    await eventually(
        lambda: [len(bridge.directory) for bridge in bridges] == [1, 0, 0] and third.fleet._store.gone() == [],
        "the first bridge took the device back",
    )
    await within(slow.read_capabilities("node-1"))
    await device.close()
    for bridge in bridges:
        await bridge.close()


async def test_a_device_that_was_heard_at_another_bridge_meanwhile_stays_there(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-013."""
    go_on = stall(two.first, monkeypatch)
    await eventually(lambda: len(two.second.directory) == 1, "the second bridge took the device")
    adopted = two.second.registration("node-1")
    await two.turn(two.second)
    await eventually(lambda: two.second.directory.all() not in ([], [adopted]), "the device came to the second bridge")
    go_on.set()
    await eventually(lambda: len(two.first.directory) == 0, "the first bridge let it go")
    await within(two.second.read_capabilities("node-1"))


async def test_a_bridge_that_is_asked_for_a_device_of_another_tells_whose_it_is(two: Two) -> None:
    """DO-BRIDGE-012."""

    async def told() -> dict[str, str]:
        try:
            await two.second.fleet.check_here("node-1")
        except BridgeError as error:
            return error.metadata
        return {}

    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await told() == {"device": "node-1", "instance": "first", "bridge": "first:1"}:
                break
            await asyncio.sleep(0.01)
    await two.first.fleet.check_here("node-1")
    await two.second.fleet.check_here("node-2")
