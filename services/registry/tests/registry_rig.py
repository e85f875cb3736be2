"""A registry served on loopback, with stubs of all its services, and models to upload."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import google_crc32c
import grpc
import grpc.aio
import pytest
import registry_backends
from onnx import TensorProto, helper

from tinymlaas.registry.v1 import (
    access_pb2_grpc,
    artifacts_pb2,
    artifacts_pb2_grpc,
    devices_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    modules_pb2_grpc,
    plugins_pb2_grpc,
)
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_registry import Registry, RegistrySettings, build_registry
from tinymlaas_servicekit import ServiceError, connect, from_rpc_error

MIB = 1 << 20


def onnx_model(seed: int = 0, width: int = 4) -> bytes:
    """A small valid model: one MatMul."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, width], [float(seed + i) for i in range(3 * width)])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "n0")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


class Client:
    """Stubs of every service of one registry."""

    def __init__(self, registry: Registry, channel: grpc.aio.Channel) -> None:
        self.registry = registry
        self.models = models_pb2_grpc.ModelsStub(channel)
        self.artifacts = artifacts_pb2_grpc.ArtifactsStub(channel)
        self.modules = modules_pb2_grpc.ModulesStub(channel)
        self.devices = devices_pb2_grpc.DevicesStub(channel)
        self.plugins = plugins_pb2_grpc.PluginsStub(channel)
        self.api_keys = access_pb2_grpc.ApiKeysStub(channel)
        self.projects = access_pb2_grpc.ProjectsStub(channel)
        self.audit_log = access_pb2_grpc.AuditLogStub(channel)

    async def upload(
        self, data: bytes, model: str = "kws", project: str = "p", **fields: object
    ) -> models_pb2.ModelVersion:
        return await self.models.ImportModel(requests(data, model, project, **fields))

    async def write(self, data: bytes, project: str = "p") -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        parts = [data[o : o + MIB] for o in range(0, max(len(data), 1), MIB)]
        first = artifacts_pb2.WriteArtifactRequest(sha256=sha256, parent=f"projects/{project}", data=parts[0])
        rest = [artifacts_pb2.WriteArtifactRequest(data=part) for part in parts[1:]]
        return (await self.artifacts.WriteArtifact(iter([first, *rest]))).sha256

    async def read(self, sha256: str, project: str = "p", **fields: int) -> bytes:
        request = artifacts_pb2.ReadArtifactRequest(sha256=sha256, parent=f"projects/{project}", **fields)
        return b"".join([part.data async for part in self.artifacts.ReadArtifact(request)])


def requests(
    data: bytes, model: str = "kws", project: str = "p", chunk_bytes: int = MIB, **fields: object
) -> Iterator[models_pb2.ImportModelRequest]:
    """The messages of an upload; `fields` replace those of the header."""
    values = {
        "parent": f"projects/{project}",
        "model_id": model,
        "format": tensor_pb2.MODEL_FORMAT_ONNX,
        "sha256": hashlib.sha256(data).digest(),
        **fields,
    }
    yield models_pb2.ImportModelRequest(header=models_pb2.ImportModelHeader(**values))
    for offset in range(0, len(data), chunk_bytes):
        part = data[offset : offset + chunk_bytes]
        chunk = models_pb2.ModelChunk(offset=offset, data=part, crc32c=google_crc32c.value(part))
        yield models_pb2.ImportModelRequest(chunk=chunk)


@contextlib.asynccontextmanager
async def running(folder: Path, check=None, **values: object) -> AsyncIterator[Client]:
    """A registry whose state lies in `folder`."""
    values = {**registry_backends.settings(folder), **values}
    settings = RegistrySettings(_env_file=None, state_dir=folder, listen="127.0.0.1:0", grace_seconds=0, **values)
    async with build_registry(settings, check) as registry, connect(registry.address) as channel:
        yield Client(registry, channel)


async def error_of(awaitable) -> ServiceError:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)
