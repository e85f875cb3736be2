"""The device's CoAP server: Read, Write, Execute, Observe of its objects (LwM2M Core TS 1.1, clause 6.3)."""

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
    encode,
    kind_of,
    parse_arguments,
)

from .lwm2m_software import RefusedError

log = structlog.get_logger("tinymlaas.device.coap")

_SZX = 6
_MAX_WRITE = 4096
_READABLE = (Format.TLV, Format.SENML_CBOR, Format.SENML_JSON)
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


class DeviceSite(resource.ObservableResource):  # type: ignore[misc]  # aiocoap is not typed
    """Root of the device's server. Only the LwM2M server may ask; others get 4.01."""

    def __init__(self, operations: Operations, trusted: Callable[[Any], bool]) -> None:
        super().__init__()
        self._operations = operations
        self._trusted = trusted
        self._watches: dict[Any, Path] = {}
        self._last: dict[Any, Values | None] = {}

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Never: blocks of a push go straight to flash, and reads are cut from the request alone."""
        return False

    async def add_observation(self, request: Message, serverobservation: Any) -> None:
        """Accept an observation of anything that can be read."""
        try:
            path = Path.of(request.opt.uri_path)
        except CodecError:
            return
        if not self._trusted(request.remote) or self._operations.read(path) is None:
            return
        self._watches[serverobservation] = path
        self._last[serverobservation] = self._operations.read(path)

        def forget() -> None:
            self._watches.pop(serverobservation, None)
            self._last.pop(serverobservation, None)

        serverobservation.accept(forget)

    def notify(self) -> None:
        """Tell each observer whose values are not what it was told last."""
        for observation, path in list(self._watches.items()):
            values = self._operations.read(path)
            if values != self._last[observation]:
                self._last[observation] = values
                observation.trigger()

    async def render(self, request: Message) -> Message:
        """Answer one request."""
        if not self._trusted(request.remote):
            return Message(code=Code.UNAUTHORIZED)
        try:
            if request.code is Code.GET:
                return self._get(request)
            path = Path.of(request.opt.uri_path)
            if request.code is Code.PUT or (request.code is Code.POST and path.depth != 3):
                return await self._write(request, path)
            if request.code is Code.POST:
                await self._operations.execute(path, parse_arguments(request.payload))
                return Message(code=Code.CHANGED)
        except CodecError as error:
            return Message(code=Code.BAD_REQUEST, payload=str(error).encode()[:200])
        except RefusedError as error:
            return Message(code=_CODES.get(error.code, Code.BAD_REQUEST), payload=error.detail.encode()[:200])
        return Message(code=Code.METHOD_NOT_ALLOWED)

    def _get(self, request: Message) -> Message:
        if request.opt.uri_path == (".well-known", "core") or request.opt.accept == Format.LINK:
            return _slice(request, self._operations.links(), Format.LINK)
        path = Path.of(request.opt.uri_path)
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
        if single and wanted == Format.TEXT:
            return Format.TEXT
        if single and wanted == Format.OPAQUE and isinstance(values[path], bytes):
            return Format.OPAQUE
        return None

    async def _write(self, request: Message, path: Path) -> Message:
        content_format = None if request.opt.content_format is None else int(request.opt.content_format)
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
