"""Object 5, firmware update, of a board with static firmware (LwM2M Core TS 1.1, appendix E.6).

A package goes into the bank that does not run. Update runs its module's golden vectors from there, then switches and
reboots; the new firmware proves itself as it starts, or the boot loader brings the former one back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial

import structlog

from tinymlaas_lwm2m import FirmwareRes, FirmwareResult, FirmwareState, UpdateResult, Values, firmware

from .board import Board, BoardError, BoardReason, SlotState, SlotStatus
from .lwm2m_board import BoardWorker
from .lwm2m_download import DownloadError, Fetcher
from .lwm2m_software import RefusedError, refused
from .lwm2m_state import FirmwareMemory, Memory

log = structlog.get_logger("tinymlaas.device.firmware")

_COAP = 0
_PULL_AND_PUSH = 2
# A push tells no digest beforehand; the package's own signed digests judge it.
_UNANNOUNCED = bytes(32)
_RESULTS: dict[BoardReason, FirmwareResult] = {
    BoardReason.NO_SPACE: FirmwareResult.NOT_ENOUGH_FLASH,
    BoardReason.NOT_ENOUGH_RAM: FirmwareResult.OUT_OF_RAM,
    BoardReason.UNSUPPORTED_ISA: FirmwareResult.UNSUPPORTED_PACKAGE,
    BoardReason.UNSUPPORTED_KIND: FirmwareResult.UNSUPPORTED_PACKAGE,
}
_DOWNLOAD_RESULTS: dict[UpdateResult, FirmwareResult] = {
    UpdateResult.CONNECTION_LOST: FirmwareResult.CONNECTION_LOST,
    UpdateResult.INVALID_URI: FirmwareResult.INVALID_URI,
}


class Firmware:
    """The one instance of object 5. `reboot` lets the device reboot soon."""

    def __init__(
        self,
        worker: BoardWorker,
        memory: Memory,
        fetcher: Fetcher,
        changed: Callable[[], None],
        reboot: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._all = memory
        self._fetcher = fetcher
        self._changed = changed
        self._reboot = reboot
        self._task: asyncio.Task[None] | None = None
        self._push_offset: int | None = None

    @property
    def memory(self) -> FirmwareMemory:
        """What is remembered over a power cut."""
        return self._all.firmware

    @property
    def running(self) -> SlotStatus | None:
        """The package that runs; None while the resident firmware does."""
        snapshot = self._worker.snapshot
        return None if snapshot.active is None else snapshot.slots[snapshot.active]

    def values(self) -> Values:
        """Object 5 as a Read shows it; name and version are those of a package that waits for its update."""
        values: Values = {
            firmware(FirmwareRes.STATE): int(self.memory.state),
            firmware(FirmwareRes.UPDATE_RESULT): int(self.memory.result),
            firmware(FirmwareRes.PROTOCOLS, 0): _COAP,
            firmware(FirmwareRes.DELIVERY_METHOD): _PULL_AND_PUSH,
        }
        if self.memory.state is FirmwareState.DOWNLOADED:
            waiting = self._worker.snapshot.slots[self.memory.bank]
            values[firmware(FirmwareRes.PACKAGE_NAME)] = waiting.name
            values[firmware(FirmwareRes.PACKAGE_VERSION)] = waiting.version
        return values

    def resume(self) -> None:
        """After power-up: see how an update ended, or go on with what the power cut interrupted."""
        memory = self.memory
        if memory.state is FirmwareState.UPDATING and memory.switching:
            confirmed = self._worker.snapshot.active == memory.bank
            self._show(FirmwareState.IDLE, FirmwareResult.SUCCESS if confirmed else FirmwareResult.UPDATE_FAILED)
        elif memory.state is FirmwareState.UPDATING:
            self._start(self._apply(), "update of the firmware")
        elif memory.state is FirmwareState.DOWNLOADING and memory.uri:
            self._start(self._pull(memory.uri), "download of firmware")
        elif memory.state is FirmwareState.DOWNLOADING:
            self._show(FirmwareState.IDLE, FirmwareResult.CONNECTION_LOST)

    async def stop(self) -> None:
        """Stop what runs, as a power cut would; what is remembered stays."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._task = None
        self._push_offset = None

    async def write_uri(self, uri: str) -> None:
        """/5/0/1: start a pull; empty: back to idle, whatever was downloaded is dropped."""
        if not uri:
            await self.cancel()
            return
        self._refuse_unless(FirmwareState.IDLE, FirmwareState.DOWNLOADING)
        await self.stop()
        if self._fetcher.digest(uri) is None:
            self._show(FirmwareState.IDLE, FirmwareResult.INVALID_URI)
            return
        self._choose_bank()
        self.memory.uri = uri
        self._show(FirmwareState.DOWNLOADING, FirmwareResult.INITIAL)
        self._start(self._pull(uri), "download of firmware")

    async def write_block(self, offset: int, data: bytes, more: bool, total: int) -> None:
        """/5/0/0: one block of a push; `total` is Size1, or 0 where the server did not tell. One zero byte: back to idle."""
        if offset == 0 and not more and data in (b"", b"\0"):
            await self.cancel()
            return
        if offset == 0:
            await self._begin_push(total if more else len(data))
        if self._push_offset != offset:
            raise RefusedError(f"expected byte {self._push_offset}", "4.08")
        await self._on_board(partial(_write, bank=self.memory.bank, offset=offset, data=data))
        self._push_offset = offset + len(data)
        if not more:
            self._push_offset = None
            await self._on_board(partial(_verify, bank=self.memory.bank))
            self._show(FirmwareState.DOWNLOADED, FirmwareResult.INITIAL)

    async def _begin_push(self, size: int) -> None:
        self._refuse_unless(FirmwareState.IDLE, FirmwareState.DOWNLOADING)
        if not size:
            raise RefusedError("a push needs Size1", "4.12")
        await self.stop()
        self._choose_bank()
        self.memory.uri = ""
        self._show(FirmwareState.DOWNLOADING, FirmwareResult.INITIAL)
        await self._on_board(partial(_fresh, bank=self.memory.bank, size=size))
        self._push_offset = 0

    async def _on_board(self, work: Callable[[Board], None]) -> None:
        """One step of a push; refused, it ends the download with its result."""
        try:
            await self._worker.call(work)
        except BoardError as error:
            await self._refused_by_board(error)
            raise refused(error) from error

    async def update(self) -> None:
        """/5/0/2: from DOWNLOADED; answers at once, the reboot follows."""
        self._refuse_unless(FirmwareState.DOWNLOADED)
        self.memory.switching = False
        self._show(FirmwareState.UPDATING, FirmwareResult.INITIAL)
        self._start(self._apply(), "update of the firmware")

    async def cancel(self) -> None:
        """Back to idle from any state but an update; the bank is emptied."""
        if self.memory.state is FirmwareState.UPDATING:
            raise RefusedError("an update is under way")
        await self.stop()
        await self._drop()
        self.memory.uri = ""
        self._show(FirmwareState.IDLE, FirmwareResult.INITIAL)

    async def _pull(self, uri: str) -> None:
        try:
            await self._fetcher.fetch(uri, self.memory.bank, self._worker)
            await self._worker.call(partial(_verify, bank=self.memory.bank))
        except DownloadError as error:
            log.warning("download failed", detail=error.detail)
            result = _DOWNLOAD_RESULTS.get(error.result, FirmwareResult.INTEGRITY_FAILURE)
            self._show(FirmwareState.IDLE, result)
        except BoardError as error:
            await self._refused_by_board(error)
        else:
            self._show(FirmwareState.DOWNLOADED, FirmwareResult.INITIAL)

    async def _apply(self) -> None:
        """Prove the package where it lies, make it the one to start, reboot."""
        bank = self.memory.bank
        try:
            test = await self._worker.call(lambda board: board.self_test(bank))
            if not test.passed:
                log.warning("the package fails its self-test", detail=test.detail)
                self._show(FirmwareState.IDLE, FirmwareResult.UPDATE_FAILED)
                return
            self.memory.switching = True
            self._all.save()
            await self._worker.call(lambda board: board.activate(bank))
        except BoardError as error:
            if error.reason is BoardReason.POWER_LOST:
                return
            log.warning("the board refused the update", reason=error.reason.value, detail=str(error))
            self._show(FirmwareState.IDLE, FirmwareResult.UPDATE_FAILED)
            return
        self._reboot()

    async def _refused_by_board(self, error: BoardError) -> None:
        if error.reason is BoardReason.POWER_LOST:
            return
        log.warning("board refused firmware", reason=error.reason.value, detail=str(error))
        self._push_offset = None
        await self._drop()
        self._show(FirmwareState.IDLE, _RESULTS.get(error.reason, FirmwareResult.INTEGRITY_FAILURE))

    async def _drop(self) -> None:
        with suppress(BoardError):
            await self._worker.call(partial(_erase, bank=self.memory.bank))

    def _choose_bank(self) -> None:
        """The bank that does not run; a download that goes on stays in its own, which is that one too."""
        self.memory.bank = 0 if self._worker.snapshot.active != 0 else 1

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        self._task = asyncio.create_task(work, name=name)

    def _refuse_unless(self, *states: FirmwareState) -> None:
        if self.memory.state not in states:
            raise RefusedError(f"the firmware update is in state {self.memory.state.name}")

    def _show(self, state: FirmwareState, result: FirmwareResult) -> None:
        self.memory.state, self.memory.result = state, result
        if state is not FirmwareState.UPDATING:
            self.memory.switching = False
        self._all.save()
        self._changed()


def _fresh(board: Board, *, bank: int, size: int) -> None:
    _erase(board, bank=bank)
    board.begin(bank, size, _UNANNOUNCED)


def _write(board: Board, *, bank: int, offset: int, data: bytes) -> None:
    board.write(bank, offset, data)


def _verify(board: Board, *, bank: int) -> None:
    board.verify(bank)


def _erase(board: Board, *, bank: int) -> None:
    """Empty a bank that does not run."""
    if board.slot(bank).state not in (SlotState.EMPTY, SlotState.ACTIVE):
        board.uninstall(bank)
