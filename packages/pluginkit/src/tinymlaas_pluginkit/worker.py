"""The worker process: imports the author's heavy modules, runs one job at a time, and may die without harm.

Started by the server as `python -m tinymlaas_pluginkit.worker CONFIG` with a socket to it; its standard output and error
are the log of the job. It ends, with all that it started, when the server's end of the socket closes.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import importlib.util
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinymlaas.plugin.v1 import stream_pb2

from . import _frames
from ._rpcs import RPCS
from .errors import CompilerCrash, LimitExceeded

_LEVELS = {
    "info": stream_pb2.LogLine.LEVEL_INFO,
    "warning": stream_pb2.LogLine.LEVEL_WARNING,
    "error": stream_pb2.LogLine.LEVEL_ERROR,
}


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to know; travels as JSON on its command line.

    `functions` maps job kinds to references: "package.module:name" or "/path/to/file.py:name".
    """

    functions: dict[str, str]
    warm: list[str]
    sys_path: list[str]
    memory_bytes: int
    max_seconds: int
    socket_fd: int
    diagnostics_fd: int

    def to_json(self) -> str:
        """The JSON form."""
        return json.dumps(asdict(self))


class _Server:
    """The worker's end of the socket; sending is safe from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.jobs: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()

    def send(self, kind: _frames.Kind, content: bytes) -> None:
        with self._lock:
            self._connection.sendall(_frames.encode(kind, content))

    def read_jobs(self) -> None:
        """Puts jobs into the queue; kills this process and its children when the server is gone."""
        file = self._connection.makefile("rb")
        try:
            while header := file.read(_frames.HEADER.size):
                _, length = _frames.decode_header(header)
                self.jobs.put(json.loads(file.read(length)))
        finally:
            os.killpg(os.getpgid(0), signal.SIGKILL)


class JobReporter:
    """Sends progress and log lines of the running job; the fraction never goes back."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._fraction = 0.0
        self._lock = threading.Lock()

    def progress(self, step: str, fraction: float = -1.0) -> None:
        """See jobs.Reporter."""
        with self._lock:
            if 0.0 <= fraction <= 1.0:
                fraction = self._fraction = max(self._fraction, fraction)
            else:
                fraction = -1.0
        message = stream_pb2.Progress(step=step[:200], fraction=fraction)
        self._server.send(_frames.Kind.PROGRESS, message.SerializeToString())

    def log(self, text: str, level: str = "info") -> None:
        """See jobs.Reporter."""
        for line in text.splitlines() or [""]:
            message = stream_pb2.LogLine(level=_LEVELS.get(level, stream_pb2.LogLine.LEVEL_INFO), text=line[:4096])
            self._server.send(_frames.Kind.LOG, message.SerializeToString())


def load_function(reference: str) -> Callable[..., Any]:
    """The author's function behind "package.module:name" or "/path/to/file.py:name"."""
    place, _, name = reference.rpartition(":")
    found: Any = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{reference} is not callable")
    function: Callable[..., Any] = found
    return function


def _load_file(path: str) -> Any:
    if "__plugin__" in sys.modules:
        return sys.modules["__plugin__"]
    spec = importlib.util.spec_from_file_location("__plugin__", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["__plugin__"] = module
    spec.loader.exec_module(module)
    return module


def _run(config: WorkerConfig, functions: dict[str, Callable[..., Any]], server: _Server, job: dict[str, str]) -> None:
    """Runs one job; its outcome, good or bad, is the last frame."""
    server.send(_frames.Kind.BEGUN, b"")
    rpc, folder = RPCS[job["kind"]], Path(job["folder"])
    scratch = folder / "scratch"
    os.chdir(scratch)
    used = resource.getrusage(resource.RUSAGE_SELF)
    budget = config.max_seconds * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + budget, hard))
    try:
        output = functions[rpc.kind](rpc.read_job(folder), JobReporter(server))
        result = rpc.write_output(folder, output)
        server.send(_frames.Kind.RESULT, result.SerializeToString(deterministic=True))
    except MemoryError:
        error = LimitExceeded("memory_bytes", config.memory_bytes, "the job")
        server.send(_frames.Kind.ERROR, error.to_status().SerializeToString())
    except Exception as exception:
        server.send(_frames.Kind.ERROR, _status(exception, config).SerializeToString())
    finally:
        _end_output()


def _end_output() -> None:
    """Brings all that was printed on its way, by Python or by C, and marks its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os.write(1, b"\n" + _frames.END_OF_OUTPUT + b"\n")


def _status(exception: Exception, config: WorkerConfig) -> Any:
    from tinymlaas_servicekit.errors import adapt

    error = adapt(exception)
    if error is None:
        # The traceback names our files and the author's: it goes to the operator's log, not onto the wire.
        os.write(config.diagnostics_fd, traceback.format_exc().encode())
        text = f"{type(exception).__name__}: {exception}"[:300]
        error = CompilerCrash(f"the tool failed: {text}", {"exception": text})
    return error.to_status()


def main() -> None:
    """Loads, reports READY, serves jobs until the server goes away."""
    config = WorkerConfig(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = _Server(socket.socket(fileno=config.socket_fd))
    # So that a dying server takes its workers along even while they load.
    threading.Thread(target=server.read_jobs, daemon=True).start()
    faulthandler.enable(file=config.diagnostics_fd)
    sys.path[:] = [*config.sys_path, *(entry for entry in sys.path if entry not in config.sys_path)]
    for reference in config.warm:
        load_function(reference)()
    functions = {kind: load_function(reference) for kind, reference in config.functions.items()}
    if config.memory_bytes:
        # On top of what is mapped now: the limit is for jobs, and frameworks reserve gigabytes when they load.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + config.memory_bytes, hard))
    server.send(_frames.Kind.READY, b"")
    while True:
        _run(config, functions, server, server.jobs.get())


if __name__ == "__main__":
    main()
