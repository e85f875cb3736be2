"""What devices talk to through aiocoap: the registration interface `/rd` and module images under `/p/{sha256}`."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiocoap import Code, Message, resource
from aiocoap.error import RequestEntityTooLarge
from aiocoap.optiontypes import BlockOption

from tinymlaas_lwm2m import Format
from tinymlaas_lwm2m.linkformat import MAX_BYTES as MAX_LINK_BYTES

from ..core.registration import Registration
from .registrar import Answer, Peer, Registrar
from .sources import Sources

_SZX = 6


def as_message(answer: Answer) -> Message:
    """An answer as aiocoap sends it."""
    message = Message(code=answer.code, payload=answer.payload)
    if answer.location:
        message.opt.location_path = answer.location
    return message


class _Bounded(resource.Resource):  # type: ignore[misc]  # aiocoap is not typed
    """A resource whose request body is bounded before aiocoap collects its blocks."""

    async def render_to_pipe(self, pipe: Any) -> None:
        block = pipe.request.opt.block1
        end = (block.start if block else 0) + len(pipe.request.payload)
        if end > MAX_LINK_BYTES or (pipe.request.opt.size1 or 0) > MAX_LINK_BYTES:
            raise RequestEntityTooLarge(f"at most {MAX_LINK_BYTES} bytes")
        await super().render_to_pipe(pipe)


class RegisterResource(_Bounded):
    """POST /rd: Register."""

    def __init__(self, registrar: Registrar) -> None:
        super().__init__()
        self._registrar = registrar

    async def render_post(self, request: Message) -> Message:
        """Take the device in; 2.01 with the location of its registration."""
        opt = request.opt
        answer = self._registrar.register(opt.uri_query, opt.content_format, request.payload, _peer(request))
        return await _stored(self._registrar, answer)


class RegistrationResource(_Bounded, resource.PathCapable):  # type: ignore[misc]
    """POST /rd/{id}: Update. DELETE /rd/{id}: De-register."""

    def __init__(self, registrar: Registrar) -> None:
        super().__init__()
        self._registrar = registrar

    async def render_post(self, request: Message) -> Message:
        """Extend the registration; 4.04 makes the device register anew."""
        opt = request.opt
        answer = self._registrar.update(
            "/".join(opt.uri_path), opt.uri_query, opt.content_format, request.payload, _peer(request)
        )
        return await _stored(self._registrar, answer)

    async def render_delete(self, request: Message) -> Message:
        """Forget the device."""
        return await _stored(
            self._registrar, self._registrar.deregister("/".join(request.opt.uri_path), _peer(request))
        )


async def _stored(registrar: Registrar, answer: Answer) -> Message:
    if answer.code.is_successful():
        await asyncio.shield(registrar.written())
    return as_message(answer)


def _peer(request: Message) -> Peer:
    remote = request.remote
    return Peer(f"coap://{remote.hostinfo}", f"coap://{remote.hostinfo_local}", remote)


@dataclass(frozen=True, slots=True)
class Block:
    """An answer to a request for an image: a block with its number, whether more follow, and its size exponent."""

    code: Code
    payload: bytes = b""
    etag: bytes = b""
    number: int = 0
    more: bool = False
    szx: int = _SZX
    total: int = 0


NOT_YET_S = 1
"""Max-Age of the answer that an image is not here yet."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOKUPS_PER_S = 50


