"""A real server on loopback: errors, authentication, validation, streams, drain, addresses."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc, models_pb2, models_pb2_grpc
from tinymlaas_servicekit import (
    FailedPrecondition,
    GrpcServer,
    Internal,
    InvalidArgument,
    ServiceError,
    ServiceSettings,
    Unauthenticated,
    Unavailable,
    connect,
    current_principal,
    from_rpc_error,
)

pytestmark = pytest.mark.asyncio

MODEL = "projects/p/models/m"


class _CoreError(Exception):
    code, reason, metadata, help = "FAILED_PRECONDITION", "OP_UNSUPPORTED", {"op": "Gelu"}, "use another"


class _Models(models_pb2_grpc.ModelsServicer):
    async def GetModel(self, request, context):
        match request.name.rsplit("/", 1)[-1]:
            case "service-error":
                raise FailedPrecondition("does not fit", "DOES_NOT_FIT", {"need": 2})
            case "core-error":
                raise _CoreError("no Gelu")
            case "bug":
                raise RuntimeError("secret of the house")
            case "who":
                principal = current_principal()
                return models_pb2.Model(display_name=f"{principal.subject}/{principal.how}")
        return models_pb2.Model(name=request.name)

    async def ListModels(self, request, context):
        return models_pb2.ListModelsResponse()

    async def ImportModel(self, request_iterator, context):
        total = 0
        async for request in request_iterator:
            total += len(request.chunk.data)
        return models_pb2.ModelVersion(size_bytes=total)

    async def DeleteModel(self, request, context):
        return empty_pb2.Empty()


class _Artifacts(artifacts_pb2_grpc.ArtifactsServicer):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def ReadArtifact(self, request, context) -> AsyncIterator[artifacts_pb2.ReadArtifactResponse]:
        try:
            yield artifacts_pb2.ReadArtifactResponse(data=b"first")
            if request.offset == 1:
                raise FailedPrecondition("midway", "MIDWAY")
            while True:
                yield artifacts_pb2.ReadArtifactResponse(data=b"more")
        finally:
            self.ended.set()


def _settings(**values: object) -> ServiceSettings:
    return ServiceSettings(_env_file=None, **{"listen": "127.0.0.1:0", "grace_seconds": 0.0, **values})  # type: ignore[call-arg]


def _server(artifacts: _Artifacts | None = None, **values: object) -> GrpcServer:
    def register(server: grpc.aio.Server) -> list[str]:
        models_pb2_grpc.add_ModelsServicer_to_server(_Models(), server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(artifacts or _Artifacts(), server)
        return ["tinymlaas.registry.v1.Models", "tinymlaas.registry.v1.Artifacts"]

    return GrpcServer(_settings(**values), register)


async def _get(server: GrpcServer, name: str, token: str | None = None) -> models_pb2.Model:
    async with connect(server.address, token) as channel:
        return await models_pb2_grpc.ModelsStub(channel).GetModel(models_pb2.GetModelRequest(name=name))


async def _error(awaitable) -> ServiceError:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


async def test_a_service_error_reaches_the_client_whole() -> None:
    async with _server() as server:
        error = await _error(_get(server, "projects/p/models/service-error"))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.message, error.metadata) == ("DOES_NOT_FIT", "does not fit", {"need": "2"})


async def test_an_error_of_a_core_reaches_the_client_whole() -> None:
    async with _server() as server:
        error = await _error(_get(server, "projects/p/models/core-error"))
    assert (error.code, error.reason, error.metadata, error.help) == (
        "FAILED_PRECONDITION",
        "OP_UNSUPPORTED",
        {"op": "Gelu"},
        "use another",
    )


async def test_an_unforeseen_exception_shows_a_correlation_id_and_nothing_else() -> None:
    async with _server() as server:
        error = await _error(_get(server, "projects/p/models/bug"))
    assert isinstance(error, Internal)
    assert error.reason == "INTERNAL_ERROR"
    assert len(error.metadata["correlation_id"]) == 32
    assert "secret" not in repr(error) + error.help


async def test_the_right_token_is_let_in_and_the_handler_knows_the_caller() -> None:
    async with _server(token="s3cret") as server:
        assert (await _get(server, "projects/p/models/who", "s3cret")).display_name == "token/token"


@pytest.mark.parametrize(
    ("token", "reason"), [(None, "TOKEN_MISSING"), ("wrong", "TOKEN_INVALID"), ("s3cre", "TOKEN_INVALID")]
)
async def test_a_missing_or_wrong_token_is_refused_with_help(token: str | None, reason: str) -> None:
    async with _server(token="s3cret") as server:
        error = await _error(_get(server, MODEL, token))
    assert isinstance(error, Unauthenticated)
    assert error.reason == reason
    assert "authorization" in error.help


async def test_the_token_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    async with _server(token_file=tmp_path / "token") as server:
        assert (await _get(server, MODEL, "from-file")).name == MODEL


async def test_health_and_reflection_need_no_token() -> None:
    async with _server(token="s3cret") as server, connect(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tinymlaas.registry.v1.Models"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = [s.name async for r in call for s in r.list_services_response.service]
        assert "tinymlaas.registry.v1.Artifacts" in names


async def test_requests_are_validated_before_the_handler_sees_them() -> None:
    async with _server() as server:
        error = await _error(_get(server, "projects/p/nonsense/m"))
        assert isinstance(error, InvalidArgument)
        assert (error.reason, error.violations[0].field) == ("FIELD_INVALID", "name")
        async with connect(server.address) as channel:
            stub = models_pb2_grpc.ModelsStub(channel)
            bad = models_pb2.ImportModelRequest(header=models_pb2.ImportModelHeader(parent="projects/p"))
            error = await _error(stub.ImportModel(iter([bad])))
    assert {v.field for v in error.violations} == {"header.model_id", "header.format", "header.sha256"}


async def test_a_refused_upload_shows_its_own_error_even_while_the_caller_still_sends() -> None:
    bad = models_pb2.ImportModelRequest(header=models_pb2.ImportModelHeader(parent="nonsense"))
    chunk = models_pb2.ImportModelRequest(chunk=models_pb2.ModelChunk(data=bytes(1 << 20)))
    async with _server() as server, connect(server.address) as channel:
        error = await _error(models_pb2_grpc.ModelsStub(channel).ImportModel(iter([bad, *[chunk] * 20])))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_a_repeatable_call_is_repeated_while_the_service_is_away() -> None:
    class Flaky(models_pb2_grpc.ModelsServicer):
        calls = 0

        async def GetModel(self, request, context):
            self.calls += 1
            if self.calls < 3:
                raise Unavailable("in a moment")
            return models_pb2.Model(name=request.name)

        async def DeleteModel(self, request, context):
            self.calls += 1
            raise Unavailable("in a moment")

    flaky = Flaky()

    def register(server: grpc.aio.Server) -> list[str]:
        models_pb2_grpc.add_ModelsServicer_to_server(flaky, server)
        return ["tinymlaas.registry.v1.Models"]

    async with GrpcServer(_settings(), register) as server, connect(server.address) as channel:
        stub = models_pb2_grpc.ModelsStub(channel)
        assert (await stub.GetModel(models_pb2.GetModelRequest(name=MODEL))).name == MODEL
        assert flaky.calls == 3
        await _error(stub.DeleteModel(models_pb2.DeleteModelRequest(name=MODEL)))
        assert flaky.calls == 4


async def test_an_error_in_the_middle_of_a_stream_keeps_its_details() -> None:
    async with _server() as server, connect(server.address) as channel:
        call = artifacts_pb2_grpc.ArtifactsStub(channel).ReadArtifact(
            artifacts_pb2.ReadArtifactRequest(sha256="0" * 64, offset=1, parent="projects/p")
        )
        got = []

        async def read() -> None:
            async for response in call:
                got.append(response.data)

        assert (await _error(read())).reason == "MIDWAY"
        assert got == [b"first"]


async def test_a_cancelled_stream_ends_its_handler() -> None:
    artifacts = _Artifacts()
    async with _server(artifacts) as server, connect(server.address) as channel:
        call = artifacts_pb2_grpc.ArtifactsStub(channel).ReadArtifact(
            artifacts_pb2.ReadArtifactRequest(sha256="0" * 64, parent="projects/p")
        )
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            await artifacts.ended.wait()


async def test_a_message_over_the_limit_is_refused() -> None:
    async with _server() as server, connect(server.address, max_message_bytes=16 << 20) as channel:
        chunk = models_pb2.ImportModelRequest(chunk=models_pb2.ModelChunk(data=bytes(5 << 20)))
        error = await _error(models_pb2_grpc.ModelsStub(channel).ImportModel(iter([chunk])))
    assert error.code == "RESOURCE_EXHAUSTED"


async def test_a_server_listens_on_a_unix_socket(tmp_path: Path) -> None:
    async with _server(listen=f"unix:{tmp_path}/s") as server:
        assert server.address == f"unix:{tmp_path}/s"
        assert (await _get(server, MODEL)).name == MODEL


async def test_a_taken_port_is_an_error_that_says_so() -> None:
    async with _server() as server:
        with pytest.raises(ServiceError) as caught:
            await _server(listen=server.address).start()
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "ADDRESS_IN_USE")


async def test_the_callers_trace_goes_on_in_the_server() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    async with _server() as server:
        with trace.get_tracer("test").start_as_current_span("client") as span:
            await _error(_get(server, "projects/p/models/service-error"))
    served = next(s for s in exporter.get_finished_spans() if s.name == "tinymlaas.registry.v1.Models/GetModel")
    assert served.context.trace_id == span.get_span_context().trace_id
    assert served.attributes is not None
    assert served.attributes["rpc.grpc.status_code"] == grpc.StatusCode.FAILED_PRECONDITION.value[0]


_MAIN = """
from tinymlaas_servicekit import ServiceSettings, run_server
from tinymlaas.registry.v1 import models_pb2_grpc
import asyncio
class Models(models_pb2_grpc.ModelsServicer):
    async def GetModel(self, request, context):
        await asyncio.sleep(1)
        from tinymlaas.registry.v1 import models_pb2
        return models_pb2.Model(name=request.name)
