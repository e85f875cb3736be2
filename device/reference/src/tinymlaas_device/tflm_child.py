"""The child process that holds the TFLite Micro interpreter of a `TflmBoard`.

Frames on stdin and stdout: one line of JSON with "bytes" (length of what follows), then that many bytes. A request is
{"do": "open", "arena": N, "operators": [...]} with the model, or {"do": "run"} with all input tensors in a row.
"""

import json
import os
import resource
import sys
import time
from typing import Any, BinaryIO

import numpy as np

_MAX_TENSORS = 32
_MEMORY_BYTES = 3 << 30


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until stdin ends."""
    interpreter: Any = None
    sizes: list[tuple[Any, tuple[int, ...]]] = []
    outputs = 0
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(int(request["bytes"]))
        report: dict[str, Any] = {"ok": True}
        result = b""
        try:
            if request["do"] == "open":
                missing = _missing_operators(data, set(request["operators"]))
                if missing:
                    raise ValueError("operators missing: " + ", ".join(missing))
                interpreter = _open(data, int(request["arena"]))
                sizes = _details(interpreter.get_input_details)
                outputs = len(_details(interpreter.get_output_details))
            else:
                _set_inputs(interpreter, sizes, data)
                began = time.perf_counter_ns()
                interpreter.invoke()
                report["us"] = max(1, (time.perf_counter_ns() - began) // 1000)
                result = b"".join(np.ascontiguousarray(interpreter.get_output(i)).tobytes() for i in range(outputs))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            report = {"ok": False, "detail": str(error)[:500]}
        report["bytes"] = len(result)
        answers.write(json.dumps(report).encode() + b"\n" + result)
        answers.flush()


def _open(model: bytes, arena: int) -> Any:
    from tflite_micro.python.tflite_micro import runtime

    return runtime.Interpreter.from_bytes(model, arena_size=arena)


def _missing_operators(model: bytes, known: set[str]) -> list[str]:
    import tflite

    if not tflite.Model.ModelBufferHasIdentifier(model, 0):
        raise ValueError("not a TFLite file")
    names = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
    parsed = tflite.Model.GetRootAsModel(model, 0)
    used = set()
    for index in range(parsed.OperatorCodesLength()):
        code = parsed.OperatorCodes(index)
        used.add(names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "UNKNOWN"))
    return sorted(used - known)


def _details(getter: Any) -> list[tuple[Any, tuple[int, ...]]]:
    found: list[tuple[Any, tuple[int, ...]]] = []
    while len(found) < _MAX_TENSORS:
        try:
            detail = getter(len(found))
        except IndexError:
            return found
        found.append((np.dtype(detail["dtype"]), tuple(int(n) for n in detail["shape"])))
    raise ValueError(f"more than {_MAX_TENSORS} tensors")


def _set_inputs(interpreter: Any, sizes: list[tuple[Any, tuple[int, ...]]], data: bytes) -> None:
    place = 0
    for index, (dtype, shape) in enumerate(sizes):
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        interpreter.set_input(np.frombuffer(data[place : place + size], dtype=dtype).reshape(shape), index)
        place += size


def main() -> None:
    """Keep the real stdout for frames: native code prints to descriptor 1."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
