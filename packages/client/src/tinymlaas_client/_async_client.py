"""The asynchronous client: one object for the whole journey, over the gateway's public contract."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf import struct_pb2
from google.protobuf.json_format import ParseDict

from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas.gateway.v1 import (
    builds_pb2,
    builds_pb2_grpc,
    deployments_pb2,
    deployments_pb2_grpc,
    optimizations_pb2,
    optimizations_pb2_grpc,
    quarantine_pb2,
    quarantine_pb2_grpc,
    rollouts_pb2,
    routing_pb2,
    routing_pb2_grpc,
)
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
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_client._access_client import AccessCalls
from tinymlaas_client._requests import all_pages, answer
from tinymlaas_client._tracing import traced_calls
from tinymlaas_servicekit.channels import connect
from tinymlaas_servicekit.errors import from_rpc_error
from tinymlaas_servicekit.tls import TlsFiles

T = TypeVar("T")
CHUNK_BYTES = 512 * 1024
_FORMATS = {
    ".onnx": tensor_pb2.MODEL_FORMAT_ONNX,
    ".tflite": tensor_pb2.MODEL_FORMAT_TFLITE,
    ".keras": tensor_pb2.MODEL_FORMAT_KERAS,
    ".tar": tensor_pb2.MODEL_FORMAT_SAVED_MODEL,
}


def model_format(path: Path) -> tensor_pb2.ModelFormat.ValueType:
    """Format of a model file by its suffix; ValueError for another suffix."""
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise ValueError(f"{path.name}: unknown model format; expected one of {', '.join(_FORMATS)}") from None


@traced_calls
class AsyncClient(AccessCalls):
    """A connection to a gateway, for one project.

    Every method raises `tinymlaas_servicekit.errors.ServiceError` with code, reason, metadata and help when the service
    refuses. Methods that create take a `request_id`, and are safe to repeat with the same one. With `tls` the gateway must
    prove its host name, to the authority in its `ca` or, where that is None, to one that this machine trusts.
    """

    def __init__(
        self, address: str, *, token: str | None = None, project: str = "default", tls: TlsFiles | None = None
    ) -> None:
        self.project = f"projects/{project}"
        self._channel = connect(address, token=token, tls=tls)
        self._open_access(self._channel)
        self._models = models_pb2_grpc.ModelsStub(self._channel)
        self._artifacts = artifacts_pb2_grpc.ArtifactsStub(self._channel)
        self._modules = modules_pb2_grpc.ModulesStub(self._channel)
        self._devices = devices_pb2_grpc.DevicesStub(self._channel)
        self._device_keys = security_pb2_grpc.DeviceKeysStub(self._channel)
        self._plugins = plugins_pb2_grpc.PluginsStub(self._channel)
        self._quarantine = quarantine_pb2_grpc.QuarantineStub(self._channel)
        self._routing = routing_pb2_grpc.RoutingStub(self._channel)
        self._optimizations = optimizations_pb2_grpc.OptimizationsStub(self._channel)
        self._builds = builds_pb2_grpc.BuildsStub(self._channel)
        self._deployments = deployments_pb2_grpc.DeploymentsStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    # Models

    async def import_model(
        self,
        data: bytes,
        model_id: str,
        format: tensor_pb2.ModelFormat.ValueType,
        *,
        display_name: str = "",
        licence: str = "",
        labels: Sequence[str] = (),
        tags: Sequence[str] = (),
        validate_only: bool = False,
    ) -> models_pb2.ModelVersion:
        """Upload a model file; it is checked before anything is stored. The same bytes give the same version."""
        header = models_pb2.ImportModelHeader(
            parent=self.project,
            model_id=model_id,
            format=format,
            sha256=hashlib.sha256(data).digest(),
            size_bytes=len(data),
            request_id=uuid.uuid4().hex,
            validate_only=validate_only,
        )
        if display_name or licence or labels or tags:
            header.model.CopyFrom(
                models_pb2.Model(display_name=display_name, licence=licence, labels=labels, tags=tags)
            )

        async def requests() -> AsyncIterator[models_pb2.ImportModelRequest]:
            yield models_pb2.ImportModelRequest(header=header)
            for offset in range(0, len(data), CHUNK_BYTES):
                chunk = models_pb2.ModelChunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
                yield models_pb2.ImportModelRequest(chunk=chunk)

        return await answer(self._models.ImportModel(requests()))

    async def get_model_version(self, name: str) -> models_pb2.ModelVersion:
        """A version by "MODEL", "MODEL/versions/VERSION" or its full resource name; a bare model means its latest."""
        return await answer(
            self._models.GetModelVersion(models_pb2.GetModelVersionRequest(name=self.version_name(name)))
        )

    def version_name(self, name: str) -> str:
        """Full resource name of a model version given in short."""
        full = name if name.startswith("projects/") else f"{self.project}/models/{name}"
        return full if "/versions/" in full else f"{full}/versions/latest"

    async def get_model(self, name: str) -> models_pb2.Model:
        """A model by its id or full resource name."""
        full = name if name.startswith("projects/") else f"{self.project}/models/{name}"
        return await answer(self._models.GetModel(models_pb2.GetModelRequest(name=full)))

    async def list_models(self, *, tag: str = "") -> list[models_pb2.Model]:
        """Every model of the project."""
        return await all_pages(
            lambda token: self._models.ListModels(
                models_pb2.ListModelsRequest(parent=self.project, tag=tag, page_size=200, page_token=token)
            ),
            "models",
        )

    async def list_model_versions(self, model: str) -> list[models_pb2.ModelVersion]:
        """Every version of a model, newest first."""
        parent = model if model.startswith("projects/") else f"{self.project}/models/{model}"
        return await all_pages(
            lambda token: self._models.ListModelVersions(
                models_pb2.ListModelVersionsRequest(parent=parent, page_size=200, page_token=token)
            ),
            "model_versions",
        )

    async def delete_model(self, name: str) -> None:
        """Delete a model and its versions; modules made from it stay."""
        full = name if name.startswith("projects/") else f"{self.project}/models/{name}"
        await answer(self._models.DeleteModel(models_pb2.DeleteModelRequest(name=full)))

    # Artifacts and modules

    async def read_artifact(self, sha256: str) -> bytes:
        """Bytes of an artifact, checked against their digest."""
        request = artifacts_pb2.ReadArtifactRequest(sha256=sha256, parent=self.project)
        data = bytearray()
        try:
            async for part in self._artifacts.ReadArtifact(request):
                data += part.data
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"artifact {sha256} arrived with another digest; repeat the call")
        return bytes(data)

    async def write_artifact(self, data: bytes) -> str:
        """Store bytes and return their sha256 (hex)."""
        digest = hashlib.sha256(data).hexdigest()

        async def requests() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
            yield artifacts_pb2.WriteArtifactRequest(sha256=digest, parent=self.project, data=data[:CHUNK_BYTES])
            for offset in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
                yield artifacts_pb2.WriteArtifactRequest(data=data[offset : offset + CHUNK_BYTES])

        await answer(self._artifacts.WriteArtifact(requests()))
        return digest

    async def list_modules(self, *, model_version: str = "") -> list[modules_pb2.Module]:
        """Every sealed module of the project, newest first."""
        return await all_pages(
            lambda token: self._modules.ListModules(
                modules_pb2.ListModulesRequest(
                    parent=self.project, model_version=model_version, page_size=200, page_token=token
                )
            ),
            "modules",
        )

    async def get_module(self, name: str) -> modules_pb2.Module:
        """A module by its sha256 (or a unique beginning of it) or its full resource name."""
        short = name.rsplit("/", 1)[-1]
        if len(short) == 64:
            full = f"{self.project}/modules/{short}"
            return await answer(self._modules.GetModule(modules_pb2.GetModuleRequest(name=full)))
        matches = [module for module in await self.list_modules() if module.sha256.startswith(short)]
        if len(matches) != 1:
            raise LookupError(f"{len(matches)} modules begin with {short!r}; give more digits of the sha256")
        return matches[0]

    # Devices and plugins

    async def list_devices(self) -> list[devices_pb2.Device]:
        """Every device of the project."""
        return await all_pages(
            lambda token: self._devices.ListDevices(
                devices_pb2.ListDevicesRequest(parent=self.project, page_size=200, page_token=token)
            ),
            "devices",
        )

    async def get_device(self, name: str) -> devices_pb2.Device:
        """A device by its endpoint name or full resource name."""
        return await answer(self._devices.GetDevice(devices_pb2.GetDeviceRequest(name=self.device_name(name))))

    def device_name(self, name: str) -> str:
        """Full resource name of a device given by its endpoint name."""
        return name if name.startswith("projects/") else f"{self.project}/devices/{name}"

    async def create_device_key(
        self, endpoint: str, *, bootstrap: bool = False
    ) -> security_pb2.CreateDeviceKeyResponse:
        """A new pre-shared key for an endpoint name, with its secret, which is told this once.

        With `bootstrap` for the bootstrap server: it stays when that hands out others.
        """
        request = security_pb2.CreateDeviceKeyRequest(parent=self.project, endpoint=endpoint, bootstrap=bootstrap)
        return await answer(self._device_keys.CreateDeviceKey(request))

    async def list_device_keys(self, endpoint: str = "") -> list[security_pb2.DeviceKey]:
        """Keys of one endpoint, or of all, without their secrets."""
        return await all_pages(
            lambda token: self._device_keys.ListDeviceKeys(
                security_pb2.ListDeviceKeysRequest(
                    parent=self.project, endpoint=endpoint, page_size=1000, page_token=token
                )
            ),
            "keys",
        )

    async def delete_device_key(self, identity: str) -> None:
        """Take a key back; its open sessions end. Repeatable."""
        request = security_pb2.DeleteDeviceKeyRequest(parent=self.project, identity=identity)
        await answer(self._device_keys.DeleteDeviceKey(request))

    async def list_plugins(self) -> list[plugins_pb2.Plugin]:
        """Every plugin that the gateway knows."""
        return await all_pages(
            lambda token: self._plugins.ListPlugins(plugins_pb2.ListPluginsRequest(page_size=200, page_token=token)),
            "plugins",
        )

    async def release_plugin(self, name: str, vendor_version: str, reason: str) -> plugins_pb2.Plugin:
        """Let a version of a plugin that is in quarantine take part in builds again; the reason goes to the audit log."""
        full = name if name.startswith("plugins/") else f"plugins/{name}"
        request = quarantine_pb2.ReleasePluginRequest(name=full, vendor_version=vendor_version, reason=reason)
        return await answer(self._quarantine.ReleasePlugin(request))

    # Routing

    async def explain(
        self,
        model_version: str,
        *,
        devices: Iterable[str] = (),
        targets: Iterable[target_pb2.Target] = (),
        routing_only: bool = False,
    ) -> routing_pb2.ExplainResponse:
        """Which compiler can serve which device or target, and why not. No destination: every device of the project."""
        destinations = [routing_pb2.Destination(device=self.device_name(name)) for name in devices]
        destinations += [routing_pb2.Destination(target=target) for target in targets]
        request = routing_pb2.ExplainRequest(
            parent=self.project,
            model_version=self.version_name(model_version),
            destinations=destinations,
            routing_only=routing_only,
        )
        return await answer(self._routing.Explain(request))

    # Optimizations

    async def optimize_model(
        self, model_version: str, samples_sha256: str, options: Mapping[str, Any] | None = None
    ) -> AsyncIterator[optimizations_pb2.OptimizeModelResponse]:
        """Progress, then one result: the derived version that the optimizer makes. Closing the iterator cancels."""
        request = optimizations_pb2.OptimizeModelRequest(
            model_version=self.version_name(model_version),
            samples_sha256=samples_sha256,
            options=options_struct(options or {}),
        )
        call = self._optimizations.OptimizeModel(request)
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    # Builds

    async def create_build(
        self,
        model_version: str,
        target: target_pb2.Target,
        *,
        objective: builds_pb2.Objective.ValueType = builds_pb2.OBJECTIVE_UNSPECIFIED,
        plugins: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        samples_sha256: str = "",
        optimize: Mapping[str, Any] | None = None,
        request_id: str = "",
        validate_only: bool = False,
    ) -> builds_pb2.Build:
        """Start a build and return it as it stands; with `optimize` (also empty) the model is optimized first."""
        build = builds_pb2.Build(
            model_version=self.version_name(model_version),
            target=target,
            objective=objective,
            plugins=plugins,
            samples_sha256=samples_sha256,
            optimize=None if optimize is None else options_struct(optimize),
        )
        for plugin, values in (options or {}).items():
            ParseDict(dict(values), build.options[plugin])
        request = builds_pb2.CreateBuildRequest(
            parent=self.project, build=build, request_id=request_id or uuid.uuid4().hex, validate_only=validate_only
        )
        operation: operations_pb2.Operation = await answer(self._builds.CreateBuild(request))
        started = builds_pb2.Build()
        operation.metadata.Unpack(started)
        return started

    async def watch_build(self, name: str) -> AsyncIterator[builds_pb2.Build]:
        """The build now and at each change, until it ends."""
        request = builds_pb2.WatchBuildRequest(name=self._member("builds", name))
        try:
            async for build in self._builds.WatchBuild(request):
                yield build
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def wait_build(self, name: str) -> builds_pb2.Build:
        """The build once it has ended."""
        latest = await self.get_build(name)
        async for update in self.watch_build(name):
            latest = update
        return latest

    async def get_build(self, name: str) -> builds_pb2.Build:
        """A build by its id or full resource name."""
        return await answer(self._builds.GetBuild(builds_pb2.GetBuildRequest(name=self._member("builds", name))))

    async def list_builds(self) -> list[builds_pb2.Build]:
        """Every build of the project, newest first."""
        return await all_pages(
            lambda token: self._builds.ListBuilds(
                builds_pb2.ListBuildsRequest(parent=self.project, page_size=200, page_token=token)
            ),
            "builds",
        )

    async def cancel_build(self, name: str) -> builds_pb2.Build:
        """Ask a build to stop."""
        return await answer(self._builds.CancelBuild(builds_pb2.CancelBuildRequest(name=self._member("builds", name))))

    # Deployments

    async def create_deployment(
        self,
        model_version: str,
        *,
        devices: Iterable[str] = (),
        objective: builds_pb2.Objective.ValueType = builds_pb2.OBJECTIVE_UNSPECIFIED,
        plugins: Sequence[str] = (),
        samples_sha256: str = "",
        optimize: Mapping[str, Any] | None = None,
        concurrency: int = 0,
        policy: rollouts_pb2.RolloutPolicy | None = None,
        request_id: str = "",
        validate_only: bool = False,
    ) -> deployments_pb2.Deployment:
        """Start a deployment and return it as it stands; with `validate_only` return the plan.

        With `optimize` (also empty) the model is optimized first, and that is planned and installed. `policy` says how it goes
        over the devices (`rollout_policy` makes one from texts).
        """
        deployment = deployments_pb2.Deployment(
            model_version=self.version_name(model_version),
            devices=[self.device_name(name) for name in devices],
            objective=objective,
            plugins=plugins,
            samples_sha256=samples_sha256,
            optimize=None if optimize is None else options_struct(optimize),
            concurrency=concurrency,
            policy=policy,
        )
        request = deployments_pb2.CreateDeploymentRequest(
            parent=self.project,
            deployment=deployment,
            request_id=request_id or uuid.uuid4().hex,
            validate_only=validate_only,
        )
        operation: operations_pb2.Operation = await answer(self._deployments.CreateDeployment(request))
        started = deployments_pb2.Deployment()
        operation.metadata.Unpack(started)
        return started

    async def watch_deployment(self, name: str) -> AsyncIterator[deployments_pb2.Deployment]:
        """The deployment now and at each change, until it ends."""
        request = deployments_pb2.WatchDeploymentRequest(name=self._member("deployments", name))
        try:
            async for deployment in self._deployments.WatchDeployment(request):
                yield deployment
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def wait_deployment(self, name: str) -> deployments_pb2.Deployment:
        """The deployment once it has ended."""
        latest = await self.get_deployment(name)
        async for update in self.watch_deployment(name):
            latest = update
        return latest

    async def get_deployment(self, name: str) -> deployments_pb2.Deployment:
        """A deployment by its id or full resource name."""
        request = deployments_pb2.GetDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.GetDeployment(request))

    async def list_deployments(self) -> list[deployments_pb2.Deployment]:
        """Every deployment of the project, newest first."""
        return await all_pages(
            lambda token: self._deployments.ListDeployments(
                deployments_pb2.ListDeploymentsRequest(parent=self.project, page_size=200, page_token=token)
            ),
            "deployments",
        )

    async def pause_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Begin no device until `resume_deployment`; devices under way go on."""
        request = deployments_pb2.PauseDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.PauseDeployment(request))

    async def resume_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Go on with a paused deployment, in spite of the failures so far."""
        request = deployments_pb2.ResumeDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.ResumeDeployment(request))

    async def approve_deployment(self, name: str, wave: str = "") -> deployments_pb2.Deployment:
        """Let a wave begin: the one of this name, or without one the wave that waits."""
        request = deployments_pb2.ApproveDeploymentRequest(name=self._member("deployments", name), wave=wave)
        return await answer(self._deployments.ApproveDeployment(request))

    async def cancel_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Ask a deployment to stop."""
        request = deployments_pb2.CancelDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.CancelDeployment(request))

    async def rollback_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Bring every device of a deployment back to the module that was active before."""
        request = deployments_pb2.RollbackDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.RollbackDeployment(request))

    async def infer(self, device: str, inputs: Sequence[bytes]) -> deployments_pb2.DeviceInferResponse:
        """Run one inference on a device with its active module; `inputs` are the tensors' bytes, C order, little-endian."""
        request = deployments_pb2.DeviceInferRequest(
            device=self.device_name(device), inputs=tensor_pb2.TensorValues(tensors=inputs)
        )
        return await answer(self._deployments.Infer(request))

    def _member(self, collection: str, name: str) -> str:
        return name if name.startswith("projects/") else f"{self.project}/{collection}/{name}"


def options_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain values as a protobuf Struct."""
    return ParseDict(dict(values), struct_pb2.Struct())
