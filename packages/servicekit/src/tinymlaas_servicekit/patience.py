"""How long work waits for the suite's own database and registry: a caller a minute, a durable step as long as it takes.

A failure that a durable step records is an outcome for good; a server that is away for some minutes must not become one. That
a step is durable is told by the context (PEP 567), so tasks and threads that it starts wait like it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

CALL_SECONDS = 60.0
DURABLE_SECONDS = 86_400.0

_durable: ContextVar[bool] = ContextVar("durable", default=False)
_given_up = threading.Event()


def seconds(own: float | None = None) -> float:
    """How long to wait here; `own`, in seconds, is what a call asks for that is no part of a durable step."""
    if _durable.get():
        return DURABLE_SECONDS
    return CALL_SECONDS if own is None else own


@contextmanager
def durable() -> Iterator[None]:
    """Have all that is done within wait `DURABLE_SECONDS`."""
    token = _durable.set(True)
    try:
        yield
    finally:
        _durable.reset(token)


def pause(time_s: float) -> bool:
    """Sleep in a thread; False at once where the process is about to stop and nobody shall wait any more."""
    return not _given_up.wait(time_s)


def give_up() -> None:
    """End all that waits in threads, with the errors it has met: the process is about to stop."""
    _given_up.set()


def resume() -> None:
    """Wait again: for a process that starts a second time what it gave up."""
    _given_up.clear()
