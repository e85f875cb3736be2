"""Worker processes as the server sees them: started ahead, one job at a time, killed without mercy, replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from tinymlaas.plugin.v1 import stream_pb2

from . import _frames
from ._text import clean
from .errors import CompilerCrash, LimitExceeded, NotReady
from .jobs import Limits
from .worker import WorkerConfig

log = structlog.get_logger("tinymlaas.pluginkit")

# The worker is the vendor's code: it gets no credentials of the plugin server.
_SECRET_PREFIXES = ("TINYMLAAS_TOKEN", "TINYMLAAS_TLS")
_LAST_LINES = 20
_MAX_LINE = 4096
_START_TRIES = 3
_EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerSpec:
    """What all workers of a plugin run."""

    functions: Mapping[str, str]
    warm: tuple[str, ...]
    limits: Limits


@dataclass
class Worker:
    """One live worker process and the stream of what it says."""

    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    events: asyncio.Queue[tuple[_frames.Kind, bytes]]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    jobs_done: int = 0
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    broken: str = ""
    begun: bool = False
    """Whether it has taken the last job that was handed over."""
    exited: bool = False

    async def send_job(self, kind: str, folder: Path) -> None:
        """Hands a job over; what was said before belongs to no job and is dropped."""
        self.begun = False
        while not self.events.empty():
            said, content = self.events.get_nowait()
            if said is _frames.Kind.EXITED:  # it died this moment; whoever follows the job must learn of it
                self.events.put_nowait((said, content))
                return
        self.last_lines.clear()
        self.writer.write(_frames.encode(_frames.Kind.JOB, json.dumps({"kind": kind, "folder": str(folder)}).encode()))
        with suppress(ConnectionError):  # it died this moment; its EXITED is on the way
            await self.writer.drain()

    async def crash(self) -> CompilerCrash | LimitExceeded:
        """Why the worker ended: by signal, exit status, or bytes that are no frame; with its last log lines."""
        if self.broken:
            self.kill_group()
        try:
            async with asyncio.timeout(_EXIT_SECONDS):
                status = await self.process.wait()
        except TimeoutError:  # its socket is closed and it lives on
            self.kill_group()
            status = await self.process.wait()
        self.kill_group()
        await asyncio.wait(self.tasks, timeout=1.0)  # what it printed last is the most interesting
        lines = " | ".join(self.last_lines)[-900:]
        if self.broken:
            return CompilerCrash(
                f"the worker broke its own protocol: {self.broken}", {"detail": self.broken, "log": lines}
            )
        if status < 0:
            name = signal.Signals(-status).name if -status in signal.Signals._value2member_map_ else str(-status)
            if name == "SIGXCPU":
                return LimitExceeded("cpu_seconds", "max_seconds on all cores", "the job")
            return CompilerCrash(f"the tool died of {name}", {"signal": name, "log": lines})
        return CompilerCrash(f"the tool exited with status {status}", {"exit": status, "log": lines})

    def kill_group(self) -> None:
        """Kills the worker and everything that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def close(self) -> None:
        """Kills, reaps and closes; safe to repeat."""
        self.kill_group()
        await self.process.wait()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.writer.close()


