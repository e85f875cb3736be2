"""How every call of the client is made: errors with their details, lists with all their pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from tinymlaas_servicekit.errors import from_rpc_error

T = TypeVar("T")


async def answer(call: Awaitable[T]) -> T:
    """The answer of a call; ServiceError when it is refused."""
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


async def all_pages(page: Callable[[str], Awaitable[Any]], field: str) -> list[Any]:
    """The entries of `field` of every page; `page` asks for the one with that token."""
    items: list[Any] = []
    token = ""
    while True:
        response = await answer(page(token))
        items.extend(getattr(response, field))
        token = response.next_page_token
        if not token:
            return items
