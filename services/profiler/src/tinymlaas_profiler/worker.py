"""Run one job in a child process that may die, hang or lie, under limits.

What crosses the border is JSON and bytes in files of a private folder, never pickles: a child that was taken over by the
bytes it parses can return wrong figures, but cannot run code in the parent.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymlaas_profiler.errors import ProfilerError

MAX_REPORT_BYTES = 64 << 20
MAX_LOG_CHARS = 4000


@dataclass(frozen=True)
class Limits:
    """What a child may use: address space and file bytes, CPU and wall seconds."""

    memory_bytes: int = 4 << 30
    file_bytes: int = 256 << 20
    cpu_seconds: int = 300
    wall_seconds: float = 600.0


@dataclass(frozen=True)
class JobResult:
    """A child's report (JSON object), its blobs in order, and what it wrote to stderr (its end)."""

    report: Mapping[str, Any]
    blobs: Sequence[bytes]
    log: str


def run_job(
    kind: str, request: Mapping[str, Any], blobs: Sequence[bytes], *, limits: Limits, crash_reason: str = "WORKER_CRASH"
) -> JobResult:
    """Run the job `kind` (a module of `tinymlaas_profiler.jobs`) on a JSON request and blobs, and give its result.

    Raises ProfilerError: what the job reported; `crash_reason` when the child died; DEADLINE_EXCEEDED when it ran out of
    wall or CPU time; LIMIT_EXCEEDED when it wrote too much.
    """
    with tempfile.TemporaryDirectory(prefix="profiler-") as folder:
        root = Path(folder)
        (root / "request.json").write_text(json.dumps(request))
        for index, blob in enumerate(blobs):
            (root / f"in-{index}").write_bytes(blob)
        log = _run_child(kind, root, limits, crash_reason)
        return _read_result(root, log, crash_reason)


def _run_child(kind: str, root: Path, limits: Limits, crash_reason: str) -> str:
    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with (root / "log").open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "tinymlaas_profiler.jobs", kind, str(root)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=root,
            start_new_session=True,
            preexec_fn=restrict,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(root)},
        )
        try:
            status = child.wait(timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired as error:
            raise ProfilerError(
                "DEADLINE_EXCEEDED",
                f"the {kind} run took longer than {limits.wall_seconds:g} s",
                metadata={"deadline_s": f"{limits.wall_seconds:g}"},
            ) from error
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    log = _tail(root / "log")
    if status == -signal.SIGXCPU:
        raise ProfilerError(
            "DEADLINE_EXCEEDED",
            f"the {kind} run used more than {limits.cpu_seconds} s of CPU time",
            metadata={"cpu_s": str(limits.cpu_seconds)},
        )
    if status < 0:
        name = signal.Signals(-status).name
        raise ProfilerError(crash_reason, f"the {kind} run died of {name}", metadata={"signal": name, "log": log})
    if status != 0:
        raise ProfilerError(
            crash_reason, f"the {kind} run ended with exit status {status}", metadata={"exit": str(status), "log": log}
        )
    return log


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - MAX_LOG_CHARS))
        return file.read(MAX_LOG_CHARS).decode("utf-8", "replace")


def _read_result(root: Path, log: str, crash_reason: str) -> JobResult:
    def read(name: str) -> bytes:
        path = root / name
        if path.is_symlink() or not path.is_file():
            raise ProfilerError(crash_reason, f"the run left no {name}", metadata={"log": log})
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise ProfilerError(
                "LIMIT_EXCEEDED",
                f"{name} is larger than {MAX_REPORT_BYTES} bytes",
                metadata={"limit": "report_bytes", "value": str(path.stat().st_size)},
            )
        return path.read_bytes()

    try:
        result = json.loads(read("result.json"))
        error = result.get("error")
        if error is not None:
            raise ProfilerError(
                str(error["reason"]),
                str(error["message"]),
                metadata={str(k): str(v) for k, v in error["metadata"].items()},
                help=str(error["help"]),
            )
        count = int(result["blobs"])
        return JobResult(dict(result["report"]), [read(f"out-{index}") for index in range(count)], log)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProfilerError(crash_reason, "the run left a malformed report", metadata={"log": log}) from error
