"""The process in which a hostile file is checked.

`python -m tinymlaas_modelkit.check._worker`, request in, verdict out.

Protocol: standard input holds one line of JSON {format, limits, size, folding} and then `size` bytes of the model. Standard
output gets the line `ready` once everything is imported and the limits are set, and then one line of JSON: {"report":
...} or {"rejected": ...}. From `ready` on the process can open no file, write none, and take no more than its limits.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from typing import Any, BinaryIO

from tinymlaas_modelkit.shape_folding import prepare

from ._isolated import READY
from ._limits import Limits
from ._onnx import CheckedOnnx
from ._onnx_shapes import check_onnx_shapes
from ._rejection import ModelRejected, Problem
from ._structure import check_structure


def _confine(limits: Limits) -> None:
    """Set the limits of this process; they can't be raised again."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    # The limit counts from the start of the process; importing is not the file's fault.
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + limits.cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def run(source: BinaryIO, size: int, format: Any, limits: Limits) -> dict[str, Any]:
    """The verdict on a file of `size` bytes, read from `source`, as JSON values."""
    try:
        data = source.read(size)
        checked = check_structure(data, format, limits)
        report = check_onnx_shapes(checked, limits) if isinstance(checked, CheckedOnnx) else checked
    except ModelRejected as rejected:
        return {"rejected": rejected.to_dict()}
    except MemoryError:
        detail = f"the check takes more than {limits.memory_bytes} bytes"
        return {"rejected": ModelRejected(Problem.CHECK_MEMORY, "file", detail).to_dict()}
    return {"report": report.to_dict()}


def main() -> None:
    """Read one request from standard input, write its verdict to standard output."""
    request = json.loads(sys.stdin.buffer.readline())
    limits = Limits(**request["limits"])
    if request["folding"]:
        prepare()
    _confine(limits)
    os.write(1, READY)
    verdict = json.dumps(run(sys.stdin.buffer, request["size"], request["format"], limits))
    sys.stdout.write(verdict + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
