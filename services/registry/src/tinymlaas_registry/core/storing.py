"""How calls work on the artifact store: so that a store which does not answer holds up nothing else."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import ParamSpec, TypeVar

from .ports import ArtifactStore

P = ParamSpec("P")
Result = TypeVar("Result")

THREADS = 16


class Storing:
    """Threads in which calls wait for a store, none else; and the turn of those who write to it.

    `turn` is held from where bytes are stored until they are referred to, and while those are removed to which nothing refers.
    In a shared store old bytes are removed only and no writer is alone anyway, so there nobody waits for anybody.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "artifacts")
        self.turn: AbstractAsyncContextManager[None] = nullcontext() if store.shared else asyncio.Lock()

    async def run(self, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """What a function of the store gives, as `asyncio.to_thread` would tell it."""
        call = partial(contextvars.copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Takes no more calls; those that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
