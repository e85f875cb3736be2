"""The gateway put together: adapters, engine, servicers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from google.longrunning import operations_pb2_grpc

from tinymlaas.gateway.v1 import (
    builds_pb2,
    builds_pb2_grpc,
    deployments_pb2_grpc,
    optimizations_pb2_grpc,
    quarantine_pb2_grpc,
    routing_pb2_grpc,
)
from tinymlaas_pluginkit import ClientLimits
from tinymlaas_servicekit import GrpcServer, InvalidArgument
from tinymlaas_servicekit.leases import Leases

from .adapters.audit import AuditWriter
from .adapters.bridges import BridgeDirectory
from .adapters.build_quota import BuildQuota
from .adapters.callers import Callers
from .adapters.catalogue import Catalogue
from .adapters.deployments import Deployments
from .adapters.endpoints import Endpoint, Location
from .adapters.keys import load_or_create
from .adapters.manifest import Entry, Manifest
from .adapters.plugins import PluginDirectory
from .adapters.schema import instances
from .adapters.store import Refutations, Resources, Results, open_engine
from .core import projection
from .engine import deployments, durable
from .engine.changes import Changes
from .engine.context import Context, Limits
from .engine.observed import observe
from .engine.peers import Peers
from .services.builds import BuildsServicer
from .services.deployments import DeploymentsServicer
from .services.operations import OperationsServicer
from .services.optimizations import OptimizationsServicer
from .services.proxy import CATALOGUE, DEVICE_KEYS, Proxy
from .services.quarantine import QuarantineServicer
from .services.routing import RoutingServicer
from .settings import GatewaySettings

FIRST_LOOK_SECONDS = 5.0


class Gateway:
    """A gateway of this process. `register` is what a GrpcServer calls; `running` surrounds its life."""

    def __init__(self, settings: GatewaySettings) -> None:
        if not settings.registry_address and settings.registry_address_file is None:
            raise InvalidArgument(
                "no registry is named",
                "SETTING_MISSING",
                {"setting": "TINYMLAAS_REGISTRY_ADDRESS"},
                "Set it to host:port.",
            )
        self._settings = settings
        self._registry = Endpoint(
            "the registry",
            Location(settings.registry_address, settings.registry_address_file),
            settings.resolve_peer_token(),
            tls=settings.tls(),
            peer="registry",
        )
        self._callers, self._audit = Callers(settings, self._registry), AuditWriter(self._registry)
        self._catalogue = Proxy(self._registry.channel, CATALOGUE, "registry")
        self.context: Context | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[GrpcServer]:
        """Open records, look for plugins and bridges, go on with unfinished work; yields the server, not yet started."""
        settings = self._settings
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        engine = open_engine(settings.resolve_database_url())
        loop = asyncio.get_running_loop()
        catalogue = Catalogue(self._registry)
        refutations = Refutations(engine)
        token = settings.resolve_peer_token()
        plugins = PluginDirectory(
            _manifest(settings.plugins, settings.plugins_manifest),
            catalogue,
            refutations,
            token,
            ClientLimits(silence_seconds=settings.silence_seconds),
            tls=settings.tls(),
        )
        bridges = BridgeDirectory(
            _manifest(settings.bridges, settings.bridges_manifest),
            catalogue,
            settings.projects,
            token,
            tls=settings.tls(),
        )
        self._build_quota = BuildQuota(self._registry, engine)
        self._device_keys = Proxy(bridges.any_channel, DEVICE_KEYS, "bridge")
        build_store = Resources(engine, "build", builds_pb2.Build, projection.ended)
        deployment_store = Deployments(engine, deployments.ended)
        self.context = Context(
            catalogue=catalogue,
            plugins=plugins,
            bridges=bridges,
            builds=build_store,
            deployments=deployment_store,
            results=Results(engine),
            refutations=refutations,
            build_changes=Changes(build_store, loop),
            deployment_changes=Changes(deployment_store, loop),
            key=load_or_create(settings.resolve_key_file()),
            limits=Limits(
                compiles_at_once=settings.compiles_at_once,
                compile_seconds=settings.compile_seconds,
                check_seconds=settings.check_seconds,
                profile_seconds=settings.profile_seconds,
            ),
        )
        peers = Peers(Leases(engine, instances, settings.instance, settings.lease_seconds), self.context)
        stop_observing = observe(self.context)
        tasks = [asyncio.create_task(plugins.watch()), asyncio.create_task(bridges.watch())]
        try:
            try:
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await plugins.first_look()
            except TimeoutError:
                pass  # a plugin that hangs must not keep the gateway from starting
            await peers.hold()
            await durable.launch(self.context, settings.resolve_dbos_url(), settings.instance)
            peers.start()
            self._audit.start()
            yield GrpcServer(
                settings,
                self._register,
                authenticator=self._callers,
                auditor=self._audit,
                credentials=settings.public_credentials(),
            )
        finally:
            stop_observing()
            peers.rest()
            await durable.stop()
            await peers.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._audit.close()
            await self._registry.close()
            engine.dispose()

    def _register(self, server: grpc.aio.Server) -> list[str]:
        context = self.context
        assert context is not None, "the server starts inside of `running`"
        builds_pb2_grpc.add_BuildsServicer_to_server(BuildsServicer(context, self._build_quota.admit), server)
        deployments_pb2_grpc.add_DeploymentsServicer_to_server(DeploymentsServicer(context), server)
        routing_pb2_grpc.add_RoutingServicer_to_server(RoutingServicer(context), server)
        optimizations_pb2_grpc.add_OptimizationsServicer_to_server(OptimizationsServicer(context), server)
        quarantine_pb2_grpc.add_QuarantineServicer_to_server(QuarantineServicer(context), server)
        operations_pb2_grpc.add_OperationsServicer_to_server(OperationsServicer(context), server)
        server.add_generic_rpc_handlers((self._catalogue, self._device_keys))
        own = ("Builds", "Deployments", "Optimizations", "Quarantine", "Routing")
        return [
            *(f"tinymlaas.gateway.v1.{name}" for name in own),
            "google.longrunning.Operations",
            *self._catalogue.services,
            *self._device_keys.services,
        ]


def _manifest(addresses: list[str], path: Path | None) -> Manifest:
    return Manifest([Entry(Location(address=item)) for item in addresses], path)
