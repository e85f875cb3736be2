"""One role call from header to result: limits, upload, worker, heartbeats, deadline, download."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from tinymlaas.plugin.v1 import compiler_pb2, stream_pb2
from tinymlaas_servicekit.errors import ServiceError, from_status

from . import _rpcs
from ._frames import Kind
from ._pool import Worker, WorkerPool
from ._uploads import MAX_CHUNK, read_blobs, read_header
from .errors import CompilerCrash, LimitExceeded
from .jobs import Limits

HEARTBEAT_SECONDS = 5.0
MAX_LOG_LINES = 5000
_PRINTED_SECONDS = 2.0
_HANDOVERS = 3

# Checks a header against what was advertised; returns the checked options.
CheckHeader = Callable[[_rpcs.Rpc, Any], dict[str, Any]]


class _NeverBegunError(Exception):
    """A worker died while it had nothing to do, before it took the job that was just handed over."""

    def __init__(self, crash: ServiceError) -> None:
        super().__init__(str(crash))
        self.crash = crash


class RoleCalls:
    """Runs role calls of one plugin on its pool of workers, at most `max_concurrency` at once."""

    def __init__(
        self, pool: WorkerPool, limits: Limits, check_header: CheckHeader, heartbeat: float = HEARTBEAT_SECONDS
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._check_header = check_header
        self._heartbeat = heartbeat
        self.active = 0

    async def serve(
        self, kind: str, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Message]:
        """The messages of the stream out; raises the error with which the call ends."""
        rpc = _rpcs.RPCS[kind]
        if self.active >= self._limits.max_concurrency:
            raise LimitExceeded("max_concurrency", self._limits.max_concurrency, self.active + 1)
        self.active += 1
        try:
            async with _deadline(self._limits), _job_folder() as folder:
                header = await read_header(rpc, requests, self._limits)
                options = self._check_header(rpc, header)
                await read_blobs(rpc, requests, header, folder, self._limits)
                _rpcs.header_path(folder).write_bytes(header.SerializeToString())
                _rpcs.options_path(folder).write_text(json.dumps(options), encoding="utf-8")
                result: Message | None = None
                # Closed by name: left to the garbage collector, the worker's place would become free some time.
                async with aclosing(self._run(rpc, folder)) as parts:
                    async for part in parts:
                        if isinstance(part, rpc.result):
                            result = part
                        else:
                            yield part
                assert result is not None
                async for part in _download(rpc, folder, result, self._limits):
                    yield part
        finally:
            self.active -= 1

    async def _run(self, rpc: _rpcs.Rpc, folder: Path) -> AsyncGenerator[Message, None]:
        """Progress and log messages while a worker runs the job, then its result."""
        for left in reversed(range(_HANDOVERS)):
            try:
                async with aclosing(self._run_once(rpc, folder)) as parts:
                    async for part in parts:
                        yield part
                return
            except _NeverBegunError as error:
                if not left:
                    raise error.crash from error

    async def _run_once(self, rpc: _rpcs.Rpc, folder: Path) -> AsyncGenerator[Message, None]:
        acquiring = asyncio.ensure_future(self._pool.acquire())
        try:
            while not acquiring.done():
                await asyncio.wait({acquiring}, timeout=self._heartbeat)
                if not acquiring.done():
                    yield rpc.response(progress=stream_pb2.Progress(step="wait for a worker", fraction=-1.0))
            worker = acquiring.result()
        except BaseException:
            await _give_back(self._pool, acquiring)
            raise
        reusable = False
        try:
            await worker.send_job(rpc.kind, folder)
            async with aclosing(self._follow(rpc, worker)) as parts:
                async for part in parts:
                    if isinstance(part, ServiceError):
                        reusable = True
                        raise part
                    if isinstance(part, rpc.result):
                        reusable = True
                    yield part
        finally:
            # Also on cancellation: a worker in the middle of a job is killed, not waited for.
            await asyncio.shield(self._pool.release(worker, reusable=reusable))

    async def _follow(self, rpc: _rpcs.Rpc, worker: Worker) -> AsyncGenerator[Any, None]:
        """What the worker says until its job ends; the last item is the result or a ServiceError."""
        last = stream_pb2.Progress(step="start", fraction=-1.0)
        lines = 0
        outcome: Any = None
        while True:
            try:
                async with asyncio.timeout(self._heartbeat if outcome is None else _PRINTED_SECONDS):
                    kind, content = await worker.events.get()
            except TimeoutError:
                if outcome is not None:  # the tool closed its output: what it printed is lost, not its result
                    yield outcome
                    return
                yield rpc.response(progress=last)
                continue
            if outcome is not None and kind in (Kind.PRINTED, Kind.EXITED):
                yield outcome
                return
            try:
                if kind is Kind.PROGRESS:
                    last = stream_pb2.Progress.FromString(content)
                    yield rpc.response(progress=last)
                elif kind is Kind.LOG:
                    lines += 1
                    if lines <= MAX_LOG_LINES:
                        yield rpc.response(log=stream_pb2.LogLine.FromString(content))
                    elif lines == MAX_LOG_LINES + 1:
                        text = f"more than {MAX_LOG_LINES} lines; the rest is not shown"
                        yield rpc.response(log=stream_pb2.LogLine(level=stream_pb2.LogLine.LEVEL_WARNING, text=text))
                elif kind is Kind.RESULT:
                    outcome = rpc.result.FromString(content)
                elif kind is Kind.ERROR:
                    error = from_status(status_pb2.Status.FromString(content))
                    if rpc.kind == "check" and error.code == "FAILED_PRECONDITION":
                        outcome = compiler_pb2.CheckModelResult(supported=False, error=error.to_status())
                    else:
                        outcome = error
                elif kind is Kind.EXITED:
                    crash = await worker.crash()
                    raise crash if worker.begun else _NeverBegunError(crash)
            except DecodeError as error:
                worker.kill_group()
                raise CompilerCrash("the worker sent garbage", {"detail": "garbage"}) from error


async def _give_back(pool: WorkerPool, acquiring: asyncio.Future[Worker]) -> None:
    acquiring.cancel()
    outcome = (await asyncio.gather(acquiring, return_exceptions=True))[0]
    if isinstance(outcome, Worker):
        await pool.release(outcome, reusable=True)


@asynccontextmanager
async def _deadline(limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.max_seconds):
            yield
    except TimeoutError as error:
        raise LimitExceeded("max_seconds", limits.max_seconds, "the call") from error


@asynccontextmanager
async def _job_folder() -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tinymlaas-job-"))
    try:
        (folder / "scratch").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _download(rpc: _rpcs.Rpc, folder: Path, result: Message, limits: Limits) -> AsyncIterator[Message]:
    for name in rpc.blobs_out:
        path = _rpcs.blob_out(folder, name)
        if not path.exists():
            continue
        size = path.stat().st_size
        if size > limits.max_output_bytes:
            raise LimitExceeded("max_output_bytes", limits.max_output_bytes, size)
        digest, left = hashlib.sha256(), size
        with path.open("rb") as file:
            while True:
                data = file.read(MAX_CHUNK)
                digest.update(data)
                left -= len(data)
                last = left <= 0 or not data
                sha256 = digest.digest() if last else b""
                yield rpc.response(chunk=stream_pb2.Chunk(blob=name, data=data, sha256=sha256))
                if last:
                    break
        rpc.seal(result, name, digest.digest(), size)
    yield rpc.response(result=result)
