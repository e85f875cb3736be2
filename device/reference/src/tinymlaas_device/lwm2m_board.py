"""A board behind one worker thread, so that the CoAP side stays responsive while the CPU of the board is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from .board import Board, BoardError, BoardReason, Counters, SlotStatus

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """State of a board after its last call; reads are answered from it without waiting for a running one."""

    slots: tuple[SlotStatus, ...]
    active: int | None
    counters: Counters
    ram_free: int
    flash_free: int


class BoardWorker:
    """Calls a board in one thread, one call after the other, and keeps a snapshot of its state."""

    def __init__(self, board: Board, changed: Callable[[], None], power_lost: Callable[[], None]) -> None:
        self._board = board
        self._changed = changed
        self._power_lost = power_lost
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="board")
        self.spec = board.spec
        self.snapshot = _snapshot(board)

    async def call(self, work: Callable[[Board], T]) -> T:
        """Run `work` on the board; `BoardError` passes through. A lost power is told to the device besides."""

        def run() -> tuple[T, Snapshot]:
            try:
                result = work(self._board)
            except BoardError as error:
                if error.reason is not BoardReason.POWER_LOST:
                    self.snapshot = _snapshot(self._board)
                raise
            return result, _snapshot(self._board)

        try:
            result, self.snapshot = await asyncio.get_running_loop().run_in_executor(self._executor, run)
        except BoardError as error:
            if error.reason is BoardReason.POWER_LOST:
                self._power_lost()
            self._changed()
            raise
        self._changed()
        return result

    def close(self) -> None:
        """Let a running call end and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _snapshot(board: Board) -> Snapshot:
    return Snapshot(
        slots=tuple(board.slot(index) for index in range(board.spec.slots)),
        active=board.active_slot(),
        counters=board.counters(),
        ram_free=board.ram_free(),
        flash_free=board.flash_free(),
    )
