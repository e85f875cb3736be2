"""The short way for what a fleet sends most: registrations, updates and blocks of images, answered before aiocoap.

aiocoap spends about a millisecond on a request: a message object, a pipe, a task, a timer for the acknowledgement, and four
minutes of memory for duplicates of each answer. A confirmable request for `/rd` or `/p` that fits one datagram and carries
only options known to `packets` needs none of that (docs/adr/0015). All others take the long way, to the same answers.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import structlog
from aiocoap import Code
from aiocoap.transports.udp6 import UDP6EndpointAddress

from tinymlaas_lwm2m import Format

from .packets import (
    BLOCK2,
    CONTENT_FORMAT,
    DELETE,
    ETAG,
    GET,
    LOCATION_PATH,
    MAX_AGE,
    POST,
    SIZE2,
    Request,
    acknowledgement,
    parse_request,
    unsigned,
)
from .registrar import Answer, Peer, Registrar
from .server import NOT_YET_S, Packages

log = structlog.get_logger("tinymlaas.bridge.coap")

EXCHANGE_LIFETIME_S = 247.0
"""How long a duplicate of a request may arrive (RFC 7252, clause 4.8.2)."""
_MAX_REMEMBERED = 65_536

_Key = tuple[str, int, int]
_OPAQUE = unsigned(Format.OPAQUE)


class _Held(NamedTuple):
    """An answer that waits for the store."""

    key: _Key
    request: Request
    answer: Answer
    address: Any
    pktinfo: bytes


class FastPath:
    """Handles the datagrams of an `Intake`: `take`."""

    def __init__(
        self,
        interface: Any,
        registrar: Registrar,
        packages: Packages,
        serving: Callable[[], bool],
    ) -> None:
        self._interface = interface
        self._registrar = registrar
        self._packages = packages
        self._serving = serving
        self._socket: socket.socket = interface.transport.get_extra_info("socket")
        self._port = int(self._socket.getsockname()[1])
        self._slow: Callable[..., None] = interface.datagram_msg_received
        self._clock = asyncio.get_running_loop().time
        self._batch: tuple[asyncio.Future[None] | None, list[_Held]] = None, []
        self._answers: OrderedDict[_Key, tuple[float, bytes | None]] = OrderedDict()
        self.answered = 0

    def take(self, data: bytes, ancillary: Any, flags: int, address: Any) -> None:
        """Answer a datagram, or leave it to aiocoap."""
        request = parse_request(data) if self._serving() else None
        pktinfo = _pktinfo(ancillary)
        if request is None or pktinfo is None or not self._answer(request, address, pktinfo):
            self._slow(data, ancillary, flags, address)

    def _answer(self, request: Request, address: Any, pktinfo: bytes) -> bool:
        """True where the request was one for here."""
        path = request.path
        if request.code == GET:
            if len(path) != 2 or path[0] != "p":
                return False
            self._send(self._block(request, address[0]), address, pktinfo)
            return True
        if not path or path[0] != "rd" or len(path) > 2 or request.block2 is not None or request.etags:
            return False
        if (request.code, len(path)) not in ((POST, 1), (POST, 2), (DELETE, 2)):
            return False
        key = (address[0], address[1], request.mid)
        now = self._clock()
        seen = self._answers.get(key)
        if seen is not None and now - seen[0] < EXCHANGE_LIFETIME_S:
            if seen[1] is not None:
                self._send(seen[1], address, pktinfo)
            return True
        self._forget_old(now)
        self._answers[key] = now, None
        self._answers.move_to_end(key)
        try:
            answer = self._registered(request, address, pktinfo)
        except Exception:
            log.exception("a registration request failed")
            answer = Answer(Code.INTERNAL_SERVER_ERROR)
        if answer.code.is_successful():
            self._hold(_Held(key, request, answer, address, pktinfo))
        else:
            self._finish(key, request, answer, address, pktinfo)
        return True

    def _registered(self, request: Request, address: Any, pktinfo: bytes) -> Answer:
        remote = UDP6EndpointAddress(address, self._interface, pktinfo=pktinfo)
        peer = Peer(_uri(address[0], address[1], address[3]), _local_uri(pktinfo, self._port), remote)
        if len(request.path) == 1:
            return self._registrar.register(request.query, request.content_format, request.payload, peer)
        if request.code == POST:
            return self._registrar.update(request.path[1], request.query, request.content_format, request.payload, peer)
        return self._registrar.deregister(request.path[1], peer)

    def _hold(self, held: _Held) -> None:
        """Answer once it is stored; all that one transaction stores is answered in one turn of the event loop."""
        written = self._registrar.written()
        if written is not self._batch[0]:
            self._batch = written, []
            written.add_done_callback(partial(self._stored, self._batch[1]))
        self._batch[1].append(held)

    def _stored(self, batch: list[_Held], done: asyncio.Future[None]) -> None:
        failed = done.cancelled() or done.exception() is not None
        for held in batch:
            # Asked again, the device gets another chance.
            answer = Answer(Code.SERVICE_UNAVAILABLE) if failed else held.answer
            try:
                self._finish(held.key, held.request, answer, held.address, held.pktinfo)
            except Exception:
                log.exception("an answer to a registration request can't be sent")

    def _finish(self, key: _Key, request: Request, answer: Answer, address: Any, pktinfo: bytes) -> None:
        options = [(LOCATION_PATH, part.encode()) for part in answer.location]
        data = acknowledgement(request, int(answer.code), options, answer.payload)
        if answer.code.class_ == 5:
            self._answers.pop(key, None)
        else:
            self._answers[key] = self._clock(), data
        self._send(data, address, pktinfo)

    def _block(self, request: Request, host: str) -> bytes:
        """A block of an image. Duplicates are not looked for: the answer to a repeated GET is the same (clause 4.5)."""
        block = self._packages.block(request.path[1], host, tuple(request.etags), request.block2)
        options: list[tuple[int, bytes]] = [(ETAG, block.etag)] if block.etag else []
        if block.code is Code.SERVICE_UNAVAILABLE:
            options.append((MAX_AGE, unsigned(NOT_YET_S)))
        if block.code is Code.CONTENT:
            number = block.number << 4 | block.more << 3 | block.szx
            options += [(CONTENT_FORMAT, _OPAQUE), (BLOCK2, unsigned(number)), (SIZE2, unsigned(block.total))]
        return acknowledgement(request, int(block.code), options, block.payload)

    def _send(self, data: bytes, address: Any, pktinfo: bytes) -> None:
        self.answered += 1
        if self._socket.fileno() < 0:
            return  # stored after the socket was closed; the device asks again
        self._interface.transport.sendmsg(data, [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, pktinfo)], 0, address)

    def _forget_old(self, now: float) -> None:
        while self._answers:
            key, (time, _) = next(iter(self._answers.items()))
            if now - time < EXCHANGE_LIFETIME_S and len(self._answers) < _MAX_REMEMBERED:
                return
            del self._answers[key]


def _pktinfo(ancillary: Any) -> bytes | None:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return bytes(value)
    return None


def _uri(host: str, port: int, scope: int) -> str:
    """As aiocoap writes it: without the default port."""
    if scope:
        return f"coap://{UDP6EndpointAddress((host, port, 0, scope), _NOBODY).hostinfo}"
    host = _plain(host)
    return f"coap://{host}" if port == 5683 else f"coap://{host}:{port}"


class _Nobody:
    """Stands for no interface."""


_NOBODY = _Nobody()


@lru_cache(maxsize=32_768)
def _plain(host: str) -> str:
    name: str = UDP6EndpointAddress._strip_v4mapped(host)
    return f"[{name}]" if ":" in name else name


@lru_cache(maxsize=64)
def _local_uri(pktinfo: bytes, port: int) -> str:
    return _uri(socket.inet_ntop(socket.AF_INET6, pktinfo[:16]), port, 0)
