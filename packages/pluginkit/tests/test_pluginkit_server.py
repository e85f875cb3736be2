"""A real plugin process and its workers: the journey, and every fault a tool can have."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from tinymlaas.plugin.v1 import (
    compiler_pb2,
    compiler_pb2_grpc,
    importer_pb2,
    optimizer_pb2,
    profiler_pb2,
    stream_pb2,
)
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_pluginkit import (
    LogEvent,
    PluginClient,
    ProgressEvent,
    options_to_struct,
)
from tinymlaas_pluginkit.client import outputs_of
from tinymlaas_servicekit import ServiceError, ServiceSettings, connect, from_rpc_error, from_status

PLUGIN = Path(__file__).parent / "sample_plugin_for_kit.py"
WAIT = 120


async def _until(condition, seconds: float = WAIT) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (other processes make it true)
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def _running(folder: Path, ready: bool = True, **environment: str) -> AsyncIterator[PluginClient]:
    """A sample plugin in a process of its own, and a client to it."""
    address = folder / "address"
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PLUGIN),
            env={**os.environ, "TINYMLAAS_ADDRESS_FILE": str(address), "TINYMLAAS_GRACE_SECONDS": "0", **environment},
            stderr=log,
        )
    try:
        await _until(address.exists)
        async with PluginClient(address.read_text().strip()) as client:
            if ready:
                async with asyncio.timeout(WAIT):
                    while not await client.probe():  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(WAIT):
            await process.wait()


def _header(**options: object) -> compiler_pb2.CompileHeader:
    header = compiler_pb2.CompileHeader(model_format=tensor_pb2.MODEL_FORMAT_ONNX, options=options_to_struct(options))
    header.target.cpu, header.target.isa = "cortex-m4", "armv7e-m"
    return header


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one plugin, for tests that leave it as it was."""
    address = tmp_path_factory.mktemp("plugin") / "address"
    environment = {**os.environ, "TINYMLAAS_ADDRESS_FILE": str(address), "TINYMLAAS_GRACE_SECONDS": "0"}
    process = subprocess.Popen([sys.executable, str(PLUGIN)], env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT
        while not address.exists() and time.monotonic() < end:
            time.sleep(0.02)
        yield address.read_text().strip()
    finally:
        process.terminate()
        process.wait(WAIT)


async def _error(awaitable) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await awaitable
    return caught.value


async def _until_free(client: PluginClient) -> None:
    """Compiles as soon as the server has seen that an earlier call was cancelled."""
    async with asyncio.timeout(WAIT):
        while True:
            try:
                assert (await client.compile(_header(), b"model").finish()).blobs["payload"] == b"1:model"
                return
            except ServiceError as error:
                if error.metadata.get("limit") != "max_concurrency":
                    raise


def _environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _siblings_of(pid: int) -> list[int]:
    """All processes that were started by the one that started this one."""
    parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_every_role_does_its_work(sample: str) -> None:
    async with PluginClient(sample) as client:
        info, capabilities = await client.info(), await client.capabilities()
        assert (info.name, info.vendor_version, info.contract_version) == ("io.example.sample", "1.2.3", "1.0")
        roles = ["role.compiler", "role.importer", "role.optimizer", "role.profiler", "x.some.hint"]
        assert list(capabilities.capabilities) == roles
        assert list((await client.compiler_targets()).targets[0].isas) == ["armv7e-m"]
        assert '"level"' in await client.compiler_option_schema()
        assert await client.optimizer_option_schema() == ""
        assert len(await client.conversions()) == 1
        assert list((await client.profiler_targets()).references) == [tensor_pb2.REFERENCE_ONNX]

        events: list[ProgressEvent | LogEvent] = []
        model = os.urandom(3_000_000)
        compiled = await client.compile(_header(level=2), model).finish(events.append)
        assert compiled.blobs == {"payload": b"2:" + model, "report": b"a report"}
        assert ProgressEvent("think", 0.25) in events
        assert [e for e in events if isinstance(e, LogEvent)] == [
            LogEvent("warning", "one"),
            LogEvent("warning", "two"),
        ]

        verdict = await client.check_model(_header(), b"GELU").finish()
        assert not verdict.result.supported
        error = from_status(verdict.result.error)
        assert (error.reason, error.metadata["count"]) == ("OP_UNSUPPORTED", "2")
        assert (await client.check_model(_header(), b"fine").finish()).result.supported

        conversion = importer_pb2.ImportHeader(
            conversion={"from": tensor_pb2.MODEL_FORMAT_TFLITE, "to": tensor_pb2.MODEL_FORMAT_ONNX}
        )
        assert (await client.import_model(conversion, b"abc").finish()).blobs == {"model": b"cba"}
        wish = optimizer_pb2.OptimizeHeader(model_format=tensor_pb2.MODEL_FORMAT_ONNX)
        assert (await client.optimize(wish, b"m", b"cal").finish()).blobs == {"model": b"mcal"}
        assert (await client.optimize(wish, b"m").finish()).blobs == {"model": b"m"}

        inputs = profiler_pb2.InputSet(samples=[{"tensors": [b"abcd"]}])
        profile = profiler_pb2.ProfileHeader(target=_header().target, parts=compiled.result)
        assert outputs_of(await client.profile(profile, compiled.blobs["payload"], inputs).finish()) == inputs
        reference = profiler_pb2.RunReferenceHeader(
            model_format=tensor_pb2.MODEL_FORMAT_ONNX, reference=tensor_pb2.REFERENCE_ONNX
        )
        assert outputs_of(await client.run_reference(reference, b"m", inputs).finish()) == inputs


async def test_the_same_request_gives_the_same_bytes(sample: str) -> None:
    async with PluginClient(sample) as client:
        first = await client.compile(_header(), b"model").finish()
        await _error(client.compile(_header(fault="exit"), b"model").finish())
        assert await client.compile(_header(), b"model").finish() == first


@pytest.mark.parametrize(
    ("fault", "code", "reason", "metadata"),
    [
        ("crash", "INTERNAL", "COMPILER_CRASH", {"signal": "SIGSEGV"}),
        ("exit", "INTERNAL", "COMPILER_CRASH", {"exit": "7"}),
        ("exception", "INTERNAL", "COMPILER_CRASH", {"exception": "RuntimeError: secret place /etc/x"}),
        ("wrong-type", "INTERNAL", "COMPILER_CRASH", {}),
        ("garbage", "INTERNAL", "COMPILER_CRASH", {}),
        ("memory", "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED", {"limit": "memory_bytes"}),
    ],
)
async def test_a_tool_that_fails_fails_one_call_and_the_next_succeeds(
    sample: str, fault: str, code: str, reason: str, metadata: dict[str, str]
) -> None:
    async with PluginClient(sample) as client:
        error = await _error(client.compile(_header(fault=fault), b"model").finish())
        assert (error.code, error.reason) == (code, reason)
        assert metadata.items() <= error.metadata.items()
        assert "Traceback" not in str(error) + str(error.metadata)
        assert await client.probe()
        assert (await client.compile(_header(), b"model").finish()).blobs["payload"] == b"1:model"


async def test_a_crash_tells_the_last_log_lines(sample: str) -> None:
    async with PluginClient(sample) as client:
        error = await _error(client.compile(_header(fault="crash"), b"model").finish())
    assert error.metadata["log"].endswith("about to fall")


async def test_a_traceback_goes_to_the_plugins_own_log(tmp_path: Path) -> None:
    async with _running(tmp_path) as client:
        await _error(client.compile(_header(fault="exception"), b"model").finish())
    assert "Traceback" in (tmp_path / "log").read_text()


async def test_the_authors_errors_reach_the_caller(sample: str) -> None:
    async with PluginClient(sample) as client:
        error = await _error(client.compile(_header(), b"BAD").finish())
    assert (error.code, error.reason, error.metadata["where"]) == ("INVALID_ARGUMENT", "MODEL_INVALID", "byte 0")


@pytest.mark.parametrize(
    ("options", "reason", "metadata"),
    [
        ({"levle": 1}, "OPTION_UNKNOWN", {"option": "levle", "nearest": "level"}),
        ({"zzz": 1}, "OPTION_UNKNOWN", {"option": "zzz", "nearest": ""}),
        ({"level": 9}, "OPTION_INVALID", {"option": "level"}),
        ({"level": "high"}, "OPTION_INVALID", {"option": "level"}),
    ],
)
async def test_options_are_checked_before_the_tool_sees_them(
    sample: str, options: dict[str, object], reason: str, metadata: dict[str, str]
) -> None:
    async with PluginClient(sample) as client:
        error = await _error(client.compile(_header(**options), b"model").finish())
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason)
    assert metadata.items() <= error.metadata.items()


