"""The registry while its bucket is away, slow or overloaded: callers are told to repeat, and nothing else waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import bucket_server
import pytest
from bucket_server import BucketServer, Fault, Request
from minio.error import S3Error
from minio_server import MinioServer, minio_running
from registry_rig import Client, error_of, onnx_model, requests, running
from structlog.testing import capture_logs

from tinymlaas.registry.v1 import devices_pb2, models_pb2, modules_pb2
from tinymlaas_registry import RegistrySettings, app, build_registry
from tinymlaas_registry.adapters import S3Settings, S3Store, s3
from tinymlaas_servicekit import ServiceError, Unavailable

DATA = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
# Both more than what waits in the buffers of a connection.
ONE_PART = bytes(16 << 20)
LARGE = bytes(40 << 20)
WAIT = 120


@pytest.fixture(autouse=True)
def database() -> str:
    """Once is enough: what is asked of the database here is asked of it elsewhere too."""
    return "sqlite"


@pytest.fixture
def bucket() -> Iterator[BucketServer]:
    """A bucket whose faults a test chooses."""
    with bucket_server.bucket_running() as server:
        yield server


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A MinIO server that tests kill and start again."""
    with minio_running(tmp_path_factory.mktemp("minio")) as server:
        yield server


def values(settings: S3Settings) -> dict[str, str]:
    """As settings of a registry."""
    return {
        "s3_endpoint": settings.endpoint,
        "s3_bucket": settings.bucket,
        "s3_access_key": settings.access_key,
        "s3_secret_key": settings.secret_key,
    }


def put(store: S3Store, data: bytes = DATA) -> None:
    store.put(hashlib.sha256(data).hexdigest(), io.BytesIO(data), len(data))


OPERATIONS: dict[str, Callable[[S3Store], object]] = {
    "size": lambda store: store.size(DIGEST),
    "open": lambda store: store.open(DIGEST),
    "put": put,
    "put in parts": lambda store: put(store, LARGE),
    "delete": lambda store: store.delete(OTHER),
    "list": lambda store: list(store.digests()),
}
FAULTS = [bucket_server.slow_down, bucket_server.gateway_page, bucket_server.no_answer, bucket_server.silence]


def is_told_to_repeat(error: ServiceError) -> bool:
    return (error.code, error.reason) == ("UNAVAILABLE", "BUCKET_UNAVAILABLE") and "call again" in error.help


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_operation_tells_that_the_bucket_is_away(
    bucket: BucketServer, monkeypatch: pytest.MonkeyPatch, fault: Fault, operation: str
) -> None:
    monkeypatch.setattr(s3, "_SILENCE_S", 0.1)
    monkeypatch.setattr(s3, "_PAUSE_S", 0.0)
    store = S3Store(bucket.settings())
    bucket.fault = fault
    with pytest.raises(Unavailable) as told:
        OPERATIONS[operation](store)
    assert is_told_to_repeat(told.value)


def test_a_bucket_that_refuses_connections_is_away() -> None:
    with bucket_server.bucket_running() as gone:
        settings = gone.settings()
    with pytest.raises(Unavailable) as told:
        S3Store(settings)
    assert is_told_to_repeat(told.value)


def test_a_reading_that_is_cut_says_so_and_goes_on_from_there(bucket: BucketServer) -> None:
    store = S3Store(bucket.settings())
    put(store)
    bucket.fault, got = bucket_server.half_a_body, io.BytesIO()
    with store.open(DIGEST) as file:
        with pytest.raises(Unavailable) as told:
            shutil.copyfileobj(file, got)
        assert is_told_to_repeat(told.value)
        assert 0 < got.tell() < len(DATA)
        bucket.fault = None
        file.seek(got.tell())
        assert got.getvalue() + file.read() == DATA


def test_what_the_bucket_refuses_or_lacks_is_no_outage(bucket: BucketServer) -> None:
    store = S3Store(bucket.settings())
    assert store.size(DIGEST) is None
    bucket.fault = bucket_server.forbid
    for operation in OPERATIONS.values():
        with pytest.raises(S3Error) as told:
            operation(store)
        assert told.value.code == "AccessDenied"


