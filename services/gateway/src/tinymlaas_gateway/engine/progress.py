"""Progress of plugins into the build that clients watch, at a bounded rate however fast a plugin talks."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from ..core import projection
from .context import Context
from .ports import Sign

FLUSH_SECONDS = 0.25


class ProgressWriter:
    """Takes signs of life and writes the newest of them at most four times a second, the rest of the log at the end."""

    def __init__(self, context: Context, build: str, plugin: str) -> None:
        self._context = context
        self._build = build
        self._plugin = plugin
        self._step: tuple[str, float] | None = None
        self._log: deque[str] = deque(maxlen=projection.LOG_LINES)
        self._task: asyncio.Task[None] | None = None

    def __call__(self, sign: Sign) -> None:
        """Take a sign of life; returns at once."""
        if sign.log:
            self._log.append(sign.log)
        else:
            self._step = (sign.step, sign.fraction)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._soon())

    async def _soon(self) -> None:
        await asyncio.sleep(FLUSH_SECONDS)
        self._task = None
        await self._flush()

    async def _flush(self) -> None:
        step, self._step = self._step, None
        lines = list(self._log)
        self._log.clear()
        edits = []
        if step is not None:
            edits.append(projection.progress(self._plugin, *step))
        if lines:
            edits.append(projection.log(self._plugin, lines))
        if edits:
            await self._context.edit_build(self._build, *edits)

    async def __aenter__(self) -> ProgressWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        await self._flush()
