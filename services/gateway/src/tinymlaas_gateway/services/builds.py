"""The Builds service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.longrunning import operations_pb2

from tinymlaas.gateway.v1 import builds_pb2, builds_pb2_grpc
from tinymlaas_servicekit import NotFound, decode_page_token, encode_page_token, page_size

from ..core.projection import ended
from ..engine import builds, durable
from ..engine.context import Context
from ..engine.fairness import on_behalf_of
from .operations import operation_of
from .requests import cursor, project_in
from .types import ServicerContext
from .undivided import undivided


class BuildsServicer(builds_pb2_grpc.BuildsServicer):
    """Maps calls to the engine."""

    def __init__(self, context: Context, admit: builds.Admission = builds.unbounded) -> None:
        self._context, self._admit = context, admit

    async def CreateBuild(
        self, request: builds_pb2.CreateBuildRequest, context: ServicerContext
    ) -> operations_pb2.Operation:
        """Starts a build, or answers at once when its result is known."""
        with on_behalf_of(request.parent):
            async with self._context.call_places.taken():
                build = await undivided(self._begun(request))
        return operation_of(build, ended(build))

    async def _begun(self, request: builds_pb2.CreateBuildRequest) -> builds_pb2.Build:
        build, to_run = await builds.create(
            self._context,
            project_in(request.parent),
            request.build,
            request.request_id,
            request.validate_only,
            self._admit,
        )
        if to_run:
            await durable.start("build", durable.build_workflow, build.name)
        return build

    async def GetBuild(self, request: builds_pb2.GetBuildRequest, context: ServicerContext) -> builds_pb2.Build:
        """The build now."""
        record = await asyncio.to_thread(self._context.builds.get, request.name)
        if record is None:
            raise NotFound(f"{request.name} does not exist", metadata={"name": request.name})
        return record.body

    async def ListBuilds(
        self, request: builds_pb2.ListBuildsRequest, context: ServicerContext
    ) -> builds_pb2.ListBuildsResponse:
        """A page of the project's builds, newest first."""
        found, more = await asyncio.to_thread(
            self._context.builds.page,
            project_in(request.parent),
            page_size(request.page_size),
            cursor(decode_page_token(request)),
        )
        token = encode_page_token(str(more), request) if more is not None else ""
        return builds_pb2.ListBuildsResponse(builds=found, next_page_token=token)

    async def WatchBuild(
        self, request: builds_pb2.WatchBuildRequest, context: ServicerContext
    ) -> AsyncIterator[builds_pb2.Build]:
        """The build now and at each change, until it ends."""
        async for record in self._context.build_changes.watch(request.name):
            yield record.body

    async def CancelBuild(self, request: builds_pb2.CancelBuildRequest, context: ServicerContext) -> builds_pb2.Build:
        """Asks a build to stop."""
        try:
            return (await asyncio.to_thread(self._context.builds.request_cancel, request.name)).body
        except KeyError:
            raise NotFound(f"{request.name} does not exist", metadata={"name": request.name}) from None
