"""Puts the registry together: settings to database, store, core and servicers."""

from __future__ import annotations

import asyncio

import grpc.aio
import structlog
from sqlalchemy import Engine

from tinymlaas.registry.v1 import (
    artifacts_pb2_grpc,
    devices_pb2_grpc,
    models_pb2_grpc,
    modules_pb2_grpc,
    plugins_pb2_grpc,
)
from tinymlaas_servicekit import GrpcServer

from . import servicers
from .adapters import FolderStore, SqlRecords, migrate, open_engine
from .core.imports import CheckModel, ImportLimits, Imports
from .core.ports import ArtifactStore, Records
from .settings import RegistrySettings

log = structlog.get_logger("tinymlaas.registry")

NAME = "tinymlaas-registry"
SERVICES = tuple(f"tinymlaas.registry.v1.{name}" for name in ("Models", "Artifacts", "Modules", "Devices", "Plugins"))


class Registry(GrpcServer):
    """The registry's server; its database connections close when it has drained."""

    def __init__(
        self, settings: RegistrySettings, engine: Engine, store: ArtifactStore, check: CheckModel | None
    ) -> None:
        super().__init__(settings, self._add_servicers)
        self._configured, self._engine, self._store, self._check = settings, engine, store, check
        self.records: Records = SqlRecords(engine)

    def _add_servicers(self, server: grpc.aio.Server) -> tuple[str, ...]:
        settings, records, store = self._configured, self.records, self._store
        storing = asyncio.Lock()
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
        return SERVICES

    async def start(self) -> str:
        """Removes bytes that nothing refers to (of a process that was killed between two steps), then serves."""
        removed = await asyncio.to_thread(sweep, self.records, self._store)
        if removed:
            log.info("removed unreferenced artifacts", count=removed)
        return await super().start()

    async def drain(self) -> None:
        """See GrpcServer."""
        try:
            await super().drain()
        finally:
            self._engine.dispose()


def sweep(records: Records, store: ArtifactStore) -> int:
    """Deletes artifacts that nothing refers to; how many. Only while nothing else writes to the store."""
    kept = records.referenced()
    orphans = [sha256 for sha256 in store.digests() if sha256 not in kept]
    for sha256 in orphans:
        store.delete(sha256)
    return len(orphans)


def build_registry(settings: RegistrySettings, check: CheckModel | None = None) -> Registry:
    """A registry on its database, brought to the newest schema, and its folder; not started yet."""
    engine = open_engine(settings.resolve_database_url())
    migrate(engine)
    return Registry(settings, engine, FolderStore(settings.resolve_artifacts_dir()), check)
