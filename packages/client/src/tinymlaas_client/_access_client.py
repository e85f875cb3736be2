"""Calls about access: API keys, the project's quotas, the audit log."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import grpc.aio

from tinymlaas.registry.v1 import access_pb2, access_pb2_grpc
from tinymlaas_client._requests import all_pages, answer
from tinymlaas_servicekit.access import role_named


def grants_of(roles: Mapping[str, Sequence[str]]) -> list[access_pb2.Grant]:
    """Grants from names of roles by project id ("-": everywhere): {"default": ["operator"]}. ValueError for an unknown role."""
    grants = []
    for project, names in roles.items():
        found = {name: role_named(name) for name in names}
        unknown = [name for name, role in found.items() if role is None]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: no such role; there are viewer, operator, admin, vendor, device-admin"
            )
        grants.append(
            access_pb2.Grant(project=f"projects/{project}", roles=[role for role in found.values() if role is not None])
        )
    return grants


class AccessCalls:
    """The part of AsyncClient that is about access; every method is for its project."""

    project: str

    def _open_access(self, channel: grpc.aio.Channel) -> None:
        self._api_keys: Any = access_pb2_grpc.ApiKeysStub(channel)
        self._projects: Any = access_pb2_grpc.ProjectsStub(channel)
        self._audit_log: Any = access_pb2_grpc.AuditLogStub(channel)

    async def create_api_key(
        self,
        roles: Mapping[str, Sequence[str]],
        *,
        display_name: str = "",
        expires: datetime.datetime | None = None,
    ) -> access_pb2.CreateApiKeyResponse:
        """A new key with these roles by project id, and its secret, which is told this once."""
        key = access_pb2.ApiKey(display_name=display_name, grants=grants_of(roles))
        if expires is not None:
            key.expire_time.FromDatetime(expires)
        request = access_pb2.CreateApiKeyRequest(parent=self.project, api_key=key)
        made: access_pb2.CreateApiKeyResponse = await answer(self._api_keys.CreateApiKey(request))
        return made

    async def list_api_keys(self) -> list[access_pb2.ApiKey]:
        """The project's keys, without their secrets."""

        def page(token: str) -> Any:
            return self._api_keys.ListApiKeys(
                access_pb2.ListApiKeysRequest(parent=self.project, page_size=200, page_token=token)
            )

        return await all_pages(page, "api_keys")

    async def delete_api_key(self, ident: str) -> None:
        """Take a key back, by its id or name; gateways refuse it after some seconds."""
        name = ident if ident.startswith("projects/") else f"{self.project}/apiKeys/{ident}"
        await answer(self._api_keys.DeleteApiKey(access_pb2.DeleteApiKeyRequest(name=name)))

    async def get_project(self) -> access_pb2.Project:
        """The project with its quotas and what it uses of them."""
        found: access_pb2.Project = await answer(
            self._projects.GetProject(access_pb2.GetProjectRequest(name=self.project))
        )
        return found

    async def set_quotas(self, quotas: access_pb2.Quotas) -> access_pb2.Project:
        """Replace the project's own quotas; absent ones become those of the installation."""
        display_name = (await self.get_project()).display_name
        project = access_pb2.Project(name=self.project, display_name=display_name, quotas=quotas)
        request = access_pb2.UpsertProjectRequest(project=project)
        written: access_pb2.Project = await answer(self._projects.UpsertProject(request))
        return written

    async def list_audit_entries(
        self,
        *,
        everywhere: bool = False,
        subject: str = "",
        method: str = "",
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        limit: int = 100,
    ) -> list[access_pb2.AuditEntry]:
        """The newest entries of the project, or of the whole installation; at most `limit`."""
        request = access_pb2.ListAuditEntriesRequest(
            parent="projects/-" if everywhere else self.project, subject=subject, method=method
        )
        if since is not None:
            request.start_time.FromDatetime(since)
        if until is not None:
            request.end_time.FromDatetime(until)
        found: list[access_pb2.AuditEntry] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), 500)
            page: access_pb2.ListAuditEntriesResponse = await answer(self._audit_log.ListAuditEntries(request))
            found.extend(page.audit_entries)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found
