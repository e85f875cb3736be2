"""Paths and typed values of LwM2M resources (OMA-TS-LightweightM2M_Core-V1_1_1, clause 7.3 and appendix C)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_ID = 65534
"""Largest id of an object, instance or resource; 65535 is reserved (clause 7.2)."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")


class CodecError(ValueError):
    """Bytes or a path that do not follow the standard; `where` names the place, `detail` says what is wrong."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.where = where
        self.detail = detail


class Kind(StrEnum):
    """Data type of a resource, by the names of the OMA object definition schema."""

    STRING = "String"
    INTEGER = "Integer"
    UNSIGNED = "Unsigned Integer"
    FLOAT = "Float"
    BOOLEAN = "Boolean"
    OPAQUE = "Opaque"
    TIME = "Time"
    OBJLNK = "Objlnk"
    CORELNK = "Corelnk"


@dataclass(frozen=True, order=True)
class ObjLink:
    """Reference to an object instance; 65535:65535 is the null link."""

    object_id: int
    instance_id: int


Value = bool | int | float | str | bytes | ObjLink
"""A decoded resource value. `bytes` is either an opaque value or a value whose type nobody knows."""


@dataclass(frozen=True, order=True)
class Path:
    """Address `/object/instance/resource/resource-instance`; later parts may be absent, but none in the middle."""

    object_id: int
    instance_id: int | None = None
    resource_id: int | None = None
    resource_instance_id: int | None = None

    def __post_init__(self) -> None:
        parts = (self.object_id, self.instance_id, self.resource_id, self.resource_instance_id)
        seen_none = False
        for part in parts:
            if part is None:
                seen_none = True
            elif seen_none:
                raise CodecError("path", "a part is missing in the middle")
            elif not 0 <= part <= MAX_ID:
                raise CodecError("path", f"id {part} is outside 0..{MAX_ID}")

    @staticmethod
    def parse(text: str) -> Path:
        """Read `/3/0/1`; `CodecError` for anything else than one to four decimal ids."""
        if not text.startswith("/"):
            raise CodecError("path", f"{text[:40]!r} does not start with a slash")
        return Path.of(text[1:].split("/"))

    @staticmethod
    def of(segments: list[str] | tuple[str, ...]) -> Path:
        """Build a path from its segments as text."""
        if not 1 <= len(segments) <= 4:
            raise CodecError("path", f"{len(segments)} segments instead of 1 to 4")
        for segment in segments:
            if not _NUMBER.fullmatch(segment):
                raise CodecError("path", f"{segment[:40]!r} is not an id")
        return Path(*(int(segment) for segment in segments))

    @property
    def depth(self) -> int:
        """Number of parts, 1 to 4."""
        return len(self.segments)

    @property
    def segments(self) -> tuple[str, ...]:
        """The parts as text, as in Uri-Path options."""
        parts = (self.object_id, self.instance_id, self.resource_id, self.resource_instance_id)
        return tuple(str(part) for part in parts if part is not None)

    def child(self, part: int) -> Path:
        """The path with one more part."""
        parts = [self.object_id, self.instance_id, self.resource_id, self.resource_instance_id]
        if self.depth == 4:
            raise CodecError("path", f"{self} can have no child")
        parts[self.depth] = part
        return Path(*parts)  # type: ignore[arg-type]

    def covers(self, other: Path) -> bool:
        """True where `other` is this path or lies below it."""
        return other.segments[: self.depth] == self.segments

    def __str__(self) -> str:
        return "/" + "/".join(self.segments)


Values = dict[Path, Value]
"""Decoded content: one entry for each single resource (depth 3) and each resource instance (depth 4)."""

TypeLookup = Callable[[int, int], Kind | None]
"""(object id, resource id) → type, or None where the object is unknown."""


@dataclass(frozen=True)
class Limits:
    """Bounds for decoding what a peer sent; going over one is a `CodecError`."""

    max_bytes: int = 65_536
    max_values: int = 2_048


def instances(values: Mapping[Path, Value], object_id: int) -> list[int]:
    """Ids of the instances of an object that occur in `values`, ascending."""
    return sorted({p.instance_id for p in values if p.object_id == object_id and p.instance_id is not None})


def single(values: Mapping[Path, Value], path: Path) -> Value | None:
    """The value of a single resource, or None where it is absent or has instances only."""
    return values.get(path)


def multiple(values: Mapping[Path, Value], path: Path) -> dict[int, Value]:
    """Instances of a multiple resource by id, empty where it is absent."""
    found: dict[int, Value] = {}
    for candidate, value in values.items():
        if candidate.resource_instance_id is not None and path.covers(candidate):
            found[candidate.resource_instance_id] = value
    return dict(sorted(found.items()))
