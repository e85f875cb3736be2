"""Ask the real TFLite Micro interpreter about a model, in a process that may die."""

from __future__ import annotations

import importlib.metadata
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tinymlaas_compiler_tflm.errors import LimitExceeded, ToolCrash
from tinymlaas_compiler_tflm.operators import REGISTERED
from tinymlaas_modelkit.errors import MalformedModel, ModelKitError, OffendingOperator, UnsupportedOperator, printable

LARGEST_ARENA = 64 << 20
"""Arena that the interpreter may have here; no microcontroller has as much."""

TOOL = "tflite-micro"


@dataclass(frozen=True)
class Limits:
    """What one question may use."""

    seconds: int = 60
    memory_bytes: int = 2 << 30


@dataclass(frozen=True)
class ArenaRecord:
    """One kind of allocation in the arena's tail: bytes used, alignment included, and number of objects."""

    name: str
    used: int
    count: int


@dataclass(frozen=True)
class ArenaReport:
    """Arena figures of the interpreter on this 64-bit host, in bytes.

    `head` holds the activations, `tail` everything else; `total` is what was in use at the end; `smallest` is the
    smallest arena (multiple of 16) with which the model was allocated and run once, `largest_output` the largest magnitude
    of its float outputs with pseudo-random inputs in -1..1; both 0 when not asked for.
    """

    total: int
    head: int
    tail: int
    records: tuple[ArenaRecord, ...]
    smallest: int = 0
    largest_output: float = 0.0


def tool_version() -> str:
    """Version of the interpreter's wheel."""
    return importlib.metadata.version(TOOL)


def inspect(
    model: bytes,
    *,
    measure: bool = True,
    limits: Limits | None = None,
    float_tensors: tuple[int, int] | None = None,
) -> ArenaReport:
    """Open a TFLite model; with `measure`, run it and search the smallest arena, and with the numbers of its inputs and
    outputs in `float_tensors` the largest magnitude of its outputs.

    Errors: UnsupportedOperator (the interpreter lacks an operator, or refuses one in this form), LimitExceeded (arena
    over 64 MiB, or time), ToolCrash (the interpreter died), MalformedModel.
    """
    limits = limits or Limits()
    request = {
        "arena_bytes": LARGEST_ARENA,
        "measure": measure,
        "float_tensors": float_tensors,
        "cpu_seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
    }
    answer = _ask(json.dumps(request).encode() + b"\n" + model, limits)
    if not answer["opened"]:
        raise refusal(str(answer["log"]))
    records = tuple(ArenaRecord(r["name"], r["used"], r["count"]) for r in answer["records"])
    return ArenaReport(
        answer["total"],
        answer["head"],
        answer["tail"],
        records,
        answer.get("smallest", 0),
        answer.get("largest_output", 0.0),
    )


def _ask(data: bytes, limits: Limits) -> dict[str, Any]:
    command = [sys.executable, "-m", "tinymlaas_compiler_tflm.probe"]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=limits.seconds + 30, check=False)
    except subprocess.TimeoutExpired as error:
        raise _too_slow(limits) from error
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _too_slow(limits)
    log = child.stderr[-1000:].decode("utf-8", "replace")
    if child.returncode != 0:
        died = -child.returncode
        key = {"signal": signal.Signals(died).name} if died > 0 else {"exit": str(child.returncode)}
        raise ToolCrash(f"the interpreter died ({', '.join(key.values())})", **key, log=log)
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        raise ToolCrash("the interpreter's process gave no answer", exit="0", log=log) from error
    return dict(answer)


def _too_slow(limits: Limits) -> LimitExceeded:
    return LimitExceeded("the interpreter took too long", limit=f"seconds = {limits.seconds}", value="more")


def refusal(log: str) -> ModelKitError:
    """The error behind what the interpreter said when it refused a model that had the largest arena.

    It says only "failed to allocate tensors" to its caller, whatever the reason; its log tells them apart.
    """
    missing = re.search(r"Didn't find op for builtin opcode '(\w+)'", log)
    if missing and missing.group(1) not in REGISTERED:
        detail = "the interpreter has no such operator"
        return UnsupportedOperator([OffendingOperator(missing.group(1), "", "", detail)])
    if re.search(r"custom op|Custom operator", log):
        return UnsupportedOperator([OffendingOperator("CUSTOM", "", "", "custom operators are not served")])
    failed = re.search(r"Node (\w+) \(number (\d+)\w*\) failed to (?:prepare|initialize)", log)
    if failed:
        said = next((line for line in log.splitlines() if line.strip()), "")
        detail = f"the interpreter refuses it in this form: {_without_paths(said)}"
        node = f"{failed.group(1)}_{failed.group(2)}"
        return UnsupportedOperator([OffendingOperator(failed.group(1), node, "", detail)])
    if re.search(r"Failed to allocate|Failed to resize buffer|missing: \d+|Arena size is too small", log):
        return LimitExceeded(
            f"the model needs an arena of more than {LARGEST_ARENA:,} B",
            limit=f"arena_bytes = {LARGEST_ARENA}",
            value="more",
        )
    return MalformedModel("MALFORMED", f"the interpreter refuses the model: {_without_paths(log[:300])}")


def _without_paths(text: str) -> str:
    """The interpreter's words without the names of its source files."""
    return printable(re.sub(r"\S+/\S+\.(?:cc|h)(?::\d+)?\s*", "", text).strip())
