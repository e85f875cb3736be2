"""What an object definition says: resources with their operations and types (LwM2M Core TS 1.1, appendix D)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from .values import Kind


class Operations(StrEnum):
    """What a server may do with a resource."""

    NONE = ""
    READ = "R"
    WRITE = "W"
    READ_WRITE = "RW"
    EXECUTE = "E"


@dataclass(frozen=True)
class ResourceDef:
    """One resource of an object definition. `kind` is None for executables."""

    id: int
    name: str
    operations: Operations
    kind: Kind | None
    multiple: bool = False
    mandatory: bool = False
    units: str = ""
    range: str = ""
    description: str = ""


@dataclass(frozen=True)
class ObjectDef:
    """One object definition; resources by id."""

    id: int
    name: str
    multiple: bool
    resources: dict[int, ResourceDef] = field(default_factory=dict)
    version: str = "1.0"


def define(object_id: int, name: str, multiple: bool, *resources: ResourceDef, version: str = "1.0") -> ObjectDef:
    """An object definition from its resources."""
    return ObjectDef(object_id, name, multiple, {resource.id: resource for resource in resources}, version)


NO_OPERATION, READ, WRITE = Operations.NONE, Operations.READ, Operations.WRITE
READ_WRITE, EXECUTE = Operations.READ_WRITE, Operations.EXECUTE
STRING, INTEGER, FLOAT, BOOLEAN, OPAQUE = Kind.STRING, Kind.INTEGER, Kind.FLOAT, Kind.BOOLEAN, Kind.OPAQUE