@pytest.mark.parametrize("deaf", [False, True], ids=["answers nothing", "takes no body"])
def test_silence_is_waited_out_once(bucket: BucketServer, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr(s3, "_SILENCE_S", 0.1)
    monkeypatch.setattr(s3, "_CONNECT_S", 1.0)
    store = S3Store(bucket.settings())
    bucket.fault, bucket.deaf, bucket.requests = bucket_server.silence, deaf, []
    with pytest.raises(Unavailable):
        put(store, ONE_PART)
    assert len(bucket.requests) == 1


def test_a_connection_that_breaks_at_once_is_tried_again(bucket: BucketServer) -> None:
    store = S3Store(bucket.settings())
    bucket.fault = lambda request: len(bucket.requests) < 3 and bucket_server.no_answer(request)
    bucket.requests = []
    put(store)
    assert store.size(DIGEST) == len(DATA)


def test_a_bucket_that_asks_for_minutes_is_not_waited_for_that_long(
    bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told, and repeats when it likes."""
    pauses: list[float] = []
    store = S3Store(bucket.settings())
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=pauses.append))
    bucket.fault = bucket_server.slow_down
    with pytest.raises(Unavailable):
        store.size(DIGEST)
    assert sum(pauses) < 5


def test_an_upload_is_bounded_by_silence_not_by_its_length(
    bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """urllib3 gives each thing it sends the time to connect: blocks are sent, not whole parts."""
    store, sent, send = S3Store(bucket.settings()), [0], HTTPConnection.send

    def seen(connection: HTTPConnection, data: bytes) -> None:
        sent.append(len(data))
        send(connection, data)

    monkeypatch.setattr(HTTPConnection, "send", seen)
    put(store)
    assert sum(sent) > len(DATA)
    assert max(sent) <= 1 << 16


def test_the_slowest_answer_that_the_bucket_is_away_comes_before_callers_give_up() -> None:
    pauses = s3._PAUSE_S * (2 + 4)
    # The worst is a part of an upload that is not taken, and then the removal of the upload.
    assert 2 * max(4 * s3._CONNECT_S + pauses, s3._SILENCE_S) < 60


def test_a_reading_that_is_given_up_does_not_spoil_the_next_call(
    bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which the rest of an object is still to come is not used again, though nothing of it is there yet."""
    monkeypatch.setattr(s3, "_SILENCE_S", 5.0)
    store = S3Store(bucket.settings())
    put(store)
    read_ahead, rest = 13 * io.DEFAULT_BUFFER_SIZE, threading.Event()

    def in_two_parts(request: Request) -> bool:
        if request.command != "GET":
            return False
        request.answer(200, DATA[:read_ahead], "application/octet-stream", len(DATA))
        rest.wait()
        request.wfile.write(DATA[read_ahead:])
        return True

    bucket.fault = in_two_parts
    try:
        with store.open(DIGEST) as file:
            assert file.read(read_ahead - 1) == DATA[: read_ahead - 1]
        assert store.size(DIGEST) == len(DATA)
    finally:
        rest.set()


def test_a_minio_that_is_killed_amid_use_is_away_and_back_when_it_is_started_again(minio: MinioServer) -> None:
    store = S3Store(minio.bucket())
    put(store)
    put(store, b"other")
    put(store, LARGE)
    with store.open(hashlib.sha256(LARGE).hexdigest()) as file:
        start = file.read(1000)
        minio.kill()
        try:
            with pytest.raises(Unavailable) as cut:
                file.read()
            assert is_told_to_repeat(cut.value)
            for operation in OPERATIONS.values():
                with pytest.raises(Unavailable) as told:
                    operation(store)
                assert is_told_to_repeat(told.value)
        finally:
            minio.start()
        file.seek(1000)
        assert start + file.read() == LARGE
    for operation in OPERATIONS.values():
        operation(store)
    assert store.size(OTHER) is None
    assert set(store.digests()) == {DIGEST, hashlib.sha256(LARGE).hexdigest()}


async def test_calls_while_minio_is_down_are_told_to_repeat_and_the_same_calls_work_once_it_is_back(
    minio: MinioServer, tmp_path: Path
) -> None:
    async with running(tmp_path, **values(minio.bucket())) as client:
        await client.write(DATA)
        model, module = onnx_model(), modules_pb2.Module(sha256=DIGEST, model_version="projects/p/models/m/versions/v")
        calls: list[Callable[[], object]] = [
            lambda: client.read(DIGEST),
            lambda: client.write(b"new"),
            lambda: client.models.ImportModel(requests(model)),
            lambda: client.modules.CreateModule(modules_pb2.CreateModuleRequest(parent="projects/p", module=module)),
        ]
        minio.kill()
        try:
            for call in calls:
                assert is_told_to_repeat(await error_of(call()))
        finally:
            minio.start()
        for call in calls:
            await call()  # type: ignore[misc]
        assert await client.read(hashlib.sha256(model).hexdigest()) == model


async def devices_are_listed(client: Client) -> bool:
    listed = await client.devices.ListDevices(devices_pb2.ListDevicesRequest(parent="projects/p"))
    return not listed.devices


async def test_calls_that_wait_for_a_bucket_hold_up_no_others(minio: MinioServer, tmp_path: Path) -> None:
    """A MinIO that is frozen takes calls and answers none; more wait than the event loop has threads."""
    async with running(tmp_path, **values(minio.bucket())) as client:
        await client.write(DATA)
        with minio.frozen():
            waiting = [asyncio.ensure_future(client.read(DIGEST)) for _ in range(40)]
            async with asyncio.timeout(WAIT):
                for _ in range(5):
                    assert await devices_are_listed(client)
            assert not any(read.done() for read in waiting)
        assert all(data == DATA for data in await asyncio.gather(*waiting))


async def test_a_writer_that_waits_for_a_shared_bucket_holds_up_no_other_writer(
    bucket: BucketServer, tmp_path: Path
) -> None:
    arrived, let_go = threading.Event(), threading.Event()

    def hold_first(request: Request) -> bool:
        if request.command == "PUT" and request.path.endswith(DIGEST[2:]):
            arrived.set()
            let_go.wait()
        return False

    bucket.fault = hold_first
    async with running(tmp_path, **values(bucket.settings())) as client:
        first = asyncio.ensure_future(client.write(DATA))
        try:
            assert await asyncio.to_thread(arrived.wait, WAIT)
            assert await client.write(b"other") == OTHER
            assert not first.done()
        finally:
            let_go.set()
        assert await first == DIGEST


async def test_writers_to_a_folder_take_turns(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        data = [bytes([index]) * 100_000 for index in range(8)]
        digests = await asyncio.gather(*(client.write(part) for part in data))
        assert [await client.read(digest) for digest in digests] == data
        versions = await client.models.ListModels(models_pb2.ListModelsRequest(parent="projects/p"))
    assert not versions.models


def settings(folder: Path, bucket: S3Settings) -> RegistrySettings:
    return RegistrySettings(_env_file=None, state_dir=folder, listen="127.0.0.1:0", grace_seconds=0, **values(bucket))


async def test_a_registry_that_starts_before_its_minio_waits_for_it_and_says_so_once(
    minio: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[S3Settings] = []

    def opened(wanted: S3Settings) -> S3Store:
        attempts.append(wanted)
        if len(attempts) == 3:
            minio.start()
        return S3Store(wanted)

    monkeypatch.setattr(app, "S3Store", opened)
    minio.kill()
    with capture_logs() as logs:
        registry = await asyncio.to_thread(build_registry, settings(tmp_path, minio.bucket()))
    async with registry:
        assert registry.address
    assert len(attempts) == 3
    (told,) = [entry for entry in logs if "waiting" in entry["event"]]
    assert "BUCKET_UNAVAILABLE" in told["error"]
    assert minio.endpoint.rpartition(":")[2] in told["error"]


@pytest.mark.parametrize("fault", [bucket_server.slow_down, bucket_server.no_answer], ids=lambda fault: fault.__name__)
async def test_a_registry_waits_for_a_bucket_that_goes_away_while_it_starts(
    bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """The removal of what nothing refers to, before calls are taken, is tried again."""
    attempts: list[int] = []

    def swept(*arguments: object) -> int:
        attempts.append(len(attempts))
        bucket.fault = fault if len(attempts) < 3 else None
        return real(*arguments)  # type: ignore[arg-type]

    real = app.sweep
    monkeypatch.setattr(app, "sweep", swept)
    async with running(tmp_path, **values(bucket.settings())) as client:
        assert await client.write(DATA) == DIGEST
    assert len(attempts) == 3


async def test_a_registry_whose_bucket_stays_away_fails_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "PATIENCE_SECONDS", 0.3)
    with bucket_server.bucket_running() as gone:
        wanted = settings(tmp_path, gone.settings())
    with pytest.raises(Unavailable) as told:
        await asyncio.to_thread(build_registry, wanted)
    assert is_told_to_repeat(told.value)
