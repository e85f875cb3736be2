"""The audit log as it is written, and builds at once as they are bounded: the registry slow, away, and back (spec/access.md)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import gateway_fakes as fakes
import grpc
import pytest
from gateway_world import until
from structlog.testing import capture_logs

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.registry.v1 import access_pb2, models_pb2
from tinymlaas_gateway.adapters import audit
from tinymlaas_gateway.adapters.audit import AuditWriter
from tinymlaas_gateway.adapters.build_quota import BuildQuota
from tinymlaas_gateway.adapters.endpoints import Endpoint, Location
from tinymlaas_gateway.adapters.store import Resources, open_engine
from tinymlaas_gateway.core import projection
from tinymlaas_servicekit import Attempt, Call, Principal, ResourceExhausted, ServiceSettings


class _Context:
    def peer(self) -> str:
        return "ipv4:192.0.2.1:4711"


def _attempt(model: str, error: BaseException | None = None) -> Attempt:
    call = Call("/tinymlaas.registry.v1.Models/DeleteModel", _Context())
    message = models_pb2.DeleteModelRequest(name=f"projects/p/models/{model}")
    return Attempt(call, Principal("oidc:ann", "oidc"), message, error)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[fakes.FakeRegistry, Path, Endpoint]]:
    """A registry that is told of by a file, and so is away while the file is."""
    registry, address_file = fakes.FakeRegistry(), tmp_path / "address"
    endpoint = Endpoint("the registry", Location(address_file=address_file))
    async with fakes.registry_server(registry, ServiceSettings(grace_seconds=0.0)) as server:
        address_file.write_text(server.address)
        yield registry, address_file, endpoint
        await endpoint.close()


async def test_an_entry_is_written_when_its_call_is_answered(world) -> None:
    registry, _, endpoint = world
    writer = AuditWriter(endpoint)
    writer.start()
    await writer.record(_attempt("m", ResourceExhausted("full", "QUOTA_EXCEEDED")))
    await until(lambda: registry.audit, "the entry is written")
    await writer.close()
    (entry,) = registry.audit
    assert (entry.subject, entry.proof, entry.method) == (
        "oidc:ann",
        "oidc",
        "tinymlaas.registry.v1.Models/DeleteModel",
    )
    assert (entry.code, entry.reason, entry.peer) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "ipv4:192.0.2.1:4711")
    assert (entry.project, list(entry.resources)) == ("projects/p", ["projects/p/models/m"])


async def test_while_the_registry_is_away_entries_wait_and_calls_go_on(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """AC-AUD-004"""
    registry, address_file, endpoint = world
    monkeypatch.setattr(audit, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(audit, "PAUSE_SECONDS", 0.01)
    address = address_file.read_text()
    address_file.unlink()
    writer = AuditWriter(endpoint)
    writer.start()
    for name in ("a", "b", "c"):
        await writer.record(_attempt(name))
    assert registry.audit == []
    address_file.write_text(address)
    await until(lambda: len(registry.audit) == 3, "all entries are written")
    await writer.close()
    assert [entry.resources[0][-1] for entry in registry.audit] == ["a", "b", "c"]


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_an_entry_whose_registry_dies_or_hangs_is_written_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode
) -> None:
    """AC-AUD-004"""
    monkeypatch.setattr(audit, "PAUSE_SECONDS", 0.01)
    append, calls = fakes._Access.AppendAuditEntries, []

    async def broken(self: Any, request: Any, context: Any) -> Any:
        calls.append(1)
        if len(calls) < 3:
            await context.abort(code)
        return await append(self, request, context)

    monkeypatch.setattr(fakes._Access, "AppendAuditEntries", broken)
    registry = fakes.FakeRegistry()
    async with fakes.registry_server(registry, ServiceSettings(listen="127.0.0.1:0", grace_seconds=0.0)) as server:
        endpoint = Endpoint("the registry", Location(server.address))
        writer = AuditWriter(endpoint)
        writer.start()
        await writer.record(_attempt("m"))
        await until(lambda: registry.audit, "the entry is written", 30)
        await writer.close()
        await endpoint.close()
    assert (len(calls), len(registry.audit)) == (3, 1)


async def test_what_cannot_be_kept_stands_in_the_log(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """AC-AUD-004"""
    _, address_file, endpoint = world
    monkeypatch.setattr(audit, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.01)
    address_file.unlink()
    writer = AuditWriter(endpoint)
    writer.start()
    with capture_logs() as logs:
        await writer.record(_attempt("first"))
        await writer.record(_attempt("second"))
        await writer.close()
    lost = [event["entry"] for event in logs if event["event"] == "an audit entry stands only here"]
    assert len(lost) == 2
    assert all(any(name in entry for entry in lost) for name in ("first", "second"))


async def test_builds_at_once_are_bounded_by_project_and_an_ended_one_makes_room(world, tmp_path: Path) -> None:
    """AC-QUO-001"""
    registry, _, endpoint = world
    registry.quotas = access_pb2.Quotas(max_builds=2)
    engine = open_engine(f"sqlite:///{tmp_path / 'gateway.sqlite'}")
    store = Resources(engine, "build", builds_pb2.Build, projection.ended)
    quota = BuildQuota(endpoint, engine)

    async def build(project: str, ident: str) -> str:
        made = builds_pb2.Build(name=f"projects/{project}/builds/{ident}", state=builds_pb2.Build.STATE_QUEUED)
        async with quota.admit(project):
            await asyncio.to_thread(store.create, project, made, "")
        return made.name

    try:
        outcomes = await asyncio.gather(*(build("p", str(number)) for number in range(5)), return_exceptions=True)
        made = [outcome for outcome in outcomes if isinstance(outcome, str)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, ResourceExhausted)]
        assert (len(made), len(refused)) == (2, 3)
        assert refused[0].reason == "QUOTA_EXCEEDED"
        assert refused[0].metadata == {"project": "projects/p", "quota": "builds", "bound": "2", "value": "3"}
        await build("q", "other")

        def end(body: builds_pb2.Build) -> None:
            body.state = builds_pb2.Build.STATE_SUCCEEDED

        store.change(made[0], end)
        await build("p", "next")
        with pytest.raises(ResourceExhausted):
            await build("p", "one too many")
    finally:
        engine.dispose()


async def test_a_project_without_a_quota_builds_as_much_as_it_wants(world, tmp_path: Path) -> None:
    _, _, endpoint = world
    engine = open_engine(f"sqlite:///{tmp_path / 'gateway.sqlite'}")
    try:
        quota = BuildQuota(endpoint, engine)
        async with quota.admit("p"), quota.admit("p"):
            pass
    finally:
        engine.dispose()
