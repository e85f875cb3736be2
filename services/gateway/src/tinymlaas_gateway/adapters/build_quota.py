"""How many builds of a project may run at once: its quota is the registry's, its running builds are this gateway's records."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import sqlalchemy as sa

from tinymlaas.registry.v1 import access_pb2, access_pb2_grpc
from tinymlaas_servicekit import ResourceExhausted, from_rpc_error

from .catalogue import patiently
from .endpoints import Endpoint
from .memory import Recent
from .schema import resources

FRESH_SECONDS = 10.0
FRESH_NAMES = 1024
CALL_SECONDS = 10.0
PATIENCE_SECONDS = 5.0


class BuildQuota:
    """Admits builds one after the other while their project has room. Gateways that share records may admit one each at once."""

    def __init__(self, registry: Endpoint, engine: sa.Engine) -> None:
        self._registry, self._engine = registry, engine
        self._projects: Recent[access_pb2.Project] = Recent(FRESH_SECONDS, FRESH_NAMES)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def admit(self, project: str) -> AsyncIterator[None]:
        """Surrounds the making of a build; ResourceExhausted / QUOTA_EXCEEDED when the project has too many."""
        quotas = (
            await self._projects.get(project, lambda: patiently(lambda: self._ask(project), PATIENCE_SECONDS))
        ).effective_quotas
        if not quotas.HasField("max_builds"):
            yield
            return
        async with self._locks[project]:
            running = await asyncio.to_thread(self._running, project)
            if running >= quotas.max_builds:
                raise ResourceExhausted(
                    f"projects/{project} may have {quotas.max_builds} builds at once, and has {running}",
                    "QUOTA_EXCEEDED",
                    {
                        "project": f"projects/{project}",
                        "quota": "builds",
                        "bound": quotas.max_builds,
                        "value": running + 1,
                    },
                    "Wait until a build has ended, cancel one, or ask an administrator of the installation for more.",
                )
            yield

    async def _ask(self, project: str) -> access_pb2.Project:
        stub = access_pb2_grpc.ProjectsStub(self._registry.channel())
        request = access_pb2.GetProjectRequest(name=f"projects/{project}")
        try:
            found: access_pb2.Project = await stub.GetProject(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return found

    def _running(self, project: str) -> int:
        query = (
            sa.select(sa.func.count())
            .select_from(resources)
            .where(resources.c.kind == "build", resources.c.project == project, resources.c.ended.is_(False))
        )
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())
