"""The services of access: ApiKeys, Projects, AuditLog."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tinymlaas.registry.v1 import access_pb2, access_pb2_grpc
from tinymlaas_servicekit import InvalidArgument, ResourceExhausted, encode_page_token
from tinymlaas_servicekit.identity import subject_of
from tinymlaas_servicekit.resource_names import PROJECT, parse_name

from ..core.access import EVERYWHERE, accept, make_key
from ..core.ports import AccessRecords, AuditFilter
from ._common import found, page_of, require

MAX_KEYS = 1000
MAX_ENTRIES = 256


class ApiKeysServicer(access_pb2_grpc.ApiKeysServicer):
    """See protos/tinymlaas/registry/v1/access.proto."""

    def __init__(self, records: AccessRecords) -> None:
        self._records = records

    async def CreateApiKey(
        self, request: access_pb2.CreateApiKeyRequest, context: Any
    ) -> access_pb2.CreateApiKeyResponse:
        """See the proto."""
        project = parse_name(PROJECT, request.parent)["project"]
        text, key, kept = make_key(project, request.api_key, subject_of(context), _now())
        if await asyncio.to_thread(self._records.add_api_key, key, kept.secret_sha256, MAX_KEYS) is None:
            raise ResourceExhausted(
                f"{request.parent} has {MAX_KEYS} API keys",
                "LIMIT_EXCEEDED",
                {"limit": "api keys", "bound": MAX_KEYS, "value": MAX_KEYS + 1},
                "Delete keys that have expired or that nobody uses.",
            )
        return access_pb2.CreateApiKeyResponse(api_key=key, secret=text)

    async def GetApiKey(self, request: access_pb2.GetApiKeyRequest, context: Any) -> access_pb2.ApiKey:
        """See the proto."""
        return found(await asyncio.to_thread(self._records.get_api_key, request.name), request.name)

    async def ListApiKeys(self, request: access_pb2.ListApiKeysRequest, context: Any) -> access_pb2.ListApiKeysResponse:
        """See the proto."""
        project = parse_name(PROJECT, request.parent)["project"]
        keys, cursor = await asyncio.to_thread(self._records.list_api_keys, project, page_of(request))
        token = "" if cursor is None else encode_page_token(cursor, request)
        return access_pb2.ListApiKeysResponse(api_keys=keys, next_page_token=token)

    async def DeleteApiKey(self, request: access_pb2.DeleteApiKeyRequest, context: Any) -> empty_pb2.Empty:
        """See the proto."""
        deleted = await asyncio.to_thread(self._records.delete_api_key, request.name)
        found(deleted or None, request.name)
        return empty_pb2.Empty()

    async def ResolveApiKey(self, request: access_pb2.ResolveApiKeyRequest, context: Any) -> access_pb2.ApiKey:
        """See the proto."""
        known = await asyncio.to_thread(self._records.find_api_key, request.api_key_id)
        return accept(known, request.secret_sha256, _now())


class ProjectsServicer(access_pb2_grpc.ProjectsServicer):
    """See protos/tinymlaas/registry/v1/access.proto."""

    def __init__(self, records: AccessRecords) -> None:
        self._records = records

    async def GetProject(self, request: access_pb2.GetProjectRequest, context: Any) -> access_pb2.Project:
        """See the proto."""
        return await asyncio.to_thread(self._records.get_project, parse_name(PROJECT, request.name)["project"])

    async def ListProjects(
        self, request: access_pb2.ListProjectsRequest, context: Any
    ) -> access_pb2.ListProjectsResponse:
        """See the proto."""
        projects, cursor = await asyncio.to_thread(self._records.list_projects, page_of(request))
        token = "" if cursor is None else encode_page_token(cursor, request)
        return access_pb2.ListProjectsResponse(projects=projects, next_page_token=token)

    async def UpsertProject(self, request: access_pb2.UpsertProjectRequest, context: Any) -> access_pb2.Project:
        """See the proto."""
        name = require(request.project, "name", "project")
        if len(request.project.display_name) > 128:
            raise InvalidArgument(
                "project.display_name has more than 128 characters", "FIELD_INVALID", {"field": "project.display_name"}
            )
        await asyncio.to_thread(self._records.put_project, request.project)
        return await asyncio.to_thread(self._records.get_project, parse_name(PROJECT, name)["project"])


class AuditLogServicer(access_pb2_grpc.AuditLogServicer):
    """See protos/tinymlaas/registry/v1/access.proto."""

    def __init__(self, records: AccessRecords) -> None:
        self._records = records

    async def AppendAuditEntries(self, request: access_pb2.AppendAuditEntriesRequest, context: Any) -> empty_pb2.Empty:
        """See the proto."""
        if len(request.entries) > MAX_ENTRIES:
            raise InvalidArgument(f"more than {MAX_ENTRIES} entries", "FIELD_INVALID", {"field": "entries"})
        for index, entry in enumerate(request.entries):
            require(entry, "name", f"entries[{index}]")
            if entry.project:
                parse_name(PROJECT, entry.project)
        await asyncio.to_thread(self._records.append_audit, request.entries)
        return empty_pb2.Empty()

    async def ListAuditEntries(
        self, request: access_pb2.ListAuditEntriesRequest, context: Any
    ) -> access_pb2.ListAuditEntriesResponse:
        """See the proto."""
        whole = request.parent == EVERYWHERE
        wanted = AuditFilter(
            None if whole else parse_name(PROJECT, request.parent)["project"],
            request.subject,
            request.method,
            request.start_time.ToMicroseconds() if request.HasField("start_time") else None,
            request.end_time.ToMicroseconds() if request.HasField("end_time") else None,
        )
        entries, cursor = await asyncio.to_thread(self._records.list_audit, wanted, page_of(request))
        token = "" if cursor is None else encode_page_token(cursor, request)
        return access_pb2.ListAuditEntriesResponse(audit_entries=entries, next_page_token=token)


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
