"""SenML-JSON (content format 110) and SenML-CBOR (112), RFC 8428 as LwM2M Core TS 1.1 clause 7.4.4 uses it.

Only what LwM2M needs: base name, name, one value. A record with another mandatory-to-understand label (it ends in `_`)
is refused; times and units are read and dropped.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cbor2

from .values import CodecError, Kind, Limits, ObjLink, Path, TypeLookup, Value, Values

_LABELS: dict[int | str, str] = {
    -2: "bn",
    -3: "bt",
    -4: "bu",
    0: "n",
    1: "u",
    2: "v",
    3: "vs",
    4: "vb",
    5: "s",
    6: "t",
    7: "ut",
    8: "vd",
}
_NUMBERS = {name: number for number, name in _LABELS.items()}
_VALUE_LABELS = ("v", "vs", "vb", "vd", "vlo")


def decode_json(payload: bytes, base: Path | None, types: TypeLookup, limits: Limits) -> Values:
    """Values in a SenML-JSON pack, all at or under `base` (None: the root, as composite operations do); `CodecError` otherwise."""
    if len(payload) > limits.max_bytes:
        raise CodecError("senml", f"{len(payload)} bytes, more than {limits.max_bytes}")
    return _decode(_load_json(payload), base, types, limits, binary=False)


def decode_cbor(payload: bytes, base: Path | None, types: TypeLookup, limits: Limits) -> Values:
    """Values in a SenML-CBOR pack, all at or under `base`; `CodecError` otherwise."""
    if len(payload) > limits.max_bytes:
        raise CodecError("senml", f"{len(payload)} bytes, more than {limits.max_bytes}")
    return _decode(_load_cbor(payload), base, types, limits, binary=True)


def decode_paths(payload: bytes, limits: Limits, *, binary: bool) -> tuple[Path, ...]:
    """Paths that a Read-Composite asks for (Core TS 1.1, 6.3.8): a pack of names without values; none twice."""
    if len(payload) > limits.max_bytes:
        raise CodecError("senml", f"{len(payload)} bytes, more than {limits.max_bytes}")
    paths: dict[Path, None] = {}
    for name, named in _records_of(_load_cbor(payload) if binary else _load_json(payload), limits, binary):
        if any(label in named for label in _VALUE_LABELS):
            raise CodecError(name[:40], "has a value where a path is asked for")
        path = Path.parse(name.rstrip("/") if len(name) > 1 else name)
        if path in paths:
            raise CodecError(name[:40], "occurs twice")
        paths[path] = None
    return tuple(paths)


def encode_paths(paths: Iterable[Path], *, binary: bool) -> bytes:
    """The pack that asks for these paths."""
    if binary:
        encoded: bytes = cbor2.dumps([{_NUMBERS["n"]: str(path)} for path in paths])
        return encoded
    return json.dumps([{"n": str(path)} for path in paths], separators=(",", ":")).encode()


def _load_json(payload: bytes) -> Any:
    try:
        return json.loads(payload.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except CodecError:
        raise
    except (ValueError, RecursionError) as error:
        raise CodecError("senml", "is not JSON") from error


def _load_cbor(payload: bytes) -> Any:
    stream = io.BytesIO(payload)
    try:
        pack = cbor2.load(stream)
    except Exception as error:  # cbor2 lets errors of its tag handlers through, whatever their type
        raise CodecError("senml", "is not CBOR") from error
    if stream.tell() != len(payload):
        raise CodecError("senml", "bytes follow the pack")
    return pack


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CodecError("senml", "a label occurs twice in one record")
    return found


def _no_constant(text: str) -> Any:
    raise CodecError("senml", f"{text} is not a number in JSON")


def _decode(pack: Any, base: Path | None, types: TypeLookup, limits: Limits, *, binary: bool) -> Values:
    values: Values = {}
    for name, named in _records_of(pack, limits, binary):
        carried = [label for label in _VALUE_LABELS if label in named]
        if not carried and "bn" in named:
            continue
        path = Path.parse(name)
        if path.depth < 3 or (base is not None and not base.covers(path)):
            raise CodecError(name[:40], f"is no value under {base or '/'}")
        if path in values:
            raise CodecError(name, "occurs twice")
        if len(carried) != 1:
            raise CodecError(name, "has not exactly one value")
        assert path.resource_id is not None
        values[path] = _value(carried[0], named[carried[0]], types(path.object_id, path.resource_id), name, binary)
    return values


def _records_of(pack: Any, limits: Limits, binary: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(full name, labels) of each record."""
    if not isinstance(pack, list):
        raise CodecError("senml", "the pack is not an array")
    if len(pack) > limits.max_values:
        raise CodecError("senml", f"more than {limits.max_values} records")
    base_name = ""
    for record in pack:
        if not isinstance(record, dict):
            raise CodecError("senml", "a record is not a map")
        named = _named(record, binary)
        base_name = _text(named.get("bn", base_name), "bn")
        yield base_name + _text(named.get("n", ""), "n"), named


