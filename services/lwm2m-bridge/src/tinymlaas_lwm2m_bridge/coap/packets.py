"""CoAP messages on the wire (RFC 7252, clause 3), as far as the bridge answers them without aiocoap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GET, POST, DELETE = 1, 2, 4
URI_HOST, ETAG, URI_PORT, LOCATION_PATH, URI_PATH, CONTENT_FORMAT, MAX_AGE, URI_QUERY = 3, 4, 7, 8, 11, 12, 14, 15
BLOCK2, SIZE2, SIZE1 = 23, 28, 60

_CONFIRMABLE = 0x40
_ACKNOWLEDGEMENT = 0x60
_PAYLOAD = 0xFF
_MAX_OPTIONS = 64


@dataclass(slots=True)
class Request:
    """A confirmable request whose options are all known here; `block2` is (offset in bytes, size exponent)."""

    code: int
    mid: int
    token: bytes
    path: list[str]
    query: list[str]
    etags: list[bytes]
    content_format: int | None
    block2: tuple[int, int] | None
    payload: bytes


def parse_request(data: bytes) -> Request | None:
    """The request in a datagram, or None for what aiocoap shall read: other messages, malformed ones, other options."""
    if len(data) < 4 or data[0] & 0xF0 != _CONFIRMABLE or data[1] not in (GET, POST, DELETE):
        return None
    offset = 4 + (data[0] & 15)
    if data[0] & 15 > 8 or offset > len(data):
        return None
    found = Request(data[1], data[2] << 8 | data[3], data[4:offset], [], [], [], None, None, b"")
    number = count = 0
    while offset < len(data):
        first = data[offset]
        offset += 1
        if first == _PAYLOAD:
            found.payload = data[offset:]
            return found if found.payload else None
        delta, length = first >> 4, first & 15
        try:
            if delta >= 13:
                delta, offset = _extended(delta, data, offset)
            if length >= 13:
                length, offset = _extended(length, data, offset)
        except (IndexError, ValueError):
            return None
        number += delta
        count += 1
        end = offset + length
        if end > len(data) or count > _MAX_OPTIONS or not _take(found, number, data[offset:end]):
            return None
        offset = end
    return found


def plausible(data: bytes) -> bool:
    """Whether a datagram is a message of clause 3 with at most 64 options: all else is dropped unread.

    Each option costs a decoder far more than the byte that it may be on the wire, and no message of LwM2M has more than a few.
    """
    if len(data) < 4 or data[0] >> 6 != 1 or data[0] & 15 > 8:
        return False
    if data[1] == 0:
        return len(data) == 4 and data[0] & 15 == 0
    offset, count = 4 + (data[0] & 15), 0
    while offset < len(data):
        first = data[offset]
        offset += 1
        if first == _PAYLOAD:
            return offset < len(data)
        try:
            if first >= 0xD0:
                _, offset = _extended(first >> 4, data, offset)
            length = first & 15
            if length >= 13:
                length, offset = _extended(length, data, offset)
        except (IndexError, ValueError):
            return False
        offset += length
        count += 1
        if count > _MAX_OPTIONS:
            return False
    return offset == len(data)


def _extended(nibble: int, data: bytes, offset: int) -> tuple[int, int]:
    if nibble == 13:
        return data[offset] + 13, offset + 1
    if nibble == 14:
        return (data[offset] << 8 | data[offset + 1]) + 269, offset + 2
    raise ValueError


def _take(found: Request, number: int, value: bytes) -> bool:
    """Note one option; False for one that is not for this module."""
    if number in (URI_PATH, URI_QUERY):
        try:
            (found.path if number == URI_PATH else found.query).append(value.decode())
        except UnicodeDecodeError:
            return False
        return len(value) <= 255
    if number == CONTENT_FORMAT:
        once, found.content_format = found.content_format is None, int.from_bytes(value, "big")
        return once and len(value) <= 2
    if number == BLOCK2:
        whole, once = int.from_bytes(value, "big"), found.block2 is None
        found.block2 = (whole >> 4) << ((whole & 7) + 4), whole & 7
        return once and len(value) <= 3 and whole & 7 != 7
    if number == ETAG:
        found.etags.append(value)
        return 1 <= len(value) <= 8
    # Whom a request is for is told by where it arrives; the sizes are hints. Other elective options may be passed over
    # (clause 5.4.1), other critical ones, and those that aiocoap acts on, may not.
    return number in (URI_HOST, URI_PORT, SIZE1, SIZE2)


def acknowledgement(request: Request, code: int, options: Iterable[tuple[int, bytes]], payload: bytes = b"") -> bytes:
    """The piggybacked response; `options` in ascending order of their numbers, each value shorter than 269 bytes."""
    out = bytearray((_ACKNOWLEDGEMENT | len(request.token), code, request.mid >> 8, request.mid & 0xFF))
    out += request.token
    before = 0
    for number, value in options:
        delta, length = number - before, len(value)
        before = number
        out.append(min(delta, 13) << 4 | min(length, 13))
        if delta >= 13:
            out.append(delta - 13)
        if length >= 13:
            out.append(length - 13)
        out += value
    if payload:
        out.append(_PAYLOAD)
        out += payload
    return bytes(out)


def unsigned(value: int) -> bytes:
    """A number as an option's value: no leading zero bytes (clause 3.2)."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
