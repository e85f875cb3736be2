"""Opaque page tokens (AIP-158): a cursor bound to the request that it continues."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from google.protobuf.message import Message

from .errors import InvalidArgument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_TOKEN = 2048


def page_size(requested: int) -> int:
    """Entries to return: 50 for zero, at most 1000; a negative size is FIELD_INVALID."""
    if requested < 0:
        raise InvalidArgument("page_size is negative", "FIELD_INVALID", {"field": "page_size"})
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_page_token(cursor: str, request: Message) -> str:
    """A token that continues `request` behind `cursor`; it holds only for the same filters."""
    content = json.dumps([_scope(request), cursor], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def decode_page_token(request: Message) -> str | None:
    """The cursor in `request.page_token`, None on the first page; PAGE_TOKEN_INVALID for any other token than ours."""
    token: str = request.page_token  # type: ignore[attr-defined]
    if not token:
        return None
    try:
        if len(token) > MAX_TOKEN:
            raise ValueError("too long")
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        if not isinstance(content, list) or len(content) != 2 or not isinstance(content[1], str):
            raise ValueError("no token of ours")
        if content[0] != _scope(request):
            raise ValueError("made for another request")
    except (ValueError, binascii.Error, RecursionError) as error:
        raise InvalidArgument(
            f"page_token is not valid: {error}",
            "PAGE_TOKEN_INVALID",
            {"field": "page_token"},
            "Leave page_token empty to start over; keep the other fields unchanged while paging.",
        ) from error
    return content[1]


def _scope(request: Message) -> str:
    copy = type(request)()
    copy.CopyFrom(request)
    for field in ("page_token", "page_size"):
        copy.ClearField(field)
    content = copy.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + content).hexdigest()[:16]
