"""The device's CoAP server: Read, Write, Execute, Discover, Observe of its objects, also of several at once
(LwM2M Core TS 1.1, clause 6.3; Transport TS 1.1, clause 6.4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
from aiocoap import Code, Message, resource
from aiocoap.optiontypes import BlockOption

from tinymlaas_lwm2m import (
    CodecError,
    Format,
    Kind,
    Limits,
    Path,
    Value,
    Values,
    decode,
    decode_composite,
    decode_paths,
    encode,
    encode_composite,
    kind_of,
    parse_arguments,
)

from .lwm2m_bootstrap import BootstrapSession
from .lwm2m_software import RefusedError

log = structlog.get_logger("tinymlaas.device.coap")

_SZX = 6
_MAX_WRITE = 4096
_READABLE = (Format.TLV, Format.SENML_CBOR, Format.SENML_JSON, Format.LWM2M_CBOR)
_MAX_PATHS = 64
_CODES = {code.dotted: code for code in Code if code.is_response()}


class Operations(Protocol):
    """What the server can do with the device."""

    def read(self, path: Path) -> Values | None:
        """Values at or under a path, or None."""
        ...

    async def write(self, path: Path, value: Value) -> None:
        """Write one resource; `RefusedError` where that is not possible."""
        ...

    async def write_block(self, path: Path, offset: int, data: bytes, more: bool, total: int) -> None:
        """Take one block of a long opaque resource."""
        ...

    def takes_blocks(self, path: Path) -> bool:
        """True where writes to the path go to `write_block`."""
        ...

    def execute(self, path: Path, arguments: dict[int, str]) -> Awaitable[None]:
        """Execute a resource; `RefusedError` where that is not possible."""
        ...

    def links(self) -> bytes:
        """All objects in link format."""
        ...

    def discover(self, path: Path) -> bytes | None:
        """What lies at or under a path in link format, or None."""
        ...


class DeviceSite(resource.ObservableResource):  # type: ignore[misc]  # aiocoap is not typed
    """Root of the device's server. Only the LwM2M server may ask; others get 4.01."""

    def __init__(self, operations: Operations, trusted: Callable[[Any], bool]) -> None:
        super().__init__()
        self._operations = operations
        self._trusted = trusted
        self.bootstrap: BootstrapSession | None = None
        """The bootstrap under way; its server may write accounts and nothing else."""
        self._watches: dict[Any, tuple[Path, ...]] = {}
        self._last: dict[Any, Values | None] = {}

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Never: blocks of a push go straight to flash, and reads are cut from the request alone."""
        return False

    async def add_observation(self, request: Message, serverobservation: Any) -> None:
        """Accept an observation of anything that can be read."""
        try:
            paths = _composite_paths(request) if request.code is Code.FETCH else (Path.of(request.opt.uri_path),)
        except CodecError:
            return
        if not self._trusted(request.remote) or self._read(paths) is None:
            return
        self._watches[serverobservation] = paths
        self._last[serverobservation] = self._read(paths)

        def forget() -> None:
            self._watches.pop(serverobservation, None)
            self._last.pop(serverobservation, None)

        serverobservation.accept(forget)

    def forget(self) -> None:
        """Lose all observations without a word, as RAM does in a reboot."""
        self._watches.clear()
        self._last.clear()

    def notify(self) -> None:
        """Tell each observer whose values are not what it was told last."""
        for observation, paths in list(self._watches.items()):
            values = self._read(paths)
            if values != self._last[observation]:
                self._last[observation] = values
                observation.trigger()

    def _read(self, paths: tuple[Path, ...]) -> Values | None:
        """Values of all paths; what is not there is left out, and None says that nothing is."""
        found: Values = {}
        for path in paths:
            found |= self._operations.read(path) or {}
        return found or None

    async def render(self, request: Message) -> Message:
        """Answer one request."""
        if self.bootstrap is not None and self.bootstrap.is_server(request.remote):
            return self.bootstrap.answer(request)
        if not self._trusted(request.remote):
            return Message(code=Code.UNAUTHORIZED)
        try:
            return await self._answer(request)
        except CodecError as error:
            return Message(code=Code.BAD_REQUEST, payload=str(error).encode()[:200])
        except RefusedError as error:
            return Message(code=_CODES.get(error.code, Code.BAD_REQUEST), payload=error.detail.encode()[:200])

    async def _answer(self, request: Message) -> Message:
        if request.code is Code.GET:
            return self._get(request)
        if request.code is Code.FETCH:
            return self._read_composite(request)
        if request.code is Code.iPATCH:
            return await self._write_composite(request)
        path = Path.of(request.opt.uri_path)
        # A POST that brings a representation is a partial Write; one that brings text arguments, or nothing, an Execute.
        partial = request.code is Code.POST and request.opt.content_format in _READABLE
        if path.depth > 1 and (request.code is Code.PUT or partial):
            return await self._write(request, path)
        if request.code is Code.POST and path.depth == 3:
            await self._operations.execute(path, parse_arguments(request.payload))
            return Message(code=Code.CHANGED)
        # Create and Delete: no object of this device has instances that come and go.
        return Message(code=Code.METHOD_NOT_ALLOWED)

    def _read_composite(self, request: Message) -> Message:
        values = self._read(_composite_paths(request))
        accept = request.opt.accept
        chosen = Format.SENML_CBOR if accept is None else Format(accept) if accept in _READABLE else None
        if chosen is None or chosen is Format.TLV:
            return Message(code=Code.NOT_ACCEPTABLE)
        if values is None:
            return Message(code=Code.NOT_FOUND)
        return _slice(request, encode_composite(chosen, values), chosen)

    async def _write_composite(self, request: Message) -> Message:
        if request.opt.block1 is not None or len(request.payload) > _MAX_WRITE:
            return Message(code=Code.REQUEST_ENTITY_TOO_LARGE)
        values = decode_composite(_format_of(request), request.payload, limits=Limits(_MAX_WRITE, 64))
        for path, value in values.items():
            await self._operations.write(path, value)
        return Message(code=Code.CHANGED)

    def _get(self, request: Message) -> Message:
        if request.opt.uri_path == (".well-known", "core"):
            return _slice(request, self._operations.links(), Format.LINK)
        path = Path.of(request.opt.uri_path)
        if request.opt.accept == Format.LINK:
            found = self._operations.discover(path)
            return Message(code=Code.NOT_FOUND) if found is None else _slice(request, found, Format.LINK)
        values = self._operations.read(path)
        if values is None:
            return Message(code=Code.NOT_FOUND)
        accept = request.opt.accept
        chosen = self._format(accept, path, values)
        if chosen is None:
            return Message(code=Code.NOT_ACCEPTABLE)
        return _slice(request, encode(chosen, values, path), chosen)

    @staticmethod
    def _format(accept: Any, path: Path, values: Values) -> Format | None:
        if accept is None:
            return Format.TLV
        wanted = int(accept)
        if wanted in _READABLE:
            return Format(wanted)
        single = len(values) == 1 and path in values
        if single and wanted in (Format.TEXT, Format.CBOR):
            return Format(wanted)
        if single and wanted == Format.OPAQUE and isinstance(values[path], bytes):
            return Format.OPAQUE
        return None

    async def _write(self, request: Message, path: Path) -> Message:
        content_format = _format_of(request)
        block = request.opt.block1
        if self._operations.takes_blocks(path):
            if content_format not in (None, Format.OPAQUE):
                return Message(code=Code.UNSUPPORTED_CONTENT_FORMAT)
            offset, more = (block.start, block.more) if block is not None else (0, False)
            await self._operations.write_block(path, offset, request.payload, more, int(request.opt.size1 or 0))
            answer = Message(code=Code.CONTINUE if more else Code.CHANGED)
            if block is not None:
                answer.opt.block1 = block
            return answer
        if (block is not None and (block.more or block.block_number)) or len(request.payload) > _MAX_WRITE:
            return Message(code=Code.REQUEST_ENTITY_TOO_LARGE)
        if path.depth >= 3 and content_format is None and kind_of(path.object_id, path.resource_id or 0) is Kind.OPAQUE:
            content_format = Format.OPAQUE
        values = decode(content_format, request.payload, path, limits=Limits(_MAX_WRITE, 64))
        for at, value in values.items():
            await self._operations.write(at, value)
        return Message(code=Code.CHANGED)


def _format_of(request: Message) -> int | None:
    return None if request.opt.content_format is None else int(request.opt.content_format)


def _composite_paths(request: Message) -> tuple[Path, ...]:
    return decode_paths(_format_of(request), request.payload, limits=Limits(_MAX_WRITE, _MAX_PATHS))


def _slice(request: Message, payload: bytes, content_format: Format) -> Message:
    """The block of a representation that was asked for; the first one of a long one (RFC 7959, Block2)."""
    asked = request.opt.block2
    szx = min(asked.size_exponent, _SZX) if asked is not None else _SZX
    size = 1 << (szx + 4)
    start = asked.start if asked is not None else 0
    if start and start >= len(payload):
        return Message(code=Code.BAD_REQUEST)
    answer = Message(code=Code.CONTENT, payload=payload[start : start + size])
    answer.opt.content_format = content_format
    if len(payload) > size or asked is not None:
        answer.opt.block2 = BlockOption.BlockwiseTuple(start // size, start + size < len(payload), szx)
        # Another representation between two blocks shows in the ETag, and the reader starts anew.
        answer.opt.etag = hashlib.sha256(payload).digest()[:8]
    return answer
