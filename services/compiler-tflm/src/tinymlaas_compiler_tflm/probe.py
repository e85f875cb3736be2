"""The child process that opens a model with the TFLite Micro interpreter: `python -m tinymlaas_compiler_tflm.probe`.

It reads one request (JSON line, then the model's bytes) from standard input and writes one JSON document to standard
output.
Models can crash the interpreter, so nothing else lives in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

LOG_BYTES = 16_384
STEP = 16
"""Arenas are searched in steps of their alignment."""


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Collect what native code writes to standard error; the interpreter gives its reasons only there."""
    text: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            text.append(sink.read(LOG_BYTES).decode("utf-8", "replace"))


def _open(model: bytes, arena: int) -> tuple[Any, str]:
    """The interpreter, or None, and what it said."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = None
    with _captured() as text:
        try:
            interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena)
        except Exception as error:  # the wrapper reads the model in Python too, and fails in many ways on damaged ones
            reason = str(error)
        else:
            reason = ""
    return interpreter, (text[0] + reason).strip()


def _runs(model: bytes, arena: int) -> bool:
    """Whether an arena of that size is enough to allocate and to run once, on zeros."""
    interpreter, _ = _open(model, arena)
    if interpreter is None:
        return False
    with _captured():
        try:
            interpreter.invoke()
        except RuntimeError:
            return False
    return True


def _survives(model: bytes, arena: int) -> bool:
    """`_runs` in a process of its own: where an arena is too small, kernels may use what they were not given."""
    child = os.fork()
    if not child:
        os._exit(0 if _runs(model, arena) else 1)
    return os.waitpid(child, 0)[1] == 0


def _records(interpreter: Any) -> dict[str, Any]:
    """What the recording allocator says: total, head, tail, and bytes and number of each kind of allocation."""
    with _captured() as text:
        interpreter.print_allocations()
    figures: dict[str, Any] = {
        name: int(value) for name, value in re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text[0])
    }
    figures["records"] = [
        {"name": name, "used": int(used), "count": int(count)}
        for name, used, count in re.findall(r"'([^']+)' used (\d+) bytes .*? for (\d+) ", text[0])
    ]
    return figures


def _smallest(model: bytes, low: int, high: int) -> int:
    """The smallest multiple of STEP in (low, high] with which the model runs; `high` must be enough."""
    bottom, top = low // STEP, -(-high // STEP)
    while top - bottom > 1:
        middle = (bottom + top) // 2
        if _survives(model, middle * STEP):
            top = middle
        else:
            bottom = middle
    return top * STEP


def _largest_output(model: bytes, arena: int, inputs: int, outputs: int) -> float:
    """The largest finite magnitude among float outputs, with pseudo-random float inputs in -1..1; 0 where there is none."""
    import numpy as np

    from tinymlaas_modelkit.float_bound import largest_magnitude

    interpreter, _ = _open(model, arena)
    random = np.random.Generator(np.random.PCG64(0))
    for index in range(inputs):
        details = interpreter.get_input_details(index)
        if details["dtype"] == np.float32:
            interpreter.set_input(random.uniform(-1.0, 1.0, details["shape"]).astype(np.float32), index)
    with _captured():
        interpreter.invoke()
    return largest_magnitude(interpreter.get_output(index) for index in range(outputs))


def answer(request: dict[str, Any], model: bytes) -> dict[str, Any]:
    """Open the model with the largest arena; measure if that works, else say what the interpreter said."""
    largest = int(request["arena_bytes"])
    interpreter, said = _open(model, largest)
    if interpreter is None:
        return {"opened": False, "log": said}
    figures = _records(interpreter)
    if not {"total", "head", "tail"} <= set(figures):
        return {"opened": False, "log": f"the arena report was not understood: {said}"}
    if not request["measure"]:
        return {"opened": True, "log": said, **figures}
    if not _runs(model, largest):
        return {"opened": False, "log": "the interpreter opens the model and cannot run it"}
    # The recorded total leaves out what planning needs for a moment, so it can be less than what has to be there.
    high = min(max(2 * figures["total"], 65_536), largest)
    if request["float_tensors"] is not None:
        figures["largest_output"] = _largest_output(model, largest, *request["float_tensors"])
    figures["smallest"] = _smallest(model, figures["head"], high if _survives(model, high) else largest)
    return {"opened": True, "log": said, **figures}


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.buffer.readline())
    model = sys.stdin.buffer.read()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(request["cpu_seconds"]), int(request["cpu_seconds"]) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(request["memory_bytes"]), int(request["memory_bytes"])))
    # Native code may print: only the answer goes to standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with out:
        out.write(json.dumps(answer(request, model)))


if __name__ == "__main__":
    main()
