"""A database that takes its time: the install that waits for it stands still, the bridge and its other devices do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lwm2m_rig import DEADLINE_S, Artifacts, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_lwm2m_bridge import Bridge, InstallEvent, InstallRequest, Step

IMAGE = image_of(5_000)
REQUEST = InstallRequest("i-1", "node-1", digest_of(IMAGE))


class Hanging:
    """Holds what installs write to a bridge's database until `go_on` is set."""

    def __init__(self, bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.begun = self.ended = 0
        self._note: Callable[..., None] = bridge._store.note_install
        # The first one, which makes the install, is the caller's own; what follows is its run's.
        monkeypatch.setattr(bridge._store, "put_install", lambda record: self._note(record, None))
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
