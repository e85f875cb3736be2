"""Object 9, software management: the life of each module slot (spec/device-orchestration.md, section 5).

The board knows what lies in flash; this knows what was asked for and how it ended. A download that a power cut or a
lost link interrupted goes on at the byte that the board stored last.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from contextlib import suppress

import structlog

from tinymlaas_lwm2m import SelfTestResult, SlotState, UpdateResult, UpdateState

from .board import Board, BoardError, BoardReason, SelfTest
from .board import SlotState as BoardState
from .lwm2m_board import BoardWorker
from .lwm2m_download import DownloadError, Fetcher
from .lwm2m_state import Memory, SlotMemory

log = structlog.get_logger("tinymlaas.device.software")

_DIGEST = re.compile(r"[0-9a-f]{64}")

_RESULTS: dict[BoardReason, UpdateResult] = {
    BoardReason.NO_SPACE: UpdateResult.NOT_ENOUGH_STORAGE,
    BoardReason.NOT_ENOUGH_RAM: UpdateResult.OUT_OF_MEMORY,
    BoardReason.DIGEST_MISMATCH: UpdateResult.INTEGRITY_FAILURE,
    BoardReason.BAD_IMAGE: UpdateResult.INTEGRITY_FAILURE,
    BoardReason.BAD_SIGNATURE: UpdateResult.INTEGRITY_FAILURE,
    BoardReason.UNKNOWN_KEY: UpdateResult.INTEGRITY_FAILURE,
    BoardReason.DOWNGRADE: UpdateResult.INTEGRITY_FAILURE,
    BoardReason.UNSUPPORTED_ISA: UpdateResult.UNSUPPORTED_PACKAGE,
    BoardReason.UNSUPPORTED_KIND: UpdateResult.UNSUPPORTED_PACKAGE,
}


class RefusedError(Exception):
    """An operation that the slot's state or the request does not allow; `code` is the CoAP code to answer with."""

    def __init__(self, detail: str, code: str = "4.05") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


def refused(error: BoardError) -> RefusedError:
    """The answer for an operation that the board refused; 5.03 while it has no power, which means: ask again later."""
    if error.reason is BoardReason.POWER_LOST:
        return RefusedError(str(error), "5.03")
    if error.reason is BoardReason.NO_SPACE:
        return RefusedError(str(error), "4.13")
    return RefusedError(str(error), "4.05" if error.code == "FAILED_PRECONDITION" else "5.00")


