"""The synchronous client: the asynchronous one driven by an event loop of its own in a background thread."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from tinymlaas_client._async_client import AsyncClient
from tinymlaas_servicekit.tls import TlsFiles

T = TypeVar("T")


class Client:
    """Same methods as `AsyncClient`, blocking; streams become plain iterators. Close it, or use it in a `with` block."""

    def __init__(
        self, address: str, *, token: str | None = None, project: str = "default", tls: TlsFiles | None = None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tinymlaas-client", daemon=True)
        self._thread.start()
        self._client = self._run(_construct(address, token, project, tls))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the background thread."""
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if inspect.isasyncgenfunction(attribute):
            return functools.wraps(attribute)(lambda *args, **kwargs: self._iterate(attribute(*args, **kwargs)))
        if inspect.iscoroutinefunction(attribute):
            return functools.wraps(attribute)(lambda *args, **kwargs: self._run(attribute(*args, **kwargs)))
        return attribute

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, stream: AsyncIterator[T]) -> Iterator[T]:
        while True:
            try:
                yield self._run(_next(stream))
            except StopAsyncIteration:
                return


async def _construct(address: str, token: str | None, project: str, tls: TlsFiles | None) -> AsyncClient:
    return AsyncClient(address, token=token, project=project, tls=tls)


async def _next(stream: AsyncIterator[T]) -> T:
    return await anext(stream)
