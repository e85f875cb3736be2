"""A gRPC server as all services run it: interceptors, health, reflection, drain, bound address told to a supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ._calls import Chain
from .errors import Unavailable
from .identity import Authenticator, PeerAuthenticator, TokenAuthenticator
from .interceptors import AccessInterceptor, Auditor, ErrorInterceptor, ValidationInterceptor
from .settings import ServiceSettings
from .telemetry import TelemetryInterceptor, configure_logging, configure_tracing
from .tls import server_credentials

log = structlog.get_logger("tinymlaas.server")

# Adds servicers to the server and returns the full names of their services; may be a coroutine function.
Register = Callable[[grpc.aio.Server], "Iterable[str] | Awaitable[Iterable[str]]"]


class GrpcServer:
    """One listening gRPC server. `start` binds and serves, `drain` stops taking calls and lets running ones end.

    The interceptors, from the outside in: telemetry, errors, access, validation, then those of the service.

    Callers prove who they are by `authenticator`. None: services by their certificates where the settings name certificate
    files, anybody by the token otherwise. `credentials` are those of the listening port; None: mTLS where the settings name
    certificate files, no TLS otherwise.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        register: Register,
        *,
        authenticator: Authenticator | None = None,
        auditor: Auditor | None = None,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._settings = settings
        self._register = register
        tls = settings.tls()
        self._authenticator = authenticator or (
            TokenAuthenticator(settings.resolve_token()) if tls is None else PeerAuthenticator(tls.domain)
        )
        self._auditor, self._credentials = auditor, credentials
        if credentials is None and tls is not None:
            self._credentials = server_credentials(tls, require_client=True)
        self._extra = tuple(interceptors)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._health_server: grpc.aio.Server | None = None
        self._services: tuple[str, ...] = ()
        self.address = ""
        self.health_address = ""

    async def start(self) -> str:
        """Binds, serves, reports SERVING, and returns the bound address (`host:port` or `unix:/path`)."""
        server = grpc.aio.server(
            interceptors=[
                Chain(
                    [
                        TelemetryInterceptor(),
                        ErrorInterceptor(),
                        AccessInterceptor(self._authenticator, self._auditor),
                        ValidationInterceptor(),
                    ]
                ),
                *self._extra,
            ],
            options=_options(self._settings),
        )
        registered = self._register(server)
        self._services = tuple(await registered if isinstance(registered, Awaitable) else registered)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.address = _bind(server, self._settings.listen, self._credentials)
        await server.start()
        self._server = server
        if self._settings.health_listen:
            # Probes of Kubernetes know no client certificates.
            self._health_server = grpc.aio.server()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
            self.health_address = _bind(self._health_server, self._settings.health_listen, None)
            await self._health_server.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        if self._settings.address_file is not None:
            write_atomically(self._settings.address_file, self.address + "\n")
        log.info("listening on", address=self.address, services=self._services)
        return self.address

    async def drain(self) -> None:
        """Reports NOT_SERVING, takes no new calls, waits up to the grace time for running ones, then cancels them."""
        if self._server is None:
            return
        log.info("draining", grace_seconds=self._settings.grace_seconds)
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.grace_seconds)
        self._server = None
        if self._health_server is not None:
            await self._health_server.stop(None)
            self._health_server = None
        if self._settings.address_file is not None:
            self._settings.address_file.unlink(missing_ok=True)

    async def set_serving(self, service: str, serving: bool) -> None:
        """Changes what health says of one service ("" for the server as a whole)."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, status)

    async def __aenter__(self) -> GrpcServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()


async def serve_until_signal(server: GrpcServer) -> None:
    """Starts the server and drains it on SIGTERM or SIGINT; a second signal ends the grace time."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await server.start()
    await stop.wait()
    drained, impatient = asyncio.create_task(server.drain()), asyncio.create_task(hurry.wait())
    await asyncio.wait({drained, impatient}, return_when=asyncio.FIRST_COMPLETED)
    impatient.cancel()
    if not drained.done():
        drained.cancel()
    await asyncio.gather(drained, impatient, return_exceptions=True)


def run_server(settings: ServiceSettings, register: Register, *, name: str = "tinymlaas", **options: Any) -> None:
    """The main function of a service: logging, tracing, server, drain on SIGTERM. Returns when drained.

    `options` are those of GrpcServer.
    """
    configure_logging(settings)
    configure_tracing(settings, name)
    structlog.contextvars.bind_contextvars(service=name)
    asyncio.run(serve_until_signal(GrpcServer(settings, register, **options)))


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        port = 0
        cause: Exception | None = error
    else:
        cause = None
    if port == 0:
        raise Unavailable(
            f"cannot listen on {listen}",
            "ADDRESS_IN_USE",
            {"address": listen},
            "Choose another TINYMLAAS_LISTEN; port 0 takes a free one.",
        ) from cause
    if listen.startswith("unix:"):
        return listen
    return f"{listen.rsplit(':', 1)[0]}:{port}"


def _options(settings: ServiceSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A second server on the same port is an error, not a coin toss between two processes.
        ("grpc.so_reuseport", 0),
    ]