class Slot:
    """One instance of object 9."""

    def __init__(
        self, index: int, worker: BoardWorker, memory: Memory, fetcher: Fetcher, changed: Callable[[], None]
    ) -> None:
        self.index = index
        self._worker = worker
        self._all = memory
        self._fetcher = fetcher
        self._changed = changed
        self._download: asyncio.Task[None] | None = None
        self._test: asyncio.Task[None] | None = None
        self._verifying = False
        self._push_offset: int | None = None
        self.test_result: SelfTest | None = None

    @property
    def memory(self) -> SlotMemory:
        """What is remembered of this slot."""
        return self._all.slot(self.index)

    @property
    def board_state(self) -> BoardState:
        """State of the slot on the board."""
        return self._worker.snapshot.slots[self.index].state

    @property
    def update_state(self) -> UpdateState:
        """/9/x/7."""
        if self.board_state in (BoardState.INSTALLED, BoardState.TESTED):
            if self._verifying:
                return UpdateState.DOWNLOADED
            return UpdateState.INSTALLED if self.memory.installed else UpdateState.DELIVERED
        if self.board_state is BoardState.ACTIVE:
            return UpdateState.INSTALLED
        if self._verifying:
            return UpdateState.DOWNLOADED
        if self.memory.downloading:
            return UpdateState.DOWNLOAD_STARTED
        return UpdateState.INITIAL

    @property
    def slot_state(self) -> SlotState:
        """/42769/0/8/x."""
        if self.board_state is BoardState.INSTALLED:
            return SlotState.INSTALLED if self.memory.installed else SlotState.VERIFIED
        return {
            BoardState.EMPTY: SlotState.EMPTY,
            BoardState.RECEIVING: SlotState.RECEIVING,
            BoardState.TESTED: SlotState.TESTED,
            BoardState.ACTIVE: SlotState.ACTIVE,
        }[self.board_state]

    @property
    def self_test(self) -> SelfTestResult:
        """/42769/0/24/x. The board remembers a passed test in flash, a failed one until the power goes."""
        if self._test is not None and not self._test.done():
            return SelfTestResult.RUNNING
        if self.board_state in (BoardState.TESTED, BoardState.ACTIVE):
            return SelfTestResult.PASSED
        if self.test_result is not None and not self.test_result.passed:
            return SelfTestResult.FAILED
        return SelfTestResult.NOT_RUN

    @property
    def pending_digest(self) -> bytes | None:
        """Digest of a download that has not reached flash yet."""
        if not self.memory.downloading:
            return None
        return self._fetcher.digest(self.memory.uri) or bytes.fromhex(self.memory.expected_digest) or None

    def resume(self) -> None:
        """After power-up: go on with an interrupted pull; a push can only be begun anew by the server."""
        memory = self.memory
        if memory.downloading and memory.uri:
            self._start(memory.uri)
        elif memory.downloading:
            self._result(UpdateResult.CONNECTION_LOST, "power was lost during a push", downloading=False)

    async def stop(self) -> None:
        """Stop what runs, as a power cut would; what is remembered stays."""
        for task in (self._download, self._test):
            if task is not None and not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._download = self._test = None
        self._push_offset = None
        self._verifying = False
        self.test_result = None

    def write_uri(self, uri: str) -> None:
        """/9/x/3: start a pull. The same URI again while one runs starts it anew where it stands."""
        state = self.update_state
        if state not in (UpdateState.INITIAL, UpdateState.DOWNLOAD_STARTED):
            raise RefusedError(f"slot is in state {state.name}")
        if state is UpdateState.DOWNLOAD_STARTED and uri != self.memory.uri:
            raise RefusedError("another download is under way")
        if self._download is not None:
            self._download.cancel()
        self._push_offset = None
        if not self._fetcher.digest(uri):
            self._result(UpdateResult.INVALID_URI, "not a coap URI that ends in a sha256", downloading=False)
            return
        self.memory.uri = uri
        self.test_result = None
        self._result(UpdateResult.DOWNLOADING, "", downloading=True)
        self._start(uri)

    def _start(self, uri: str) -> None:
        self._download = asyncio.create_task(self._pull(uri), name=f"download into slot {self.index}")

    async def _pull(self, uri: str) -> None:
        try:
            await self._fetcher.fetch(uri, self.index, self._worker)
        except DownloadError as error:
            self._result(error.result, error.detail, downloading=False)
            return
        except BoardError as error:
            await self._refused_by_board(error)
            return
        await self._verify()

    async def write_block(self, number_offset: int, data: bytes, more: bool, total: int) -> None:
        """/9/x/2: one block of a push at byte `number_offset`; `total` is Size1, or 0 where the server did not tell."""
        if number_offset == 0:
            await self._begin_push(data, more, total)
        if self._push_offset != number_offset:
            raise RefusedError(f"expected byte {self._push_offset}", "4.08")
        try:
            await self._worker.call(lambda board: board.write(self.index, number_offset, data))
        except BoardError as error:
            await self._refused_by_board(error)
            raise refused(error) from error
        self._push_offset = number_offset + len(data)
        if not more:
            self._push_offset = None
            await self._verify()

    async def _begin_push(self, data: bytes, more: bool, total: int) -> None:
        state = self.update_state
        if state is not UpdateState.INITIAL and not (state is UpdateState.DOWNLOAD_STARTED and not self.memory.uri):
            raise RefusedError(f"slot is in state {state.name}")
        size = total if more else len(data)
        digest = bytes.fromhex(self.memory.expected_digest)
        if not more and not digest:
            digest = hashlib.sha256(data).digest()
        if not digest or not size:
            raise RefusedError("a push needs Size1 and the expected digest, /42769/0/36", "4.12")
        self.memory.uri = ""
        self.test_result = None
        self._result(UpdateResult.DOWNLOADING, "", downloading=True)
        try:
            await self._worker.call(lambda board: _fresh(board, self.index, size, digest))
        except BoardError as error:
            await self._refused_by_board(error)
            raise refused(error) from error
        self._push_offset = 0

    def expect(self, digest: bytes) -> None:
        """/42769/0/36/x: digest of the image that a push will bring."""
        if len(digest) != 32:
            raise RefusedError("a sha256 has 32 bytes", "4.00")
        self.memory.expected_digest = digest.hex()
        self._all.save()

    async def _verify(self) -> None:
        self._verifying = True
        self._changed()
        try:
            await self._worker.call(lambda board: board.verify(self.index))
        except BoardError as error:
            await self._refused_by_board(error)
        else:
            self.memory.installed = False
            self._result(UpdateResult.DOWNLOADED_AND_VERIFIED, "", downloading=False)
        finally:
            self._verifying = False
            self._changed()

    async def _refused_by_board(self, error: BoardError) -> None:
        """End a download with the result that fits; nothing of a refused image stays."""
        if error.reason is BoardReason.POWER_LOST:
            return
        log.warning("board refused", slot=self.index, reason=error.reason.value, detail=str(error))
        with suppress(BoardError):
            await self._worker.call(lambda board: _erase(board, self.index))
        detail = error.metadata.get("detail", "")
        text = f"{error} ({detail})" if detail and detail not in str(error) else str(error)
        self._result(_RESULTS.get(error.reason, UpdateResult.DEVICE_ERROR), text, downloading=False)

    async def install(self) -> None:
        """/9/x/4: from DELIVERED to INSTALLED."""
        if self.update_state is not UpdateState.DELIVERED:
            raise RefusedError(f"slot is in state {self.update_state.name}")
        try:
            status = await self._worker.call(lambda board: board.slot(self.index))
        except BoardError as error:
            self._result(UpdateResult.INSTALL_FAILURE, str(error))
            return
        if status.state not in (BoardState.INSTALLED, BoardState.TESTED):
            self._result(UpdateResult.INSTALL_FAILURE, f"the board's slot is {status.state.name}")
            return
        self.memory.installed = True
        self._result(UpdateResult.INSTALLED, "")

    async def uninstall(self) -> None:
        """/9/x/6: back to INITIAL from any state but active; a download is cancelled."""
        if self.board_state is BoardState.ACTIVE:
            raise RefusedError("the module is active")
        if self._download is not None and not self._download.done():
            self._download.cancel()
            with suppress(asyncio.CancelledError):
                await self._download
        if self._test is not None:
            await asyncio.wait({self._test})
        self._push_offset = None
        try:
            await self._worker.call(lambda board: _erase(board, self.index))
        except BoardError as error:
            self._result(UpdateResult.UNINSTALL_FAILURE, str(error), downloading=False)
            raise refused(error) from error
        self.memory.installed = False
        self.memory.uri = self.memory.expected_digest = ""
        self.test_result = None
        self._result(UpdateResult.INITIAL, "", downloading=False)

    async def activate(self) -> None:
        """/9/x/10: allowed after a passed self-test only; the board decides."""
        if self.board_state is BoardState.ACTIVE:
            return
        if self.update_state is not UpdateState.INSTALLED:
            raise RefusedError(f"slot is in state {self.update_state.name}")
        try:
            await self._worker.call(lambda board: board.activate(self.index))
        except BoardError as error:
            raise refused(error) from error

    async def deactivate(self) -> None:
        """/9/x/11."""
        if self.board_state is not BoardState.ACTIVE:
            raise RefusedError("the module is not active")
        try:
            await self._worker.call(lambda board: board.deactivate(self.index))
        except BoardError as error:
            raise refused(error) from error

    def start_self_test(self) -> None:
        """/42769/0/23: run the golden vectors in the background; once is enough."""
        if self.self_test is SelfTestResult.RUNNING:
            return
        if self.update_state is not UpdateState.INSTALLED or self.board_state is BoardState.ACTIVE:
            raise RefusedError(f"slot is {self.slot_state.name}")
        self.test_result = None
        self._test = asyncio.create_task(self._self_test(), name=f"self-test of slot {self.index}")
        self._changed()

    async def _self_test(self) -> None:
        try:
            self.test_result = await self._worker.call(lambda board: board.self_test(self.index))
        except BoardError as error:
            self.test_result = SelfTest(False, str(error))
        finally:
            asyncio.get_running_loop().call_soon(self._changed)

    def _result(self, result: UpdateResult, reason: str, *, downloading: bool | None = None) -> None:
        memory = self.memory
        memory.update_result, memory.status_reason = result, reason[:200]
        if downloading is not None:
            memory.downloading = downloading
        self._all.save()
        self._changed()


def _fresh(board: Board, slot: int, size: int, digest: bytes) -> None:
    """Begin a push from byte 0, also where an earlier one of the same image broke off: blocks come in order only."""
    if board.slot(slot).state is not BoardState.EMPTY:
        board.uninstall(slot)
    board.begin(slot, size, digest)


def _erase(board: Board, slot: int) -> None:
    """Empty a slot. The state is asked of the board, because a call that was under way may have changed it since."""
    if board.slot(slot).state not in (BoardState.EMPTY, BoardState.ACTIVE):
        board.uninstall(slot)
