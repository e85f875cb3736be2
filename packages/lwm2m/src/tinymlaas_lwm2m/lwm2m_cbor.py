"""LwM2M CBOR (content format 11544, LwM2M Core TS 1.2, clause 7.4.6) and CBOR (60), the form of one value.

A map of ids to maps of ids, down to values; a key is an id, or an array of the ids of several levels at once. Time is tag 1,
an object link the text "object:instance".
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import cbor2

from .values import MAX_ID, CodecError, Kind, Limits, ObjLink, Path, TypeLookup, Value, Values

_EPOCH_TIME = 1


def decode(payload: bytes, base: Path | None, types: TypeLookup, limits: Limits) -> Values:
    """Values in LwM2M CBOR, all at or under `base` (None: the root); `CodecError` otherwise."""
    document = _load(payload, limits)
    if not isinstance(document, dict):
        raise CodecError("cbor", "is not a map")
    values: Values = {}
    _walk(document, (), values, types, limits)
    for path in values:
        if base is not None and not base.covers(path):
            raise CodecError(str(path), f"is no value under {base}")
    return values


def decode_value(payload: bytes, path: Path, types: TypeLookup, limits: Limits) -> Value:
    """The one value of a resource in CBOR."""
    return _value(_load(payload, limits), types(path.object_id, path.resource_id or 0), str(path))


def encode(values: Mapping[Path, Value], base: Path | None, types: TypeLookup) -> bytes:
    """LwM2M CBOR of `values`, which lie at or under `base`, in ascending order of ids."""
    root: dict[int, Any] = {}
    for path, value in sorted(values.items()):
        if path.depth < 3 or (base is not None and not base.covers(path)):
            raise CodecError(str(path), f"is no value under {base or '/'}")
        *above, last = (int(segment) for segment in path.segments)
        level = root
        for part in above:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise CodecError(str(path), "is single and multiple at once")
        if last in level:
            raise CodecError(str(path), "is single and multiple at once")
        level[last] = _plain(value, types(path.object_id, path.resource_id or 0))
    encoded: bytes = cbor2.dumps(root)
    return encoded


def encode_value(value: Value, path: Path, types: TypeLookup) -> bytes:
    """CBOR of one value."""
    encoded: bytes = cbor2.dumps(_plain(value, types(path.object_id, path.resource_id or 0)))
    return encoded


def _plain(value: Value, kind: Kind | None) -> Any:
    if isinstance(value, ObjLink):
        return f"{value.object_id}:{value.instance_id}"
    if kind is Kind.TIME and isinstance(value, int):
        return cbor2.CBORTag(_EPOCH_TIME, value)
    return value


def _load(payload: bytes, limits: Limits) -> Any:
    if len(payload) > limits.max_bytes:
        raise CodecError("cbor", f"{len(payload)} bytes, more than {limits.max_bytes}")
    stream = io.BytesIO(payload)
    try:
        document = cbor2.load(stream)
    except Exception as error:  # cbor2 lets errors of its tag handlers through, whatever their type
        raise CodecError("cbor", "is not CBOR") from error
    if stream.tell() != len(payload):
        raise CodecError("cbor", "bytes follow the value")
    return document


def _walk(level: dict[Any, Any], above: tuple[int, ...], values: Values, types: TypeLookup, limits: Limits) -> None:
    for key, value in level.items():
        parts = above + _ids(key)
        if len(parts) > 4:
            raise CodecError("cbor", "is nested deeper than a resource instance")
        if isinstance(value, dict):
            _walk(value, parts, values, types, limits)
            continue
        if len(parts) < 3:
            raise CodecError("cbor", "a value stands above the resources")
        path = Path(*parts)
        if path in values:
            raise CodecError(str(path), "occurs twice")
        if len(values) >= limits.max_values:
            raise CodecError("cbor", f"more than {limits.max_values} values")
        values[path] = _value(value, types(path.object_id, path.resource_id or 0), str(path))


def _ids(key: Any) -> tuple[int, ...]:
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if not isinstance(part, int) or isinstance(part, bool) or not 0 <= part <= MAX_ID:
            raise CodecError("cbor", "a key is no id")
    if not parts:
        raise CodecError("cbor", "a key is empty")
    return parts


def _value(value: Any, kind: Kind | None, where: str) -> Value:
    """A value, checked against its type where that is known."""
    if hasattr(value, "timestamp"):
        value = int(value.timestamp())  # cbor2 makes a datetime of tag 1
    if isinstance(value, bool):
        wanted = kind in (None, Kind.BOOLEAN)
    elif isinstance(value, int):
        wanted = kind in (None, Kind.INTEGER, Kind.TIME, Kind.UNSIGNED, Kind.FLOAT) and -(2**63) <= value < 2**64
        value = float(value) if kind is Kind.FLOAT and wanted else value
    elif isinstance(value, float):
        wanted = kind in (None, Kind.FLOAT) and math.isfinite(value)
    elif isinstance(value, str):
        if kind is Kind.OBJLNK:
            return _link(value, where)
        wanted = kind in (None, Kind.STRING, Kind.CORELNK)
    else:
        wanted = isinstance(value, bytes) and kind in (None, Kind.OPAQUE)
    if not wanted:
        raise CodecError(where, f"a {type(value).__name__} is not expected here")
    checked: Value = value
    return checked


def _link(text: str, where: str) -> ObjLink:
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise CodecError(where, "is not an object link")
    object_id, instance_id = (int(part) for part in parts)
    if max(object_id, instance_id) > 0xFFFF:
        raise CodecError(where, "is not an object link")
    return ObjLink(object_id, instance_id)
