"""mTLS between real servers and channels: who is let in, who is spoken to, and certificates that change (spec/access.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from certificate_authority import Authority
from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc, models_pb2, models_pb2_grpc
from tinymlaas_servicekit import (
    FailedPrecondition,
    GrpcServer,
    ServiceError,
    ServiceSettings,
    TlsFiles,
    Unavailable,
    connect,
    current_principal,
    from_rpc_error,
)

pytestmark = pytest.mark.asyncio
REGISTRY, GATEWAY, BRIDGE = (f"{name}.tinymlaas.internal" for name in ("registry", "gateway", "lwm2m-bridge"))


class _Models(models_pb2_grpc.ModelsServicer):
    async def GetModel(self, request, context):
        principal = current_principal()
        return models_pb2.Model(display_name=f"{principal.subject}/{principal.how}")


class _Artifacts(artifacts_pb2_grpc.ArtifactsServicer):
    async def ReadArtifact(self, request, context) -> AsyncIterator[artifacts_pb2.ReadArtifactResponse]:
        yield artifacts_pb2.ReadArtifactResponse(data=b"bytes")


def _server(files: TlsFiles, **values: object) -> GrpcServer:
    def register(server: grpc.aio.Server) -> list[str]:
        models_pb2_grpc.add_ModelsServicer_to_server(_Models(), server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(_Artifacts(), server)
        return ["tinymlaas.registry.v1.Models", "tinymlaas.registry.v1.Artifacts"]

    paths = {"tls_ca_file": files.ca, "tls_certificate_file": files.certificate, "tls_key_file": files.key}
    return GrpcServer(ServiceSettings(_env_file=None, grace_seconds=0.0, **paths, **values), register)  # type: ignore[call-arg]


async def _who(channel: grpc.aio.Channel) -> str:
    request = models_pb2.GetModelRequest(name="projects/p/models/m")
    return (await models_pb2_grpc.ModelsStub(channel).GetModel(request, timeout=30)).display_name


async def _error(channel: grpc.aio.Channel) -> ServiceError:
    with pytest.raises(grpc.RpcError) as caught:
        await _who(channel)
    return from_rpc_error(caught.value)


async def test_the_gateway_may_call_everything_and_its_certificate_stands_in_the_tokens_place(tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.issue(tmp_path / "s", REGISTRY), authority.issue(tmp_path / "c", GATEWAY)
    async with (
        _server(server, token="a token that nobody sends") as serving,
        connect(serving.address, tls=client, peer="registry") as channel,
    ):
        assert await _who(channel) == "service:gateway/mtls"


async def test_another_service_may_call_only_the_rpcs_that_name_it(tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.issue(tmp_path / "s", REGISTRY), authority.issue(tmp_path / "c", BRIDGE)
    async with _server(server) as serving, connect(serving.address, tls=client, peer="registry") as channel:
        request = artifacts_pb2.ReadArtifactRequest(sha256="0" * 64, parent="projects/p")
        read = [answer.data async for answer in artifacts_pb2_grpc.ArtifactsStub(channel).ReadArtifact(request)]
        error = await _error(channel)
    assert read == [b"bytes"]
    assert (error.code, error.reason) == ("PERMISSION_DENIED", "CALLER_UNEXPECTED")


@pytest.mark.parametrize("name", ["somebody.example.com", "a.gateway.tinymlaas.internal", "*.tinymlaas.internal"])
async def test_a_certificate_that_names_no_service_of_ours_is_unauthenticated(tmp_path: Path, name: str) -> None:
    authority = Authority()
    server, client = authority.issue(tmp_path / "s", REGISTRY), authority.issue(tmp_path / "c", name)
    async with _server(server) as serving, connect(serving.address, tls=client, peer="registry") as channel:
        error = await _error(channel)
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN")


async def test_without_a_certificate_of_our_authority_there_is_no_connection(tmp_path: Path) -> None:
    authority = Authority()
    server, stranger = authority.issue(tmp_path / "s", REGISTRY), Authority().issue(tmp_path / "c", GATEWAY)
    forged = TlsFiles(server.ca, stranger.certificate, stranger.key)
    async with _server(server) as serving:
        for files in (forged, TlsFiles(server.ca), None):
            async with connect(serving.address, "token", tls=files, peer="registry", retry=False) as channel:
                assert isinstance(await _error(channel), Unavailable)


async def test_a_server_that_is_another_service_is_not_spoken_to(tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.issue(tmp_path / "s", BRIDGE), authority.issue(tmp_path / "c", GATEWAY)
    async with (
        _server(server) as serving,
        connect(serving.address, tls=client, peer="registry", retry=False) as channel,
    ):
        assert isinstance(await _error(channel), Unavailable)


async def test_both_sides_take_new_certificates_without_a_restart(tmp_path: Path) -> None:
    first, second = Authority("first"), Authority("second")
    server, client = first.issue(tmp_path / "s", REGISTRY), first.issue(tmp_path / "c", GATEWAY)
    async with _server(server) as serving, connect(serving.address, tls=client, peer="registry") as channel:
        assert await _who(channel) == "service:gateway/mtls"
        second.issue(tmp_path / "s", REGISTRY)
        second.issue(tmp_path / "c", "profiler.tinymlaas.internal")
        assert (await _error(channel)).reason == "CALLER_UNEXPECTED"  # known by its new name, to the new authority
        second.issue(tmp_path / "c", GATEWAY)
        assert await _who(channel) == "service:gateway/mtls"


async def test_files_that_do_not_go_together_yet_leave_the_old_certificate_in_use(tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.issue(tmp_path / "s", REGISTRY), authority.issue(tmp_path / "c", GATEWAY)
    other = Authority().issue(tmp_path / "other", REGISTRY)
    assert other.key is not None
    async with _server(server) as serving:
        (tmp_path / "s" / "tls.key").write_bytes(other.key.read_bytes())
        async with connect(serving.address, tls=client, peer="registry") as channel:
            assert await _who(channel) == "service:gateway/mtls"


async def test_files_that_are_no_certificates_are_an_error_at_the_start(tmp_path: Path) -> None:
    files = Authority().issue(tmp_path / "s", REGISTRY)
    (tmp_path / "s" / "tls.crt").write_text("not a certificate")
    with pytest.raises(FailedPrecondition) as caught:
        _server(files)
    assert caught.value.reason == "CERTIFICATE_UNUSABLE"


async def test_half_of_the_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="set together"):
        ServiceSettings(_env_file=None, tls_ca_file=tmp_path / "ca.pem")  # type: ignore[call-arg]


async def test_probes_without_certificates_have_a_port_that_answers_nothing_else(tmp_path: Path) -> None:
    files = Authority().issue(tmp_path / "s", REGISTRY)
    async with _server(files, health_listen="127.0.0.1:0") as serving, connect(serving.health_address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        error = await _error(channel)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert error.code == "UNIMPLEMENTED"
