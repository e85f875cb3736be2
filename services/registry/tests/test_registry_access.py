"""API keys, projects with quotas, and the audit log, served by a real registry (spec/access.md)."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from registry_rig import error_of, onnx_model, requests, running
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DBAPIError

from tinymlaas.registry.v1 import access_pb2, devices_pb2, models_pb2, modules_pb2
from tinymlaas.type.v1 import access_pb2 as types
from tinymlaas_registry.adapters import schema
from tinymlaas_registry.adapters.sql import SCHEMA, open_engine
from tinymlaas_registry.core.access import accept
from tinymlaas_servicekit import Unauthenticated
from tinymlaas_servicekit.api_keys import new_api_key, read_api_key

pytestmark = pytest.mark.asyncio
P = "projects/p"


def _grant(project: str = P, *roles: types.Role.ValueType) -> access_pb2.Grant:
    return access_pb2.Grant(project=project, roles=roles or [types.ROLE_VIEWER])


def _wanted(**fields: object) -> access_pb2.CreateApiKeyRequest:
    return access_pb2.CreateApiKeyRequest(parent=P, api_key=access_pb2.ApiKey(**{"grants": [_grant()], **fields}))


def _presented(secret: str) -> access_pb2.ResolveApiKeyRequest:
    key = read_api_key(secret)
    assert key is not None
    return access_pb2.ResolveApiKeyRequest(api_key_id=key.id, secret_sha256=key.secret_sha256)


async def test_a_key_is_told_once_and_then_found_by_its_secret(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        wanted = _wanted(display_name="ci", grants=[_grant(P, types.ROLE_OPERATOR), _grant("projects/-")])
        made = await client.api_keys.CreateApiKey(wanted, metadata=[("tinymlaas-subject", "oidc:ann")])
        listed = (await client.api_keys.ListApiKeys(access_pb2.ListApiKeysRequest(parent=P))).api_keys
        resolved = await client.api_keys.ResolveApiKey(_presented(made.secret))
        same = await client.api_keys.GetApiKey(access_pb2.GetApiKeyRequest(name=made.api_key.name))
    assert made.api_key == resolved == same == listed[0]
    assert (made.api_key.creator, made.api_key.display_name) == ("oidc:ann", "ci")
    assert list(made.api_key.grants) == list(wanted.api_key.grants)


async def test_the_database_has_no_secret(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        secret = (await client.api_keys.CreateApiKey(_wanted())).secret
        with client.registry._engine.connect() as connection:
            row = connection.execute(schema.api_keys.select()).one()
    kept = read_api_key(secret)
    assert kept is not None
    assert bytes(row.secret_sha256) == kept.secret_sha256 == hashlib.sha256(secret[21:].encode()).digest()
    assert secret[21:].encode() not in bytes(row.message)


async def test_a_wrong_secret_and_an_unknown_and_a_deleted_key_are_refused_alike(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        made = await client.api_keys.CreateApiKey(_wanted())
        good = _presented(made.secret)
        wrong = access_pb2.ResolveApiKeyRequest(api_key_id=good.api_key_id, secret_sha256=bytes(32))
        errors = [
            await error_of(client.api_keys.ResolveApiKey(request)) for request in (wrong, _presented(new_api_key()[0]))
        ]
        await client.api_keys.DeleteApiKey(access_pb2.DeleteApiKeyRequest(name=made.api_key.name))
        errors.append(await error_of(client.api_keys.ResolveApiKey(good)))
        again = await error_of(client.api_keys.DeleteApiKey(access_pb2.DeleteApiKeyRequest(name=made.api_key.name)))
    assert {(error.code, error.reason, error.message) for error in errors} == {
        ("UNAUTHENTICATED", "API_KEY_INVALID", "the API key is not valid")
    }
    assert again.code == "NOT_FOUND"


async def test_a_key_is_refused_from_the_moment_it_expires() -> None:
    _, kept = new_api_key()
    key = access_pb2.ApiKey(name=f"{P}/apiKeys/{kept.id}", expire_time=Timestamp(seconds=100))
    assert accept((key, kept.secret_sha256), kept.secret_sha256, Timestamp(seconds=99, nanos=999_999_999)) == key
    with pytest.raises(Unauthenticated):
        accept((key, kept.secret_sha256), kept.secret_sha256, Timestamp(seconds=100))
    with pytest.raises(Unauthenticated):
        accept(None, bytes(32), Timestamp())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"grants": []}, "FIELD_INVALID"),
        ({"grants": [_grant("default")]}, "NAME_INVALID"),
        ({"grants": [_grant("projects/p/models/m")]}, "NAME_INVALID"),
        ({"grants": [access_pb2.Grant(project=P)]}, "FIELD_INVALID"),
        ({"grants": [access_pb2.Grant(project=P, roles=[99])]}, "FIELD_INVALID"),
        ({"grants": [_grant()] * 17}, "FIELD_INVALID"),
        ({"display_name": "x" * 129}, "FIELD_INVALID"),
        ({"expire_time": Timestamp(seconds=1)}, "FIELD_INVALID"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(tmp_path: Path, fields: dict[str, object], reason: str) -> None:
    async with running(tmp_path) as client:
        error = await error_of(client.api_keys.CreateApiKey(_wanted(**fields)))
        left = (await client.api_keys.ListApiKeys(access_pb2.ListApiKeysRequest(parent=P))).api_keys
    assert (error.code, error.reason, list(left)) == ("INVALID_ARGUMENT", reason, [])


@pytest.mark.parametrize("text_", ["tml_", "tml_0123456789abcdef_short", "TML_" + "0" * 16 + "_" + "a" * 43, "é" * 64])
async def test_other_texts_are_no_keys(text_: str) -> None:
    assert read_api_key(text_) is None


async def _quota(client, **quotas: int) -> access_pb2.Project:
    project = access_pb2.Project(name=P, display_name="Plant", quotas=access_pb2.Quotas(**quotas))
    return await client.projects.UpsertProject(access_pb2.UpsertProjectRequest(project=project))


async def test_a_project_tells_its_quotas_and_what_it_uses(tmp_path: Path) -> None:
    async with running(tmp_path, default_max_devices=5, default_max_bytes=10**9) as client:
        before = await client.projects.GetProject(access_pb2.GetProjectRequest(name=P))
        await client.write(b"x" * 1000)
        await client.write(b"x" * 1000)
        await client.write(b"x" * 1000, project="other")
        device = devices_pb2.Device(name=f"{P}/devices/d")
        await client.devices.UpsertDevice(devices_pb2.UpsertDeviceRequest(device=device))
        after = await _quota(client, max_bytes=5000, max_builds=2)
        listed = (await client.projects.ListProjects(access_pb2.ListProjectsRequest())).projects
    assert (before.usage, before.HasField("create_time")) == (access_pb2.Usage(), False)
    assert before.effective_quotas == access_pb2.Quotas(max_devices=5, max_bytes=10**9)
    assert after.usage == access_pb2.Usage(bytes=1000, devices=1)
    assert after.effective_quotas == access_pb2.Quotas(max_bytes=5000, max_builds=2, max_devices=5)
    assert [project.name for project in listed] == [P]
    assert (listed[0].quotas, listed[0].create_time) == (after.quotas, after.create_time)


async def test_what_would_exceed_the_bytes_of_a_project_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = onnx_model(width=64)
    async with running(tmp_path) as client:
        await _quota(client, max_bytes=1500)
        kept = await client.write(b"a" * 1000)
        error = await error_of(client.write(b"b" * 501))
        early = await error_of(client.models.ImportModel(requests(model, size_bytes=len(model))))
        late = await error_of(client.models.ImportModel(requests(model, size_bytes=0)))
        assert await client.write(b"a" * 1000) == kept  # what it has already takes no more room
        await client.write(b"b" * 501, project="roomy")
        await client.write(b"c" * 500)
        project = await client.projects.GetProject(access_pb2.GetProjectRequest(name=P))
        models = (await client.models.ListModels(models_pb2.ListModelsRequest(parent=P))).models
        digest = hashlib.sha256(b"b" * 501).hexdigest()
        unread = await error_of(client.read(digest))
    assert len(model) > 500
    for refused in (error, early, late):
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert refused.metadata["quota"] == "bytes"
    assert error.metadata == {"project": P, "quota": "bytes", "bound": "1500", "value": "1501"}
    assert (project.usage.bytes, list(models), unread.code) == (1500, [], "NOT_FOUND")


async def test_a_model_that_is_deleted_makes_room(tmp_path: Path) -> None:
    one, two = onnx_model(1), onnx_model(2)
    async with running(tmp_path) as client:
        await _quota(client, max_bytes=max(len(one), len(two)))
        await client.upload(one, "one")
        assert (await error_of(client.upload(two, "two"))).reason == "QUOTA_EXCEEDED"
        await client.models.DeleteModel(models_pb2.DeleteModelRequest(name=f"{P}/models/one"))
        await client.upload(two, "two")


async def test_of_uploads_at_once_only_those_within_the_quota_are_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await _quota(client, max_bytes=3000)
        parts = [bytes([number]) * 1000 for number in range(8)]
        results = await asyncio.gather(*(client.write(part) for part in parts), return_exceptions=True)
        project = await client.projects.GetProject(access_pb2.GetProjectRequest(name=P))
    assert sum(isinstance(result, str) for result in results) == 3
    assert project.usage.bytes == 3000


async def test_a_module_record_counts_what_it_refers_to_once(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        sha256 = await client.write(b"m" * 100)
        module = modules_pb2.Module(sha256=sha256, device_image_sha256=sha256)
        await client.modules.CreateModule(modules_pb2.CreateModuleRequest(parent=P, module=module))
        project = await client.projects.GetProject(access_pb2.GetProjectRequest(name=P))
    assert project.usage.bytes == 100


async def test_a_device_too_many_is_refused_and_known_ones_are_kept_up_to_date(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await _quota(client, max_devices=2)

        async def upsert(ident: str, model: str = "") -> None:
            device = devices_pb2.Device(name=f"{P}/devices/{ident}", model=model)
            await client.devices.UpsertDevice(devices_pb2.UpsertDeviceRequest(device=device))

        await upsert("a")
        await upsert("b")
        error = await error_of(upsert("c"))
        await upsert("b", "newer")
        await client.devices.DeleteDevice(devices_pb2.DeleteDeviceRequest(name=f"{P}/devices/a"))
        await upsert("c")
        devices = (await client.devices.ListDevices(devices_pb2.ListDevicesRequest(parent=P))).devices
    assert (error.code, error.reason, error.metadata["quota"]) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "devices")
    assert [(device.name.rsplit("/", 1)[-1], device.model) for device in devices] == [("b", "newer"), ("c", "")]


async def test_artifacts_from_before_quotas_are_measured_at_the_start(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await client.write(b"old" * 100)
        with client.registry._engine.begin() as connection:
            connection.execute(delete(schema.artifact_sizes))
    async with running(tmp_path) as client:
        project = await client.projects.GetProject(access_pb2.GetProjectRequest(name=P))
    assert project.usage.bytes == 300


def _entry(ident: str, seconds: int, project: str = P, subject: str = "token") -> access_pb2.AuditEntry:
    return access_pb2.AuditEntry(
        name=f"auditEntries/{ident}", time=Timestamp(seconds=seconds), project=project, subject=subject, method="S/M"
    )


async def test_audit_entries_are_found_by_project_caller_method_and_time(tmp_path: Path) -> None:
    entries = [_entry("a", 1), _entry("b", 2, subject="oidc:ann"), _entry("c", 3, "projects/q"), _entry("d", 4, "")]
    async with running(tmp_path) as client:
        for _ in range(2):  # a gateway that is not sure repeats
            await client.audit_log.AppendAuditEntries(access_pb2.AppendAuditEntriesRequest(entries=entries))

        async def found(parent: str = "projects/-", **fields: object) -> str:
            request = access_pb2.ListAuditEntriesRequest(parent=parent, page_size=2, **fields)
            names = ""
            while True:
                answer = await client.audit_log.ListAuditEntries(request)
                names += "".join(entry.name[-1] for entry in answer.audit_entries)
                if not answer.next_page_token:
                    return names
                request.page_token = answer.next_page_token

        assert await found() == "dcba"
        assert await found(P) == "ba"
        assert await found(subject="oidc:ann") == "b"
        assert await found(method="S/Other") == ""
        assert await found(start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=4)) == "cb"
        assert (await error_of(found("p"))).reason == "NAME_INVALID"


async def test_the_audit_log_can_be_neither_changed_nor_deleted_from(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        entries = [_entry("a", 1)]
        await client.audit_log.AppendAuditEntries(access_pb2.AppendAuditEntriesRequest(entries=entries))
        table, engine = schema.audit_entries, client.registry._engine
        for statement in (update(table).values(subject="nobody"), delete(table), text("DELETE FROM audit_entries")):
            with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
                connection.execute(statement)
        listed = await client.audit_log.ListAuditEntries(access_pb2.ListAuditEntriesRequest(parent=P))
    assert list(listed.audit_entries) == entries


async def test_the_schema_goes_back_and_forth(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await client.write(b"kept")
        url = client.registry._configured.resolve_database_url()
    engine = open_engine(url)
    try:
        SCHEMA.downgrade(engine, "0001")
        SCHEMA.upgrade(engine)
    finally:
        engine.dispose()
    async with running(tmp_path) as client:
        project = await client.projects.GetProject(access_pb2.GetProjectRequest(name=P))
    assert project.usage.bytes == 4
