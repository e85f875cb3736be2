"""The registry over real gRPC on loopback, with a real database and folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import onnx
import pytest
from registry_rig import MIB, error_of, onnx_model, requests, running
from sqlalchemy import text

from tinymlaas.registry.v1 import (
    artifacts_pb2,
    devices_pb2,
    models_pb2,
    modules_pb2,
    plugins_pb2,
)
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_modelkit.check import ModelReport
from tinymlaas_servicekit import from_rpc_error


def stored_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "artifacts").rglob("*") if path.is_file()]


async def test_an_imported_model_can_be_read_listed_and_fetched(tmp_path: Path) -> None:
    data = onnx_model()
    wish = models_pb2.Model(display_name="KWS", licence="MIT", tags=["audio", "audio"], labels=["yes", "no"])
    async with running(tmp_path) as client:
        version = await client.upload(data)
        assert version.name == f"projects/p/models/kws/versions/{hashlib.sha256(data).hexdigest()[:16]}"
        assert (version.size_bytes, dict(version.operators), version.quantized) == (len(data), {"MatMul": 1}, False)
        assert list(version.inputs[0].shape) == [1, 3]
        assert version.inputs[0].dtype == tensor_pb2.DATA_TYPE_FLOAT32

        header = next(requests(data)).header
        header.model.CopyFrom(wish)
        again = await client.models.ImportModel(
            iter([models_pb2.ImportModelRequest(header=header), *list(requests(data))[1:]])
        )
        assert again == version
        model = await client.models.GetModel(models_pb2.GetModelRequest(name="projects/p/models/kws"))
        assert (model.display_name, model.licence, list(model.tags), list(model.labels)) == (
            "KWS",
            "MIT",
            ["audio"],
            ["yes", "no"],
        )
        assert model.latest_version == version.name
        assert await client.read(version.sha256) == data
        assert len(stored_files(tmp_path)) == 1


async def test_records_and_bytes_survive_a_restart(tmp_path: Path) -> None:
    data = onnx_model()
    async with running(tmp_path) as client:
        version = await client.upload(data)
    async with running(tmp_path) as client:
        got = await client.models.GetModelVersion(
            models_pb2.GetModelVersionRequest(name="projects/p/models/kws/versions/latest")
        )
        assert got == version
        assert await client.read(version.sha256) == data


async def test_latest_is_the_newest_upload_even_when_something_was_derived_later(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await client.upload(onnx_model(1))
        second = await client.upload(onnx_model(2))
        derived = await client.upload(onnx_model(3), derived_from=second.name, derived_by="io.example.o@1")
        latest = models_pb2.GetModelVersionRequest(name="projects/p/models/kws/versions/latest")
        assert (await client.models.GetModelVersion(latest)).name == second.name
        listed = await client.models.ListModelVersions(
            models_pb2.ListModelVersionsRequest(parent="projects/p/models/kws")
        )
        assert [v.name for v in listed.model_versions][:2] == [derived.name, second.name]


async def test_a_version_cannot_be_derived_from_one_that_is_not_there_or_elsewhere(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        missing = "projects/p/models/kws/versions/0123456789abcdef"
        assert (await error_of(client.upload(onnx_model(), derived_from=missing))).reason == "DERIVED_FROM_MISSING"
        foreign = "projects/q/models/kws/versions/0123456789abcdef"
        assert (await error_of(client.upload(onnx_model(), derived_from=foreign))).reason == "FIELD_INVALID"


@pytest.mark.parametrize(
    ("data", "format", "code", "reason", "problem"),
    [
        (b"", tensor_pb2.MODEL_FORMAT_ONNX, "INVALID_ARGUMENT", "MODEL_INVALID", "EMPTY_FILE"),
        (b"hello, this is text" * 9, tensor_pb2.MODEL_FORMAT_ONNX, "INVALID_ARGUMENT", "MODEL_INVALID", None),
        (onnx_model(), tensor_pb2.MODEL_FORMAT_TFLITE, "INVALID_ARGUMENT", "MODEL_INVALID", None),
        (b"no zip", tensor_pb2.MODEL_FORMAT_KERAS, "INVALID_ARGUMENT", "MODEL_INVALID", "NOT_A_MODEL"),
        (b"no tar", tensor_pb2.MODEL_FORMAT_SAVED_MODEL, "INVALID_ARGUMENT", "MODEL_INVALID", "NOT_A_MODEL"),
    ],
)
async def test_a_file_that_fails_its_check_leaves_nothing_behind(
    tmp_path: Path, data: bytes, format: int, code: str, reason: str, problem: str | None
) -> None:
    async with running(tmp_path) as client:
        error = await error_of(client.upload(data, format=format))
        assert (error.code, error.reason) == (code, reason)
        if problem is not None:
            assert error.metadata["problem"] == problem
        assert stored_files(tmp_path) == []
        assert not (await client.models.ListModels(models_pb2.ListModelsRequest(parent="projects/p"))).models
        assert (await client.upload(onnx_model())).size_bytes


async def test_validate_only_answers_and_stores_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        version = await client.upload(onnx_model(), validate_only=True)
        assert version.operators["MatMul"] == 1
        assert stored_files(tmp_path) == []
        assert (
            await error_of(client.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version.name)))
        ).code == ("NOT_FOUND")


def _damaged(kind: str) -> list[models_pb2.ImportModelRequest]:
    data = onnx_model()
    good = list(requests(data, chunk_bytes=64))
    match kind:
        case "empty stream":
            return []
        case "no header":
            return good[1:]
        case "two headers":
            return [good[0], good[0]]
        case "gap":
            return [good[0], good[1], good[3]]
        case "repeated chunk":
            return [good[0], good[1], good[1]]
        case "wrong crc":
            good[2].chunk.crc32c ^= 1
        case "wrong digest":
            good[0].header.sha256 = bytes(32)
        case "short digest":
            good[0].header.sha256 = b"short"
        case "cut":
            return good[:-1]
        case "cut with size":
            good[0].header.size_bytes = len(data)
            return good[:-1]
        case "longer than said":
            good[0].header.size_bytes = 100
        case "bad id":
            good[0].header.model_id = "../x"
        case "bad format":
            good[0].header.format = 77
        case "too large said":
            good[0].header.size_bytes = 1 << 40
        case "large chunk":
            return [good[0], models_pb2.ImportModelRequest(chunk=models_pb2.ModelChunk(data=bytes(MIB + 1)))]
        case "too large":
            return list(requests(bytes(3 * MIB)))
    return good


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        ("empty stream", "INVALID_ARGUMENT", "UPLOAD_INVALID"),
        ("no header", "INVALID_ARGUMENT", "UPLOAD_INVALID"),
        ("two headers", "INVALID_ARGUMENT", "UPLOAD_INVALID"),
        ("gap", "INVALID_ARGUMENT", "UPLOAD_INVALID"),
        ("repeated chunk", "INVALID_ARGUMENT", "UPLOAD_INVALID"),
        ("wrong crc", "DATA_LOSS", "DIGEST_MISMATCH"),
        ("wrong digest", "DATA_LOSS", "DIGEST_MISMATCH"),
        ("short digest", "INVALID_ARGUMENT", "FIELD_INVALID"),
        ("cut", "DATA_LOSS", "DIGEST_MISMATCH"),
        ("cut with size", "DATA_LOSS", "DIGEST_MISMATCH"),
        ("longer than said", "DATA_LOSS", "DIGEST_MISMATCH"),
        ("bad id", "INVALID_ARGUMENT", "NAME_INVALID"),
        ("bad format", "INVALID_ARGUMENT", "FIELD_INVALID"),
        ("too large said", "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
        ("large chunk", "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
        ("too large", "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
    ],
)
async def test_a_damaged_upload_is_refused_and_leaves_nothing(
    tmp_path: Path, kind: str, code: str, reason: str
) -> None:
    async with running(tmp_path, max_model_bytes=2 * MIB) as client:
        error = await error_of(client.models.ImportModel(iter(_damaged(kind))))
        assert (error.code, error.reason) == (code, reason), error
        assert error.help
        assert stored_files(tmp_path) == []


class GatedCheck:
    """A check that holds until it is told; it never passes anything by itself."""

    def __init__(self) -> None:
        self.started, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, data: bytes, name: str, limits: object) -> ModelReport:
        from tinymlaas_modelkit.check import check_model_isolated_async

        self.started.set()
        await self.go.wait()
        return await check_model_isolated_async(data, "onnx")


async def test_a_second_upload_of_one_request_id_is_aborted_while_the_first_runs(tmp_path: Path) -> None:
    check = GatedCheck()
    async with running(tmp_path, check) as client:
        first = asyncio.ensure_future(client.upload(onnx_model(), request_id="r1"))
        async with asyncio.timeout(30):
            await check.started.wait()
        error = await error_of(client.upload(onnx_model(), request_id="r1"))
        assert (error.code, error.reason) == ("ABORTED", "UPLOAD_IN_PROGRESS")
        check.go.set()
        other = await client.upload(onnx_model(), project="q", request_id="r1")
        version = await first
        assert (await client.upload(onnx_model(), request_id="r1")) == version
        assert other.sha256 == version.sha256
        assert len(stored_files(tmp_path)) == 1


async def test_uploads_beyond_the_limit_are_refused_at_once(tmp_path: Path) -> None:
    check = GatedCheck()
    async with running(tmp_path, check, max_uploads=1) as client:
        first = asyncio.ensure_future(client.upload(onnx_model()))
        async with asyncio.timeout(30):
            await check.started.wait()
        error = await error_of(client.upload(onnx_model(1)))
        assert (error.code, error.metadata["limit"]) == ("RESOURCE_EXHAUSTED", "uploads")
        check.go.set()
        await first


async def test_a_cancelled_upload_leaves_nothing_and_frees_its_id(tmp_path: Path) -> None:
    check = GatedCheck()
    async with running(tmp_path, check) as client:
        call = client.models.ImportModel(requests(onnx_model(), request_id="r1"))
        async with asyncio.timeout(30):
            await check.started.wait()
        call.cancel()
        check.go.set()
        async with asyncio.timeout(30):
            while True:
                try:
                    version = await client.upload(onnx_model(), request_id="r1")
                    break
                except grpc.RpcError as error:
                    if from_rpc_error(error).reason != "UPLOAD_IN_PROGRESS":
                        raise
        assert await client.read(version.sha256) == onnx_model()


async def test_an_upload_that_stalls_is_given_up(tmp_path: Path) -> None:
    async def stalling() -> AsyncIterator[models_pb2.ImportModelRequest]:
        yield next(requests(onnx_model()))
        await asyncio.Event().wait()

    async with running(tmp_path, stall_seconds=0.2) as client:
        error = await error_of(client.models.ImportModel(stalling()))
        assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "UPLOAD_STALLED")
        assert stored_files(tmp_path) == []


async def test_listing_goes_page_by_page_without_loss_or_repetition(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        for index in range(5):
            await client.upload(onnx_model(), model=f"m{index}")
        names: list[str] = []
        request = models_pb2.ListModelsRequest(parent="projects/p", page_size=2)
        while True:
            page = await client.models.ListModels(request)
            names += [m.name for m in page.models]
            assert len(page.models) <= 2
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert names == [f"projects/p/models/m{index}" for index in range(5)]
        request.parent = "projects/q"
        assert (await error_of(client.models.ListModels(request))).reason == "PAGE_TOKEN_INVALID"


async def test_models_are_found_by_tag(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        for name, tags in (("a", ["x"]), ("b", ["x", "y"]), ("c", [])):
            messages = list(requests(onnx_model(), name))
            messages[0].header.model.tags.extend(tags)
            await client.models.ImportModel(iter(messages))
        found = await client.models.ListModels(models_pb2.ListModelsRequest(parent="projects/p", tag="y"))
        assert [m.name for m in found.models] == ["projects/p/models/b"]


async def test_deleting_a_model_removes_its_bytes_unless_something_else_keeps_them(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        version = await client.upload(onnx_model(), model="a")
        await client.upload(onnx_model(), model="b")
        await client.models.DeleteModel(models_pb2.DeleteModelRequest(name="projects/p/models/a"))
        assert await client.read(version.sha256) == onnx_model()
        await client.models.DeleteModel(models_pb2.DeleteModelRequest(name="projects/p/models/b"))
        assert stored_files(tmp_path) == []
        error = await error_of(client.models.DeleteModel(models_pb2.DeleteModelRequest(name="projects/p/models/b")))
        assert (error.code, error.metadata["name"]) == ("NOT_FOUND", "projects/p/models/b")


async def test_a_project_reads_only_artifacts_that_it_owns(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        sha256 = await client.write(b"secret", "p")
        assert await client.read(sha256, "p") == b"secret"
        assert (await error_of(client.read(sha256, "q"))).code == "NOT_FOUND"
        assert (
            await error_of(client.models.GetModel(models_pb2.GetModelRequest(name="projects/q/models/kws")))
        ).code == ("NOT_FOUND")


async def test_artifacts_are_read_from_any_offset_and_stored_once(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 17)
    async with running(tmp_path) as client:
        sha256 = await client.write(data, "p")
        assert await client.write(data, "q") == sha256
        assert len(stored_files(tmp_path)) == 1
        assert await client.read(sha256) == data
        assert await client.read(sha256, offset=MIB + 5, limit=MIB + 1) == data[MIB + 5 : 2 * MIB + 6]
        assert await client.read(sha256, offset=len(data)) == b""
        assert (await error_of(client.read(sha256, offset=len(data) + 1))).metadata["size_bytes"] == str(len(data))
        assert await client.read(await client.write(b"")) == b""


async def test_a_wrong_artifact_digest_is_data_loss(tmp_path: Path) -> None:
    request = artifacts_pb2.WriteArtifactRequest(sha256="0" * 64, parent="projects/p", data=b"x")
    async with running(tmp_path) as client:
        error = await error_of(client.artifacts.WriteArtifact(iter([request])))
        assert (error.code, error.reason) == ("DATA_LOSS", "DIGEST_MISMATCH")
        for bad in ("../../etc/passwd", "A" * 64, ""):
            request.sha256 = bad
            assert (await error_of(client.artifacts.WriteArtifact(iter([request])))).code == "INVALID_ARGUMENT"
        assert stored_files(tmp_path) == []


async def test_bytes_that_rotted_on_disk_are_not_served_as_good(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        sha256 = await client.write(b"good bytes")
        stored_files(tmp_path)[0].write_bytes(b"evil bytes")
        assert (await error_of(client.read(sha256))).reason == "DIGEST_MISMATCH"


async def test_bytes_that_nothing_refers_to_are_removed_at_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        kept = await client.write(b"kept")
    orphan = tmp_path / "artifacts" / "objects" / "ab" / ("c" * 62)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"of a process that was killed between two steps")
    (tmp_path / "artifacts" / "incoming" / "half").write_bytes(b"half")
    async with running(tmp_path) as client:
        assert [path.name for path in stored_files(tmp_path)] == [kept[2:]]


def _module(sha256: str, **fields: object) -> modules_pb2.CreateModuleRequest:
    module = modules_pb2.Module(sha256=sha256, arena_bytes=64, **fields)
    module.manifest.model_sha256 = module.manifest.request_sha256 = "0" * 64
    module.manifest.plugin_name, module.manifest.plugin_version = "io.example.c", "1"
    numerics = {"class": tensor_pb2.Numerics.CLASS_BIT_EXACT, "reference": tensor_pb2.REFERENCE_ONNX}
    module.manifest.numerics.CopyFrom(tensor_pb2.Numerics(**numerics))
    return modules_pb2.CreateModuleRequest(parent="projects/p", module=module)


async def test_a_module_is_recorded_once_and_only_over_stored_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        error = await error_of(client.modules.CreateModule(_module("0" * 64)))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "ARTIFACT_MISSING")
        sha256, image = await client.write(b"sealed module"), await client.write(b"image")
        request = _module(sha256, device_image_sha256=image, model_version="projects/p/models/m/versions/v")
        module = await client.modules.CreateModule(request)
        assert (module.name, module.size_bytes, module.device_image_bytes) == (f"projects/p/modules/{sha256}", 13, 5)
        assert await client.modules.CreateModule(request) == module
        assert await client.modules.GetModule(modules_pb2.GetModuleRequest(name=module.name)) == module
        listed = await client.modules.ListModules(
            modules_pb2.ListModulesRequest(parent="projects/p", model_version=module.model_version)
        )
        assert list(listed.modules) == [module]
        request.module.arena_bytes = 65
        assert (await error_of(client.modules.CreateModule(request))).reason == "MODULE_DIFFERS"


async def test_devices_are_written_read_listed_and_deleted(tmp_path: Path) -> None:
    device = devices_pb2.Device(name="projects/p/devices/urn:imei:1", state=devices_pb2.Device.STATE_REGISTERED)
    device.capabilities.target.cpu, device.capabilities.target.isa = "cortex-m4", "armv7e-m"
    async with running(tmp_path) as client:
        assert await client.devices.UpsertDevice(devices_pb2.UpsertDeviceRequest(device=device)) == device
        device.state = devices_pb2.Device.STATE_LOST
        await client.devices.UpsertDevice(devices_pb2.UpsertDeviceRequest(device=device))
        assert await client.devices.GetDevice(devices_pb2.GetDeviceRequest(name=device.name)) == device
        listed = await client.devices.ListDevices(devices_pb2.ListDevicesRequest(parent="projects/p"))
        assert list(listed.devices) == [device]
        assert not (await client.devices.ListDevices(devices_pb2.ListDevicesRequest(parent="projects/q"))).devices
        await client.devices.DeleteDevice(devices_pb2.DeleteDeviceRequest(name=device.name))
        error = await error_of(client.devices.DeleteDevice(devices_pb2.DeleteDeviceRequest(name=device.name)))
        assert error.code == "NOT_FOUND"
        nameless = devices_pb2.Device(state=devices_pb2.Device.STATE_LOST)
        error = await error_of(client.devices.UpsertDevice(devices_pb2.UpsertDeviceRequest(device=nameless)))
        assert error.violations[0].field == "device.name"


async def test_plugins_are_written_read_listed_and_deleted(tmp_path: Path) -> None:
    plugin = plugins_pb2.Plugin(name="plugins/io.example.a", address="127.0.0.1:1", compiler_option_schema="x" * 9000)
    async with running(tmp_path) as client:
        written = await client.plugins.UpsertPlugin(plugins_pb2.UpsertPluginRequest(plugin=plugin))
        assert written.HasField("update_time")
        assert await client.plugins.GetPlugin(plugins_pb2.GetPluginRequest(name=plugin.name)) == written
        assert list((await client.plugins.ListPlugins(plugins_pb2.ListPluginsRequest())).plugins) == [written]
        await client.plugins.DeletePlugin(plugins_pb2.DeletePluginRequest(name=plugin.name))
        assert (
            await error_of(client.plugins.GetPlugin(plugins_pb2.GetPluginRequest(name=plugin.name)))
        ).code == "NOT_FOUND"


async def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from tinymlaas_registry.adapters import migrate, open_engine
    from tinymlaas_registry.adapters.schema import metadata

    engine = open_engine(f"sqlite:///{tmp_path / 'r.db'}")
    migrate(engine)
    migrate(engine)
    with engine.begin() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_a_full_disk_or_missing_folder_is_an_error_without_paths(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        shutil.rmtree(tmp_path / "artifacts" / "incoming")
        error = await error_of(client.write(b"x"))
        assert error.reason == "INTERNAL_ERROR"
        assert str(tmp_path) not in str(error)


def test_the_test_model_is_valid() -> None:
    onnx.checker.check_model(onnx.load_from_string(onnx_model()))