async def test_formats_conversions_and_sizes_beyond_what_was_told_are_refused(sample: str) -> None:
    async with PluginClient(sample) as client:
        header = _header()
        header.model_format = tensor_pb2.MODEL_FORMAT_TFLITE
        assert (await _error(client.compile(header, b"model").finish())).reason == "FORMAT_UNSUPPORTED"
        conversion = importer_pb2.ImportHeader(
            conversion={"from": tensor_pb2.MODEL_FORMAT_KERAS, "to": tensor_pb2.MODEL_FORMAT_ONNX}
        )
        assert (await _error(client.import_model(conversion, b"m").finish())).reason == "FORMAT_UNSUPPORTED"
        error = await _error(client.compile(_header(), bytes((4 << 20) + 1)).finish())
    assert (error.reason, error.metadata["limit"]) == ("LIMIT_EXCEEDED", "max_model_bytes")


async def test_a_call_beyond_the_concurrency_is_refused_at_once(sample: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    async with PluginClient(sample) as client:
        hanging = asyncio.create_task(client.compile(_header(fault="hang", marker=str(marker)), b"model").finish())
        await _until(marker.exists)
        error = await _error(client.compile(_header(), b"model").finish())
        assert (error.code, error.metadata["limit"]) == ("RESOURCE_EXHAUSTED", "max_concurrency")
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await _until_free(client)


@pytest.mark.parametrize("fault", ["hang", "child"])
async def test_cancelling_kills_the_tool_with_its_children_and_frees_its_place(
    sample: str, tmp_path: Path, fault: str
) -> None:
    marker = tmp_path / "marker"
    async with PluginClient(sample) as client:
        call = asyncio.create_task(client.compile(_header(fault=fault, marker=str(marker)), b"model").finish())
        await _until(lambda: marker.exists() and marker.read_text() != "")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        pid = int(marker.read_text())
        await _until(lambda: _gone(pid))
        await _until_free(client)


async def test_a_worker_that_dies_idle_is_replaced_unnoticed(sample: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    async with PluginClient(sample) as client:
        await client.compile(_header(fault="tell-pid", marker=str(marker)), b"model").finish()
        pid = int(marker.read_text())
        os.kill(pid, signal.SIGKILL)
        # At once: whether or not the server has noticed.
        assert (await client.compile(_header(), b"model").finish()).blobs["payload"] == b"1:model"
        await _until(lambda: _gone(pid))


async def test_a_call_that_takes_longer_than_was_told_is_ended(tmp_path: Path) -> None:
    async with _running(tmp_path, SAMPLE_SECONDS="1") as client:
        error = await _error(client.compile(_header(fault="hang", marker=str(tmp_path / "m")), b"model").finish())
    assert (error.code, error.reason, error.metadata["limit"]) == (
        "RESOURCE_EXHAUSTED",
        "LIMIT_EXCEEDED",
        "max_seconds",
    )


async def test_what_the_tool_prints_is_bounded(sample: str) -> None:
    events: list[ProgressEvent | LogEvent] = []
    async with PluginClient(sample) as client:
        await client.compile(_header(fault="chatter"), b"model").finish(events.append)
    lines = [e for e in events if isinstance(e, LogEvent)]
    assert len(lines) == 5001
    assert lines[-1].level == "warning"


async def test_probe_answers_while_workers_load_and_calls_wait_for_them(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with _running(tmp_path, ready=False, SAMPLE_GATE=str(gate)) as client:
        assert await client.probe() is False
        assert (await client.info()).name == "io.example.sample"
        call = asyncio.create_task(client.compile(_header(), b"model").finish())
        assert await client.probe() is False
        gate.touch()
        assert (await call).blobs["payload"] == b"1:model"
        assert await client.probe() is True


async def test_workers_that_cannot_start_make_probe_an_error(tmp_path: Path) -> None:
    async with _running(tmp_path, ready=False, SAMPLE_BROKEN="1") as client:
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    assert await client.probe() is False
                except ServiceError as error:
                    seen = (error.code, error.reason)
                    break
                await asyncio.sleep(0.05)
        assert seen == ("UNAVAILABLE", "NOT_READY")
        assert (await _error(client.compile(_header(), b"model").finish())).reason == "NOT_READY"


async def test_a_second_worker_starts_when_two_jobs_come_at_a_time(tmp_path: Path) -> None:
    markers = [tmp_path / "first", tmp_path / "second"]
    async with _running(tmp_path, SAMPLE_CONCURRENCY="2") as client:
        await client.compile(_header(fault="tell-pid", marker=str(tmp_path / "alone")), b"model").finish()
        alone = int((tmp_path / "alone").read_text())
        assert _siblings_of(alone) == [alone]
        headers = [_header(fault="hang", marker=str(marker)) for marker in markers]
        calls = [asyncio.create_task(client.compile(header, b"model").finish()) for header in headers]
        await _until(lambda: all(marker.exists() and marker.read_text() for marker in markers))
        assert alone in {int(marker.read_text()) for marker in markers}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_workers_end_when_their_server_is_killed(tmp_path: Path) -> None:
    marker, address = tmp_path / "marker", tmp_path / "address"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PLUGIN),
        env={**os.environ, "TINYMLAAS_ADDRESS_FILE": str(address)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    await _until(address.exists)
    async with PluginClient(address.read_text().strip()) as client:
        call = asyncio.create_task(client.compile(_header(fault="hang", marker=str(marker)), b"model").finish())
        await _until(lambda: marker.exists() and marker.read_text() != "")
        process.kill()
        assert (await _error(call)).reason == "PLUGIN_UNAVAILABLE"
    await process.wait()
    pid = int(marker.read_text())
    await _until(lambda: _gone(pid))


async def test_a_worker_gets_no_credentials(tmp_path: Path) -> None:
    """The token of the plugin server is not in the environment of its workers."""
    marker = tmp_path / "marker"
    async with (
        _running(tmp_path, ready=False, TINYMLAAS_TOKEN="s3cret") as nameless,
        PluginClient(nameless.address, token="s3cret") as client,
    ):
        call = asyncio.create_task(client.compile(_header(fault="hang", marker=str(marker)), b"model").finish())
        await _until(lambda: marker.exists() and marker.read_text() != "")
        assert b"s3cret" not in _environment_of(int(marker.read_text()))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_silence_of_the_tool_is_filled_with_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN.parent))
    plugin = importlib.import_module("sample_plugin_for_kit").plugin

    settings = ServiceSettings(_env_file=None, listen="127.0.0.1:0", grace_seconds=0)
    async with plugin.server(settings, heartbeat_seconds=0.05) as server, PluginClient(server.address) as client:
        events: list[ProgressEvent | LogEvent] = []
        await client.compile(_header(fault="quiet"), b"model").finish(events.append)
    assert events.count(ProgressEvent("think", 0.25)) >= 3


def _requests(*parts: dict[str, object]) -> list[compiler_pb2.CompileRequest]:
    return [compiler_pb2.CompileRequest(**part) for part in parts]


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


GOOD = {"model_sha256": _sha(b"model"), "model_bytes": 5}


def _raw_header(**fields: object) -> dict[str, object]:
    header = _header()
    for name, value in {**GOOD, **fields}.items():
        setattr(header, name, value)
    return {"header": header}


def _chunk(data: bytes, sha256: bytes = b"", blob: str = "model") -> dict[str, object]:
    return {"chunk": stream_pb2.Chunk(blob=blob, data=data, sha256=sha256)}


@pytest.mark.parametrize(
    ("requests", "reason", "clause"),
    [
        (_requests(), "STREAM_INVALID", "CP-STREAM-001"),
        (_requests(_chunk(b"model", _sha(b"model"))), "STREAM_INVALID", "CP-STREAM-001"),
        (_requests(_raw_header(), _raw_header()), "STREAM_INVALID", "CP-STREAM-001"),
        (_requests(_raw_header(model_sha256=b"short")), "STREAM_INVALID", "CP-STREAM-002"),
        (_requests(_raw_header(), _chunk(b"model", _sha(b"model"), "weights")), "STREAM_INVALID", "CP-STREAM-003"),
        (_requests(_raw_header(), _chunk(b"mo"), _chunk(b"del", blob="other")), "STREAM_INVALID", "CP-STREAM-003"),
        (_requests(_raw_header(), *[_chunk(b"model", _sha(b"model"))] * 2), "STREAM_INVALID", "CP-STREAM-003"),
        (_requests(_raw_header()), "STREAM_INVALID", "CP-STREAM-004"),
        (_requests(_raw_header(), _chunk(b"mo")), "STREAM_INVALID", "CP-STREAM-004"),
        (_requests(_raw_header(), _chunk(bytes((1 << 20) + 1))), "LIMIT_EXCEEDED", ""),
        (_requests(_raw_header(), _chunk(b"model", _sha(b"other"))), "DIGEST_MISMATCH", ""),
        (_requests(_raw_header(), _chunk(b"modem", _sha(b"modem"))), "DIGEST_MISMATCH", ""),
        (_requests(_raw_header(), _chunk(b"model and more")), "DIGEST_MISMATCH", ""),
        (_requests(_raw_header(), _chunk(b"mod", _sha(b"mod"))), "DIGEST_MISMATCH", ""),
        (_requests(_raw_header(model_bytes=0)), "FIELD_INVALID", ""),
    ],
)
async def test_a_stream_that_breaks_the_order_is_refused_with_its_clause(
    sample: str, requests: list[compiler_pb2.CompileRequest], reason: str, clause: str
) -> None:
    async with connect(sample) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            async for _ in compiler_pb2_grpc.CompilerStub(channel).Compile(iter(requests)):
                pass
    error = from_rpc_error(caught.value)
    assert error.reason == reason, error
    assert error.metadata.get("clause", "") == clause
    async with PluginClient(sample) as client:
        assert (await client.compile(_header(), b"model").finish()).blobs["payload"] == b"1:model"