class Packages:
    """Images by digest, stateless, any block at any time (RFC 7959), ETag = first 8 bytes of the digest."""

    def __init__(self, sources: Sources, clock: Callable[[], float] = time.monotonic) -> None:
        self._sources = sources
        self._clock = clock
        self._looked_up: tuple[int, int] = (0, 0)
        self.awaited_elsewhere: Callable[[str], bool] = lambda digest: False
        """Whether another bridge of the fleet has an open install of an image."""
        self._images: dict[str, bytes] = {}
        self._offers: Counter[str] = Counter()
        self._public: str | None = None
        self.bytes_served: Counter[str] = Counter()

    def expect(self, digest: str) -> None:
        """Answer 5.03, not 4.04, for an image that will be offered; counts as an offer."""
        self._offers[digest] += 1

    def offer(self, digest: str, image: bytes) -> None:
        """Serve an image until it is withdrawn as often as it was offered and expected."""
        self._images[digest] = image
        self._offers[digest] += 1

    def withdraw(self, digest: str) -> None:
        """Take one offer back."""
        self._offers[digest] -= 1
        if self._offers[digest] <= 0:
            del self._offers[digest]
            self._images.pop(digest, None)

    def announce(self, address: str | None) -> None:
        """Address (`coap://host:port`) that devices reach this server at; None: the one each device registered at."""
        self._public = address

    def uri(self, digest: str, device: Registration) -> str:
        """Package URI for a device."""
        return f"{self._public or device.local_address}/p/{digest}"

    def block(self, digest: str, host: str, etags: tuple[bytes, ...], asked: tuple[int, int] | None) -> Block:
        """Answer to a GET from a host; `asked` is (offset in bytes, size exponent) of its Block2 option.

        A block number counts in the size that was asked for, which may be larger than the one served (RFC 7959, 2.4).
        """
        image = self._images.get(digest)
        if image is None:
            # A device takes 4.04 as final, and asks again after 5.03 (DO-INST-017).
            return Block(Code.SERVICE_UNAVAILABLE if self._is_awaited(digest) else Code.NOT_FOUND)
        etag = bytes.fromhex(digest[:16])
        if etag in etags:
            return Block(Code.VALID, etag=etag)
        start, szx = asked or (0, _SZX)
        szx = self._sources.largest_szx(host, min(szx, _SZX))
        if start >= len(image) and start:
            return Block(Code.BAD_REQUEST, b"block beyond the end")
        size = 1 << (szx + 4)
        part = image[start : start + size]
        self.bytes_served[digest] += len(part)
        return Block(Code.CONTENT, part, etag, start // size, start + len(part) < len(image), szx, len(image))

    def _is_awaited(self, digest: str) -> bool:
        """Whether the image will be served here, or may be: by an install that this bridge has yet to take from another.

        Of strangers' questions few are looked up in a second; who asks beyond that is told to ask again.
        """
        if digest in self._offers:
            return True
        if not _DIGEST.fullmatch(digest):
            return False
        second, count = int(self._clock()), 0
        if self._looked_up[0] == second:
            count = self._looked_up[1]
        self._looked_up = second, count + 1
        return count >= _LOOKUPS_PER_S or self.awaited_elsewhere(digest)


class PackageResource(resource.Resource, resource.PathCapable):  # type: ignore[misc]  # aiocoap is not typed
    """GET /p/{sha256}.

    aiocoap's own block-wise server answers later blocks only from a cache of the first request, which a device that
    resumes elsewhere or after a reboot does not hit; so each block is cut here, from the request alone.
    """

    def __init__(self, packages: Packages) -> None:
        super().__init__()
        self._packages = packages

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Never: see the class."""
        return False

    async def render_get(self, request: Message) -> Message:
        """One block of an image."""
        opt = request.opt
        asked = (opt.block2.start, opt.block2.size_exponent) if opt.block2 else None
        block = self._packages.block("/".join(opt.uri_path), request.remote.sockaddr[0], tuple(opt.etags or ()), asked)
        answer = Message(code=block.code, payload=block.payload)
        if block.etag:
            answer.opt.etag = block.etag
        if block.code is Code.SERVICE_UNAVAILABLE:
            answer.opt.max_age = NOT_YET_S
        if block.code is Code.CONTENT:
            answer.opt.content_format = Format.OPAQUE
            answer.opt.block2 = BlockOption.BlockwiseTuple(block.number, block.more, block.szx)
            answer.opt.size2 = block.total
        return answer


def build_site(registrar: Registrar, packages: Packages) -> resource.Site:
    """The server's resources."""
    site = resource.Site()
    site.add_resource(["rd"], RegisterResource(registrar))
    site.add_resource(["rd"], RegistrationResource(registrar))
    site.add_resource(["p"], PackageResource(packages))
    return site
