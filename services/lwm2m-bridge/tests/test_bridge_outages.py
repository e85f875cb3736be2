"""A registry or a database that is away for a while costs an install time, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fault_board import FaultBoard
from lwm2m_rig import FAST_INSTALL, Rig, digest_of, eventually, failure, image_of, run_install, until, within

import postgres_server
from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc
from tinymlaas_device.board import SlotState
from tinymlaas_device.lwm2m import LwM2mDevice
from tinymlaas_lwm2m import SoftwareRes, UpdateResult, software
from tinymlaas_lwm2m_bridge import InstallRequest, InstallSettings, Step, Transfer
from tinymlaas_lwm2m_bridge.artifacts import RegistryArtifacts, error_of
from tinymlaas_lwm2m_bridge.install_log import THREADS, ThreadedInstallLog
from tinymlaas_servicekit import GrpcServer, ServiceSettings, Unavailable, connect, patience
from tinymlaas_servicekit.errors import Cancelled, DataLoss, DeadlineExceeded, Internal, NotFound, ServiceError

IMAGE = image_of(60_000)
REQUEST = InstallRequest("i-1", "node-1", digest_of(IMAGE), transfer=Transfer.PULL)
AWAY = "waiting for the registry"


class Registry(artifacts_pb2_grpc.ArtifactsServicer):
    """Serves an image over gRPC, at an address that stays while it goes away and comes back."""

    def __init__(self) -> None:
        self.asked = 0
        self.faults: list[ServiceError | str] = []
        """What the next calls meet: an error, an answer that is `short`, or one that `hangs` halfway."""
        self._server: GrpcServer | None = None
        self._listen = "127.0.0.1:0"

    async def start(self) -> str:
        """Serve; the address."""
        self._server = GrpcServer(ServiceSettings(listen=self._listen, grace_seconds=0), self._register)
        self._listen = await self._server.start()
        return self._listen

    async def stop(self) -> None:
        """Go away, in the middle of answers that hang. Repeatable."""
        if self._server is not None:
            await self._server.drain()
            self._server = None

    def _register(self, server: grpc.aio.Server) -> list[str]:
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(self, server)
        return [artifacts_pb2.DESCRIPTOR.services_by_name["Artifacts"].full_name]

    async def ReadArtifact(
        self, request: artifacts_pb2.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.ReadArtifactResponse]:
        self.asked += 1
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, ServiceError):
            raise fault
        yield artifacts_pb2.ReadArtifactResponse(data=IMAGE[:30_000], total_bytes=len(IMAGE))
        if fault == "hangs":
            await asyncio.Event().wait()
        if fault is None:
            yield artifacts_pb2.ReadArtifactResponse(data=IMAGE[30_000:])


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    registry = Registry()  # type: ignore[abstract]  # it is only read from
    yield registry
    await registry.stop()


@pytest.fixture
async def rig(tmp_path: Path, registry: Registry) -> AsyncIterator[Rig]:
    """Bridges that read images from the registry."""
    channel = connect(await registry.start())
    rig = Rig(tmp_path)
    rig.artifacts = RegistryArtifacts(channel, "default", max_bytes=1 << 20)  # type: ignore[assignment]
    yield rig
    await channel.close(None)


async def test_an_install_waits_for_a_registry_that_goes_away_amid_its_answer(rig: Rig, registry: Registry) -> None:
    """DO-INST-019: and says so once."""
    registry.faults = ["hangs"]
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    events = bridge.install(REQUEST)
    first = asyncio.ensure_future(anext(events))
    await eventually(lambda: registry.asked == 1, "the image is read")
    await registry.stop()
    assert AWAY in (await within(first)).detail
    registry.faults = ["short", Unavailable("S3"), Cancelled("stopping"), DeadlineExceeded("slow")]
    await registry.start()
    await until(events, Step.READY)
    assert registry.asked == 6
    told = bridge._store.events("i-1")
    assert [AWAY in event.detail for event in told] == [True] + [False] * (len(told) - 1)
    await device.close()
    await bridge.close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotFound("none", "NOT_FOUND"), "ARTIFACT_NOT_FOUND"),
        (DataLoss("damaged", "DIGEST_MISMATCH"), "DIGEST_MISMATCH"),
        (Internal("a fault"), "INTERNAL_ERROR"),
    ],
)
async def test_what_will_not_be_better_later_is_not_asked_for_again(
    rig: Rig, registry: Registry, error: ServiceError, reason: str
) -> None:
    registry.faults = [error]
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    assert failure(await run_install(bridge, REQUEST)) == (Step.FAILED, reason)
    assert registry.asked == 1
    await device.close()
    await bridge.close()


async def test_a_registry_that_stays_away_fails_the_install_after_the_limit(rig: Rig, registry: Registry) -> None:
    rig.install = InstallSettings(poll_s=FAST_INSTALL.poll_s, registry_s=0.5)
    registry.faults = [Unavailable("S3", "BUCKET_UNAVAILABLE")] * 100
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    assert failure(await run_install(bridge, REQUEST)) == (Step.FAILED, "BUCKET_UNAVAILABLE")
    await device.close()
    await bridge.close()


async def left_half_installed(rig: Rig) -> tuple[FaultBoard, LwM2mDevice]:
    """A device that has a part of the image, whose bridge has stopped; its flash holds the next write."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await until(bridge.install(REQUEST), Step.DOWNLOADING)
    await eventually(lambda: board.written > 5_000, "some bytes are in flash")
    board.hold["write"] = threading.Event()
    await bridge.close()
    return board, device


