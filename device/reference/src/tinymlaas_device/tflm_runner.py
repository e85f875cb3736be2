"""The parent's side of the interpreter process: open a model, run it, notice when the child dies or hangs."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

_MAX_LINE = 4096
_MAX_ANSWER = 16 << 20


class RunnerError(Exception):
    """The interpreter refused the model, died or hung; the message says which."""


class TflmRunner:
    """One interpreter in a child process, with a fixed arena; at most `deadline_s` seconds a request."""

    def __init__(self, model: bytes, arena_bytes: int, operators: Sequence[str], *, deadline_s: float = 60.0) -> None:
        self._deadline_s = deadline_s
        self._buffer = b""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tinymlaas_device.tflm_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._ask({"do": "open", "arena": arena_bytes, "operators": list(operators)}, model)
        except RunnerError:
            self.close()
            raise

    def run(self, inputs: bytes) -> tuple[bytes, int]:
        """Give all output tensors in a row and the microseconds that the interpreter took. Raises RunnerError."""
        report, outputs = self._ask({"do": "run"}, inputs)
        return outputs, int(report["us"])

    def close(self) -> None:
        """End the child. Repeatable."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + self._deadline_s
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({**request, "bytes": len(data)}).encode() + b"\n" + data)
            self._child.stdin.flush()
            line = self._read_line(deadline)
            report = json.loads(line)
            outputs = self._read(int(report["bytes"]), deadline)
        except (OSError, ValueError, KeyError) as error:
            raise RunnerError(f"the interpreter died: {self._exit()}") from error
        if report.get("ok") is not True:
            raise RunnerError(str(report.get("detail", "refused")))
        return report, outputs

    def _exit(self) -> str:
        try:
            return f"exit status {self._child.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            return "it answers nonsense"

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MAX_LINE:
                raise ValueError("no line")
            self._fill(deadline)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _read(self, size: int, deadline: float) -> bytes:
        if not 0 <= size <= _MAX_ANSWER:
            raise ValueError("an answer of impossible size")
        while len(self._buffer) < size:
            self._fill(deadline)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _fill(self, deadline: float) -> None:
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            self.close()
            raise RunnerError(f"the interpreter gave no answer in {self._deadline_s:g} s")
        chunk = os.read(self._child.stdout.fileno(), 1 << 16)
        if not chunk:
            raise OSError("end of stream")
        self._buffer += chunk
