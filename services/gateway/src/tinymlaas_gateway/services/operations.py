"""google.longrunning.Operations over builds and deployments; an operation is named after its resource."""

from __future__ import annotations

import asyncio

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.rpc import code_pb2

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_servicekit import (
    InvalidArgument,
    NotFound,
    Unimplemented,
    decode_page_token,
    encode_page_token,
    page_size,
)

from ..core.objections import status
from ..engine.changes import Changes
from ..engine.context import Context
from .requests import cursor
from .types import ServicerContext

MAX_WAIT_SECONDS = 600.0
Resource = builds_pb2.Build | deployments_pb2.Deployment
_FAULTY = {
    builds_pb2.Build: (builds_pb2.Build.STATE_FAILED, builds_pb2.Build.STATE_CANCELLED),
    deployments_pb2.Deployment: (deployments_pb2.Deployment.STATE_FAILED, deployments_pb2.Deployment.STATE_CANCELLED),
}


def operation_of(resource: Resource, done: bool) -> operations_pb2.Operation:
    """The operation of a build or deployment: metadata is the resource now, the response the resource at its end.

    A resource that failed or was cancelled ends the operation with its error; its metadata still tells everything.
    """
    project, kind, ident = resource.name.split("/")[1:]
    operation = operations_pb2.Operation(name=f"projects/{project}/operations/{kind}.{ident}", done=done)
    operation.metadata.Pack(resource)
    if not done:
        return operation
    if resource.state in _FAULTY[type(resource)]:
        fallback = status(code_pb2.CANCELLED, "CANCELLED", f"{resource.name} was cancelled")
        operation.error.CopyFrom(resource.error if resource.HasField("error") else fallback)
    else:
        operation.response.Pack(resource)
    return operation


def resource_name(operation: str) -> tuple[str, str]:
    """The kind ("builds" or "deployments") and name of an operation's resource; InvalidArgument for other names."""
    parts = operation.split("/")
    kind, _, ident = parts[3].partition(".") if len(parts) == 4 else ("", "", "")
    if parts[:1] != ["projects"] or parts[2:3] != ["operations"] or kind not in ("builds", "deployments") or not ident:
        raise InvalidArgument(
            f"{operation[:128]!r} is no operation",
            "NAME_INVALID",
            {"pattern": "projects/{project}/operations/{operation}"},
        )
    return kind, f"projects/{parts[1]}/{kind}/{ident}"


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    """Get, List, Wait, Cancel; operations cannot be deleted, they are the record of what happened."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def _get(self, name: str) -> operations_pb2.Operation:
        kind, resource = resource_name(name)
        store = self._context.builds if kind == "builds" else self._context.deployments
        record = await asyncio.to_thread(store.get, resource)
        if record is None:
            raise NotFound(f"{name} does not exist", metadata={"name": name})
        return operation_of(record.body, record.ended)

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: ServicerContext
    ) -> operations_pb2.Operation:
        """The operation now."""
        return await self._get(request.name)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: ServicerContext
    ) -> operations_pb2.Operation:
        """The operation when it is done, or as it is when the timeout is over (at most 10 minutes)."""
        kind, resource = resource_name(request.name)
        changes: Changes[builds_pb2.Build] | Changes[deployments_pb2.Deployment]
        changes = self._context.build_changes if kind == "builds" else self._context.deployment_changes
        seconds = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else MAX_WAIT_SECONDS
        try:
            async with asyncio.timeout(max(0.0, min(seconds, MAX_WAIT_SECONDS))):
                await changes.ended(resource)
        except TimeoutError:
            pass
        return await self._get(request.name)

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: ServicerContext
    ) -> operations_pb2.ListOperationsResponse:
        """A page of the operations of `projects/{project}`, newest first; builds and deployments in one list."""
        parts = request.name.strip("/").split("/")
        if len(parts) not in (2, 3) or parts[0] != "projects" or parts[2:] not in ([], ["operations"]):
            raise InvalidArgument("name must be projects/{project}", "NAME_INVALID", {"field": "name"})
        if request.filter:
            raise InvalidArgument("operations cannot be filtered", "FIELD_INVALID", {"field": "filter"})
        size, before = page_size(request.page_size), cursor(decode_page_token(request))
        builds = await asyncio.to_thread(self._context.builds.latest, parts[1], size + 1, before)
        deployments = await asyncio.to_thread(self._context.deployments.latest, parts[1], size + 1, before)
        found = [(place, operation_of(record.body, record.ended)) for place, record in builds]
        found += [(place, operation_of(record.body, record.ended)) for place, record in deployments]
        found.sort(key=lambda entry: entry[0], reverse=True)
        response = operations_pb2.ListOperationsResponse(operations=[operation for _, operation in found[:size]])
        if len(found) > size:
            response.next_page_token = encode_page_token(str(found[size - 1][0]), request)
        return response

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: ServicerContext
    ) -> empty_pb2.Empty:
        """Asks the build or deployment to stop. Repeatable."""
        kind, resource = resource_name(request.name)
        store = self._context.builds if kind == "builds" else self._context.deployments
        try:
            await asyncio.to_thread(store.request_cancel, resource)
        except KeyError:
            raise NotFound(f"{request.name} does not exist", metadata={"name": request.name}) from None
        return empty_pb2.Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: ServicerContext
    ) -> empty_pb2.Empty:
        """Not offered."""
        raise Unimplemented("operations are kept as the record of what happened", "UNIMPLEMENTED")
