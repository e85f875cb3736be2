"""A flatbuffer reader that checks every offset, length and alignment before it reads (FlatBuffers binary format)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ._rejection import ModelRejected, Problem

_SCALARS: Final = {
    "bool": struct.Struct("<B"),
    "i8": struct.Struct("<b"),
    "u8": struct.Struct("<B"),
    "i16": struct.Struct("<h"),
    "u16": struct.Struct("<H"),
    "i32": struct.Struct("<i"),
    "u32": struct.Struct("<I"),
    "i64": struct.Struct("<q"),
    "u64": struct.Struct("<Q"),
    "f32": struct.Struct("<f"),
}


def _malformed(at: int, detail: str) -> ModelRejected:
    return ModelRejected(Problem.MALFORMED, f"byte {at}", detail)


class Flatbuffer:
    """The bytes of a file, with a budget of elements to visit, so that shared offsets can't multiply the work."""

    def __init__(self, data: bytes, budget: int) -> None:
        self.data = data
        self._budget = budget

    def spend(self, elements: int, at: int) -> None:
        """Take from the budget; MODEL_TOO_LARGE once it is used up."""
        self._budget -= elements
        if self._budget < 0:
            raise ModelRejected(Problem.MODEL_TOO_LARGE, f"byte {at}", "the file has more elements than the limit")

    def span(self, at: int, size: int, align: int) -> None:
        """MALFORMED unless `size` bytes at `at` are inside the file and aligned."""
        if at < 0 or size < 0 or at + size > len(self.data):
            raise _malformed(at, f"{size} bytes at {at} are outside of the file")
        if at % align:
            raise _malformed(at, f"not aligned to {align} bytes")

    def scalar(self, at: int, kind: str) -> int | float:
        """The scalar of that kind at `at`."""
        form = _SCALARS[kind]
        self.span(at, form.size, form.size)
        return form.unpack_from(self.data, at)[0]  # type: ignore[no-any-return]

    def follow(self, at: int) -> int:
        """Where the offset at `at` points to; offsets are unsigned, so never backward, and never 0."""
        offset = int(self.scalar(at, "u32"))
        if offset < 4:
            raise _malformed(at, f"offset of {offset}")
        self.span(at + offset, 4, 4)
        return at + offset

    def root(self) -> Table:
        """The root table."""
        return self.table(self.follow(0))

    def table(self, at: int) -> Table:
        """The table at `at`, with its vtable checked."""
        self.spend(1, at)
        vtable = at - int(self.scalar(at, "i32"))
        self.span(vtable, 4, 2)
        vtable_bytes, table_bytes = int(self.scalar(vtable, "u16")), int(self.scalar(vtable + 2, "u16"))
        if vtable_bytes < 4 or vtable_bytes % 2 or table_bytes < 4:
            raise _malformed(vtable, f"vtable of {vtable_bytes} bytes for a table of {table_bytes}")
        self.span(vtable, vtable_bytes, 2)
        self.span(at, table_bytes, 4)
        slots = struct.unpack_from(f"<{(vtable_bytes - 4) // 2}H", self.data, vtable + 4)
        if any(slot and not 4 <= slot < table_bytes for slot in slots):
            raise _malformed(vtable, "a field lies outside of its table")
        return Table(self, at, table_bytes, slots)


@dataclass(frozen=True)
class Table:
    """A table at a checked place; each getter checks the field that it reads."""

    buffer: Flatbuffer
    at: int
    size: int
    slots: Sequence[int]

    def has(self, slot: int) -> bool:
        """Whether the field is present."""
        return slot < len(self.slots) and self.slots[slot] != 0

    def _place(self, slot: int, size: int) -> int:
        if self.slots[slot] + size > self.size:
            raise _malformed(self.at, f"field {slot} reaches past its table")
        return self.at + self.slots[slot]

    def integer(self, slot: int, kind: str, default: int = 0) -> int:
        """An integer or bool field, or its default."""
        if not self.has(slot):
            return default
        value = self.buffer.scalar(self._place(slot, _SCALARS[kind].size), kind)
        if kind == "bool" and value not in (0, 1):
            raise _malformed(self.at, f"field {slot} is a bool of {value}")
        return int(value)

    def real(self, slot: int, default: float = 0.0) -> float:
        """A float32 field, or its default."""
        return float(self.buffer.scalar(self._place(slot, 4), "f32")) if self.has(slot) else default

    def child(self, slot: int) -> Table | None:
        """The table that the field points to."""
        return self.buffer.table(self.buffer.follow(self._place(slot, 4))) if self.has(slot) else None

    def _vector(self, slot: int, size: int) -> tuple[int, int]:
        """Place and number of the elements of a vector; (0, 0) if the field is absent."""
        if not self.has(slot):
            return 0, 0
        start = self.buffer.follow(self._place(slot, 4))
        count = int(self.buffer.scalar(start, "u32"))
        self.buffer.span(start + 4, count * size, size)
        return start + 4, count

    def numbers(self, slot: int, kind: str) -> tuple[int | float, ...]:
        """A vector of scalars; empty if absent."""
        form = _SCALARS[kind]
        start, count = self._vector(slot, form.size)
        self.buffer.spend(count, start)
        return struct.unpack_from(f"<{count}{form.format[-1]}", self.buffer.data, start) if count else ()

    def integers(self, slot: int, kind: str = "i32") -> tuple[int, ...]:
        """A vector of integers; empty if absent."""
        return tuple(int(value) for value in self.numbers(slot, kind))

    def raw(self, slot: int) -> memoryview:
        """A vector of bytes, not copied; empty if absent."""
        start, count = self._vector(slot, 1)
        return memoryview(self.buffer.data)[start : start + count]

    def text(self, slot: int) -> str:
        """A string; empty if absent. MALFORMED if it is not UTF-8 or its closing zero byte is missing."""
        start, count = self._vector(slot, 1)
        if start:
            self.buffer.span(start + count, 1, 1)
            if self.buffer.data[start + count]:
                raise _malformed(start, "text without a closing zero byte")
        try:
            return self.buffer.data[start : start + count].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed(start, "text is not UTF-8") from error

    def count(self, slot: int) -> int:
        """Length of a vector of tables."""
        return self._vector(slot, 4)[1]

    def tables(self, slot: int) -> Iterator[Table]:
        """The tables of a vector, checked one by one."""
        start, count = self._vector(slot, 4)
        for index in range(count):
            yield self.buffer.table(self.buffer.follow(start + 4 * index))
