"""Resource names by pattern, such as projects/{project}/models/{model} (AIP-122)."""

from __future__ import annotations

import re
from functools import lru_cache

from .errors import InvalidArgument

# One segment: visible ASCII without "/", not starting with a dot, so that no id can be "." or "..".
SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.~:@+-]{0,127}"
_SEGMENT = re.compile(SEGMENT)

PROJECT = "projects/{project}"
MODEL = "projects/{project}/models/{model}"
MODEL_VERSION = "projects/{project}/models/{model}/versions/{version}"
MODULE = "projects/{project}/modules/{module}"
DEVICE = "projects/{project}/devices/{device}"
BUILD = "projects/{project}/builds/{build}"
DEPLOYMENT = "projects/{project}/deployments/{deployment}"
PLUGIN = "plugins/{plugin}"
API_KEY = "projects/{project}/apiKeys/{api_key}"
AUDIT_ENTRY = "auditEntries/{audit_entry}"


@lru_cache(maxsize=256)
def pattern_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression that a name of `pattern` matches in full, one named group per variable."""
    parts = []
    for segment in pattern.split("/"):
        if segment.startswith("{") and segment.endswith("}"):
            parts.append(f"(?P<{segment[1:-1]}>{SEGMENT})")
        else:
            parts.append(re.escape(segment))
    return re.compile("/".join(parts))


def format_name(pattern: str, **ids: str) -> str:
    """The name of `pattern` with its variables set; InvalidArgument when an id is no valid segment."""
    for key, value in ids.items():
        if not _SEGMENT.fullmatch(value):
            raise InvalidArgument(f"{key} {value[:64]!r} is no valid id", "NAME_INVALID", {"field": key}, _ID_HELP)
    return pattern.format(**ids)


def parse_name(pattern: str, name: str) -> dict[str, str]:
    """The variables of a name; InvalidArgument / NAME_INVALID when it does not match `pattern`."""
    match = pattern_regex(pattern).fullmatch(name)
    if match is None:
        raise InvalidArgument(
            f"{name[:128]!r} does not match {pattern}",
            "NAME_INVALID",
            {"name": name[:128], "pattern": pattern},
            _ID_HELP,
        )
    return match.groupdict()


def parent_pattern(pattern: str) -> str:
    """The pattern of the parent of names of `pattern`: without its last collection and id."""
    return "/".join(pattern.split("/")[:-2])


_ID_HELP = "Write names like their pattern; an id has 1 to 128 letters, digits and _ . ~ : @ + -, the first a letter, digit or _."
