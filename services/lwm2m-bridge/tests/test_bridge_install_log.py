"""A database that takes its time: the install that waits for it stands still, the bridge and its other devices do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lwm2m_rig import DEADLINE_S, Artifacts, Rig, digest_of, eventually, image_of, run_install, within

import postgres_server
from tinymlaas_lwm2m_bridge import Bridge, BridgeError, InstallEvent, InstallRequest, Step
from tinymlaas_lwm2m_bridge.core.install_record import InstallRecord

IMAGE = image_of(5_000)
REQUEST = InstallRequest("i-1", "node-1", digest_of(IMAGE))


class Hanging:
    """Holds what installs write to a bridge's database until `go_on` is set."""

    def __init__(self, bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.begun = self.ended = 0
        self._note: Callable[..., None] = bridge._store.note_install
        monkeypatch.setattr(bridge._store, "note_install", self._hang)

    def _hang(self, record: object, event: InstallEvent | None) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.begun += 1
        assert self.go_on.wait(DEADLINE_S)
        self._note(record, event)
        self.ended += 1


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE))


async def test_a_database_that_hangs_stops_the_install_that_writes_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    hanging = Hanging(bridge, monkeypatch)
    install = asyncio.create_task(run_install(bridge, REQUEST))
    await eventually(lambda: hanging.begun == 1, "the install writes")
    other = await rig.device(endpoint="node-2")
    await within(other.registered.wait())
    await within(bridge.read_capabilities("node-1"))
    assert (hanging.begun, hanging.ended) == (1, 0)
    hanging.go_on.set()
    timeline = await within(install)
    assert timeline[-1].step is Step.READY
    assert bridge._store.events("i-1") == timeline, "in the order in which it happened, nothing lost"
    await device.close()
    await other.close()
    await bridge.close()


async def test_an_install_is_let_go_of_only_once_what_it_wrote_last_is_stored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-012: written later, it would take the install away from the instance that has it then."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    hanging = Hanging(bridge, monkeypatch)
    install = asyncio.create_task(run_install(bridge, REQUEST))
    await eventually(lambda: hanging.begun == 1, "the install writes")
    letting_go = asyncio.create_task(bridge._installer.abandon({"node-1"}))
    await within(bridge.read_capabilities("node-1"))  # time enough for a task that does not wait
    assert not letting_go.done()
    hanging.go_on.set()
    await within(letting_go)
    assert (hanging.begun, hanging.ended) == (1, 1)
    await asyncio.gather(install, return_exceptions=True)
    await device.close()
    await bridge.close()


async def test_an_install_that_begins_while_the_database_is_away_waits_for_it_and_the_bridge_does_not(
    tmp_path: Path, postgresql_server: postgres_server.Server
) -> None:
    database = postgres_server.database(postgresql_server.url, str(tmp_path))
    rig = Rig(tmp_path, Artifacts(IMAGE), database_url=database)
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    await asyncio.to_thread(postgresql_server.crash)
    try:
        install = asyncio.create_task(run_install(bridge, REQUEST))
        elsewhere = asyncio.create_task(bridge.fleet.check_here("node-2"))
        await within(bridge.read_capabilities("node-1"))
        assert not install.done()
        assert not elsewhere.done()
    finally:
        await asyncio.to_thread(postgresql_server.start)
    timeline = await within(install)
    assert timeline[-1].step is Step.READY, timeline[-1]
    await within(elsewhere)
    await device.close()
    await bridge.close()


async def test_the_same_install_asked_for_many_times_at_once_is_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that leave while it begins do not stop it."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    go_on, begun = threading.Event(), threading.Event()
    begin = bridge._store.begin_install

    def in_turn(record: InstallRecord) -> InstallRecord:
        first = record.request == REQUEST
        assert (go_on if first else begun).wait(DEADLINE_S)
        stored = begin(record)
        begun.set()
        return stored

    monkeypatch.setattr(bridge._store, "begin_install", in_turn)
    callers = [asyncio.create_task(run_install(bridge, REQUEST)) for _ in range(4)]
    other = asyncio.create_task(run_install(bridge, replace(REQUEST, slot=1)))
    await eventually(lambda: len(bridge._installer._opening) == 2, "both requests are about to begin")
    callers[0].cancel()
    go_on.set()
    timelines = await within(asyncio.gather(*callers[1:]))
    assert timelines[0][-1].step is Step.READY
    assert all(timeline == timelines[0] for timeline in timelines)
    assert [event.step for event in timelines[0]].count(Step.DELIVERED) == 1
    with pytest.raises(BridgeError, match="another request"):
        await within(other)
    assert bridge._installer._opening == {}
    await device.close()
    await bridge.close()


async def test_an_install_that_begins_on_a_device_that_moves_away_is_left_to_the_other_instance(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-012: nothing starts behind the back of who lets the device go."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    begun, go_on = threading.Event(), threading.Event()
    begin = bridge._store.begin_install

    def hang(record: InstallRecord) -> InstallRecord:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        return begin(record)

    monkeypatch.setattr(bridge._store, "begin_install", hang)
    install = asyncio.create_task(run_install(bridge, REQUEST))
    await eventually(begun.is_set, "it is about to begin")
    letting_go = asyncio.create_task(bridge._installer.abandon({"node-1"}))
    await within(bridge.read_capabilities("node-1"))  # time enough for a task that does not wait
    go_on.set()
    await within(letting_go)
    with pytest.raises(BridgeError) as told:
        await within(install)
    assert told.value.reason == "DEVICE_ELSEWHERE"
    assert bridge._installer.running() == 0
    assert [record.request for record in bridge._store.open_installs()] == [REQUEST]
    await device.close()
    await bridge.close()
