"""LwM2M TLV (OMA-TS-LightweightM2M_Core-V1_1_1, clause 7.4.3): strict, bounded reader and canonical writer."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping

from .values import CodecError, Kind, Limits, ObjLink, Path, TypeLookup, Value, Values

_INSTANCE, _RESOURCE_INSTANCE, _MULTIPLE, _RESOURCE = range(4)
_INT_SIZES = (1, 2, 4, 8)
_INT_KINDS = (Kind.INTEGER, Kind.TIME, Kind.UNSIGNED)


def decode(payload: bytes, base: Path, types: TypeLookup, limits: Limits) -> Values:
    """Values under `base` that `payload` holds; `CodecError` where it is malformed, too big or wrongly nested."""
    if len(payload) > limits.max_bytes:
        raise CodecError("tlv", f"{len(payload)} bytes, more than {limits.max_bytes}")
    reader = _Reader(types, limits)
    reader.read(payload, base)
    return reader.values


class _Reader:
    def __init__(self, types: TypeLookup, limits: Limits) -> None:
        self._types = types
        self._limits = limits
        self._seen: set[Path] = set()
        self.values: Values = {}

    def read(self, data: bytes, parent: Path) -> None:
        """Read all entries below `parent`; nesting is at most three deep because each step makes the path longer."""
        offset = 0
        while offset < len(data):
            kind, identifier, start, end = _header(data, offset)
            self._entry(kind, identifier, data[start:end], parent)
            offset = end

    def _entry(self, kind: int, identifier: int, body: bytes, parent: Path) -> None:
        path = self._place(kind, identifier, parent)
        if kind in (_INSTANCE, _MULTIPLE):
            if path.depth > parent.depth:
                self._once(path)
            self.read(body, path)
            return
        if kind == _RESOURCE and parent.depth == 3 and parent.resource_id != identifier:
            raise CodecError(str(parent), f"answer names resource {identifier}")
        self._once(path)
        if len(self.values) >= self._limits.max_values:
            raise CodecError("tlv", f"more than {self._limits.max_values} values")
        resource_id = path.resource_id
        assert resource_id is not None
        self.values[path] = to_value(body, self._types(path.object_id, resource_id), str(path))

    def _once(self, path: Path) -> None:
        if path in self._seen:
            raise CodecError(str(path), "occurs twice")
        self._seen.add(path)

    @staticmethod
    def _place(kind: int, identifier: int, parent: Path) -> Path:
        """Path of an entry. A device may repeat the asked resource's own entry, hence equal depths."""
        if kind == _INSTANCE and parent.depth == 1:
            return parent.child(identifier)
        if kind == _INSTANCE and parent.depth == 2 and parent.instance_id == identifier:
            return parent
        if kind in (_RESOURCE, _MULTIPLE) and parent.depth == 2:
            return parent.child(identifier)
        if kind == _MULTIPLE and parent.depth == 3 and parent.resource_id == identifier:
            return parent
        if kind == _RESOURCE and parent.depth == 3 and parent.resource_id == identifier:
            return parent
        if kind == _RESOURCE_INSTANCE and parent.depth == 3:
            return parent.child(identifier)
        if kind == _RESOURCE_INSTANCE and parent.depth == 4 and parent.resource_instance_id == identifier:
            return parent
        raise CodecError(str(parent), f"an entry of type {kind} with id {identifier} can't stand here")


def _header(data: bytes, offset: int) -> tuple[int, int, int, int]:
    """(type, id, start of the body, end of the body) of the entry at `offset`."""
    first = data[offset]
    id_size = 2 if first & 0x20 else 1
    length_size = (first >> 3) & 3
    start = offset + 1 + id_size + length_size
    if start > len(data):
        raise CodecError("tlv", f"header at byte {offset} is cut off")
    identifier = int.from_bytes(data[offset + 1 : offset + 1 + id_size], "big")
    if length_size:
        if first & 7:
            raise CodecError("tlv", f"reserved length bits are set at byte {offset}")
        length = int.from_bytes(data[start - length_size : start], "big")
    else:
        length = first & 7
    if start + length > len(data):
        raise CodecError("tlv", f"body at byte {start} needs {length} bytes, {len(data) - start} are there")
    return first >> 6, identifier, start, start + length


