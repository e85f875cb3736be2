"""ONNX's own operator tests: some run here in both forms, all of them by `python -m bench.onnx_nodes`, whose result is kept."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from bench.onnx_nodes.cases import Case, collect  # noqa: E402
from bench.onnx_nodes.float32 import float32_case  # noqa: E402
from bench.onnx_nodes.qdq import qdq_case  # noqa: E402
from bench.onnx_nodes.run import run_case  # noqa: E402

RUN_HERE = {
    "Concat": "test_concat_2d_axis_1",
    "Gelu": "test_gelu_tanh_2",
    "ReduceMean": "test_reduce_mean_keepdims_random",
    "Resize": "test_resize_upsample_scales_nearest",
    "Transpose": "test_transpose_all_permutations_3",
}
# Each says before anything is built why there is no module: the operator with its types, or a file without static shapes.
REFUSALS = {"OP_UNSUPPORTED", "MODEL_INVALID"}


@cache
def cases() -> dict[str, Case]:
    """All cases by name."""
    return {case.name: case for case in collect()[0]}


@pytest.mark.parametrize("operator", sorted(RUN_HERE))
def test_an_operator_passes_in_float_and_in_qdq_form(operator: str) -> None:
    case = cases()[RUN_HERE[operator]]
    quantized = qdq_case(case)
    assert quantized is not None
    assert [run_case(case).state, run_case(quantized).state] == ["passed", "passed"]


@pytest.mark.parametrize("name", ["test_stft", "test_bitshift_right_int8_shift_ge_width"])
def test_an_operator_passes_in_float_form(name: str) -> None:
    assert run_case(cases()[name]).state == "passed"


@pytest.mark.parametrize("name", ["test_einsum_batch_matmul", "test_reduce_log_sum_exp_keepdims_random"])
def test_an_operator_that_onnx_tests_with_doubles_passes_in_float32(name: str) -> None:
    narrowed = float32_case(cases()[name])
    assert narrowed is not None
    assert run_case(narrowed).state == "passed"


def test_an_operator_without_kernel_is_refused_with_its_name() -> None:
    outcome = run_case(cases()["test_basic_deform_conv_without_padding"])
    assert (outcome.state, outcome.reason) == ("unsupported", "OP_UNSUPPORTED")
    assert "DeformConv" in outcome.detail


def test_the_kept_result_has_no_failure_and_a_reason_for_each_refusal() -> None:
    rows = json.loads((ROOT / "bench" / "results" / "onnx-node-tests.json").read_text(encoding="utf-8"))
    assert {row["form"] for row in rows} == {"float", "float32", "qdq"}
    assert [row["operator"] for row in rows if row["failed"]] == []
    for row in rows:
        assert sum(row["reasons"].values()) == row["unsupported"]
        assert {reason.split(":")[0] for reason in row["reasons"]} <= REFUSALS
