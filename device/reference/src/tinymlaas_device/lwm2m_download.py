"""Pull of a module image by block-wise GET (RFC 7959), resumed at the byte that the board stored last."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import aiocoap
from aiocoap import Code, Message
from aiocoap.numbers.constants import TransportTuning
from aiocoap.optiontypes import BlockOption

from tinymlaas_lwm2m import UpdateResult

from .board import Board, SlotState
from .lwm2m_board import BoardWorker

_PATH = re.compile(r"/(?:[A-Za-z0-9._~-]{1,64}/){0,4}([0-9a-f]{64})")
_SZX = 6


@dataclass(frozen=True)
class DownloadSettings:
    """`attempts` are requests for one block before the link counts as lost; `retry_s` the pause between them."""

    attempts: int = 4
    retry_s: float = 2.0
    ack_timeout_s: float = 2.0
    max_retransmit: int = 4


class DownloadError(Exception):
    """A download that ended; `result` is the update result to show."""

    def __init__(self, result: UpdateResult, detail: str) -> None:
        super().__init__(detail)
        self.result = result
        self.detail = detail


class Fetcher:
    """Fetches images with the device's own CoAP context, so that the server sees the address it knows."""

    def __init__(self, context: aiocoap.Context, settings: DownloadSettings) -> None:
        self._context = context
        self._settings = settings

        class Tuning(TransportTuning):  # type: ignore[misc]  # aiocoap is not typed
            ACK_TIMEOUT = settings.ack_timeout_s
            MAX_RETRANSMIT = settings.max_retransmit

        self._tuning = Tuning()

    @staticmethod
    def digest(uri: str) -> bytes | None:
        """The sha256 that a Package URI ends in, or None where the URI can't be used."""
        try:
            parts = urlsplit(uri)
            usable = parts.scheme == "coap" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            return None
        match = _PATH.fullmatch(parts.path)
        if not usable or not match or len(uri) > 255 or parts.query or parts.fragment or parts.username:
            return None
        return bytes.fromhex(match[1])

    async def fetch(self, uri: str, slot: int, worker: BoardWorker) -> None:
        """Bring all bytes of the image into the board's slot; `DownloadError` or `BoardError` otherwise."""
        digest = self.digest(uri)
        if digest is None:
            raise DownloadError(UpdateResult.INVALID_URI, "not a coap URI that ends in a sha256")
        status = worker.snapshot.slots[slot]
        resuming = status.state is SlotState.RECEIVING and status.digest == digest
        offset = status.bytes_written if resuming else 0
        if resuming and offset == status.size:
            return
        szx, total = _SZX, 0
        while True:
            answer = await self._block(uri, offset, szx)
            if answer.opt.etag is not None and answer.opt.etag != digest[:8]:
                raise DownloadError(UpdateResult.INTEGRITY_FAILURE, "the server has another image under this URI")
            block = answer.opt.block2
            start = block.start if block is not None else 0
            szx = min(szx, block.size_exponent) if block is not None else szx
            if total == 0:
                total = self._total(answer)
                await worker.call(partial(_begin, slot=slot, size=total, digest=digest))
                # Only now does the board know what of an interrupted download is sound; it may be less, or more.
                offset = worker.snapshot.slots[slot].bytes_written
                if offset < total and not start <= offset < start + len(answer.payload):
                    continue
            # Resuming within a block: its first bytes are in flash already.
            fresh = answer.payload[offset - start :] if start <= offset else b""
            if not fresh and offset < total:
                raise DownloadError(UpdateResult.CONNECTION_LOST, f"the server sent byte {start} instead of {offset}")
            if fresh:
                await worker.call(partial(_write, slot=slot, offset=offset, data=fresh))
                offset += len(fresh)
            if offset >= total:
                return
            if block is None or not block.more:
                raise DownloadError(UpdateResult.CONNECTION_LOST, f"the image ends at byte {offset} of {total}")

    @staticmethod
    def _total(answer: Message) -> int:
        if answer.opt.size2:
            return int(answer.opt.size2)
        if answer.opt.block2 is None or (answer.opt.block2.block_number == 0 and not answer.opt.block2.more):
            return len(answer.payload)
        raise DownloadError(UpdateResult.INVALID_URI, "the server does not tell the size of the image (Size2)")

    async def _block(self, uri: str, offset: int, szx: int) -> Message:
        """One block; a lost link is tried `attempts` times."""
        last = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                await asyncio.sleep(self._settings.retry_s)
            message = Message(code=Code.GET, uri=uri, transport_tuning=self._tuning)
            message.opt.block2 = BlockOption.BlockwiseTuple(offset >> (szx + 4), False, szx)
            try:
                answer = await self._context.request(message, handle_blockwise=False).response
            except (aiocoap.error.Error, OSError) as error:
                last = type(error).__name__
                continue
            if answer.code is Code.CONTENT:
                return answer
            if answer.code.is_successful() or answer.code.class_ == 5:
                last = str(answer.code)
                continue
            raise DownloadError(UpdateResult.INVALID_URI, f"the server answered {answer.code}")
        raise DownloadError(UpdateResult.CONNECTION_LOST, f"no answer from the server ({last})")


def _begin(board: Board, *, slot: int, size: int, digest: bytes) -> None:
    board.begin(slot, size, digest)


def _write(board: Board, *, slot: int, offset: int, data: bytes) -> None:
    board.write(slot, offset, data)
