"""The device's side of bootstrap: asks, takes what the bootstrap server writes, gives the server to register at
(LwM2M Core TS 1.1, clause 6.1). Plain CoAP only, so the account that it takes is one without security.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiocoap import Code, Message
from aiocoap.numbers import COAP_PORT
from aiocoap.util import hostportjoin

from tinymlaas_lwm2m import (
    CodecError,
    Format,
    Limits,
    Path,
    SecurityMode,
    SecurityRes,
    ServerRes,
    Values,
    decode,
)
from tinymlaas_lwm2m.objects import SECURITY, SERVER

log = structlog.get_logger("tinymlaas.device.bootstrap")

_OWN = 0
"""Instance of object 0 that is the account at the bootstrap server; nobody deletes or writes it."""
_LIMITS = Limits(4096, 64)
_FINISH_S = 247.0
"""EXCHANGE_LIFETIME of RFC 7252, as the standard says for the end of a bootstrap (clause 6.1.3)."""


class BootstrapError(Exception):
    """A bootstrap that gave no server."""


@dataclass(frozen=True)
class ServerAccount:
    """A server to register at."""

    uri: str
    lifetime_s: int


class BootstrapSession:
    """Accounts as the bootstrap server writes them; `finished` is set with `account` once they make sense."""

    def __init__(self, server: str) -> None:
        self._server = hostinfo(server)
        self._values: Values = {}
        self.account: ServerAccount | None = None
        self.finished = asyncio.Event()

    def is_server(self, remote: Any) -> bool:
        """True for the bootstrap server, which alone may write accounts."""
        return bool(remote.hostinfo == self._server)

    def answer(self, request: Message) -> Message:
        """Discover, Delete, Write and Finish of a bootstrap; 4.06 for a Finish without a usable server."""
        path = request.opt.uri_path
        try:
            if request.code is Code.POST and path == ("bs",):
                return self._finish()
            if request.code is Code.GET and request.opt.accept == Format.LINK:
                links = b"</>;lwm2m=1.1,</0/0>,</1>,</3/0>"
                return Message(code=Code.CONTENT, payload=links, content_format=Format.LINK)
            if request.code is Code.DELETE:
                self._values = {at: value for at, value in self._values.items() if path and not _under(path, at)}
                return Message(code=Code.DELETED)
            if request.code is Code.PUT:
                return self._write(Path.of(path), request)
        except CodecError as error:
            return Message(code=Code.BAD_REQUEST, payload=str(error).encode()[:200])
        return Message(code=Code.METHOD_NOT_ALLOWED)

    def _write(self, path: Path, request: Message) -> Message:
        if path.object_id not in (SECURITY, SERVER) or path.depth != 2 or path == Path(SECURITY, _OWN):
            return Message(code=Code.METHOD_NOT_ALLOWED)
        content_format = request.opt.content_format
        self._values |= decode(
            None if content_format is None else int(content_format), request.payload, path, limits=_LIMITS
        )
        return Message(code=Code.CHANGED)

    def _finish(self) -> Message:
        for at, uri in self._values.items():
            if at.object_id != SECURITY or at.resource_id != SecurityRes.SERVER_URI or not isinstance(uri, str):
                continue
            security = Path(SECURITY, at.instance_id)
            if self._values.get(security.child(SecurityRes.SECURITY_MODE)) != SecurityMode.NO_SEC:
                continue
            lifetime = self._lifetime(self._values.get(security.child(SecurityRes.SHORT_SERVER_ID)))
            if lifetime is not None and uri.startswith("coap://"):
                self.account = ServerAccount(uri, lifetime)
                self.finished.set()
                return Message(code=Code.CHANGED)
        return Message(code=Code.NOT_ACCEPTABLE, payload=b"no server without security that is complete")

    def _lifetime(self, short_id: object) -> int | None:
        for at, value in self._values.items():
            if at.object_id == SERVER and at.resource_id == ServerRes.SHORT_SERVER_ID and value == short_id:
                lifetime = self._values.get(Path(SERVER, at.instance_id, ServerRes.LIFETIME))
                return lifetime if isinstance(lifetime, int) and 0 < lifetime <= 31_536_000 else None
        return None


def hostinfo(uri: str) -> str:
    """Host and port of a CoAP URI in the form in which aiocoap names remotes."""
    parts = urlsplit(uri)
    port = None if parts.port in (None, COAP_PORT) else parts.port
    return str(hostportjoin(parts.hostname or "", port))


async def ask(context: Any, session: BootstrapSession, server: str, endpoint: str) -> ServerAccount:
    """Ask a bootstrap server and wait until it has finished; `BootstrapError` where it refuses or takes too long."""
    message = Message(code=Code.POST, uri=f"{server}/bs?ep={endpoint}")
    answer = await context.request(message, handle_blockwise=False).response
    if answer.code is not Code.CHANGED:
        raise BootstrapError(f"the bootstrap server answered {answer.code}")
    try:
        async with asyncio.timeout(_FINISH_S):
            await session.finished.wait()
    except TimeoutError as error:
        raise BootstrapError(f"the bootstrap server did not finish in {_FINISH_S:g} s") from error
    assert session.account is not None
    log.info("bootstrapped", endpoint=endpoint, server=session.account.uri)
    return session.account


def _under(path: tuple[str, ...], at: Path) -> bool:
    return at.segments[: len(path)] == path
