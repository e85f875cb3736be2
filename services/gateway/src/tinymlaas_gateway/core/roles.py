"""What a token's role claim grants, decided without a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tinymlaas.registry.v1 import access_pb2
from tinymlaas_servicekit.access import Permission, Role, permissions_of, role_named
from tinymlaas_servicekit.identity import EVERYWHERE, Grants
from tinymlaas_servicekit.resource_names import SEGMENT

MAX_ROLES = 256
_ENTRY = re.compile(rf"(?P<project>-|{SEGMENT}):(?P<role>[a-z-]+)")


def claimed_grants(claims: Mapping[str, Any], path: str, role_map: Mapping[str, Iterable[str]]) -> Grants:
    """Permissions by project of the strings at `path` ("realm_access.roles"); what is not understood grants nothing."""
    value: Any = claims
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    texts = [word for word in words if isinstance(word, str)][:MAX_ROLES]
    return _granted(pair for text in texts for entry in role_map.get(text, [text]) if (pair := _read(entry)))


def key_grants(key: access_pb2.ApiKey) -> Grants:
    """Permissions by project of an API key."""
    return _granted((grant.project.removeprefix("projects/"), role) for grant in key.grants for role in grant.roles)


def _read(entry: str) -> tuple[str, Role] | None:
    match = _ENTRY.fullmatch(entry)
    role = None if match is None else role_named(match["role"])
    return None if match is None or role is None else (match["project"], role)


def _granted(pairs: Iterable[tuple[str, Role]]) -> Grants:
    found: dict[str, set[Permission]] = {}
    for project, role in pairs:
        found.setdefault(project or EVERYWHERE, set()).update(permissions_of([role]))
    return {project: frozenset(permissions) for project, permissions in found.items()}