def register(server):
    models_pb2_grpc.add_ModelsServicer_to_server(Models(), server)
    return ["tinymlaas.registry.v1.Models"]
run_server(ServiceSettings(), register)
"""


async def test_sigterm_lets_a_running_call_end_and_removes_the_address(tmp_path: Path) -> None:
    address_file = tmp_path / "address"
    env = {
        **os.environ,
        "TINYMLAAS_ADDRESS_FILE": str(address_file),
        "TINYMLAAS_LOG_FORMAT": "json",
        "TINYMLAAS_LISTEN": "127.0.0.1:0",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", _MAIN], env=env, stderr=log)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(30):
            while not address_file.exists():
                assert process.poll() is None
                await asyncio.sleep(0.02)
        async with connect(address_file.read_text().strip()) as channel:
            call = models_pb2_grpc.ModelsStub(channel).GetModel(
                models_pb2.GetModelRequest(name=MODEL), wait_for_ready=True
            )
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            process.send_signal(signal.SIGTERM)
            assert (await call).name == MODEL
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert not address_file.exists()
        assert '"event": "listening on"' in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_repeatable_call_that_reaches_a_server_while_it_stops_is_repeated(code: grpc.StatusCode) -> None:
    calls: list[str] = []

    class Stopping(models_pb2_grpc.ModelsServicer):
        async def GetModel(self, request, context):
            calls.append("get")
            if len(calls) == 1:
                await context.abort(code)
            return models_pb2.Model(name=request.name)

        async def DeleteModel(self, request, context):
            calls.append("delete")
            await context.abort(code)

    server = grpc.aio.server()
    models_pb2_grpc.add_ModelsServicer_to_server(Stopping(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            stub = models_pb2_grpc.ModelsStub(channel)
            assert (await stub.GetModel(models_pb2.GetModelRequest(name=MODEL), timeout=60)).name == MODEL
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.DeleteModel(models_pb2.DeleteModelRequest(name=MODEL), timeout=60)
    finally:
        await server.stop(None)
    assert caught.value.code() is code
    assert calls == ["get", "get", "delete"]
