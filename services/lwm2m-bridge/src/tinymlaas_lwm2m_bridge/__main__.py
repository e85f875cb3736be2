"""Runs the LwM2M bridge: `python -m tinymlaas_lwm2m_bridge`, configured by `TINYMLAAS_*` variables."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import grpc.aio
import structlog

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc, security_pb2, security_pb2_grpc
from tinymlaas_servicekit import GrpcServer, configure_logging, configure_tracing, connect, serve_until_signal

from .artifacts import RegistryArtifacts
from .bridge import Bridge
from .core.catalogue import Catalogue
from .core.device_keys import DeviceKeys
from .core.errors import BridgeError
from .core.sessions import SessionTable
from .images import SignedImages
from .key_store import SqlKeyStore
from .security_servicer import DeviceKeysServicer, Fronts, SecureSessionsServicer
from .servicer import BridgeServicer
from .settings import LwM2mBridgeSettings
from .store import SqlStore

NAME = "tinymlaas-lwm2m-bridge"


async def serve(settings: LwM2mBridgeSettings) -> None:
    """Serve CoAP and gRPC until SIGTERM or SIGINT."""
    channel = connect(settings.registry_address, settings.resolve_token(), tls=settings.tls(), peer="registry")
    extra: list[Path] = [] if settings.board_catalogue is None else [settings.board_catalogue]
    store = SqlStore(settings.resolve_database_url(), settings.instance)
    keys = DeviceKeys(SqlKeyStore(store.engine, settings.resolve_master_key()), time.time)
    sessions = SessionTable(keys.has, required=settings.coap_require_dtls)
    bridge = Bridge(
        store,
        RegistryArtifacts(channel, settings.project, max_bytes=settings.max_image_bytes),
        SignedImages(settings.trusted_keys, settings.trusted_keys_file),
        settings.bridge(),
        catalogue=Catalogue.builtin(*extra),
        library=settings.resolve_library(),
        admit=sessions.admit,
        issue_key=keys.reissue,
        refresh_keys=keys.refresh,
    )
    fronts = Fronts(keys, sessions)

    def address() -> str:
        return settings.public_address or grpc_server.address

    def register(server: grpc.aio.Server) -> list[str]:
        servicer = BridgeServicer(bridge, settings.project, address)
        bridge_pb2_grpc.add_BridgeServicer_to_server(servicer, server)
        security_pb2_grpc.add_DeviceKeysServicer_to_server(DeviceKeysServicer(keys, fronts, settings.project), server)
        security_pb2_grpc.add_SecureSessionsServicer_to_server(SecureSessionsServicer(keys, fronts), server)
        return [
            bridge_pb2.DESCRIPTOR.services_by_name["Bridge"].full_name,
            *(service.full_name for service in security_pb2.DESCRIPTOR.services_by_name.values()),
        ]

    grpc_server = GrpcServer(settings, register)
    bridge.fleet.address = address
    await bridge.start()
    try:
        await serve_until_signal(grpc_server)
    finally:
        await bridge.close()
        await channel.close(None)


def main() -> None:
    """Start the service; exit 1 with the reason and what to do where it can't start."""
    settings = LwM2mBridgeSettings()  # type: ignore[call-arg]  # the fields come from the environment
    configure_logging(settings)
    configure_tracing(settings, NAME)
    structlog.contextvars.bind_contextvars(service=NAME)
    try:
        asyncio.run(serve(settings))
    except BridgeError as error:
        print(f"{NAME}: {error}\n{error.help}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
