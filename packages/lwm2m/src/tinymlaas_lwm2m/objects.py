"""Every object that this project knows by itself, by id, and the types of their resources."""

from __future__ import annotations

from .core_objects import (
    CONNECTIVITY,
    CONNECTIVITY_DEF,
    DEVICE,
    DEVICE_DEF,
    SECURITY,
    SECURITY_DEF,
    SERVER,
    SERVER_DEF,
)
from .firmware_object import FIRMWARE, FIRMWARE_DEF
from .ipso import IPSO_DEFS
from .ml_object import ML_CAPABILITY, ML_DEF, ML_DESCRIPTION, ML_URN
from .model import ObjectDef
from .software_object import SOFTWARE, SOFTWARE_DEF
from .values import Kind

__all__ = [
    "CONNECTIVITY",
    "DEVICE",
    "FIRMWARE",
    "ML_CAPABILITY",
    "ML_DEF",
    "ML_DESCRIPTION",
    "ML_URN",
    "OBJECTS",
    "SECURITY",
    "SERVER",
    "SOFTWARE",
    "kind_of",
]

OBJECTS: dict[int, ObjectDef] = {
    definition.id: definition
    for definition in (
        SECURITY_DEF,
        SERVER_DEF,
        DEVICE_DEF,
        CONNECTIVITY_DEF,
        FIRMWARE_DEF,
        SOFTWARE_DEF,
        ML_DEF,
        *IPSO_DEFS,
    )
}
"""Definitions by object id."""


def kind_of(object_id: int, resource_id: int) -> Kind | None:
    """Type of a resource, or None where the object or resource is unknown or is an executable."""
    definition = OBJECTS.get(object_id)
    resource = definition.resources.get(resource_id) if definition else None
    return resource.kind if resource else None
