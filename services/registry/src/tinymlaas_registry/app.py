"""Puts the registry together: settings to database, store, core and servicers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import grpc.aio
import structlog
from sqlalchemy import Engine

from tinymlaas.registry.v1 import (
    access_pb2_grpc,
    artifacts_pb2_grpc,
    devices_pb2_grpc,
    models_pb2_grpc,
    modules_pb2_grpc,
    plugins_pb2_grpc,
)
from tinymlaas_servicekit import GrpcServer, Unavailable

from . import servicers
from .adapters import FolderStore, S3Store, SqlAccess, SqlRecords, migrate, open_engine
from .core.imports import CheckModel, ImportLimits, Imports
from .core.ports import AccessRecords, ArtifactStore, Records
from .core.storing import Storing
from .settings import RegistrySettings

Result = TypeVar("Result")
log = structlog.get_logger("tinymlaas.registry")

NAME = "tinymlaas-registry"
_NAMES = ("Models", "Artifacts", "Modules", "Devices", "Plugins", "ApiKeys", "Projects", "AuditLog")
PATIENCE_SECONDS = 60.0
SERVICES = tuple(f"tinymlaas.registry.v1.{name}" for name in _NAMES)


class Registry(GrpcServer):
    """The registry's server; its database connections close when it has drained."""

    def __init__(
        self, settings: RegistrySettings, engine: Engine, store: ArtifactStore, check: CheckModel | None
    ) -> None:
        super().__init__(settings, self._add_servicers)
        self._configured, self._engine, self._store, self._check = settings, engine, store, check
        defaults = settings.default_quotas()
        self.records: Records = SqlRecords(engine, defaults=defaults)
        self.access: AccessRecords = SqlAccess(engine, defaults)
        self._storing: Storing | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def _add_servicers(self, server: grpc.aio.Server) -> tuple[str, ...]:
        settings, records, store = self._configured, self.records, self._store
        storing = self._storing = Storing(store)
        limits = ImportLimits(
            settings.max_model_bytes, settings.max_uploads, settings.max_checks, settings.stall_seconds
        )
        imports = Imports(records, store, limits, storing, self._check)
        models = servicers.ModelsServicer(records, store, imports, storing)
        artifacts = servicers.ArtifactsServicer(
            records, store, storing, settings.max_artifact_bytes, settings.stall_seconds
        )
        models_pb2_grpc.add_ModelsServicer_to_server(models, server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(artifacts, server)
        modules_pb2_grpc.add_ModulesServicer_to_server(servicers.ModulesServicer(records, store, storing), server)
        devices_pb2_grpc.add_DevicesServicer_to_server(servicers.DevicesServicer(records), server)
        plugins_pb2_grpc.add_PluginsServicer_to_server(servicers.PluginsServicer(records), server)
        access_pb2_grpc.add_ApiKeysServicer_to_server(servicers.ApiKeysServicer(self.access), server)
        access_pb2_grpc.add_ProjectsServicer_to_server(servicers.ProjectsServicer(self.access), server)
        access_pb2_grpc.add_AuditLogServicer_to_server(servicers.AuditLogServicer(self.access), server)
        return SERVICES

    async def start(self) -> str:
        """Removes bytes that nothing refers to (of a process that was killed between two steps), then serves."""
        await asyncio.to_thread(patiently, self._sweep)
        await asyncio.to_thread(patiently, partial(measure, self.records, self._store))
        if self._store.shared:
            self._sweeper = asyncio.create_task(self._keep_swept(), name="sweep of unreferenced artifacts")
        return await super().start()

    async def drain(self) -> None:
        """See GrpcServer."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        try:
            await super().drain()
        finally:
            if self._storing is not None:
                self._storing.close()
            self._engine.dispose()

    async def _keep_swept(self) -> None:
        while True:
            await asyncio.sleep(self._configured.sweep_seconds)
            try:
                await asyncio.to_thread(self._sweep)
            except Exception:
                # The store or the database may be away for a while; the next sweep does what this one did not.
                log.exception("unreferenced artifacts were not removed")

    def _sweep(self) -> None:
        grace = self._configured.sweep_grace_seconds if self._store.shared else 0.0
        removed = sweep(self.records, self._store, grace)
        if removed:
            log.info("removed unreferenced artifacts", count=removed)


def sweep(records: Records, store: ArtifactStore, older_than_s: float = 0.0) -> int:
    """Deletes artifacts that nothing refers to; how many. `older_than_s` is 0 only while nothing else writes to the store."""
    old = list(store.digests(older_than_s))
    kept = records.referenced()
    orphans = [sha256 for sha256 in old if sha256 not in kept]
    for sha256 in orphans:
        store.delete(sha256)
    return len(orphans)


def measure(records: Records, store: ArtifactStore) -> int:
    """Records the sizes of artifacts that were stored before sizes were; how many."""
    sizes = {sha256: size for sha256 in records.unsized() if (size := store.size(sha256)) is not None}
    if sizes:
        records.add_sizes(sizes)
    return len(sizes)


def patiently(attempt: Callable[[], Result]) -> Result:
    """What `attempt` gives, repeated for `PATIENCE_SECONDS` while it raises Unavailable, which is raised then. Blocks.

    A registry that died instead would be started again later and later, longer than its store is away.
    """
    end, pause, told = time.monotonic() + PATIENCE_SECONDS, 0.1, False
    while True:
        try:
            return attempt()
        except Unavailable as error:
            if time.monotonic() + pause > end:
                raise
            if not told:
                log.warning(
                    "waiting for what the registry needs to start", at_most_s=PATIENCE_SECONDS, error=str(error)
                )
            told = True
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def build_registry(settings: RegistrySettings, check: CheckModel | None = None) -> Registry:
    """A registry on its database, brought to the newest schema, and its store, which are waited for; not started yet."""
    engine = open_engine(settings.resolve_database_url())
    migrate(engine)
    bucket = settings.s3()
    store: ArtifactStore
    store = FolderStore(settings.resolve_artifacts_dir()) if bucket is None else patiently(partial(S3Store, bucket))
    return Registry(settings, engine, store, check)