def _named(record: dict[Any, Any], binary: bool) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for label, value in record.items():
        if binary and isinstance(label, int) and not isinstance(label, bool):
            name = _LABELS.get(label)
            if name is None:
                continue
        elif isinstance(label, str):
            name = label
        else:
            raise CodecError("senml", "a label is neither text nor integer")
        if name.endswith("_"):
            raise CodecError("senml", f"label {name[:20]!r} must be understood and is not")
        if name in named:
            raise CodecError("senml", f"label {name[:20]!r} occurs twice in one record")
        named[name] = value
    return named


def _text(value: Any, label: str) -> str:
    if not isinstance(value, str):
        raise CodecError("senml", f"{label} is not text")
    return value


def _value(label: str, value: Any, kind: Kind | None, where: str, binary: bool) -> Value:
    if label == "vb":
        _expect(isinstance(value, bool) and kind in (None, Kind.BOOLEAN), where, "a boolean is not expected")
        return bool(value)
    if label == "vs":
        _expect(isinstance(value, str) and kind in (None, Kind.STRING, Kind.CORELNK), where, "text is not expected")
        return str(value)
    if label == "vd":
        _expect(kind in (None, Kind.OPAQUE), where, "opaque data is not expected")
        return _data(value, where, binary)
    if label == "vlo":
        parts = value.split(":") if isinstance(value, str) else []
        _expect(
            len(parts) == 2
            and all(part.isdecimal() and part.isascii() and len(part) < 6 and int(part) <= 0xFFFF for part in parts),
            where,
            "is not an object link",
        )
        return ObjLink(int(parts[0]), int(parts[1]))
    _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, "v is not a number")
    _expect(
        math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**64, where, "number out of range"
    )
    if kind in (Kind.INTEGER, Kind.TIME, Kind.UNSIGNED):
        _expect(value == int(value), where, "is not an integer")
        return int(value)
    _expect(kind in (None, Kind.FLOAT), where, "a number is not expected")
    return float(value) if kind is Kind.FLOAT else value


def _expect(condition: bool, where: str, detail: str) -> None:
    if not condition:
        raise CodecError(where[:40], detail)


def _data(value: Any, where: str, binary: bool) -> bytes:
    if binary:
        _expect(isinstance(value, bytes), where, "vd is not a byte string")
        return bytes(value)
    _expect(isinstance(value, str), where, "vd is not text")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CodecError(where, "vd is not Base64url") from error


def encode_json(values: Mapping[Path, Value], base: Path | None) -> bytes:
    """SenML-JSON pack of `values`, which lie at or under `base`."""
    return json.dumps(_records(values, base, binary=False), separators=(",", ":")).encode()


def encode_cbor(values: Mapping[Path, Value], base: Path | None) -> bytes:
    """SenML-CBOR pack of `values`, which lie at or under `base`."""
    records = [
        {_NUMBERS.get(label, label): value for label, value in record.items()}
        for record in _records(values, base, binary=True)
    ]
    encoded: bytes = cbor2.dumps(records)
    return encoded


def _records(values: Mapping[Path, Value], base: Path | None, *, binary: bool) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for path, value in sorted(values.items()):
        if path.depth < 3 or (base is not None and not base.covers(path)):
            raise CodecError(str(path), f"is no value under {base or '/'}")
        record: dict[str, Any] = {"n": str(path)}
        if isinstance(value, bool):
            record["vb"] = value
        elif isinstance(value, str):
            record["vs"] = value
        elif isinstance(value, bytes):
            record["vd"] = value if binary else base64.urlsafe_b64encode(value).rstrip(b"=").decode()
        elif isinstance(value, ObjLink):
            record["vlo"] = f"{value.object_id}:{value.instance_id}"
        else:
            record["v"] = value
        records.append(record)
    return records
