"""The Modules service."""

from __future__ import annotations

import asyncio
from typing import Any

from tinymlaas.registry.v1 import modules_pb2, modules_pb2_grpc
from tinymlaas_servicekit import AlreadyExists, FailedPrecondition, InvalidArgument, encode_page_token
from tinymlaas_servicekit.resource_names import PROJECT, parse_name

from ..core.ports import ArtifactStore, Records
from ..core.storing import Storing
from ._common import found, page_of
from .artifacts import _digest


class ModulesServicer(modules_pb2_grpc.ModulesServicer):
    """See protos/tinymlaas/registry/v1/modules.proto."""

    def __init__(self, records: Records, store: ArtifactStore, storing: Storing) -> None:
        self._records, self._store, self._storing = records, store, storing

    async def CreateModule(self, request: modules_pb2.CreateModuleRequest, context: Any) -> modules_pb2.Module:
        """See the proto."""
        project = parse_name(PROJECT, request.parent)["project"]
        module = modules_pb2.Module()
        module.CopyFrom(request.module)
        name = f"{request.parent}/modules/{_digest(module.sha256)}"
        if module.name not in ("", name):
            raise InvalidArgument(f"module.name is not {name}", "FIELD_INVALID", {"field": "module.name"})
        module.name = name
        async with self._storing.turn:
            module.size_bytes = await self._stored(project, module.sha256)
            if module.device_image_sha256:
                module.device_image_bytes = await self._stored(project, _digest(module.device_image_sha256))
            recorded = await asyncio.to_thread(self._records.add_module, module)
        if _content(recorded) != _content(module):
            raise AlreadyExists(
                f"{name} is recorded with other properties",
                "MODULE_DIFFERS",
                {"name": name},
                "The same file was described in two ways: one of the descriptions is wrong.",
            )
        return recorded

    async def GetModule(self, request: modules_pb2.GetModuleRequest, context: Any) -> modules_pb2.Module:
        """See the proto."""
        return found(await asyncio.to_thread(self._records.get_module, request.name), request.name)

    async def ListModules(
        self, request: modules_pb2.ListModulesRequest, context: Any
    ) -> modules_pb2.ListModulesResponse:
        """See the proto."""
        project, page = parse_name(PROJECT, request.parent)["project"], page_of(request)
        modules, cursor = await asyncio.to_thread(self._records.list_modules, project, request.model_version, page)
        token = "" if cursor is None else encode_page_token(cursor, request)
        return modules_pb2.ListModulesResponse(modules=modules, next_page_token=token)

    async def _stored(self, project: str, sha256: str) -> int:
        owned = await asyncio.to_thread(self._records.owns, project, sha256)
        size = await self._storing.run(self._store.size, sha256) if owned else None
        if size is None:
            raise FailedPrecondition(
                f"artifact {sha256} is not stored",
                "ARTIFACT_MISSING",
                {"subject": sha256},
                "Write the artifact with WriteArtifact first.",
            )
        return size


def _content(module: modules_pb2.Module) -> bytes:
    """What two records of one file must agree on: not when it was recorded, nor from which of several equal models."""
    copy = modules_pb2.Module()
    copy.CopyFrom(module)
    copy.ClearField("create_time")
    copy.ClearField("model_version")
    return copy.SerializeToString(deterministic=True)
