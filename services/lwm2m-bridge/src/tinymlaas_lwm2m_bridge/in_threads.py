"""Calls that wait for the database, in threads: the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def carried_out(threads: Executor, call: Callable[[], T]) -> T:
    """The result of a call in a thread.

    Cancelled, it ends only once the call has, however often it is cancelled; one that has not begun is never made.
    """
    job = threads.submit(call)
    work = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        job.cancel()
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError:
                continue
        raise
