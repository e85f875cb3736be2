"""The registration interface, whichever way its requests were read: decisions of the directory as CoAP answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aiocoap import Code

from tinymlaas_lwm2m import Format, ObjectLink

from ..core.directory import Directory
from ..core.errors import BridgeError, Reason
from ..core.registration import parse_objects, parse_register, parse_update

Remember = Callable[[str, str, Any], None]
"""(endpoint, address, aiocoap's address) → keep for later requests to the device."""

_CACHED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device is told; `location` only by a registration."""

    code: Code
    location: tuple[str, ...] = ()
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks: the device's address and the local one that it used, as CoAP URIs without path, and aiocoap's address."""

    address: str
    local: str
    remote: Any


def refusal(error: BridgeError) -> Answer:
    """The answer to a device whose registration or bootstrap is refused."""
    codes = {
        Reason.DEVICE_UNKNOWN: Code.NOT_FOUND,
        Reason.VERSION_UNSUPPORTED: Code.PRECONDITION_FAILED,
        Reason.LIMIT_EXCEEDED: Code.SERVICE_UNAVAILABLE,
        Reason.SESSION_REQUIRED: Code.FORBIDDEN,
        Reason.IDENTITY_MISMATCH: Code.FORBIDDEN,
    }
    return Answer(codes.get(Reason(error.reason), Code.BAD_REQUEST), payload=error.detail.encode()[:200])


class Registrar:
    """Register, Update and De-register (Core TS 1.1, clause 6.2). An answer may go out once `written` is done."""

    def __init__(self, directory: Directory, written: Callable[[], asyncio.Future[None]], remember: Remember) -> None:
        self._directory = directory
        self._remember = remember
        self.written = written

    def register(self, query: Iterable[str], content_format: int | None, payload: bytes, peer: Peer) -> Answer:
        """POST /rd: 2.01 with the location of the registration."""
        try:
            asked = parse_register(query)
            objects = _links(content_format, payload)
            registration = self._directory.register(asked, objects, peer.address, peer.local)
        except BridgeError as error:
            return refusal(error)
        self._remember(asked.endpoint, peer.address, peer.remote)
        return Answer(Code.CREATED, ("rd", registration.id))

    def update(
        self, registration_id: str, query: Iterable[str], content_format: int | None, payload: bytes, peer: Peer
    ) -> Answer:
        """POST /rd/{id}: extends the registration; 4.04 makes the device register anew."""
        try:
            asked = parse_update(query)
            objects = _links(content_format, payload) if payload else None
            registration = self._directory.update(registration_id, asked, objects, peer.address, peer.local)
        except BridgeError as error:
            return refusal(error)
        self._remember(registration.endpoint, peer.address, peer.remote)
        return Answer(Code.CHANGED)

    def deregister(self, registration_id: str, peer: Peer) -> Answer:
        """DELETE /rd/{id}."""
        try:
            self._directory.deregister(registration_id, peer.address)
        except BridgeError as error:
            return refusal(error)
        return Answer(Code.DELETED)


def _links(content_format: int | None, payload: bytes) -> tuple[ObjectLink, ...]:
    if content_format not in (None, Format.LINK):
        raise BridgeError(Reason.REGISTRATION_INVALID, "the payload must be application/link-format", parameter="ct")
    return _common_links(payload) if len(payload) <= _CACHED_BYTES else parse_objects(payload)


@lru_cache(maxsize=1024)
def _common_links(payload: bytes) -> tuple[ObjectLink, ...]:
    """Devices of one kind send the same list: it is read, and kept in memory, once."""
    return parse_objects(payload)
