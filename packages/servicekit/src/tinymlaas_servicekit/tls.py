"""TLS between services: credentials from files, read again when the files change (RFC 8446, RFC 5280; gRPC A29)."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from .errors import FailedPrecondition

log = structlog.get_logger("tinymlaas.tls")

DEFAULT_DOMAIN = "tinymlaas.internal"
CLOSE_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: `ca` that the other side must chain to (None: the system's), own `certificate` chain and `key` (both or none).

    `domain` is that of service names in certificates: "{service}.{domain}".
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    domain: str = DEFAULT_DOMAIN

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file does."""
        found = (path.stat() for path in (self.ca, self.certificate, self.key) if path is not None)
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def read(self) -> Material:
        """What the files hold; FailedPrecondition / CERTIFICATE_UNUSABLE when it does not go together."""
        try:
            if self.certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                # Checks that the key is the certificate's; an encrypted key is an error, not a question at a terminal.
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            return Material(_bytes(self.ca), _bytes(self.certificate), _bytes(self.key), self.stamp())
        except (OSError, ssl.SSLError, ValueError) as error:
            raise FailedPrecondition(
                f"the certificate files cannot be used: {error}",
                "CERTIFICATE_UNUSABLE",
                {"certificate": self.certificate or "", "key": self.key or "", "ca": self.ca or ""},
                "Check that the files are there, are PEM, and belong together.",
            ) from error


@dataclass(frozen=True)
class Material:
    """Content of TlsFiles at one time."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None
    stamp: tuple[tuple[int, int, int], ...]


class _Watched:
    """The newest usable content of some files; what cannot be used is reported once and waits for the next change."""

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._lock = files, threading.Lock()
        self.material = files.read()
        self._seen = self.material.stamp

    def refresh(self) -> bool:
        """Reads the files when they have changed; whether there is new material."""
        with self._lock:
            try:
                stamp = self._files.stamp()
                if stamp == self._seen:
                    return False
                self._seen = stamp
                self.material = self._files.read()
            except (OSError, FailedPrecondition) as error:
                log.warning("changed certificate files are not used", error=str(error))
                return False
            log.info("certificate files were read again", certificate=str(self._files.certificate))
            return True


def server_credentials(files: TlsFiles, *, require_client: bool) -> grpc.ServerCredentials:
    """Credentials of a server, with those files' content at each handshake. `require_client`: mTLS against `files.ca`."""
    watched = _Watched(files)

    def configuration() -> grpc.ServerCertificateConfiguration:
        material = watched.material
        pair = [(material.key or b"", material.certificate or b"")]
        return grpc.ssl_server_certificate_configuration(pair, material.ca if require_client else None)

    def fetch() -> Any:
        """The new configuration; None, which grpc's types leave out, for the one that it has."""
        return configuration() if watched.refresh() else None

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, require_client_authentication=require_client)


def secure_channel(
    address: str, files: TlsFiles, peer: str, options: list[tuple[str, Any]], interceptors: Callable[[], Any]
) -> grpc.aio.Channel:
    """A channel with TLS whose certificates follow the files.

    `peer` is the service that must answer, or with a dot in it a name as certificates have it; empty: the address's host.
    """
    watched = _Watched(files)
    name = peer if "." in peer else f"{peer}.{files.domain}"
    named = [("grpc.ssl_target_name_override", name)] if peer else []

    def opened() -> grpc.aio.Channel:
        material = watched.material
        credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
        return grpc.aio.secure_channel(address, credentials, [*options, *named], interceptors=interceptors())

    return _FollowingChannel(opened, watched.refresh)


class _FollowingChannel(grpc.aio.Channel):
    """A channel that is opened anew when `changed` says so; calls under way end on the channel that they began on."""

    def __init__(self, opened: Callable[[], grpc.aio.Channel], changed: Callable[[], bool]) -> None:
        self._opened, self._changed = opened, changed
        self._channel = opened()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel for the next call."""
        if self._changed():
            task = asyncio.create_task(self._channel.close(CLOSE_GRACE_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._channel = self._opened()
        return self._channel

    def _callable(self, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        made: tuple[grpc.aio.Channel, Any] | None = None

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            channel = self.current()
            if made is None or made[0] is not channel:
                made = channel, getattr(channel, kind)(*arguments, **options)
            return made[1](*args, **kwargs)

        return call

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._callable("unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._callable("unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._callable("stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._callable("stream_stream", arguments, options)

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self.current().channel_ready()

    async def __aenter__(self) -> _FollowingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
