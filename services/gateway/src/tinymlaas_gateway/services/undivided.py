"""Work of a call that must not be left half done: it goes on to its end when its caller leaves or its time runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from tinymlaas_servicekit import adapt

log = structlog.get_logger("tinymlaas.gateway")
Result = TypeVar("Result")

_under_way: set[asyncio.Task[Any]] = set()


async def undivided(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, or its error; nobody's cancellation reaches it. Errors that nobody waits for are logged."""
    task = asyncio.create_task(work, name="undivided")
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_tell)
        raise


def _tell(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        refused = adapt(error)
        level = log.error if refused is None else log.warning
        level(
            "a call failed whose caller had left", error=str(error)[:500], exc_info=error if refused is None else None
        )
