"""A look at the wire form of an ONNX file before the protobuf library sees it.

A protobuf message can take a hundred times its bytes once parsed (an empty submessage is two bytes), so the memory is
counted first, field by field, along the descriptors of ONNX (onnx.proto) and without recursion. What passes can be
parsed safely. Source: Protocol Buffers encoding specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import onnx

from ._limits import Limits
from ._rejection import ModelRejected, Problem

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
# Nesting that protobuf's own parsers accept (upb and C++ stop at 100).
MAX_DEPTH: Final = 100
# Memory that the C implementation of protobuf takes for an empty submessage, a string and a field; rounded up.
_MESSAGE_BYTES, _STRING_BYTES = 512, 32


@dataclass(frozen=True)
class _Field:
    """How one field is written: its wire type when not packed, whether it repeats, and the message type inside."""

    name: str
    wire: int
    repeated: bool
    message: Any
    is_string: bool
    is_node: bool


_MODEL: Final = "onnx.ModelProto"
_NODE: Final = "onnx.NodeProto"


@cache
def _fields(full_name: str) -> dict[int, _Field]:
    descriptor: Any = onnx.ModelProto.DESCRIPTOR.file.pool.FindMessageTypeByName(full_name)
    out = {}
    for field in descriptor.fields:
        wire = {
            field.TYPE_DOUBLE: _I64,
            field.TYPE_FIXED64: _I64,
            field.TYPE_SFIXED64: _I64,
            field.TYPE_FLOAT: _I32,
            field.TYPE_FIXED32: _I32,
            field.TYPE_SFIXED32: _I32,
            field.TYPE_STRING: _LEN,
            field.TYPE_BYTES: _LEN,
            field.TYPE_MESSAGE: _LEN,
        }.get(field.type, _VARINT)
        inner = field.message_type.full_name if field.type == field.TYPE_MESSAGE else None
        is_node = inner == _NODE
        repeated = bool(field.is_repeated)
        out[field.number] = _Field(field.name, wire, repeated, inner, field.type == field.TYPE_STRING, is_node)
    return out


def _malformed(at: int, detail: str) -> ModelRejected:
    return ModelRejected(Problem.MALFORMED, f"byte {at}", detail)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and the place after it; MALFORMED past `end` or over 64 bits."""
    value = shift = 0
    start = at
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                raise _malformed(start, "number of more than 64 bits")
            return value, at
        shift += 7
        if shift > 63:
            raise _malformed(start, "number of more than ten bytes")
    raise _malformed(start, "file ends inside a number")


def scan_onnx(data: bytes, limits: Limits) -> None:
    """Check that the bytes are a well-formed ModelProto that stays within the limits when parsed.

    Raises MALFORMED, TOO_MANY_NODES or MODEL_TOO_LARGE. Allocates next to nothing.
    """
    stack: list[tuple[int, str]] = [(len(data), _MODEL)]
    seen: list[set[int]] = [set()]
    at = fields = nodes = 0
    memory = len(data)
    while stack:
        end, message = stack[-1]
        if at == end:
            stack.pop()
            seen.pop()
            continue
        fields += 1
        if fields > limits.fields:
            raise ModelRejected(Problem.MODEL_TOO_LARGE, f"byte {at}", f"more than {limits.fields} fields")
        start = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 1 << 29:
            raise _malformed(start, f"field number {number}")
        known = _fields(message).get(number)
        size = 0
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire in (_I64, _I32):
            size = 8 if wire == _I64 else 4
        elif wire == _LEN:
            size, at = _varint(data, at, end)
        else:
            raise _malformed(start, f"wire type {wire}")
        if size > end - at:
            raise _malformed(start, f"field {number} says {size} bytes, {end - at} are left")
        if known is None:
            at += size
            continue
        packed = wire == _LEN and known.repeated and known.wire != _LEN
        if wire != known.wire and not packed:
            raise _malformed(start, f"field {known.name} has wire type {wire}")
        if known.message is not None:
            if not known.repeated:
                if number in seen[-1]:
                    raise _malformed(start, f"field {known.name} occurs twice")
                seen[-1].add(number)
            nodes += known.is_node
            if nodes > limits.nodes:
                raise ModelRejected(Problem.TOO_MANY_NODES, f"byte {start}", f"more than {limits.nodes} nodes")
            if len(stack) >= MAX_DEPTH:
                raise _malformed(start, f"nested deeper than {MAX_DEPTH} messages")
            memory += _MESSAGE_BYTES
            stack.append((at + size, known.message))
            seen.append(set())
        else:
            # A packed number takes at least a byte in the file and at most eight in memory.
            memory += size * 8 if packed and known.wire == _VARINT else size + _STRING_BYTES
            if known.is_string:
                _check_utf8(data, at, size)
            at += size
        if memory > limits.parsed_bytes:
            raise ModelRejected(
                Problem.MODEL_TOO_LARGE, f"byte {start}", f"takes over {limits.parsed_bytes} bytes in memory"
            )


def _check_utf8(data: bytes, at: int, size: int) -> None:
    try:
        data[at : at + size].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(at, "text is not UTF-8") from error
