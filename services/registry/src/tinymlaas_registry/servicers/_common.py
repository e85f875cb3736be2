"""What the servicers share: pages and missing things."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from tinymlaas_servicekit import FieldViolation, InvalidArgument, NotFound, decode_page_token, page_size

from ..core.ports import Page

T = TypeVar("T")


def page_of(request: Any) -> Page:
    """The page that a list request asks for."""
    cursor = decode_page_token(request)
    return Page(page_size(request.page_size), cursor)


def found(value: T | None, name: str) -> T:
    """The value; NotFound when there is none."""
    if value is None:
        raise NotFound(f"{name} does not exist", "NOT_FOUND", {"name": name})
    return value


def require(message: Message, field: str, prefix: str) -> str:
    """A string field that must not be empty; the proto cannot say so, since other calls leave it empty."""
    value: str = getattr(message, field)
    if not value:
        path = f"{prefix}.{field}" if prefix else field
        raise InvalidArgument(
            f"{path} is required",
            "FIELD_INVALID",
            {"field": path},
            violations=[FieldViolation(path, "is required")],
        )
    return value
