"""The CoAP endpoint of the bridge: one UDP socket that serves devices and asks them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiocoap
import structlog

from tinymlaas_lwm2m import TypeLookup, kind_of

from ..core.directory import Directory
from ..core.errors import BridgeError, Reason
from .fast import FastPath
from .intake import Intake, interface_of
from .link import LinkSettings
from .observing import ObservingLink
from .registrar import Registrar
from .server import Packages, build_site
from .sources import Sources

log = structlog.get_logger("tinymlaas.bridge.coap")


@dataclass(frozen=True)
class CoapSettings:
    """Where to listen. Plain CoAP has no security: other hosts are served only when `allow_plain_coap` says so.

    `datagrams_per_second` bounds what each of them may send.
    """

    host: str = "127.0.0.1"
    port: int = 5683
    allow_plain_coap: bool = False
    public_address: str = ""
    datagrams_per_second: float = 1_000.0


class ServerContext(aiocoap.Context):  # type: ignore[misc]  # aiocoap is not typed
    """Answers everything with 5.03 unless it is `serving`: a device takes 4.04 as final (DO-INST-017)."""

    serving = False

    def render_to_pipe(self, pipe: Any) -> None:
        """See aiocoap."""
        if self.serving:
            super().render_to_pipe(pipe)
        else:
            pipe.add_response(aiocoap.Message(code=aiocoap.SERVICE_UNAVAILABLE, max_age=1), is_last=True)


class CoapEndpoint:
    """Server and client of the bridge on one socket, as LwM2M over UDP needs (Transport TS 1.1, clause 6.2)."""

    def __init__(self, context: ServerContext, link: ObservingLink, packages: Packages, address: str) -> None:
        self._context = context
        self.link = link
        self.packages = packages
        self.address = address

    @staticmethod
    async def start(
        directory: Directory,
        settings: CoapSettings,
        link_settings: LinkSettings | None = None,
        types: TypeLookup = kind_of,
        written: Callable[[], asyncio.Future[None]] | None = None,
    ) -> CoapEndpoint:
        """Bind; devices are answered 5.03 until `serve` is called, and each registration once it is `written`.

        PLAIN_COAP_REFUSED beyond loopback without the flag; ARGUMENT_INVALID for a port in use.
        """
        check_address(settings)
        port = free_port(settings.host, settings.port)
        context = await ServerContext.create_server_context(None, bind=(settings.host, port), transports=["udp6"])
        link = ObservingLink(context, link_settings or LinkSettings(), types)
        sources = Sources(asyncio.get_running_loop().time, per_second=settings.datagrams_per_second)
        link.answered = sources.verify
        link.known_to = directory.knows_this_instance
        packages = Packages(sources)
        packages.announce(settings.public_address or None)
        registrar = Registrar(directory, written or _at_once, link.remember)
        context.serversite = build_site(registrar, packages)
        fast = FastPath(interface_of(context), registrar, packages, lambda: context.serving)
        Intake(interface_of(context), sources, fast.take).attach()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"coap://{host}:{port}"
        log.info("CoAP is served", address=address)
        return CoapEndpoint(context, link, packages, address)

    def serve(self) -> None:
        """Begin to serve devices."""
        self._context.serving = True

    def refuse(self) -> None:
        """Answer 5.03 from now on; requests to devices still go out."""
        self._context.serving = False

    async def close(self) -> None:
        """Stop serving and free the socket."""
        self.refuse()
        await asyncio.sleep(0)  # what came in just now begins: aiocoap loses a request that ends before it began
        await self._context.shutdown()


def _at_once() -> asyncio.Future[None]:
    """For a directory whose store has written when it returns."""
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def check_address(settings: CoapSettings) -> None:
    """PLAIN_COAP_REFUSED beyond loopback without the flag; with it, a loud warning."""
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if loopback:
        return
    if not settings.allow_plain_coap:
        raise BridgeError(
            Reason.PLAIN_COAP_REFUSED, f"{settings.host} is reachable from other hosts", host=settings.host
        )
    log.warning(
        "PLAIN COAP IS SERVED TO OTHER HOSTS: anybody on the network can pose as any device and read every module",
        host=settings.host,
    )


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0; ARGUMENT_INVALID where it is taken.

    aiocoap binds with SO_REUSEPORT, which would let two bridges share a port in silence, each getting some packets.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BridgeError(
                Reason.ARGUMENT_INVALID, f"can't bind {host} port {port}: {error.strerror}", field="coap_port"
            ) from error
        return int(probe.getsockname()[1])