@pytest.mark.parametrize("fault", [Unavailable("S3"), "hangs"])
async def test_a_cancel_is_heard_while_the_registry_is_away(
    rig: Rig, registry: Registry, fault: ServiceError | str
) -> None:
    """DO-INST-013: after a restart too; the part that the device has is removed."""
    board, device = await left_half_installed(rig)
    registry.faults, asked = [fault] * 100, registry.asked
    bridge = await rig.bridge()
    board.hold.pop("write").set()
    await eventually(lambda: registry.asked > asked, "the image is read again")
    await bridge.cancel_install("i-1")
    timeline = await run_install(bridge, REQUEST)
    assert failure(timeline) == (Step.CANCELLED, "INSTALL_CANCELLED")
    assert board.slot(0).state is SlotState.EMPTY
    await device.close()
    await bridge.close()


async def test_a_device_that_pulls_asks_later_while_the_registry_is_away(rig: Rig, registry: Registry) -> None:
    """DO-INST-017, DO-INST-019."""
    board, device = await left_half_installed(rig)
    await registry.stop()
    bridge = await rig.bridge()
    board.hold.pop("write").set()
    path = software(0, SoftwareRes.UPDATE_RESULT)

    def shown() -> object:
        return (device.read(path) or {}).get(path)

    await eventually(lambda: shown() != UpdateResult.DOWNLOADING, "the device gives up for now")
    assert shown() == UpdateResult.CONNECTION_LOST
    await registry.start()
    assert (await run_install(bridge, REQUEST))[-1].step is Step.READY
    assert board.written == len(IMAGE)
    await device.close()
    await bridge.close()


@pytest.mark.parametrize(
    ("code", "details", "stands_for"),
    [
        (grpc.StatusCode.INTERNAL, "Internal error from Core", "UNAVAILABLE"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", "UNAVAILABLE"),
        (grpc.StatusCode.UNKNOWN, "Stream removed", "UNAVAILABLE"),
        (grpc.StatusCode.INTERNAL, "a fault", "INTERNAL"),
        (grpc.StatusCode.UNKNOWN, "", "UNKNOWN"),
        (grpc.StatusCode.PERMISSION_DENIED, "Stream removed", "PERMISSION_DENIED"),
    ],
)
def test_a_stream_that_breaks_off_is_told_from_an_error_of_the_registry(
    code: grpc.StatusCode, details: str, stands_for: str
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
    assert error_of(error).code == stands_for


async def test_an_install_outlives_an_outage_of_the_database_that_is_longer_than_callers_wait(
    tmp_path: Path, postgresql_server: postgres_server.Server, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    rig = Rig(tmp_path, database_url=postgres_server.database(postgresql_server.url, str(tmp_path)))
    channel = connect(await registry.start())
    rig.artifacts = RegistryArtifacts(channel, "default", max_bytes=1 << 20)  # type: ignore[assignment]
    bridge = await rig.bridge()
    board = FaultBoard()
    gate = board.hold["verify"] = threading.Event()
    device = await rig.device(board)
    await within(device.registered.wait())
    await until(bridge.install(REQUEST), Step.DOWNLOADING)
    given_up = 0
    note = bridge._store.note_install

    def counted(*arguments: Any) -> None:
        nonlocal given_up
        try:
            note(*arguments)
        except Unavailable:
            given_up += 1
            raise

    monkeypatch.setattr(bridge._store, "note_install", counted)
    monkeypatch.setattr(patience, "CALL_SECONDS", 0.0)
    await asyncio.to_thread(postgresql_server.crash)
    try:
        gate.set()
        await eventually(lambda: given_up > 1, "the install could not write")
        with pytest.raises(Unavailable):
            await run_install(bridge, REQUEST)
    finally:
        await asyncio.to_thread(postgresql_server.start)
    monkeypatch.undo()
    assert (await run_install(bridge, REQUEST))[-1].step is Step.READY
    await device.close()
    await bridge.close()
    await channel.close(None)


class _Away:
    """A store whose database is away."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = threading.Event()

    def note_install(self, record: object, event: object) -> None:
        self.asked += 1
        self.go_on.wait(60)
        raise Unavailable("away", "DATABASE_UNAVAILABLE")


async def test_what_waits_for_the_database_to_be_written_ends_when_it_is_cancelled() -> None:
    """And what has not begun never does: the end takes as long as one call, however many wait."""
    store = _Away()
    store.go_on.set()
    log = ThreadedInstallLog(store)  # type: ignore[arg-type]
    note = asyncio.create_task(log.note(None, None))
    await eventually(lambda: store.asked > 1, "it is written again")
    note.cancel()
    await within(asyncio.gather(note, return_exceptions=True))
    assert note.cancelled()
    store.asked = 0
    store.go_on.clear()
    notes = [asyncio.create_task(log.note(None, None)) for _ in range(THREADS + 5)]
    await eventually(lambda: store.asked == THREADS, "all threads wait")
    for waiting in notes:
        waiting.cancel()
    await within(asyncio.gather(*notes[THREADS:], return_exceptions=True))
    assert not any(waiting.done() for waiting in notes[:THREADS])
    store.go_on.set()
    await within(asyncio.gather(*notes, return_exceptions=True))
    assert store.asked == THREADS
    log.close()
