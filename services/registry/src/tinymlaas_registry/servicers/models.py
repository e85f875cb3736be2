"""The Models service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2

from tinymlaas.registry.v1 import models_pb2, models_pb2_grpc
from tinymlaas_servicekit import encode_page_token
from tinymlaas_servicekit.resource_names import PROJECT, parse_name

from ..core.imports import Imports
from ..core.ports import ArtifactStore, Records
from ..core.storing import Storing
from ._common import found, page_of


class ModelsServicer(models_pb2_grpc.ModelsServicer):
    """See protos/tinymlaas/registry/v1/models.proto."""

    def __init__(self, records: Records, store: ArtifactStore, imports: Imports, storing: Storing) -> None:
        self._records, self._store, self._imports, self._storing = records, store, imports, storing

    async def ImportModel(
        self, request_iterator: AsyncIterator[models_pb2.ImportModelRequest], context: Any
    ) -> models_pb2.ModelVersion:
        """See the proto."""
        return await self._imports.run(request_iterator)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.Model:
        """See the proto."""
        return found(await asyncio.to_thread(self._records.get_model, request.name), request.name)

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Any) -> models_pb2.ListModelsResponse:
        """See the proto."""
        project, page = parse_name(PROJECT, request.parent)["project"], page_of(request)
        models, cursor = await asyncio.to_thread(self._records.list_models, project, request.tag, page)
        token = "" if cursor is None else encode_page_token(cursor, request)
        return models_pb2.ListModelsResponse(models=models, next_page_token=token)

    async def DeleteModel(self, request: models_pb2.DeleteModelRequest, context: Any) -> empty_pb2.Empty:
        """See the proto."""
        # In turn with those who store: bytes that are about to be referred to again are not removed.
        async with self._storing.turn:
            orphans = found(await asyncio.to_thread(self._records.delete_model, request.name), request.name)
            # In a shared store another registry may be about to refer to the same bytes: there the sweep removes them.
            for sha256 in [] if self._store.shared else orphans:
                await self._storing.run(self._store.delete, sha256)
        return empty_pb2.Empty()

    async def GetModelVersion(
        self, request: models_pb2.GetModelVersionRequest, context: Any
    ) -> models_pb2.ModelVersion:
        """See the proto."""
        return found(await asyncio.to_thread(self._records.get_version, request.name), request.name)

    async def ListModelVersions(
        self, request: models_pb2.ListModelVersionsRequest, context: Any
    ) -> models_pb2.ListModelVersionsResponse:
        """See the proto."""
        page = page_of(request)
        found(await asyncio.to_thread(self._records.get_model, request.parent), request.parent)
        versions, cursor = await asyncio.to_thread(self._records.list_versions, request.parent, page)
        token = "" if cursor is None else encode_page_token(cursor, request)
        return models_pb2.ListModelVersionsResponse(model_versions=versions, next_page_token=token)
