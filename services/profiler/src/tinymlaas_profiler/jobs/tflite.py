"""Job: run a TFLite flatbuffer with the TFLite Micro interpreter."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from tflite_micro.python.tflite_micro import runtime

from tinymlaas_profiler.errors import ProfilerError

_GENEROUS_ARENA = 256 << 20
_MAX_TENSORS = 64
_DTYPES = {"int8", "uint8", "int16", "int32", "int64", "float32", "bool"}


class _Captured:
    """Text that the interpreter wrote to file descriptor 2."""

    text = ""


@contextlib.contextmanager
def _captured_stderr() -> Iterator[_Captured]:
    """Collect what native code writes to stderr: the interpreter's reasons appear only there."""
    captured = _Captured()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            captured.text = sink.read(1 << 20).decode("utf-8", "replace")


def run(request: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Run model `blobs[0]` on each sample; further blobs are input tensors, sample by sample.

    `request["arena_bytes"]` bounds the arena, 0 lets it grow. The report has the tensor specs and the interpreter's own
    arena figures (total, head, tail; of this host, whose pointers are `pointer_bytes` wide).
    """
    model = blobs[0]
    arena = int(request["arena_bytes"])
    interpreter = _open(model, arena)
    inputs = _details(interpreter.get_input_details)
    outputs = _details(interpreter.get_output_details)
    results: list[bytes] = []
    tensors = blobs[1:]
    if not inputs or len(tensors) % len(inputs):
        raise ProfilerError("INPUT_INVALID", f"{len(tensors)} tensors for a model with {len(inputs)} inputs")
    for first in range(0, len(tensors), len(inputs)):
        for index, spec in enumerate(inputs):
            interpreter.set_input(_as_array(tensors[first + index], spec, index), index)
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise ProfilerError("PAYLOAD_FAULT", f"the interpreter could not run the model: {error}") from error
        results.extend(np.ascontiguousarray(interpreter.get_output(i)).tobytes() for i in range(len(outputs)))
    report = {
        "inputs": inputs,
        "outputs": outputs,
        "pointer_bytes": np.dtype(np.intp).itemsize,
        **_arena_figures(model, max(arena, _GENEROUS_ARENA)),
    }
    return report, results


def _open(model: bytes, arena: int) -> Any:
    with _captured_stderr() as captured:
        try:
            return runtime.Interpreter.from_bytes(model, arena_size=arena or _GENEROUS_ARENA)
        except (RuntimeError, ValueError, TypeError) as error:
            failure = error
    log = captured.text
    missing = re.search(r"Didn't find op for builtin opcode '(\w+)'|Failed to get registration from op code (\w+)", log)
    if missing:
        name = missing.group(1) or missing.group(2)
        raise ProfilerError(
            "OP_UNSUPPORTED", f"the interpreter has no operator {name}", metadata={"op": name, "log": log[-1000:]}
        ) from failure
    if arena and _opens_with_more(model):
        need = _arena_figures(model, _GENEROUS_ARENA)["arena_total"]
        raise ProfilerError(
            "DOES_NOT_FIT",
            f"the arena of {arena} bytes is too small",
            metadata={"region": "arena", "need": str(need), "have": str(arena)},
        ) from failure
    raise ProfilerError(
        "PAYLOAD_INVALID", "the interpreter refuses the model", metadata={"detail": str(failure), "log": log[-1000:]}
    ) from failure


def _opens_with_more(model: bytes) -> bool:
    with _captured_stderr():
        try:
            runtime.Interpreter.from_bytes(model, arena_size=_GENEROUS_ARENA)
        except (RuntimeError, ValueError, TypeError):
            return False
    return True


def _arena_figures(model: bytes, arena: int) -> dict[str, int]:
    """Ask the interpreter's recording allocator, whose only interface is what it prints."""
    with _captured_stderr() as captured:
        recording = runtime.Interpreter.from_bytes(
            model, arena_size=arena, intrepreter_config=runtime.InterpreterConfig.kAllocationRecording
        )
        recording.print_allocations()
    found = dict(re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", captured.text))
    if set(found) != {"total", "head", "tail"}:
        raise ProfilerError(
            "WORKER_CRASH", "the interpreter's arena report was not understood", metadata={"log": captured.text[-1000:]}
        )
    return {f"arena_{name}": int(value) for name, value in found.items()}


def _details(getter: Any) -> list[dict[str, Any]]:
    """Read tensor specs until the interpreter says there are no more (it has no count)."""
    specs: list[dict[str, Any]] = []
    with _captured_stderr():
        while len(specs) <= _MAX_TENSORS:
            try:
                detail = getter(len(specs))
            except IndexError:
                return specs
            scales = detail["quantization_parameters"]["scales"]
            zero_points = detail["quantization_parameters"]["zero_points"]
            dtype = np.dtype(detail["dtype"]).name
            if dtype not in _DTYPES:
                raise ProfilerError("PAYLOAD_INVALID", f"tensors of {dtype} are not served")
            specs.append(
                {
                    "name": "",
                    "dtype": dtype,
                    "shape": [int(n) for n in detail["shape"]],
                    "scale": float(scales[0]) if len(scales) else 0.0,
                    "zero_point": int(zero_points[0]) if len(zero_points) else 0,
                }
            )
    raise ProfilerError(
        "LIMIT_EXCEEDED",
        f"more than {_MAX_TENSORS} inputs or outputs",
        metadata={"limit": "tensors", "value": str(_MAX_TENSORS)},
    )


def _as_array(data: bytes, spec: dict[str, Any], index: int) -> np.ndarray[Any, Any]:
    dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
    need = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) != need:
        raise ProfilerError(
            "INPUT_INVALID",
            f"input {index} has {len(data)} bytes instead of {need}",
            metadata={"input": str(index), "need": str(need), "have": str(len(data))},
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape)
