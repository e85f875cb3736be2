"""What is decided about API keys and audit queries: whether a key may be made, whether a presented one is good."""

from __future__ import annotations

import hmac

from google.protobuf.timestamp_pb2 import Timestamp

from tinymlaas.registry.v1 import access_pb2
from tinymlaas.type.v1 import access_pb2 as roles
from tinymlaas_servicekit.api_keys import PresentedKey, new_api_key
from tinymlaas_servicekit.errors import InvalidArgument, Unauthenticated
from tinymlaas_servicekit.resource_names import API_KEY, PROJECT, format_name, parse_name

EVERYWHERE = "projects/-"
MAX_GRANTS = 16
MAX_DISPLAY_NAME = 128


def make_key(
    project: str, wanted: access_pb2.ApiKey, creator: str, now: Timestamp
) -> tuple[str, access_pb2.ApiKey, PresentedKey]:
    """A new key as it was asked for: its text, its record, and what is kept of its secret; InvalidArgument for a wrong one."""
    _check(wanted, now)
    text, kept = new_api_key()
    key = access_pb2.ApiKey(
        name=format_name(API_KEY, project=project, api_key=kept.id),
        display_name=wanted.display_name,
        grants=wanted.grants,
        create_time=now,
        expire_time=wanted.expire_time if wanted.HasField("expire_time") else None,
        creator=creator,
    )
    return text, key, kept


def _check(wanted: access_pb2.ApiKey, now: Timestamp) -> None:
    if len(wanted.display_name) > MAX_DISPLAY_NAME:
        raise _invalid("api_key.display_name", f"has more than {MAX_DISPLAY_NAME} characters")
    if len(wanted.grants) > MAX_GRANTS:
        raise _invalid("api_key.grants", f"has more than {MAX_GRANTS} entries")
    for index, grant in enumerate(wanted.grants):
        if grant.project != EVERYWHERE:
            parse_name(PROJECT, grant.project)
        if any(role not in roles.Role.values() or role == roles.ROLE_UNSPECIFIED for role in grant.roles):
            raise _invalid(f"api_key.grants[{index}].roles", "has a role that does not exist")
    if wanted.HasField("expire_time") and wanted.expire_time.ToNanoseconds() <= now.ToNanoseconds():
        raise _invalid("api_key.expire_time", "is not in the future")


def accept(found: tuple[access_pb2.ApiKey, bytes] | None, secret_sha256: bytes, now: Timestamp) -> access_pb2.ApiKey:
    """The key that was presented; one and the same Unauthenticated for an unknown, wrong and expired one."""
    key, kept = found or (access_pb2.ApiKey(), bytes(32))
    right = hmac.compare_digest(kept, secret_sha256) and found is not None
    expired = key.HasField("expire_time") and key.expire_time.ToNanoseconds() <= now.ToNanoseconds()
    if not right or expired:
        raise Unauthenticated(
            "the API key is not valid", "API_KEY_INVALID", help="Make a new key: `tinymlaas api-keys create`."
        )
    return key


def _invalid(field: str, detail: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {detail}", "FIELD_INVALID", {"field": field})
