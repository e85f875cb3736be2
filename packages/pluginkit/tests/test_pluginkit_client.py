"""The client against hostile plugins: a correct scripted server, and mutants of it, each broken in one way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tinymlaas.module.v1 import certificate_pb2
from tinymlaas.plugin.v1 import (
    compiler_pb2,
    compiler_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    profiler_pb2,
    profiler_pb2_grpc,
    stream_pb2,
)
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_pluginkit import ClientLimits, LogEvent, PluginClient, ProgressEvent, parse_schema, request_digest
from tinymlaas_pluginkit._rpcs import RPCS
from tinymlaas_pluginkit.client import PluginCall
from tinymlaas_pluginkit.errors import PluginProtocol
from tinymlaas_servicekit import ServiceError

PAYLOAD = b"machine code"
LIMITS = ClientLimits(
    identity_seconds=1.0,
    silence_seconds=0.5,
    call_seconds=5.0,
    max_output_bytes=4 << 20,
    max_messages=200,
    max_log_lines=50,
    max_log_bytes=20_000,
)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def result(**fields: Any) -> compiler_pb2.CompileResult:
    """A correct result for PAYLOAD; `fields` replace."""
    tensor = tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[1, 4])
    made = compiler_pb2.CompileResult(
        **{
            "payload_kind": target_pb2.PAYLOAD_KIND_NATIVE,
            "payload_sha256": sha(PAYLOAD),
            "payload_bytes": len(PAYLOAD),
            "isa": "armv7e-m",
            "arena_bytes": 64,
            "arena_alignment": 16,
            "stack_bytes": 32,
            "inputs": [tensor],
            "outputs": [tensor],
            "certificate": certificate_pb2.MemoryCertificate(arena_bytes=64, stack_bytes=32),
            **fields,
        }
    )
    if "numerics" not in fields:
        numerics = {"class": tensor_pb2.Numerics.CLASS_BIT_EXACT, "reference": tensor_pb2.REFERENCE_ONNX}
        made.numerics.CopyFrom(tensor_pb2.Numerics(**numerics))
    return made


def chunk(data: bytes = PAYLOAD, blob: str = "payload", sha256: bytes | None = None) -> compiler_pb2.CompileResponse:
    digest = sha(data) if sha256 is None else sha256
    return compiler_pb2.CompileResponse(chunk=stream_pb2.Chunk(blob=blob, data=data, sha256=digest))


def progress(fraction: float, step: str = "s") -> compiler_pb2.CompileResponse:
    return compiler_pb2.CompileResponse(progress=stream_pb2.Progress(step=step, fraction=fraction))


def line(text: str) -> compiler_pb2.CompileResponse:
    return compiler_pb2.CompileResponse(log=stream_pb2.LogLine(text=text))


def end(**fields: Any) -> compiler_pb2.CompileResponse:
    return compiler_pb2.CompileResponse(result=result(**fields))


def tensor(**fields: Any) -> list[tensor_pb2.TensorSpec]:
    return [tensor_pb2.TensorSpec(**{"name": "x", "dtype": tensor_pb2.DATA_TYPE_INT8, "shape": [4], **fields})]


def _status(code: str, reason: str | None, message: str = "no") -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    if reason is not None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="example.com", metadata={"op": "Gelu\x1b[31m"}))
        status.details.append(detail)
    return status


class Scripted(
    identity_pb2_grpc.PluginIdentityServicer, compiler_pb2_grpc.CompilerServicer, profiler_pb2_grpc.ProfilerServicer
):
    """Says what the test tells it to say; a plain gRPC server without any of our kits."""

    def __init__(self) -> None:
        self.info = identity_pb2.GetPluginInfoResponse(name="io.example.x", vendor_version="1", contract_version="1.0")
        self.capabilities = identity_pb2.GetPluginCapabilitiesResponse(capabilities=["role.compiler"])
        self.capabilities.limits.max_model_bytes = self.capabilities.limits.max_seconds = 1000
        self.capabilities.limits.max_concurrency = 1
        self.script: Callable[[Any], AsyncIterator[Any]] | None = None
        self.cancelled = asyncio.Event()

    async def GetPluginInfo(self, request, context):
        return self.info

    async def GetPluginCapabilities(self, request, context):
        return self.capabilities

    async def Probe(self, request, context):
        await asyncio.Event().wait()

    async def Compile(self, request_iterator, context):
        async for _ in request_iterator:
            pass
        try:
            async for message in self.script(context):
                await context.write(message)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Profile(self, request_iterator, context):
        async for _ in request_iterator:
            pass
        async for message in self.script(context):
            await context.write(message)


@contextlib.asynccontextmanager
async def plugin(
    script: Callable[[Any], AsyncIterator[Any]] | None = None,
) -> AsyncIterator[tuple[PluginClient, Scripted]]:
    server, servicer = grpc.aio.server(futures.ThreadPoolExecutor(1)), Scripted()
    servicer.script = script
    identity_pb2_grpc.add_PluginIdentityServicer_to_server(servicer, server)
    compiler_pb2_grpc.add_CompilerServicer_to_server(servicer, server)
    profiler_pb2_grpc.add_ProfilerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with PluginClient(f"127.0.0.1:{port}", limits=LIMITS) as client:
            yield client, servicer
    finally:
        await server.stop(0)


def saying(*messages: Any) -> Callable[[Any], AsyncIterator[Any]]:
    async def script(context: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message

    return script


def header() -> compiler_pb2.CompileHeader:
    made = compiler_pb2.CompileHeader(model_format=tensor_pb2.MODEL_FORMAT_ONNX)
    made.target.cpu, made.target.isa = "cortex-m4", "armv7e-m"
    return made


async def breach(*messages: Any) -> ServiceError:
    async with plugin(saying(*messages)) as (client, _):
        with pytest.raises(ServiceError) as caught:
            await client.compile(header(), b"model").finish()
    return caught.value


async def test_a_correct_plugin_passes() -> None:
    events: list[ProgressEvent | LogEvent] = []
    messages = [progress(0.5, "a\x1b[2Jb\n"), line("x"), progress(-1), progress(1.0), chunk(), end()]
    async with plugin(saying(*messages)) as (client, _):
        outcome = await client.compile(header(), b"model").finish(events.append)
        assert outcome.blobs == {"payload": PAYLOAD}
        assert outcome.result == result()
        assert events == [
            ProgressEvent("ab", 0.5),
            LogEvent("info", "x"),
            ProgressEvent("s", None),
            ProgressEvent("s", 1.0),
        ]
        assert (await client.info()).name == "io.example.x"
        assert list((await client.capabilities()).capabilities) == ["role.compiler"]


MUTANTS: dict[str, tuple[str, list[Any]]] = {
    "no result": ("CP-STREAM-010", [chunk()]),
    "message after the result": ("CP-STREAM-010", [chunk(), end(), progress(1)]),
    "two results": ("CP-STREAM-010", [chunk(), end(), end()]),
    "empty message": ("CP-STREAM-009", [compiler_pb2.CompileResponse()]),
    "unknown blob": ("CP-STREAM-003", [chunk(blob="virus")]),
    "blob twice": ("CP-STREAM-003", [chunk(), chunk(), end()]),
    "interleaved blobs": ("CP-STREAM-003", [chunk(sha256=b""), chunk(blob="report")]),
    "result inside of a blob": ("CP-STREAM-004", [chunk(sha256=b""), end()]),
    "large chunk": ("CP-STREAM-005", [chunk(bytes((1 << 20) + 1))]),
    "long line": ("CP-STREAM-006", [line("x" * 4097)]),
    "fraction over 1": ("CP-STREAM-007", [progress(1.5)]),
    "fraction is no number": ("CP-STREAM-007", [progress(float("nan"))]),
    "fraction goes back": ("CP-STREAM-007", [progress(0.5), progress(0.4)]),
    "flood of messages": ("CP-LIMIT-005", [progress(-1)] * 201),
    "flood of lines": ("CP-LIMIT-005", [line("x")] * 51),
    "flood of log bytes": ("CP-LIMIT-005", [line("x" * 4000)] * 6),
    "flood of bytes": ("CP-LIMIT-005", [chunk(bytes(1 << 20), sha256=b"")] * 5),
    "no payload": ("CP-COMPILE-002", [end()]),
    "no payload kind": ("CP-COMPILE-003", [chunk(), end(payload_kind=0)]),
    "no numerics": ("CP-COMPILE-003", [chunk(), end(numerics=None)]),
    "no outputs": ("CP-COMPILE-004", [chunk(), end(outputs=[])]),
    "zero dimension": ("CP-COMPILE-004", [chunk(), end(inputs=tensor(shape=[0]))]),
    "unknown element type": ("CP-COMPILE-004", [chunk(), end(inputs=tensor(dtype=99))]),
    "no arena": ("CP-COMPILE-005", [chunk(), end(arena_bytes=0)]),
    "odd alignment": ("CP-COMPILE-005", [chunk(), end(arena_alignment=12)]),
    "no instruction set": ("CP-COMPILE-006", [chunk(), end(isa="")]),
    "entry outside": ("CP-COMPILE-006", [chunk(), end(entry_offset=len(PAYLOAD))]),
    "no certificate": ("CP-COMPILE-007", [chunk(), end(certificate=None)]),
    "certificate of another arena": ("CP-COMPILE-007", [chunk(), end(arena_bytes=128)]),
    "tensor outside of the arena": ("CP-COMPILE-008", [chunk(), end(inputs=tensor(arena_offset=64))]),
    "tensor at an odd offset": ("CP-COMPILE-008", [chunk(), end(inputs=tensor(arena_offset=2))]),
    "symbol outside": ("CP-COMPILE-009", [chunk(), end(symbols=[{"symbol": "f", "offset": 10, "bytes": 10}])]),
}


@pytest.mark.parametrize(("clause", "messages"), MUTANTS.values(), ids=MUTANTS.keys())
async def test_a_mutant_fails_on_its_clause(clause: str, messages: list[Any]) -> None:
    error = await breach(*messages)
    assert (error.code, error.reason) == ("INTERNAL", "PLUGIN_PROTOCOL"), error
    assert error.metadata["clause"] == clause


@pytest.mark.parametrize(
    "messages",
    [
        [chunk(sha256=bytes(32)), end()],
        [chunk(), end(payload_sha256=bytes(32))],
        [chunk(), end(payload_bytes=1)],
        [chunk(b"other"), end()],
    ],
)
async def test_a_digest_that_lies_is_data_loss(messages: list[Any]) -> None:
    error = await breach(*messages)
    assert (error.code, error.reason) == ("DATA_LOSS", "DIGEST_MISMATCH")


async def test_a_silent_plugin_is_cut_off_and_sees_it() -> None:
    async def script(context: Any) -> AsyncIterator[Any]:
        yield progress(0.1)
        await asyncio.Event().wait()

    async with plugin(script) as (client, servicer):
        with pytest.raises(ServiceError) as caught:
            await client.compile(header(), b"model").finish()
        assert (caught.value.reason, caught.value.metadata["clause"]) == ("PLUGIN_TIMEOUT", "CP-STREAM-008")
        async with asyncio.timeout(30):
            await servicer.cancelled.wait()


async def test_a_plugin_that_only_sends_heartbeats_meets_its_deadline() -> None:
    async def script(context: Any) -> AsyncIterator[Any]:
        while True:
            yield progress(-1)
            await asyncio.sleep(0.05)

    async with plugin(script) as (client, _):
        with pytest.raises(ServiceError) as caught:
            await client.compile(header(), b"model", seconds=0.3).finish()
    assert (caught.value.code, caught.value.metadata["clause"]) == ("DEADLINE_EXCEEDED", "CP-LIMIT-004")


async def test_a_cancel_in_the_moment_in_which_a_message_comes_is_not_lost() -> None:
    """What asyncio.wait_for of Python 3.11 does: a result that is there already wins over the cancellation."""
    consumer: asyncio.Task[Any] | None = None

    class Call:
        async def read(self) -> Any:
            await asyncio.sleep(0)
            assert consumer is not None
            consumer.cancel()
            return progress(0.1)

        def cancel(self) -> None:
            self.cancelled = True

    call = Call()
    seen: list[Any] = []
    work: PluginCall[Any] = PluginCall(RPCS["compile"], lambda seconds: call, LIMITS, 5.0, lambda result, blobs: None)
    consumer = asyncio.create_task(work.finish(seen.append))
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert len(seen) <= 1
    assert call.cancelled


async def test_leaving_the_events_cancels_the_call() -> None:
    async def script(context: Any) -> AsyncIterator[Any]:
        yield progress(0.1)
        await asyncio.Event().wait()

    async with plugin(script) as (client, servicer):
        async with contextlib.aclosing(client.compile(header(), b"model").__aiter__()) as events:
            assert await anext(events) == ProgressEvent("s", 0.1)
        async with asyncio.timeout(30):
            await servicer.cancelled.wait()


async def test_bytes_that_are_no_message_are_a_breach() -> None:
    async def garbage(request_iterator: Any, context: Any) -> AsyncIterator[bytes]:
        async for _ in request_iterator:
            pass
        yield b"\xff" * 64

    async def garbage_answer(request: Any, context: Any) -> bytes:
        return b"\xff" * 64

    server = grpc.aio.server()
    handlers = {"Compile": grpc.stream_stream_rpc_method_handler(garbage)}
    identity = {"GetPluginInfo": grpc.unary_unary_rpc_method_handler(garbage_answer)}
    generic = grpc.method_handlers_generic_handler
    server.add_generic_rpc_handlers(
        (
            generic("tinymlaas.plugin.v1.Compiler", handlers),
            generic("tinymlaas.plugin.v1.PluginIdentity", identity),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with PluginClient(f"127.0.0.1:{port}", limits=LIMITS) as client:
            with pytest.raises(ServiceError) as caught:
                await client.compile(header(), b"model").finish()
            assert (caught.value.reason, caught.value.metadata["clause"]) == ("PLUGIN_PROTOCOL", "CP-STREAM-009")
            with pytest.raises(ServiceError) as caught:
                await client.info()
            assert caught.value.metadata["clause"] == "CP-STREAM-009"
            with pytest.raises(ServiceError) as caught:
                await client.capabilities()
            assert caught.value.metadata["clause"] == "CP-IDENTITY-006"
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("code", "reason", "expected", "clause"),
    [
        ("FAILED_PRECONDITION", "OP_UNSUPPORTED", "OP_UNSUPPORTED", None),
        ("FAILED_PRECONDITION", "VENDOR_SPECIFIC", "VENDOR_SPECIFIC", None),
        ("INTERNAL", "OP_UNSUPPORTED", "PLUGIN_PROTOCOL", "CP-ERROR-002"),
        ("UNAUTHENTICATED", "LOG_IN_HERE", "PLUGIN_PROTOCOL", "CP-ERROR-003"),
        ("FAILED_PRECONDITION", None, "PLUGIN_PROTOCOL", "CP-ERROR-001"),
        ("UNIMPLEMENTED", None, "PLUGIN_PROTOCOL", "CP-IDENTITY-006"),
        ("UNAVAILABLE", None, "PLUGIN_UNAVAILABLE", None),
    ],
)
async def test_errors_are_taken_when_they_keep_to_the_table(
    code: str, reason: str | None, expected: str, clause: str | None
) -> None:
    async def script(context: Any) -> AsyncIterator[Any]:
        yield progress(0.1)
        await context.abort_with_status(rpc_status.to_status(_status(code, reason, "bad\x1b[31m\nnews")))

    async with plugin(script) as (client, _):
        with pytest.raises(ServiceError) as caught:
            await client.compile(header(), b"model").finish()
    assert caught.value.reason == expected
    assert caught.value.metadata.get("clause") == clause
    assert "\x1b" not in caught.value.message + str(caught.value.metadata)


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"name": "Upper.Case"}, "CP-IDENTITY-001"),
        ({"name": "nodots"}, "CP-IDENTITY-001"),
        ({"name": "a." + "b" * 63}, "CP-IDENTITY-001"),
        ({"name": ""}, "CP-IDENTITY-001"),
        ({"vendor_version": "1\n2"}, "CP-IDENTITY-002"),
        ({"contract_version": "2.0"}, "CP-VERSION-001"),
        ({"contract_version": "one"}, "CP-VERSION-001"),
    ],
)
async def test_an_identity_that_breaks_the_contract_is_refused(change: dict[str, str], clause: str) -> None:
    async with plugin() as (client, servicer):
        for field, value in change.items():
            setattr(servicer.info, field, value)
        with pytest.raises(PluginProtocol) as caught:
            await client.info()
    assert caught.value.clause == clause


async def test_capabilities_without_limits_or_with_strange_ones_are_refused() -> None:
    async with plugin() as (client, servicer):
        servicer.capabilities.capabilities.append("x.unknown.to.us")
        await client.capabilities()
        servicer.capabilities.capabilities.append("two words")
        with pytest.raises(PluginProtocol) as caught:
            await client.capabilities()
        assert caught.value.clause == "CP-IDENTITY-003"
        del servicer.capabilities.capabilities[:]
        servicer.capabilities.limits.max_concurrency = 0
        with pytest.raises(PluginProtocol) as caught:
            await client.capabilities()
        assert caught.value.clause == "CP-IDENTITY-004"


async def test_a_probe_without_an_answer_ends() -> None:
    async with plugin() as (client, _):
        with pytest.raises(ServiceError) as caught:
            await client.probe()
    assert caught.value.reason == "PLUGIN_TIMEOUT"


async def test_an_address_where_nothing_listens_is_unavailable() -> None:
    async with PluginClient("127.0.0.1:1", limits=LIMITS) as client:
        with pytest.raises(ServiceError) as caught:
            await client.info()
        assert caught.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        with pytest.raises(ServiceError) as caught:
            await client.compile(header(), b"model").finish()
        assert caught.value.reason in ("PLUGIN_UNAVAILABLE", "PLUGIN_TIMEOUT")


async def test_outputs_must_be_one_per_input() -> None:
    outputs = profiler_pb2.InputSet(samples=[{"tensors": [b"a"]}]).SerializeToString()

    def answer(data: bytes, digest: bytes) -> list[Any]:
        return [
            profiler_pb2.ProfileResponse(chunk=stream_pb2.Chunk(blob="outputs", data=data, sha256=sha(data))),
            profiler_pb2.ProfileResponse(result=profiler_pb2.ProfileResult(outputs_sha256=digest)),
        ]

    question = profiler_pb2.ProfileHeader(target=header().target, parts=result())
    inputs = profiler_pb2.InputSet(samples=[{"tensors": [b"a"]}, {"tensors": [b"b"]}])
    for data, digest, reason in (
        (outputs, sha(outputs), "PLUGIN_PROTOCOL"),
        (b"\xff" * 9, sha(b"\xff" * 9), "PLUGIN_PROTOCOL"),
        (outputs, bytes(32), "DIGEST_MISMATCH"),
    ):
        async with plugin(saying(*answer(data, digest))) as (client, _):
            with pytest.raises(ServiceError) as caught:
                await client.profile(question, PAYLOAD, inputs).finish()
            assert caught.value.reason == reason


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        '{"type": "object"}',
        '{"type": "object", "additionalProperties": false, "properties": {"a": {"type": "nonsense"}}}',
        '{"type": "object", "additionalProperties": false, "properties": {"a": {"$ref": "http://x"}}}',
        "[" * 100_000,
        '{"type": "object", "additionalProperties": false, "description": "%s"}' % ("x" * 300_000),
    ],
    ids=["cut", "array", "open", "no type", "ref", "deep", "large"],
)
def test_a_schema_that_breaks_the_contract_is_refused(schema: str) -> None:
    with pytest.raises(PluginProtocol) as caught:
        parse_schema(schema)
    assert caught.value.clause == "CP-OPTION-001"


def test_the_digest_of_a_request_ignores_order_and_labels_and_nothing_else() -> None:
    info = identity_pb2.GetPluginInfoResponse(name="io.example.x", vendor_version="1")
    one = target_pb2.Target(name="a", cpu="c", isa="i", features=["fpu-sp", "dsp"])
    two = target_pb2.Target(name="b", cpu="c", isa="i", features=["dsp", "fpu-sp", "dsp"])
    base = request_digest("compile", info, sha(b"m"), target=one, options={"a": 1, "b": 2})
    assert base == request_digest("compile", info, sha(b"m"), target=two, options={"b": 2, "a": 1})
    others = [
        request_digest("check", info, sha(b"m"), target=one, options={"a": 1, "b": 2}),
        request_digest("compile", info, sha(b"n"), target=one, options={"a": 1, "b": 2}),
        request_digest("compile", info, sha(b"m"), target=one, options={"a": 1, "b": 3}),
        request_digest(
            "compile", info, sha(b"m"), target=target_pb2.Target(cpu="c", isa="j"), options={"a": 1, "b": 2}
        ),
        request_digest("compile", info, sha(b"m"), target=one, options={"a": 1, "b": 2}, payload_kind=1),
        request_digest("compile", info, sha(b"m"), target=one, options={"a": 1, "b": 2}, more={"calibration": "x"}),
    ]
    assert len({base, *others}) == len(others) + 1
