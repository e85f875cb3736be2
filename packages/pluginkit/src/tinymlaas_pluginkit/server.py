"""The server of a plugin: its roles' servicers and its pool of workers."""

from __future__ import annotations

import grpc.aio

from tinymlaas.plugin.v1 import (
    compiler_pb2_grpc,
    identity_pb2_grpc,
    importer_pb2_grpc,
    optimizer_pb2_grpc,
    profiler_pb2_grpc,
)
from tinymlaas_servicekit import GrpcServer, ServiceSettings

from . import service
from ._pool import WorkerPool, WorkerSpec
from ._serving import HEARTBEAT_SECONDS, RoleCalls
from .plugin import Plugin


class PluginServer(GrpcServer):
    """The server of a plugin with its pool of workers."""

    def __init__(self, plugin: Plugin, settings: ServiceSettings, heartbeat_seconds: float | None = None) -> None:
        super().__init__(settings, self._add_servicers)
        self._plugin = plugin
        self._heartbeat = HEARTBEAT_SECONDS if heartbeat_seconds is None else heartbeat_seconds
        self.pool: WorkerPool | None = None
        self.calls: RoleCalls | None = None

    def _add_servicers(self, server: grpc.aio.Server) -> list[str]:
        plugin = self._plugin
        self.pool = pool = WorkerPool(WorkerSpec(plugin.functions(), plugin.warm, plugin.limits))
        check = service.header_checker(plugin.compiler, plugin.optimizer, plugin.importer, plugin.profiler)
        self.calls = calls = RoleCalls(pool, plugin.limits, check, self._heartbeat)
        identity = service.IdentityServicer(plugin.info, plugin.capabilities, pool)
        identity_pb2_grpc.add_PluginIdentityServicer_to_server(identity, server)
        names = ["tinymlaas.plugin.v1.PluginIdentity"]
        if plugin.compiler is not None:
            compiler_pb2_grpc.add_CompilerServicer_to_server(service.CompilerServicer(plugin.compiler, calls), server)
            names.append("tinymlaas.plugin.v1.Compiler")
        if plugin.importer is not None:
            importer_pb2_grpc.add_ImporterServicer_to_server(service.ImporterServicer(plugin.importer, calls), server)
            names.append("tinymlaas.plugin.v1.Importer")
        if plugin.optimizer is not None:
            optimizer_pb2_grpc.add_OptimizerServicer_to_server(
                service.OptimizerServicer(plugin.optimizer, calls), server
            )
            names.append("tinymlaas.plugin.v1.Optimizer")
        if plugin.profiler is not None:
            profiler_pb2_grpc.add_ProfilerServicer_to_server(service.ProfilerServicer(plugin.profiler, calls), server)
            names.append("tinymlaas.plugin.v1.Profiler")
        return names

    async def start(self) -> str:
        """Binds and serves; workers load in the background."""
        address = await super().start()
        assert self.pool is not None
        self.pool.start()
        return address

    async def drain(self) -> None:
        """Lets running calls end within the grace time, then kills the workers."""
        try:
            await super().drain()
        finally:
            if self.pool is not None:
                await self.pool.close()
