"""A plugin: who it is, its roles, and the server that runs them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import grpc.aio

from tinymlaas.plugin.v1 import (
    compiler_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    importer_pb2_grpc,
    optimizer_pb2_grpc,
    profiler_pb2_grpc,
)
from tinymlaas_servicekit import GrpcServer, ServiceSettings, configure_logging, configure_tracing, serve_until_signal

from . import service
from ._pool import WorkerPool, WorkerSpec
from ._serving import HEARTBEAT_SECONDS, RoleCalls
from .digests import CONTRACT_VERSION
from .jobs import Compiler, Function, Importer, Limits, Optimizer, Profiler

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+")
MAX_NAME = 63


class Plugin:
    """One plugin: a reverse-DNS name, the vendor's version, and one or more roles.

    `warm` names functions without arguments that a worker calls before it is ready, to load what is heavy. `capabilities`
    are hints besides the roles. ValueError when the name is no reverse-DNS name of at most 63 characters or no role is given.
    """

    def __init__(
        self,
        name: str,
        vendor_version: str,
        *,
        compiler: Compiler | None = None,
        optimizer: Optimizer | None = None,
        importer: Importer | None = None,
        profiler: Profiler | None = None,
        limits: Limits | None = None,
        warm: Sequence[Function] = (),
        capabilities: Sequence[str] = (),
        display_name: str = "",
        licence: str = "",
        homepage: str = "",
    ) -> None:
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise ValueError(f"{name!r} is no reverse-DNS name of at most {MAX_NAME} characters")
        if not vendor_version:
            raise ValueError("a plugin needs a vendor_version")
        self.compiler, self.optimizer, self.importer, self.profiler = compiler, optimizer, importer, profiler
        self.limits = limits or Limits()
        self._warm = tuple(reference(function) for function in warm)
        roles = {"compiler": compiler, "optimizer": optimizer, "importer": importer, "profiler": profiler}
        offered = sorted(f"role.{role}" for role, given in roles.items() if given is not None)
        if not offered:
            raise ValueError("a plugin needs a role")
        self.info = identity_pb2.GetPluginInfoResponse(
            name=name,
            vendor_version=vendor_version,
            contract_version=CONTRACT_VERSION,
            display_name=display_name or name,
            licence=licence,
            homepage=homepage,
        )
        self.capabilities = identity_pb2.GetPluginCapabilitiesResponse(
            capabilities=sorted({*offered, *capabilities}),
            limits=identity_pb2.Limits(
                max_model_bytes=self.limits.max_model_bytes,
                max_concurrency=self.limits.max_concurrency,
                max_seconds=self.limits.max_seconds,
            ),
        )

    def functions(self) -> dict[str, str]:
        """References of the author's functions by job kind."""
        found: dict[str, Function] = {}
        if self.compiler is not None:
            found |= {"check": self.compiler.check, "compile": self.compiler.compile}
        if self.importer is not None:
            found["import"] = self.importer.convert
        if self.optimizer is not None:
            found["optimize"] = self.optimizer.optimize
        if self.profiler is not None:
            found["profile"] = self.profiler.profile
            if self.profiler.reference is not None:
                found["reference"] = self.profiler.reference
        return {kind: reference(function) for kind, function in found.items()}

    def server(self, settings: ServiceSettings, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> PluginServer:
        """A server of this plugin, not started yet."""
        return PluginServer(self, settings, heartbeat_seconds)

    def main(self, settings: ServiceSettings | None = None) -> None:
        """The main function: serves until SIGTERM, configured by TINYMLAAS_* variables."""
        import asyncio

        settings = settings or ServiceSettings()
        configure_logging(settings)
        configure_tracing(settings, self.info.name)
        asyncio.run(serve_until_signal(self.server(settings)))


class PluginServer(GrpcServer):
    """The server of a plugin with its pool of workers."""

    def __init__(self, plugin: Plugin, settings: ServiceSettings, heartbeat_seconds: float) -> None:
        super().__init__(settings, self._add_servicers)
        self._plugin = plugin
        self._heartbeat = heartbeat_seconds
        self.pool: WorkerPool | None = None
        self.calls: RoleCalls | None = None

    def _add_servicers(self, server: grpc.aio.Server) -> list[str]:
        plugin = self._plugin
        self.pool = pool = WorkerPool(WorkerSpec(plugin.functions(), plugin._warm, plugin.limits))
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


def reference(function: Function) -> str:
    """How a worker finds a function: "module:name", or "/path/file.py:name" for one of the main program."""
    if isinstance(function, str):
        return function
    name: str = function.__qualname__
    if "<" in name:
        raise ValueError(f"{name} must be a function at the top of a module, so that a worker process can import it")
    if function.__module__ != "__main__":
        return f"{function.__module__}:{name}"
    main: Any = sys.modules["__main__"]
    if main.__spec__ is not None:  # started by python -m
        return f"{main.__spec__.name}:{name}"
    return f"{main.__file__}:{name}"