class WorkerPool:
    """Keeps one warm worker, and up to `max_concurrency` once so many jobs came at a time; `ready` once the first is warm.

    A worker that died, was killed or did its share of jobs is replaced in the background where it was the last one or is
    waited for. When workers fail to start several times in a row the pool is `failed` until one starts.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._workers: list[Worker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0
        self._waiting = 0
        self._closing = False
        self._failed = asyncio.Event()
        self.ready = False
        self.failure = ""

    def start(self) -> None:
        """Begins to start the first worker; returns at once."""
        self._spawn_if_needed()

    async def acquire(self) -> Worker:
        """A warm worker, as soon as there is one; NotReady when workers fail to start."""
        self._waiting += 1
        try:
            self._spawn_if_needed()
            return await self._take()
        finally:
            self._waiting -= 1

    async def _take(self) -> Worker:
        worker = asyncio.ensure_future(self._idle.get())
        failed = asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait({worker, failed}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if worker.done() and not worker.cancelled():
                self._idle.put_nowait(worker.result())
            raise
        finally:
            failed.cancel()
            worker.cancel()  # without effect when it is done
        if worker.done():
            idle = worker.result()
            if idle.exited or idle.process.returncode is not None:  # it died while it had nothing to do
                log.warning("an idle worker is gone", status=idle.process.returncode)
                await self.release(idle, reusable=False)
                return await self._take()
            return idle
        raise NotReady(f"workers fail to start: {self.failure}", metadata={"detail": self.failure})

    async def release(self, worker: Worker, *, reusable: bool) -> None:
        """Gives a worker back; one that is not reusable is killed and replaced."""
        worker.jobs_done += 1
        if reusable and worker.process.returncode is None and worker.jobs_done < self._spec.limits.jobs_per_worker:
            self._idle.put_nowait(worker)
            return
        self._workers.remove(worker)
        await worker.close()
        self._spawn_if_needed()

    async def close(self) -> None:
        """Kills all workers."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await worker.close()
        self._workers.clear()

    def _spawn_if_needed(self) -> None:
        """Starts workers for those who wait for one, and one where there is none."""
        while not self._closing:
            live = len(self._workers) + self._starting
            coming = self._idle.qsize() + self._starting
            if live >= self._spec.limits.max_concurrency or (live and coming >= self._waiting):
                return
            self._starting += 1
            task = asyncio.create_task(self._spawn())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _spawn(self) -> None:
        try:
            worker = await self._started()
        finally:
            self._starting -= 1
        self._workers.append(worker)
        self._idle.put_nowait(worker)

    async def _started(self) -> Worker:
        """A worker that has said that it is ready, tried again and again; killed when this is cancelled."""
        delay, tries = 0.2, 0
        while True:
            worker = await _start(self._spec)
            try:
                kind, _ = await _first_frame(worker)
            except asyncio.CancelledError:
                await worker.close()
                raise
            if kind is _frames.Kind.READY:
                self.ready, self.failure = True, ""
                self._failed.clear()
                return worker
            error = await worker.crash()
            await worker.close()
            tries += 1
            log.error("a worker failed to start", message=error.message, lines=list(worker.last_lines))
            if tries >= _START_TRIES:
                self.failure = error.message
                self._failed.set()
            await asyncio.sleep(delay)
            delay = min(delay * 2, 30.0)


async def _first_frame(worker: Worker) -> tuple[_frames.Kind, bytes]:
    while True:
        kind, content = await worker.events.get()
        if kind in (_frames.Kind.READY, _frames.Kind.EXITED):
            return kind, content


async def _start(spec: WorkerSpec) -> Worker:
    ours, theirs = socket.socketpair()
    diagnostics = os.dup(2)
    try:
        config = WorkerConfig(
            functions=dict(spec.functions),
            warm=list(spec.warm),
            sys_path=[entry for entry in sys.path if entry],
            memory_bytes=spec.limits.memory_bytes,
            max_seconds=spec.limits.max_seconds,
            socket_fd=theirs.fileno(),
            diagnostics_fd=diagnostics,
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_SECRET_PREFIXES)}
        environment.update(PYTHONHASHSEED="0", PYTHONUNBUFFERED="1")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tinymlaas_pluginkit.worker",
            config.to_json(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(theirs.fileno(), diagnostics),
            start_new_session=True,
            env=environment,
        )
    finally:
        theirs.close()
        os.close(diagnostics)
    reader, writer = await asyncio.open_connection(sock=ours)
    worker = Worker(process, writer, asyncio.Queue(maxsize=256))
    worker.tasks.append(asyncio.create_task(_read_frames(worker, reader)))
    worker.tasks.append(asyncio.create_task(_read_lines(worker)))
    return worker


async def _read_frames(worker: Worker, reader: asyncio.StreamReader) -> None:
    try:
        while True:
            kind, length = _frames.decode_header(await reader.readexactly(_frames.HEADER.size))
            content = await reader.readexactly(length)
            if kind is _frames.Kind.BEGUN:
                worker.begun = True
                continue
            if kind is _frames.Kind.LOG:
                worker.last_lines.append(stream_pb2.LogLine.FromString(content).text)
            await worker.events.put((kind, content))
    except (_frames.FrameError, DecodeError) as error:
        worker.broken = clean(str(error), 200)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the process ended; `crash` says how
    worker.exited = True
    await worker.events.put((_frames.Kind.EXITED, b""))


async def _read_lines(worker: Worker) -> None:
    """What the tool prints becomes log lines; a line over 4 KiB is cut into several."""
    stdout = worker.process.stdout
    assert stdout is not None
    rest = b""
    while block := await stdout.read(65536):
        *lines, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
        while len(rest) > _MAX_LINE:
            lines.append(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        for line in lines:
            if line == _frames.END_OF_OUTPUT:
                await worker.events.put((_frames.Kind.PRINTED, b""))
            else:
                await _emit_line(worker, line)
    if rest:
        await _emit_line(worker, rest)


async def _emit_line(worker: Worker, raw: bytes) -> None:
    text = clean(raw.decode("utf-8", "replace"), _MAX_LINE // 4)
    if not text:
        return
    worker.last_lines.append(text)
    message = stream_pb2.LogLine(level=stream_pb2.LogLine.LEVEL_INFO, text=text)
    await worker.events.put((_frames.Kind.LOG, message.SerializeToString()))
