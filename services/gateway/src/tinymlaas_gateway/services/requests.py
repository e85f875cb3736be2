"""What our servicers read from requests."""

from __future__ import annotations

from tinymlaas_servicekit import InvalidArgument


def project_in(parent: str) -> str:
    """Project id in `projects/{project}`; the name was checked by the interceptor."""
    return parent.split("/")[1]


def cursor(token: str | None) -> int | None:
    """The sequence number in a page token of ours."""
    if token is None:
        return None
    if not token.isdigit():
        raise InvalidArgument("page_token is not valid", "PAGE_TOKEN_INVALID", {"field": "page_token"})
    return int(token)
