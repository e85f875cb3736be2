"""The registry as the gateway uses it: models, devices, plugins, modules, bytes by digest. Errors are ServiceErrors.

Reads and idempotent writes are repeated while the registry is away (a restart), for at most `PATIENCE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask

from tinymlaas.registry.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    devices_pb2,
    devices_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    modules_pb2,
    modules_pb2_grpc,
    plugins_pb2,
    plugins_pb2_grpc,
)
from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_servicekit import DataLoss, DeadlineExceeded, NotFound, ResourceExhausted, ServiceError, adapt
from tinymlaas_servicekit.patience import seconds as waiting_seconds

from .endpoints import AWAY, Endpoint, unless_closed
from .memory import ByteCache, Recent

Result = TypeVar("Result")

CHUNK_BYTES = 1 << 20
CALL_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
SLOW_TRIES = 10
MAX_ARTIFACT_BYTES = 256 << 20
CACHE_BYTES = 64 << 20
FRESH_SECONDS = 1.0
FRESH_NAMES = 1024
MAX_DEVICES = 1000
_READ = ("manufacturer", "model", "serial", "firmware_version", "capabilities")
"""Fields of a device that its bridge reads from it, all at once."""
_STATUS = {"capabilities", "last_seen_time"}
"""What the answer to an activation tells anew, and when."""


async def patiently(call: Callable[[], Awaitable[Result]], seconds: float = PATIENCE_SECONDS) -> Result:
    """Repeat a repeatable call with a deadline of its own while the other side is `AWAY`, with growing pauses.

    After `seconds` its error stands, as does that of a call which has run out of time `SLOW_TRIES` times in a row: it takes
    longer than its deadline. A call whose channel was closed under it is Unavailable / CHANNEL_CLOSED.
    """
    loop = asyncio.get_running_loop()
    end, pause, slow = loop.time() + seconds, 0.1, 0
    while True:
        try:
            with unless_closed("another service"):
                return await call()
        except (ServiceError, grpc.RpcError) as error:
            adapted = adapt(error)
            slow = slow + 1 if isinstance(adapted, DeadlineExceeded) else 0
            if not isinstance(adapted, AWAY) or loop.time() + pause > end or slow == SLOW_TRIES:
                raise (adapted or error) from error
        await asyncio.sleep(pause)
        pause = min(pause * 2, 2.0)


class Catalogue:
    """Client of the registry. Durable steps wait for it as long as it takes, others for `patience` seconds."""

    def __init__(self, endpoint: Endpoint, patience: float = PATIENCE_SECONDS) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._artifacts = ByteCache(CACHE_BYTES)
        self._versions: Recent[models_pb2.ModelVersion] = Recent(FRESH_SECONDS, FRESH_NAMES)
        self._models: Recent[models_pb2.Model] = Recent(FRESH_SECONDS, FRESH_NAMES)

    async def _call(
        self, call: Callable[[grpc.aio.Channel], Awaitable[Result]], patience: float | None = None
    ) -> Result:
        async def attempt() -> Result:
            return await call(self._endpoint.channel())

        return await patiently(attempt, waiting_seconds(self._patience if patience is None else patience))

    async def model_version(self, name: str, patience: float | None = None) -> models_pb2.ModelVersion:
        """Return a model version; `name` may end in "versions/latest".

        Versions never change, so a named one may be up to FRESH_SECONDS old: seen that much longer than it exists.
        """
        request = models_pb2.GetModelVersionRequest(name=name)

        async def ask() -> models_pb2.ModelVersion:
            return await self._call(
                lambda channel: models_pb2_grpc.ModelsStub(channel).GetModelVersion(request, timeout=CALL_SECONDS),
                patience,
            )

        return await (ask() if name.endswith("/latest") else self._versions.get(name, ask))

    async def model(self, name: str) -> models_pb2.Model:
        """Return a model, as it was at most FRESH_SECONDS ago."""
        request = models_pb2.GetModelRequest(name=name)

        async def ask() -> models_pb2.Model:
            return await self._call(
                lambda channel: models_pb2_grpc.ModelsStub(channel).GetModel(request, timeout=CALL_SECONDS)
            )

        return await self._models.get(name, ask)

    async def derived(
        self, version: models_pb2.ModelVersion, form: tensor_pb2.ModelFormat.ValueType
    ) -> models_pb2.ModelVersion | None:
        """Return the version in `form` that an importer made from `version` earlier, None when there is none."""
        token = ""
        for _ in range(20):
            request = models_pb2.ListModelVersionsRequest(
                parent=version.name.rsplit("/versions/", 1)[0], page_size=100, page_token=token
            )
            page = await self._versions_page(request)
            for item in page.model_versions:
                if item.derived_from == version.name and item.format == form:
                    return item
            token = page.next_page_token
            if not token:
                break
        return None

    async def _versions_page(
        self, request: models_pb2.ListModelVersionsRequest
    ) -> models_pb2.ListModelVersionsResponse:
        return await self._call(
            lambda channel: models_pb2_grpc.ModelsStub(channel).ListModelVersions(request, timeout=CALL_SECONDS)
        )

    async def _devices_page(self, request: devices_pb2.ListDevicesRequest) -> devices_pb2.ListDevicesResponse:
        return await self._call(
            lambda channel: devices_pb2_grpc.DevicesStub(channel).ListDevices(request, timeout=CALL_SECONDS)
        )

    async def import_derived(
        self,
        version: models_pb2.ModelVersion,
        form: tensor_pb2.ModelFormat.ValueType,
        data: bytes,
        derived_by: str,
        measurements: Iterable[measurement_pb2.Measurement] = (),
        attachments: Iterable[models_pb2.Attachment] = (),
    ) -> models_pb2.ModelVersion:
        """Store bytes that a plugin made as a derived version of the same model; the registry checks them.

        `attachments` are artifacts that are stored already.
        """
        parts = version.name.split("/")
        digest = hashlib.sha256(data).digest()
        header = models_pb2.ImportModelHeader(
            parent="/".join(parts[:2]),
            model_id=parts[3],
            format=form,
            sha256=digest,
            size_bytes=len(data),
            derived_from=version.name,
            derived_by=derived_by,
            measurements=measurements,
            attachments=attachments,
        )

        async def requests() -> AsyncIterator[models_pb2.ImportModelRequest]:
            yield models_pb2.ImportModelRequest(header=header)
            for offset in range(0, len(data), CHUNK_BYTES):
                chunk = models_pb2.ModelChunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
                yield models_pb2.ImportModelRequest(chunk=chunk)

        return await self._call(
            lambda channel: models_pb2_grpc.ModelsStub(channel).ImportModel(requests(), timeout=CALL_SECONDS)
        )

    async def device(self, name: str) -> devices_pb2.Device:
        """Return a device."""
        request = devices_pb2.GetDeviceRequest(name=name)
        return await self._call(
            lambda channel: devices_pb2_grpc.DevicesStub(channel).GetDevice(request, timeout=CALL_SECONDS)
        )

    async def devices(self, project: str) -> list[devices_pb2.Device]:
        """Return every device of a project; ResourceExhausted beyond 1000."""
        found: list[devices_pb2.Device] = []
        token = ""
        while True:
            request = devices_pb2.ListDevicesRequest(parent=f"projects/{project}", page_size=500, page_token=token)
            page = await self._devices_page(request)
            found += page.devices
            if len(found) > MAX_DEVICES:
                raise ResourceExhausted(
                    f"the project has more than {MAX_DEVICES} devices",
                    "LIMIT_EXCEEDED",
                    {"limit": "devices", "max": MAX_DEVICES},
                    "Name the devices in the request.",
                )
            token = page.next_page_token
            if not token:
                return found

    async def tell_device(self, told: devices_pb2.Device) -> None:
        """Write what a bridge told of a device, and no more; nothing where the device has been seen later elsewhere.

        A bridge that could not read the device tells that it is there: what was known of it before stays.
        """
        paths = {field.name for field, _ in told.ListFields()} - {"name"} or {"state"}
        if told.HasField("capabilities"):
            paths.update(_READ)  # the device was read: what it does not tell, it has not
        known = devices_pb2.Device(name=told.name)
        with suppress(NotFound):
            known = await self.device(told.name)
        await self._write_fields(known, told, paths)

    async def record_active(self, device: devices_pb2.Device, module: str) -> None:
        """Write which module is active on a device, and what the device says of itself now."""
        known = await self.device(device.name)
        if device.HasField("capabilities"):
            # By itself: should the device have been seen later already, then only this is out of date.
            await self._write_fields(known, device, {field.name for field, _ in device.ListFields()} & _STATUS)
        active = devices_pb2.Device(name=device.name, active_module=module)
        await self._write_fields(known, active, {"active_module"})

    async def _write_fields(self, known: devices_pb2.Device, told: devices_pb2.Device, paths: set[str]) -> None:
        """Write these fields of a device's record and leave the others as others write them.

        The request has what is `known` of those as well: a registry from before masks, during an upgrade, replaces all.
        """
        mask = FieldMask(paths=sorted(paths))
        mask.MergeMessage(told, known, replace_message_field=True, replace_repeated_field=True)
        await self.upsert_device(known, mask)

    async def upsert_device(self, device: devices_pb2.Device, mask: FieldMask) -> devices_pb2.Device:
        """Write those fields of a device's record that the mask names."""
        request = devices_pb2.UpsertDeviceRequest(device=device, update_mask=mask)
        return await self._call(
            lambda channel: devices_pb2_grpc.DevicesStub(channel).UpsertDevice(request, timeout=CALL_SECONDS)
        )

    async def upsert_plugin(self, plugin: plugins_pb2.Plugin, patience: float | None = None) -> plugins_pb2.Plugin:
        """Write what is known of a plugin."""
        request = plugins_pb2.UpsertPluginRequest(plugin=plugin)
        return await self._call(
            lambda channel: plugins_pb2_grpc.PluginsStub(channel).UpsertPlugin(request, timeout=CALL_SECONDS), patience
        )

    async def create_module(self, project: str, module: modules_pb2.Module) -> modules_pb2.Module:
        """Record a sealed module whose bytes are stored already."""
        request = modules_pb2.CreateModuleRequest(parent=f"projects/{project}", module=module)
        return await self._call(
            lambda channel: modules_pb2_grpc.ModulesStub(channel).CreateModule(request, timeout=CALL_SECONDS)
        )

    async def module(self, name: str) -> modules_pb2.Module:
        """Return a module."""
        request = modules_pb2.GetModuleRequest(name=name)
        return await self._call(
            lambda channel: modules_pb2_grpc.ModulesStub(channel).GetModule(request, timeout=CALL_SECONDS)
        )

    async def read(self, project: str, sha256: str) -> bytes:
        """Return the bytes of a digest; DataLoss when they are others. Small ones are kept in memory."""
        key = f"{project}/{sha256}"
        kept = self._artifacts.get(key)
        if kept is not None:
            return kept
        request = artifacts_pb2.ReadArtifactRequest(sha256=sha256, parent=f"projects/{project}")

        async def attempt(channel: grpc.aio.Channel) -> bytes:
            data = bytearray()
            async for part in artifacts_pb2_grpc.ArtifactsStub(channel).ReadArtifact(request, timeout=CALL_SECONDS):
                data += part.data
                if len(data) > MAX_ARTIFACT_BYTES:
                    raise ResourceExhausted("the artifact is too big", "LIMIT_EXCEEDED", {"limit": "artifact_bytes"})
            return bytes(data)

        data = await self._call(attempt)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataLoss("the artifact's bytes are not those of its digest", metadata={"expected": sha256})
        self._artifacts.put(key, data)
        return data

    async def write(self, project: str, data: bytes) -> str:
        """Store bytes under their digest; return it (sha256 hex)."""
        sha256 = hashlib.sha256(data).hexdigest()

        async def requests() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
            first = True
            for offset in range(0, max(len(data), 1), CHUNK_BYTES):
                request = artifacts_pb2.WriteArtifactRequest(data=data[offset : offset + CHUNK_BYTES])
                if first:
                    request.sha256, request.parent, first = sha256, f"projects/{project}", False
                yield request

        await self._call(
            lambda channel: artifacts_pb2_grpc.ArtifactsStub(channel).WriteArtifact(requests(), timeout=CALL_SECONDS)
        )
        self._artifacts.put(f"{project}/{sha256}", data)
        return sha256
