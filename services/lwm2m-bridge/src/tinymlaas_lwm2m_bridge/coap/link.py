"""Device management over CoAP: all operations but Observe (LwM2M Core TS 1.1, clause 6.3; Transport TS, clause 6.4).

Block-wise answers are collected here rather than in aiocoap, because aiocoap takes as many blocks as a device sends.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiocoap
from aiocoap import Code, Message
from aiocoap.numbers.constants import TransportTuning
from aiocoap.optiontypes import BlockOption

from tinymlaas_lwm2m import (
    CodecError,
    Format,
    Kind,
    Limits,
    Path,
    TypeLookup,
    Value,
    Values,
    decode,
    decode_composite,
    encode,
    encode_composite,
    encode_paths,
    format_arguments,
    kind_of,
    parse_discovery,
)

from ..core.errors import BridgeError, Reason
from ..core.ports import Progress
from ..core.registration import Registration

_FORMATS = (Format.TLV, Format.SENML_CBOR, Format.SENML_JSON, Format.LWM2M_CBOR)
_SZX = 6
_BLOCK = 1 << (_SZX + 4)


@dataclass(frozen=True)
class LinkSettings:
    """Times in seconds, sizes in bytes. `ack_timeout_s` and `max_retransmit` are those of RFC 7252 clause 4.8."""

    ack_timeout_s: float = 2.0
    max_retransmit: int = 4
    answer_s: float = 60.0
    execute_s: float = 300.0
    max_answer_bytes: int = 65_536
    max_known: int = 20_000


class CoapLink:
    """Implements `DeviceLink` on one aiocoap context, which is also the server that devices registered at."""

    def __init__(self, context: aiocoap.Context, settings: LinkSettings, types: TypeLookup = kind_of) -> None:
        self._context = context
        self._types = types
        self._settings = settings
        self._remotes: OrderedDict[str, tuple[str, Any]] = OrderedDict()
        self._formats: OrderedDict[str, Format] = OrderedDict()
        self._refused: OrderedDict[str, float] = OrderedDict()
        """Endpoint → when a device had last been heard of as it answered 4.01, until it answers something else."""
        self.heard: Callable[[str], None] = lambda endpoint: None
        """Is told the endpoint of each answer: a device that sleeps was awake then."""
        self.answered: Callable[[str], None] = lambda host: None
        """Is told the IP address that each answer came from: whoever answers there gets what is sent there."""
        self.known_to: Callable[[Registration], bool] = lambda device: True
        """Tells whether a device has registered or updated here; one that did so elsewhere answers 4.01 until it does."""

        class Tuning(TransportTuning):  # type: ignore[misc]  # aiocoap is not typed
            ACK_TIMEOUT = settings.ack_timeout_s
            MAX_RETRANSMIT = settings.max_retransmit

        self._tuning = Tuning()

    def remember(self, endpoint: str, address: str, remote: Any) -> None:
        """Keep aiocoap's address of a device, which also knows the local address that the device talks to."""
        keep(self._remotes, endpoint, (address, remote), self._settings.max_known)

    async def read(self, device: Registration, path: Path) -> Values:
        """Values at or under `path`; a resource that the device does not have gives none."""
        opaque = path.depth >= 3 and self._types(path.object_id, path.resource_id or 0) is Kind.OPAQUE
        accepted = self._accepted(device.endpoint)
        if opaque and path.depth == 3:
            accepted = (Format.OPAQUE, *accepted)
        for content_format in accepted:
            try:
                answer, payload = await self._get(device, path, content_format)
            except BridgeError as error:
                if error.metadata.get("coap_code") == "4.04" and path.depth >= 3:
                    return {}
                if error.metadata.get("coap_code") in ("4.06", "4.15"):
                    continue
                raise
            values = self._decode(answer.opt.content_format, payload, path)
            if content_format is not Format.OPAQUE:
                keep(self._formats, device.endpoint, content_format, self._settings.max_known)
            return values
        raise BridgeError(
            Reason.DEVICE_ANSWER_INVALID,
            f"{path}: the device speaks none of TLV, SenML-CBOR, SenML-JSON and LwM2M CBOR",
            path=str(path),
        )

    async def write(self, device: Registration, path: Path, value: Value) -> None:
        """Write one resource (replacing it) or one resource instance."""
        kind = self._types(path.object_id, path.resource_id or 0)
        if isinstance(value, bytes) and (kind is Kind.OPAQUE or kind is None):
            await self.push(device, path, value)
            return
        content_format = Format.TEXT if path.depth == 3 else self._accepted(device.endpoint)[0]
        message = self._message(device, Code.PUT, path)
        message.opt.content_format = content_format
        message.payload = encode(content_format, {path: value}, path, types=self._types)
        self._expect(await self._ask(device, message, self._settings.answer_s, path), path)

    async def push(self, device: Registration, path: Path, data: bytes, progress: Progress | None = None) -> None:
        """Write an opaque resource, in blocks where it is longer than one (RFC 7959, Block1)."""
        szx, offset = _SZX, 0
        while True:
            size = 1 << (szx + 4)
            part = data[offset : offset + size]
            more = offset + len(part) < len(data)
            message = self._message(device, Code.PUT, path)
            message.opt.content_format = Format.OPAQUE
            message.payload = part
            if more or offset:
                message.opt.block1 = BlockOption.BlockwiseTuple(offset // size, more, szx)
                if offset == 0:
                    message.opt.size1 = len(data)
            # The last block may start real work on the device, such as checking a signature.
            limit = self._settings.answer_s if more else self._settings.execute_s
            answer = await self._ask(device, message, limit, path)
            self._expect(answer, path)
            offset += len(part)
            if progress is not None:
                await progress(offset)
            if not more:
                return
            block = answer.opt.block1
            if block is not None and block.size_exponent < szx:
                # RFC 7959 clause 2.3: the device took the block whole and wants smaller ones from here on.
                szx = block.size_exponent

    async def execute(self, device: Registration, path: Path, arguments: dict[int, str] | None = None) -> None:
        """Execute a resource; its answer may come late, as a separate response."""
        message = self._message(device, Code.POST, path)
        if arguments:
            message.opt.content_format = Format.TEXT
            message.payload = format_arguments(arguments)
        self._expect(await self._ask(device, message, self._settings.execute_s, path), path)

    async def create(self, device: Registration, object_id: int, instance_id: int | None, values: Values) -> Path:
        """Create an instance with these values, given at `instance_id` (or 0 where the device may choose); its path.

        Core TS 1.1, clause 6.3.6. TLV alone can leave the id to the device.
        """
        base = Path(object_id, 0 if instance_id is None else instance_id)
        message = self._message(device, Code.POST, Path(object_id))
        message.opt.content_format = Format.TLV
        given = base if instance_id is None else Path(object_id)
        message.payload = encode(Format.TLV, values, given, types=self._types)
        answer = await self._ask(device, message, self._settings.answer_s, Path(object_id))
        self._expect(answer, Path(object_id))
        location = answer.opt.location_path
        try:
            return Path.of(location) if location else base
        except CodecError as error:
            raise BridgeError(
                Reason.DEVICE_ANSWER_INVALID, f"the created instance has no path: {error}", path=str(base)
            ) from error

    async def delete(self, device: Registration, path: Path) -> None:
        """Delete an object instance (clause 6.3.7)."""
        self._expect(
            await self._ask(device, self._message(device, Code.DELETE, path), self._settings.answer_s, path), path
        )

    async def discover(self, device: Registration, path: Path) -> tuple[Path, ...]:
        """Objects, instances and resources at or under a path, without their attributes (clause 6.3.2)."""
        _, payload = await self._get(device, path, Format.LINK)
        try:
            return tuple(found for found in parse_discovery(payload) if path.covers(found))
        except CodecError as error:
            raise BridgeError(Reason.DEVICE_ANSWER_INVALID, f"{path}: {error}", path=str(path)) from error

    async def read_several(self, device: Registration, paths: tuple[Path, ...]) -> Values:
        """Values of several objects at one moment (Read-Composite, clause 6.3.8), as far as they fit one datagram.

        DEVICE_REJECTED with 4.05 where the device does not know the operation, as LwM2M 1.0 does not.
        """
        message = self._composite(device, Code.FETCH, Format.SENML_CBOR)
        message.payload = encode_paths(Format.SENML_CBOR, paths)
        answer = await self._ask(device, message, self._settings.answer_s, paths[0])
        self._expect(answer, paths[0])
        if answer.opt.block2 is not None and answer.opt.block2.more:
            raise BridgeError(
                Reason.LIMIT_EXCEEDED, "the values fill more than one datagram: read them one by one", limit="datagram"
            )
        return self._decode_several(answer, paths)

    async def write_several(self, device: Registration, values: Values) -> None:
        """Write resources of several objects at once (Write-Composite, clause 6.3.9)."""
        message = self._composite(device, Code.iPATCH, Format.SENML_CBOR)
        message.payload = encode_composite(Format.SENML_CBOR, values, types=self._types)
        self._expect(await self._ask(device, message, self._settings.answer_s, next(iter(values))), next(iter(values)))

    def _composite(self, device: Registration, code: Code, content_format: Format) -> Message:
        message = self._message(device, code, None)
        message.opt.content_format = content_format
        if code is Code.FETCH:
            message.opt.accept = content_format
        return message

    def _decode_several(self, answer: Message, paths: tuple[Path, ...]) -> Values:
        """Values of a composite answer that were asked for."""
        content_format = answer.opt.content_format
        try:
            values = decode_composite(
                None if content_format is None else int(content_format),
                answer.payload,
                types=self._types,
                limits=self._limits(),
            )
        except CodecError as error:
            raise BridgeError(Reason.DEVICE_ANSWER_INVALID, str(error), path=str(paths[0])) from error
        return {at: value for at, value in values.items() if any(path.covers(at) for path in paths)}

    def _limits(self) -> Limits:
        return Limits(max_bytes=self._settings.max_answer_bytes)

    def _accepted(self, endpoint: str) -> tuple[Format, ...]:
        """Formats to try, the one that the device used last first."""
        known = self._formats.get(endpoint)
        return _FORMATS if known is None else (known, *(f for f in _FORMATS if f is not known))

    async def _get(self, device: Registration, path: Path, content_format: Format) -> tuple[Message, bytes]:
        """One representation, all blocks; an ETag that changes between them starts it anew, three times at most."""
        for _ in range(3):
            body = bytearray()
            first: Message | None = None
            szx = _SZX
            while True:
                message = self._message(device, Code.GET, path)
                message.opt.accept = content_format
                if first is not None:
                    message.opt.block2 = BlockOption.BlockwiseTuple(len(body) >> (szx + 4), False, szx)
                answer = await self._ask(device, message, self._settings.answer_s, path)
                self._expect(answer, path)
                first = first or answer
                if answer.opt.etag != first.opt.etag:
                    break
                block = answer.opt.block2
                if block is not None and block.start != len(body):
                    raise BridgeError(Reason.DEVICE_ANSWER_INVALID, f"{path}: block out of order", path=str(path))
                body += answer.payload
                if len(body) > self._settings.max_answer_bytes:
                    raise BridgeError(
                        Reason.LIMIT_EXCEEDED,
                        f"{path}: the device's answer is too long",
                        limit="max_answer_bytes",
                        value=self._settings.max_answer_bytes,
                    )
                if block is None or not block.more:
                    return first, bytes(body)
                if len(answer.payload) != block.size:
                    raise BridgeError(Reason.DEVICE_ANSWER_INVALID, f"{path}: block of a wrong size", path=str(path))
                szx = block.size_exponent
        raise BridgeError(Reason.DEVICE_ANSWER_INVALID, f"{path} changes faster than it can be read", path=str(path))

    def _message(self, device: Registration, code: Code, path: Path | None) -> Message:
        message = Message(code=code, transport_tuning=self._tuning)
        known = self._remotes.get(device.endpoint)
        if known is not None and known[0] == device.address:
            message.remote = known[1]
        else:
            message.unresolved_remote = device.address.removeprefix("coap://")
        message.opt.uri_path = path.segments if path is not None else ()
        return message

    async def _ask(self, device: Registration, message: Message, limit: float, path: Path) -> Message:
        answer = await self._await(self._context.request(message, handle_blockwise=False).response, limit, path)
        self._note(device, answer)
        self._expect_known(device, answer)
        return answer

    def _note(self, device: Registration, answer: Message) -> None:
        """Tell who wants to know that a device has sent something that was asked for."""
        self.heard(device.endpoint)
        self.answered(answer.remote.sockaddr[0])

    def _expect_known(self, device: Registration, answer: Message) -> None:
        """DEVICE_UNREACHABLE for the 4.01 of a device that takes this bridge for another until it registers or updates.

        One that has not come to this bridge yet does so, and one whose address translation is forgotten on the way: it then
        sees an address that it never registered at. A device that answers 4.01 again after an update means it.
        """
        if answer.code is not Code.UNAUTHORIZED:
            self._refused.pop(device.endpoint, None)
            return
        refused = self._refused.get(device.endpoint, device.updated_at)
        if not self.known_to(device) or device.updated_at <= refused:
            keep(self._refused, device.endpoint, refused, self._settings.max_known)
            detail = "it answers this bridge from its next registration or update on"
            raise BridgeError(Reason.DEVICE_UNREACHABLE, detail, device=device.endpoint)

    @staticmethod
    async def _await(response: asyncio.Future[Message], limit: float, path: Path) -> Message:
        try:
            async with asyncio.timeout(limit):
                return await response
        except TimeoutError as error:
            raise BridgeError(Reason.DEVICE_UNREACHABLE, f"no answer in {limit:g} s", path=str(path)) from error
        except (aiocoap.error.Error, OSError) as error:
            raise unreachable(path, error) from error

    @staticmethod
    def _expect(answer: Message, path: Path) -> None:
        if answer.code is Code.SERVICE_UNAVAILABLE:
            raise BridgeError(Reason.DEVICE_UNREACHABLE, f"{path}: the device is busy or restarting", path=str(path))
        if not answer.code.is_successful():
            text = ""
            with suppress(UnicodeDecodeError):
                text = answer.payload[:200].decode("utf-8")
            raise BridgeError(
                Reason.DEVICE_REJECTED,
                f"{path}: {answer.code}" + (f" ({text})" if text else ""),
                path=str(path),
                coap_code=answer.code.dotted,
                text=text,
            )

    def _decode(self, content_format: int | None, payload: bytes, path: Path) -> Values:
        try:
            return decode(
                None if content_format is None else int(content_format),
                payload,
                path,
                types=self._types,
                limits=self._limits(),
            )
        except CodecError as error:
            raise BridgeError(Reason.DEVICE_ANSWER_INVALID, f"{path}: {error}", path=str(path)) from error


def unreachable(path: Path, error: Exception) -> BridgeError:
    """The error of a device that gave no answer."""
    return BridgeError(Reason.DEVICE_UNREACHABLE, f"no answer ({type(error).__name__})", path=str(path))


def keep(known: OrderedDict[str, Any], key: str, value: Any, limit: int) -> None:
    """Remember something of the `limit` endpoints that it was told of last."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > limit:
        known.popitem(last=False)
