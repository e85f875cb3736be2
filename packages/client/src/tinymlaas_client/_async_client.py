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
from google.protobuf.json_format import ParseDict

from tinymlaas.gateway.v1 import (
    builds_pb2,
    builds_pb2_grpc,
    optimizations_pb2,
    optimizations_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from tinymlaas.registry.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    modules_pb2,
    modules_pb2_grpc,
)
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_client._access_client import AccessCalls
from tinymlaas_client._deployment_calls import DeploymentCalls
from tinymlaas_client._requests import all_pages, answer, options_struct, watched
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
class AsyncClient(AccessCalls, DeploymentCalls):
    """A connection to a gateway, for one project.

    Every method raises `tinymlaas_servicekit.errors.ServiceError` with code, reason, metadata and help when the service
    refuses. Methods that create take a `request_id`, and are safe to repeat with the same one. With `tls` the gateway must
    prove its host name, to the authority in its `ca` or, where that is None, to one that this machine trusts.
    """

    def __init__(
        self, address: str, *, token: str | None = None, project: str = "default", tls: TlsFiles | None = None
    ) -> None:
        self.project = f"projects/{project}"
        self._channel = connect(address, token=token, tls=tls, request_ids=True)
        self._open_access(self._channel)
        self._open_devices(self._channel)
        self._open_deployments(self._channel)
        self._models = models_pb2_grpc.ModelsStub(self._channel)
        self._artifacts = artifacts_pb2_grpc.ArtifactsStub(self._channel)
        self._modules = modules_pb2_grpc.ModulesStub(self._channel)
        self._routing = routing_pb2_grpc.RoutingStub(self._channel)
        self._optimizations = optimizations_pb2_grpc.OptimizationsStub(self._channel)
        self._builds = builds_pb2_grpc.BuildsStub(self._channel)

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
        async for build in watched(lambda: self._builds.WatchBuild(request)):
            yield build

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
