"""Plain text (content format 0) and opaque (42) forms of one value (LwM2M Core TS 1.1, 7.4.1, 7.4.2)."""

from __future__ import annotations

import base64
import binascii
import math
import re

from .values import CodecError, Kind, ObjLink, Value

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_FLOAT = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
_LINK = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")


def decode(payload: bytes, kind: Kind | None, where: str) -> Value:
    """Typed value of a text payload; text where the type is unknown."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError(where, "is not UTF-8") from error
    if kind is None or kind in (Kind.STRING, Kind.CORELNK):
        return text
    if kind in (Kind.INTEGER, Kind.TIME, Kind.UNSIGNED):
        return _integer(text, kind, where)
    if kind is Kind.FLOAT:
        if not _FLOAT.fullmatch(text) or not math.isfinite(float(text)):
            raise CodecError(where, f"{text[:40]!r} is not a number")
        return float(text)
    if kind is Kind.BOOLEAN:
        if text not in ("0", "1"):
            raise CodecError(where, f"{text[:40]!r} is not 0 or 1")
        return text == "1"
    if kind is Kind.OPAQUE:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise CodecError(where, "is not Base64") from error
    match = _LINK.fullmatch(text)
    if not match or int(match[1]) > 0xFFFF or int(match[2]) > 0xFFFF:
        raise CodecError(where, f"{text[:40]!r} is not an object link")
    return ObjLink(int(match[1]), int(match[2]))


def _integer(text: str, kind: Kind, where: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise CodecError(where, f"{text[:40]!r} is not an integer")
    number = int(text)
    low, high = (0, 2**64) if kind is Kind.UNSIGNED else (-(2**63), 2**63)
    if not low <= number < high:
        raise CodecError(where, f"{number} does not fit into 64 bits")
    return number


def encode(value: Value) -> bytes:
    """Text form of a value."""
    if isinstance(value, bytes):
        return base64.b64encode(value)
    if isinstance(value, bool):
        return b"1" if value else b"0"
    if isinstance(value, ObjLink):
        return f"{value.object_id}:{value.instance_id}".encode()
    if isinstance(value, float):
        return repr(value).encode()
    return str(value).encode()
