"""In-process stand-ins for registry and bridge, for the gateway's tests: real gRPC, state in dictionaries, faults on request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf import empty_pb2

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.registry.v1 import (
    access_pb2,
    access_pb2_grpc,
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
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_servicekit import FailedPrecondition, GrpcServer, NotFound, ServiceSettings, Unavailable

PROJECT = "projects/default"


def toy_target(name: str = "toy", ram: int = 65536, flash: int = 1 << 20) -> target_pb2.Target:
    """A target with the toy runtime that the sample plugin serves."""
    region = target_pb2.MemoryRegion
    return target_pb2.Target(
        name=name,
        cpu="cortex-m4",
        isa="armv7e-m",
        features=["thumb2", "dsp", "fpu-sp"],
        memory_regions=[
            region(name="sram0", kind=region.KIND_RAM, total_bytes=ram, free_bytes=ram),
            region(name="flash0", kind=region.KIND_FLASH, total_bytes=flash, free_bytes=flash),
        ],
        runtimes=[target_pb2.Runtime(name="tflite-micro", operators=["ADD", "CONV_2D"])],
        payload_kinds=[target_pb2.PAYLOAD_KIND_TFLITE],
    )


class FakeRegistry:
    """The catalogue in dictionaries. `calls` counts by method."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, models_pb2.Model] = {}
        self.versions: dict[str, models_pb2.ModelVersion] = {}
        self.devices: dict[str, devices_pb2.Device] = {}
        self.modules: dict[str, modules_pb2.Module] = {}
        self.plugins: dict[str, plugins_pb2.Plugin] = {}
        self.calls: dict[str, int] = {}
        self.quotas = access_pb2.Quotas()
        self.audit: list[access_pb2.AuditEntry] = []

    def add_model(
        self, model_id: str, data: bytes, form: tensor_pb2.ModelFormat.ValueType, project: str = PROJECT, **fields: Any
    ) -> str:
        """Stores a model file; returns its version's name."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{project}/models/{model_id}"
        self.blobs[sha256] = data
        model = self.models.setdefault(name, models_pb2.Model(name=name))
        spec = tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[1, 16], scale=0.5)
        version = models_pb2.ModelVersion(
            name=f"{name}/versions/{sha256[:16]}",
            format=form,
            sha256=sha256,
            size_bytes=len(data),
            inputs=[spec],
            outputs=[spec],
            operators={"ADD": 1} if form == tensor_pb2.MODEL_FORMAT_TFLITE else {"Add": 1},
            **fields,
        )
        self.versions[version.name] = version
        if not version.derived_from:
            model.latest_version = version.name
        return version.name

    def add_device(self, device_id: str, target: target_pb2.Target | None = None) -> str:
        """Stores a registered device with two empty slots; returns its name."""
        name = f"{PROJECT}/devices/{device_id}"
        slot = devices_pb2.Slot
        self.devices[name] = devices_pb2.Device(
            name=name,
            state=devices_pb2.Device.STATE_REGISTERED,
            capabilities=devices_pb2.Capabilities(
                target=target or toy_target(),
                slots=[slot(index=i, size_bytes=65536, state=slot.STATE_EMPTY) for i in range(2)],
            ),
        )
        return name

    def _count(self, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1


def _found(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise NotFound(f"{name} does not exist", metadata={"name": name})
    return table[name]


class _Models(models_pb2_grpc.ModelsServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._r = registry

    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        raise FailedPrecondition("no listing today", "FAKE_REASON", {"key": "value"}, "Ask the fake.")

    async def GetModel(self, request: Any, context: Any) -> models_pb2.Model:
        self._r._count("GetModel")
        return _found(self._r.models, request.name)

    async def GetModelVersion(self, request: Any, context: Any) -> models_pb2.ModelVersion:
        self._r._count("GetModelVersion")
        name = request.name
        if name.endswith("/versions/latest"):
            name = _found(self._r.models, name.rsplit("/versions/", 1)[0]).latest_version
        return _found(self._r.versions, name)

    async def ListModelVersions(self, request: Any, context: Any) -> models_pb2.ListModelVersionsResponse:
        found = [v for v in self._r.versions.values() if v.name.startswith(request.parent + "/")]
        return models_pb2.ListModelVersionsResponse(model_versions=found)

    async def ImportModel(self, requests: Any, context: Any) -> models_pb2.ModelVersion:
        self._r._count("ImportModel")
        header, data = None, b""
        async for request in requests:
            if request.WhichOneof("part") == "header":
                header = request.header
            else:
                data += request.chunk.data
        assert header is not None
        name = self._r.add_model(
            header.model_id,
            data,
            header.format,
            derived_from=header.derived_from,
            derived_by=header.derived_by,
            measurements=header.measurements,
            attachments=header.attachments,
        )
        return self._r.versions[name]


class _Artifacts(artifacts_pb2_grpc.ArtifactsServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._r = registry

    async def ReadArtifact(self, request: Any, context: Any) -> AsyncIterator[artifacts_pb2.ReadArtifactResponse]:
        data = _found(self._r.blobs, request.sha256)[request.offset :]
        for start in range(0, max(len(data), 1), 1 << 16):
            yield artifacts_pb2.ReadArtifactResponse(data=data[start : start + (1 << 16)], total_bytes=len(data))

    async def WriteArtifact(self, requests: Any, context: Any) -> artifacts_pb2.WriteArtifactResponse:
        self._r._count("WriteArtifact")
        data, wanted = b"", ""
        async for request in requests:
            wanted = wanted or request.sha256
            data += request.data
        assert hashlib.sha256(data).hexdigest() == wanted
        self._r.blobs[wanted] = data
        return artifacts_pb2.WriteArtifactResponse(sha256=wanted, size_bytes=len(data))


class _Devices(devices_pb2_grpc.DevicesServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._r = registry

    async def UpsertDevice(self, request: Any, context: Any) -> devices_pb2.Device:
        known = self._r.devices.get(request.device.name)
        if known is None or not request.update_mask.paths:
            self._r.devices[request.device.name] = request.device
        else:
            request.update_mask.MergeMessage(request.device, known, True, True)
        return self._r.devices[request.device.name]

    async def GetDevice(self, request: Any, context: Any) -> devices_pb2.Device:
        return _found(self._r.devices, request.name)

    async def ListDevices(self, request: Any, context: Any) -> devices_pb2.ListDevicesResponse:
        found = [d for n, d in sorted(self._r.devices.items()) if n.startswith(request.parent + "/")]
        return devices_pb2.ListDevicesResponse(devices=found)


class _Modules(modules_pb2_grpc.ModulesServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._r = registry

    async def CreateModule(self, request: Any, context: Any) -> modules_pb2.Module:
        self._r._count("CreateModule")
        assert request.module.sha256 in self._r.blobs
        assert request.module.device_image_sha256 in self._r.blobs
        return self._r.modules.setdefault(request.module.name, request.module)

    async def GetModule(self, request: Any, context: Any) -> modules_pb2.Module:
        return _found(self._r.modules, request.name)


class _Plugins(plugins_pb2_grpc.PluginsServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._r = registry

    async def UpsertPlugin(self, request: Any, context: Any) -> plugins_pb2.Plugin:
        self._r.plugins[request.plugin.name] = request.plugin
        return request.plugin

    async def ListPlugins(self, request: Any, context: Any) -> plugins_pb2.ListPluginsResponse:
        return plugins_pb2.ListPluginsResponse(plugins=list(self._r.plugins.values()))


class _Access(access_pb2_grpc.ProjectsServicer, access_pb2_grpc.AuditLogServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._r = registry

    async def GetProject(self, request: Any, context: Any) -> access_pb2.Project:
        return access_pb2.Project(name=request.name, effective_quotas=self._r.quotas)

    async def AppendAuditEntries(self, request: Any, context: Any) -> empty_pb2.Empty:
        self._r.audit.extend(request.entries)
        return empty_pb2.Empty()


def registry_server(registry: FakeRegistry, settings: ServiceSettings) -> GrpcServer:
    """A server of the fake registry."""

    def register(server: grpc.aio.Server) -> list[str]:
        models_pb2_grpc.add_ModelsServicer_to_server(_Models(registry), server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(_Artifacts(registry), server)
        devices_pb2_grpc.add_DevicesServicer_to_server(_Devices(registry), server)
        modules_pb2_grpc.add_ModulesServicer_to_server(_Modules(registry), server)
        plugins_pb2_grpc.add_PluginsServicer_to_server(_Plugins(registry), server)
        access_pb2_grpc.add_ProjectsServicer_to_server(_Access(registry), server)
        access_pb2_grpc.add_AuditLogServicer_to_server(_Access(registry), server)
        return ["tinymlaas.registry.v1.Models"]

    return GrpcServer(settings, register)


@dataclass
class FakeDevice:
    """What the fake bridge does with one device."""

    device: devices_pb2.Device
    images: dict[int, str] = field(default_factory=dict)
    active: int | None = None
    previous: int | None = None
    refuse_install: bool = False
    refuse_activate: bool = False
    # How the next rollbacks break off: "unheard" by the device, or "heard".
    rollbacks_break: list[str] = field(default_factory=list)
    counters: bridge_pb2.ObserveResponse | None = None


class FakeBridge(bridge_pb2_grpc.BridgeServicer):
    """A bridge whose devices are dictionaries. Installs go on when a call breaks off, and are replayed by id.

    `hold` keeps installs before READY while it is set. `log` notes what devices really did, once per install id.
    """

    Step = bridge_pb2.InstallResponse

    def __init__(self) -> None:
        self.devices: dict[str, FakeDevice] = {}
        self.installed: dict[str, bridge_pb2.InstallResponse] = {}
        self.cancelled: set[str] = set()
        self.log: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.at_once = 0
        self.most_at_once = 0

    def add(self, device: devices_pb2.Device) -> FakeDevice:
        """Makes a device known."""
        copy = devices_pb2.Device()
        copy.CopyFrom(device)
        self.devices[device.name] = FakeDevice(copy)
        return self.devices[device.name]

    def _device(self, name: str) -> devices_pb2.Device:
        fake = _found(self.devices, name)
        for slot in fake.device.capabilities.slots:
            slot.module_sha256 = fake.images.get(slot.index, "")
            slot.state = devices_pb2.Slot.STATE_INSTALLED if slot.module_sha256 else devices_pb2.Slot.STATE_EMPTY
            if slot.index == fake.active:
                slot.state = devices_pb2.Slot.STATE_ACTIVE
        return fake.device

    async def WatchDevices(self, request: Any, context: Any) -> AsyncIterator[bridge_pb2.WatchDevicesResponse]:
        for name in list(self.devices):
            yield bridge_pb2.WatchDevicesResponse(
                kind=bridge_pb2.WatchDevicesResponse.KIND_REGISTERED, device=self._device(name)
            )
        yield bridge_pb2.WatchDevicesResponse(kind=bridge_pb2.WatchDevicesResponse.KIND_IN_SYNC)
        await asyncio.Event().wait()

    async def ReadCapabilities(self, request: Any, context: Any) -> devices_pb2.Device:
        return self._device(request.device)

    async def Install(self, request: Any, context: Any) -> AsyncIterator[bridge_pb2.InstallResponse]:
        fake = _found(self.devices, request.device)
        if request.install_id in self.installed:
            yield self.installed[request.install_id]
            return
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield self.Step(step=self.Step.STEP_DOWNLOADING, bytes_done=10, bytes_total=100)
            while not self.hold.is_set() and request.install_id not in self.cancelled:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # either of two signals ends it
            if request.install_id in self.cancelled:
                last = self.Step(step=self.Step.STEP_CANCELLED)
            elif fake.refuse_install:
                error = FailedPrecondition("self-test failed", "SELF_TEST_FAILED")
                last = self.Step(step=self.Step.STEP_FAILED, error=error.to_status())
            else:
                slot = next(i for i in (0, 1) if i != fake.active)
                fake.images[slot] = request.module_sha256
                yield self.Step(step=self.Step.STEP_SELF_TESTING, slot=slot)
                last = self.Step(step=self.Step.STEP_READY, slot=slot, bytes_done=100, bytes_total=100)
            if request.install_id not in self.installed:
                self.installed[request.install_id] = last
                self.log.append(f"install {request.device.rsplit('/', 1)[1]} {self.Step.Step.Name(last.step)}")
            yield last
        finally:
            self.at_once -= 1

    async def CancelInstall(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.cancelled.add(request.install_id)
        return empty_pb2.Empty()

    async def Activate(self, request: Any, context: Any) -> devices_pb2.Device:
        fake = _found(self.devices, request.device)
        if fake.active != request.slot:
            fake.previous, fake.active = fake.active, request.slot
            self.log.append(f"activate {request.device.rsplit('/', 1)[1]} {request.slot}")
        if fake.refuse_activate:
            raise FailedPrecondition("module faulted after activation", "ACTIVATION_FAILED")
        return self._device(request.device)

    async def Deactivate(self, request: Any, context: Any) -> devices_pb2.Device:
        fake = _found(self.devices, request.device)
        if fake.active == request.slot:
            fake.active = None
            self.log.append(f"deactivate {request.device.rsplit('/', 1)[1]}")
        return self._device(request.device)

    async def Rollback(self, request: Any, context: Any) -> devices_pb2.Device:
        fake = _found(self.devices, request.device)
        if fake.previous is None:
            raise FailedPrecondition("no previous module", "NO_PREVIOUS_MODULE")
        breaks = fake.rollbacks_break.pop(0) if fake.rollbacks_break else ""
        if breaks == "unheard":
            raise Unavailable("the bridge starts")
        assert fake.images[fake.active] == request.active_module_sha256, "asked to leave a module that is not active"
        fake.active, fake.previous = fake.previous, fake.active
        self.log.append(f"rollback {request.device.rsplit('/', 1)[1]}")
        if breaks == "heard":
            await context.abort(grpc.StatusCode.CANCELLED)
        return self._device(request.device)

    async def Observe(self, request: Any, context: Any) -> AsyncIterator[bridge_pb2.ObserveResponse]:
        """What `counters` say, whenever they are others, of the image that is active."""
        fake, told = _found(self.devices, request.device), None
        while True:
            image = fake.images.get(fake.active, "") if fake.active is not None else ""
            seen = fake.counters or bridge_pb2.ObserveResponse(self_test_passed=True)
            if (seen, image) != told:
                told = (seen, image)
                answer = bridge_pb2.ObserveResponse(module_sha256=image)
                answer.MergeFrom(seen)
                yield answer
            await asyncio.sleep(0.05)

    async def Infer(self, request: Any, context: Any) -> bridge_pb2.InferResponse:
        _found(self.devices, request.device)
        return bridge_pb2.InferResponse(outputs=request.inputs, latency=42, latency_unit="instructions")


def bridge_server(bridge: FakeBridge, settings: ServiceSettings) -> GrpcServer:
    """A server of the fake bridge."""

    def register(server: grpc.aio.Server) -> list[str]:
        bridge_pb2_grpc.add_BridgeServicer_to_server(bridge, server)
        return ["tinymlaas.bridge.v1.Bridge"]

    return GrpcServer(settings, register)
