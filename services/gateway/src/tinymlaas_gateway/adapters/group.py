"""Group commit: what many callers want written at once is written in one transaction, by one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_GROUP = 64


class Group(Generic[Item, Result]):
    """Calls `run`, which blocks, with what has come together while it ran before; each caller gets the result of its item.

    `run` may be repeated with an item. Where a group fails its items are tried one by one, so that one does not spoil others.
    Each event loop has groups of its own.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._run = run
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line[Item, Result]] = WeakKeyDictionary()

    async def __call__(self, item: Item) -> Result:
        """The result of one item; raises what `run` raises for it."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            line = self._lines.setdefault(loop, _Line(self._run))
        return await line.result_of(item)


class _Line(Generic[Item, Result]):
    """Those who wait in one event loop."""

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._run = run
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def result_of(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="group commit")
        return await future

    async def _work(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            try:
                await self._finish(group)
            finally:
                for _, future in group:
                    future.cancel()  # of those without a result: the program ends

    async def _finish(self, group: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await asyncio.to_thread(self._run, [item for item, _ in group])
        except Exception as error:
            if len(group) == 1:
                _settle(group[0][1], error=error)
                return
            for each in group:
                await self._finish([each])
            return
        for (_, future), result in zip(group, results, strict=True):
            _settle(future, result)


def _settle(future: asyncio.Future[Result], result: Result | None = None, error: Exception | None = None) -> None:
    if future.done():  # its caller has left
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]
