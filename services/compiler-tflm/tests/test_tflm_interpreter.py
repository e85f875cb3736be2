"""The interpreter behind the compiler: its operator table, and models that make it fail or die."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tinymlaas_compiler_tflm.errors import LimitExceeded, ToolCrash
from tinymlaas_compiler_tflm.interpreter import Limits, inspect, refusal
from tinymlaas_compiler_tflm.operators import REGISTERED
from tinymlaas_modelkit.errors import MalformedModel, ModelKitError, UnsupportedOperator
from tinymlaas_modelkit.tflite_schema import CODES

# The interpreter's process asks the same question of many files; one child for each would take minutes.
ASK_ALL = """
import sys
from pathlib import Path
from tinymlaas_compiler_tflm.probe import _open
for path in sorted(Path(sys.argv[1]).iterdir()):
    interpreter, said = _open(path.read_bytes(), 100_000)
    print(path.name, "no" if "Didn't find op" in said else "yes")
"""


def test_operator_table_is_what_the_interpreter_registers(one_operator: Callable[..., bytes], tmp_path: Path) -> None:
    # CUSTOM has no code of its own; DELEGATE, the placeholder and STABLEHLO operators are never in a file for this interpreter.
    names = [n for n in CODES if n != "CUSTOM" and not n.startswith(("STABLEHLO", "DELEGATE", "PLACEHOLDER"))]
    # Operators that look at inputs which the file here leaves out may kill the process: these are known to be there.
    fragile = {"CALL_ONCE", "IF", "WHILE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
    for name in names:
        if name not in fragile:
            (tmp_path / name).write_bytes(one_operator(name))
    child = subprocess.run(
        [sys.executable, "-c", ASK_ALL, str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert child.returncode == 0, child.stderr[-2000:]
    answers = dict(line.split() for line in child.stdout.splitlines())
    assert {name for name, found in answers.items() if found == "yes"} == set(REGISTERED) - fragile


def test_report_adds_up(zoo: Path) -> None:
    report = inspect((zoo / "kws" / "kws_int8.tflite").read_bytes())
    assert (report.total, report.head, report.tail) == (24_272, 16_000, 8_272)
    assert {r.name for r in report.records} >= {"TfLiteEvalTensor data", "NodeAndRegistration struct"}
    assert sum(r.used for r in report.records) <= report.tail


def test_model_that_kills_the_interpreter_is_one_error_and_no_more(zoo: Path) -> None:
    damaged = bytearray((zoo / "kws" / "kws_int8.tflite").read_bytes())
    # A root offset into the middle of the weights: the interpreter follows it out of its memory.
    damaged[0:4] = (0x7FFFFFF0).to_bytes(4, "little")
    with pytest.raises((ToolCrash, MalformedModel)) as caught:
        inspect(bytes(damaged))
    assert isinstance(caught.value, ModelKitError)
    assert inspect((zoo / "kws" / "kws_int8.tflite").read_bytes(), measure=False).total == 24_272


def test_time_is_limited(zoo: Path) -> None:
    with pytest.raises(LimitExceeded):
        inspect((zoo / "vww" / "vww_float.tflite").read_bytes(), limits=Limits(seconds=0))


def test_unsupported_operator_and_small_arena_are_told_apart_by_the_log() -> None:
    missing = refusal("Didn't find op for builtin opcode 'GELU'\nFailed to get registration from op code GELU")
    assert isinstance(missing, UnsupportedOperator)
    assert missing.operators[0].op == "GELU"
    small = refusal(
        "Failed to allocate tail memory. Requested: 24, available 16, missing: 8\nTFLM failed to allocate tensors"
    )
    assert isinstance(small, LimitExceeded)
    assert isinstance(refusal("something else"), MalformedModel)
