"""How every call of the client is made: errors with their details, lists with all their pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import struct_pb2
from google.protobuf.json_format import ParseDict

from tinymlaas_servicekit.errors import from_rpc_error

T = TypeVar("T")
AWAY_SECONDS = 60.0
"""How long the server of a watch may be away: a service that restarts goes on with its work."""
WATCH_PAUSE_SECONDS = 0.25
MAX_WATCH_PAUSE_SECONDS = 2.0
# How a stream ends whose server goes away: at once, or when its time to leave is over.
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class ProjectCalls:
    """Names within the project of a client."""

    project: str

    def version_name(self, name: str) -> str:
        """Full resource name of a model version given in short."""
        full = name if name.startswith("projects/") else f"{self.project}/models/{name}"
        return full if "/versions/" in full else f"{full}/versions/latest"

    def _member(self, collection: str, name: str) -> str:
        return name if name.startswith("projects/") else f"{self.project}/{collection}/{name}"


def options_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain values as a protobuf Struct."""
    return ParseDict(dict(values), struct_pb2.Struct())


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


async def watched(watch: Callable[[], AsyncIterable[T]]) -> AsyncIterator[T]:
    """What a Watch call tells until it ends; one that broke off with its server is begun again, and tells the state anew.

    ServiceError when it is refused, or broke off again and again for `AWAY_SECONDS` without telling anything.
    """
    away_since, pause = None, WATCH_PAUSE_SECONDS
    while True:
        try:
            async for item in watch():
                away_since, pause = None, WATCH_PAUSE_SECONDS
                yield item
            return
        except grpc.RpcError as error:
            now = monotonic()
            away_since = now if away_since is None else away_since
            broken = isinstance(error, grpc.aio.AioRpcError) and error.code() in _BROKEN
            if not broken or now - away_since >= AWAY_SECONDS:
                raise from_rpc_error(error) from error
        await asyncio.sleep(pause)
        pause = min(pause * 2, MAX_WATCH_PAUSE_SECONDS)
