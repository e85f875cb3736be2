"""The interpreter behind the compiler: its operator table, and models that make it fail or die."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinymlaas_compiler_tflm.errors import LimitExceeded, ToolCrash
from tinymlaas_compiler_tflm.interpreter import Limits, inspect, refusal
from tinymlaas_compiler_tflm.operators import REGISTERED
from tinymlaas_modelkit.errors import MalformedModel, ModelKitError, UnsupportedOperator
from tinymlaas_modelkit.graph import Graph, Quantization
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.tflite_schema import CODES
from tinymlaas_modelkit.tflite_writer import write_tflite

# One process for each file, forked after the imports: an operator without its inputs may kill the interpreter, and is there.
ASK_ALL = """
import os, sys
from pathlib import Path
from tflite_micro.python.tflite_micro import runtime
from tinymlaas_compiler_tflm.probe import _open
for path in sorted(Path(sys.argv[1]).iterdir()):
    child = os.fork()
    if child == 0:
        os._exit(1 if "Didn't find op" in _open(path.read_bytes(), 100_000)[1] else 0)
    print(path.name, "no" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 else "yes")
"""


def test_operator_table_is_what_the_interpreter_registers(one_operator: Callable[..., bytes], tmp_path: Path) -> None:
    names = [n for n in CODES if n != "CUSTOM" and not n.startswith("PLACEHOLDER")]
    for name in names:
        (tmp_path / name).write_bytes(one_operator(name))
    child = subprocess.run(
        [sys.executable, "-c", ASK_ALL, str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert child.returncode == 0, child.stderr[-2000:]
    answers = dict(line.split() for line in child.stdout.splitlines())
    assert len(answers) == len(names)
    assert {name for name, found in answers.items() if found == "yes"} == set(REGISTERED)


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


def a_scale_for_each_channel(graph: Graph) -> Graph:
    """The graph with weights and biases of fully connected layers quantized by channel, at the scales that they have."""
    tensors = dict(graph.tensors)
    for op in graph.ops:
        for name in map(str, op.inputs[1:]):
            tensor = tensors[name]
            assert tensor.quantization is not None
            channels = tensor.shape[0]
            scales = np.full(channels, tensor.quantization.scale, np.float32)
            by_channel = Quantization(scales, np.zeros(channels, np.int32), 0)
            tensors[name] = dataclasses.replace(tensor, quantization=by_channel)
    return Graph(tensors, graph.ops, graph.inputs, graph.outputs)


def test_arenas_too_small_for_the_scales_of_channels_are_only_too_small(zoo: Path) -> None:
    """Fully connected kernels write the multipliers of their channels even where the arena had no place for them."""
    graph = read_onnx((zoo / "ad" / "ad_int8_qdq.onnx").read_bytes())
    report = inspect(write_tflite(a_scale_for_each_channel(graph)))
    multipliers = 8 * sum(graph.tensor(op.outputs[0]).shape[-1] for op in graph.ops)
    assert report.smallest > inspect(write_tflite(graph)).smallest + multipliers - 1024


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