def to_value(body: bytes, kind: Kind | None, where: str) -> Value:
    """Typed value of a TLV body; the bytes themselves where the type is unknown."""
    if kind is None or kind is Kind.OPAQUE:
        return body
    if kind in (Kind.STRING, Kind.CORELNK):
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CodecError(where, "is not UTF-8") from error
    if kind in _INT_KINDS:
        if len(body) not in _INT_SIZES:
            raise CodecError(where, f"an integer can't have {len(body)} bytes")
        return int.from_bytes(body, "big", signed=kind is not Kind.UNSIGNED)
    if kind is Kind.FLOAT:
        if len(body) not in (4, 8):
            raise CodecError(where, f"a float can't have {len(body)} bytes")
        number: float = struct.unpack(">f" if len(body) == 4 else ">d", body)[0]
        if not math.isfinite(number):
            raise CodecError(where, "is not a finite number")
        return number
    if kind is Kind.BOOLEAN:
        if body not in (b"\x00", b"\x01"):
            raise CodecError(where, "a boolean must be one byte, 0 or 1")
        return body == b"\x01"
    if len(body) != 4:
        raise CodecError(where, f"an object link can't have {len(body)} bytes")
    return ObjLink(*struct.unpack(">HH", body))


def to_bytes(value: Value, kind: Kind | None, where: str) -> bytes:
    """TLV body of a value; the shortest form of integers, 8 bytes for floats."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return b"\x01" if value else b"\x00"
    if isinstance(value, ObjLink):
        return struct.pack(">HH", value.object_id, value.instance_id)
    if isinstance(value, float) or kind is Kind.FLOAT:
        return struct.pack(">d", value)
    for size in _INT_SIZES:
        try:
            return value.to_bytes(size, "big", signed=kind is not Kind.UNSIGNED)
        except OverflowError:
            continue
    raise CodecError(where, f"{value} does not fit into 8 bytes")


def encode(values: Mapping[Path, Value], base: Path, types: TypeLookup) -> bytes:
    """TLV of all `values`, which lie at or under `base`, in ascending order of ids."""
    return b"".join(_encode_level(sorted(values.items()), base, types))


def _encode_level(items: list[tuple[Path, Value]], base: Path, types: TypeLookup) -> Iterable[bytes]:
    for path, _ in items:
        if not base.covers(path) or path.depth < 3:
            raise CodecError(str(path), f"is no value under {base}")
    if base.depth == 1:
        for instance in sorted({path.instance_id for path, _ in items if path.instance_id is not None}):
            child = base.child(instance)
            body = b"".join(_encode_resources([item for item in items if child.covers(item[0])], types))
            yield _entry(_INSTANCE, instance, body)
        return
    if base.depth == 4:
        for path, value in items:
            yield _encode_leaf(path, value, types)
        return
    yield from _encode_resources(items, types)


def _encode_resources(items: list[tuple[Path, Value]], types: TypeLookup) -> Iterable[bytes]:
    groups: dict[int, list[tuple[Path, Value]]] = {}
    for path, value in items:
        groups.setdefault(path.resource_id or 0, []).append((path, value))
    for resource_id, members in groups.items():
        if members[0][0].depth == 3:
            if len(members) > 1:
                raise CodecError(str(members[0][0]), "is single and multiple at once")
            yield _encode_leaf(*members[0], types)
        else:
            yield _entry(_MULTIPLE, resource_id, b"".join(_encode_leaf(path, value, types) for path, value in members))


def _encode_leaf(path: Path, value: Value, types: TypeLookup) -> bytes:
    body = to_bytes(value, types(path.object_id, path.resource_id or 0), str(path))
    if path.resource_instance_id is None:
        return _entry(_RESOURCE, path.resource_id or 0, body)
    return _entry(_RESOURCE_INSTANCE, path.resource_instance_id, body)


def _entry(kind: int, identifier: int, body: bytes) -> bytes:
    first = kind << 6
    id_bytes = identifier.to_bytes(2 if identifier > 0xFF else 1, "big")
    if len(id_bytes) == 2:
        first |= 0x20
    length = len(body)
    if length < 8:
        return bytes([first | length]) + id_bytes + body
    length_size = 1 if length <= 0xFF else 2 if length <= 0xFFFF else 3
    if length > 0xFFFFFF:
        raise CodecError("tlv", f"{length} bytes are more than an entry can hold")
    return bytes([first | length_size << 3]) + id_bytes + length.to_bytes(length_size, "big") + body
