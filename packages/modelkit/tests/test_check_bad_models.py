"""Every broken or hostile file gets its verdict, and every good one its report."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tinymlaas_modelkit.check import (
    CODES,
    HELP,
    CheckerUnavailable,
    Code,
    Limits,
    ModelRejected,
    ModelReport,
    Precision,
    Problem,
    check_model,
    check_model_isolated,
    check_model_isolated_async,
    safe_text,
)
from tinymlaas_modelkit.check._isolated import _verdict
from tinymlaas_modelkit.check.testing import (
    BAD,
    GOOD,
    BadFile,
    constant,
    good_onnx,
    good_tflite,
    nested_if,
    onnx_model,
    value,
)

ZOO = Path(__file__).resolve().parents[3] / "zoo"
REASONS = {Code.INVALID_ARGUMENT: "MODEL_INVALID", Code.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED"}


def rejection(data: bytes, format: str, limits: Limits | None = None) -> ModelRejected:
    with pytest.raises(ModelRejected) as caught:
        check_model(data, format, limits)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_file_is_refused_with_its_status_and_problem(bad: BadFile) -> None:
    rejected = rejection(bad.make(), bad.format)
    assert (rejected.problem, rejected.code) == (bad.problem, CODES[bad.problem])
    assert rejected.metadata["problem"] == bad.problem
    assert rejected.reason == REASONS.get(rejected.code, bad.problem.value)
    assert {"problem", "where", "detail"} <= rejected.metadata.keys()
    assert rejected.help == HELP[bad.problem]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_accepted(name: str) -> None:
    report = check_model(GOOD[name](), "tflite" if name.endswith(".tflite") else "onnx")
    assert report.nodes == sum(report.operators.values()) > 0
    assert ModelReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_the_generated_files_cover_every_problem_that_a_file_can_have() -> None:
    of_the_check_itself = {Problem.CHECKER_DIED, Problem.CHECK_DEADLINE, Problem.CHECK_MEMORY, Problem.TOO_MANY_TENSORS}
    assert {bad.problem for bad in BAD} == set(Problem) - of_the_check_itself


def test_making_a_bad_file_twice_gives_the_same_bytes() -> None:
    assert all(bad.make() == bad.make() for bad in BAD)


@pytest.mark.parametrize(
    ("model", "precision", "inputs", "parameters"),
    [
        ("kws/kws_int8.tflite", Precision.QUANTIZED, ("int8", (1, 49, 10, 1), 83), 24_376),
        ("kws/kws_float.tflite", Precision.FLOAT, ("float32", (1, 49, 10, 1), None), 90_424),
        ("kws/kws_hybrid.tflite", Precision.HYBRID, ("float32", (1, 49, 10, 1), None), 33_592),
        ("kws/kws_int8_qdq.onnx", Precision.QUANTIZED, ("int8", (1, 49, 10, 1), 83), 24_416),
        ("kws/kws_float.onnx", Precision.FLOAT, ("float32", (1, 49, 10, 1), None), 90_464),
        ("ad/ad_int8.tflite", Precision.QUANTIZED, ("int8", (1, 640), 89), 270_880),
        ("ad/ad_int8_qdq.onnx", Precision.QUANTIZED, ("int8", (1, 640), 89), 270_880),
        ("ic/ic_int8.tflite", Precision.QUANTIZED, ("int8", (1, 32, 32, 3), -128), 78_752),
        ("ic/ic_int8_qdq.onnx", Precision.QUANTIZED, ("int8", (1, 32, 32, 3), -128), 78_760),
        ("sww/sww_int8.tflite", Precision.QUANTIZED, ("int8", (1, 30, 1, 40), -128), 48_396),
        ("vww/vww_int8.tflite", Precision.QUANTIZED, ("int8", (1, 96, 96, 3), -128), 219_072),
        ("vww/vww_float.onnx", Precision.FLOAT, ("float32", (1, 96, 96, 3), None), 843_416),
    ],
)
def test_a_real_model_is_accepted_and_described(
    model: str, precision: Precision, inputs: tuple[str, tuple[int, ...], int | None], parameters: int
) -> None:
    report = check_model((ZOO / model).read_bytes(), "tflite" if model.endswith(".tflite") else "onnx")
    (given,) = report.inputs
    assert (given.dtype, given.shape, given.zero_point) == inputs
    assert (report.precision, report.parameter_bytes) == (precision, parameters)
    assert report.version == (3 if report.format == "tflite" else 13)


def test_the_operators_of_a_model_are_counted() -> None:
    report = check_model((ZOO / "kws/kws_int8.tflite").read_bytes(), "tflite")
    assert report.operators == {
        "AVERAGE_POOL_2D": 1,
        "CONV_2D": 5,
        "DEPTHWISE_CONV_2D": 4,
        "FULLY_CONNECTED": 1,
        "RESHAPE": 1,
        "SOFTMAX": 1,
    }
    (output,) = report.outputs
    assert (output.dtype, output.shape, output.scale, output.zero_point) == ("int8", (1, 12), 1 / 256, -128)


@pytest.mark.parametrize(
    "name",
    [
        "truncated.onnx",
        "function_calls_itself.onnx",
        "range_bomb.onnx",
        "external_absolute.onnx",
        "conv_channels.onnx",
        "tensor_index.tflite",
    ],
)
def test_the_isolated_check_gives_the_same_verdict(name: str) -> None:
    (bad,) = (bad for bad in BAD if bad.name == name)
    with pytest.raises(ModelRejected) as caught:
        check_model_isolated(bad.make(), bad.format)
    assert caught.value.metadata == rejection(bad.make(), bad.format).metadata


async def test_checks_run_at_the_same_time_and_a_good_file_passes_beside_bad_ones() -> None:
    bad = nested_if(250)
    results = await asyncio.gather(
        check_model_isolated_async(good_onnx(), "onnx"),
        check_model_isolated_async(bad, "onnx"),
        check_model_isolated_async(good_tflite(), "tflite"),
        return_exceptions=True,
    )
    assert isinstance(results[0], ModelReport)
    assert isinstance(results[1], ModelRejected)
    assert isinstance(results[2], ModelReport)


def test_a_process_that_dies_of_a_file_makes_the_file_invalid_and_is_no_internal_error() -> None:
    with pytest.raises(ModelRejected) as caught:
        _verdict(b"ready\n", -11)
    assert (caught.value.code, caught.value.problem) == (Code.INVALID_ARGUMENT, Problem.CHECKER_DIED)
    assert "SIGSEGV" in caught.value.metadata["detail"]


@pytest.mark.parametrize("garbage", [b"{", b"null", b'{"rejected": {"problem": "NONSENSE"}}', b'{"report": {}}', b"[]"])
def test_a_process_that_answers_nonsense_makes_the_file_invalid(garbage: bytes) -> None:
    with pytest.raises(ModelRejected) as caught:
        _verdict(b"ready\n" + garbage, 0)
    assert caught.value.problem is Problem.CHECKER_DIED


def test_a_process_that_the_cpu_limit_ends_is_over_the_limit() -> None:
    with pytest.raises(ModelRejected) as caught:
        _verdict(b"ready\n", -24)
    assert (caught.value.code, caught.value.problem) == (Code.RESOURCE_EXHAUSTED, Problem.CHECK_DEADLINE)


def test_a_process_that_never_started_says_nothing_about_the_file() -> None:
    with pytest.raises(CheckerUnavailable):
        check_model_isolated(good_onnx(), "onnx", Limits(deadline_s=1e-3))


async def test_an_async_check_that_runs_out_of_time_says_so_and_leaves_no_process() -> None:
    with pytest.raises((ModelRejected, CheckerUnavailable)):
        await check_model_isolated_async(good_onnx(), "onnx", Limits(deadline_s=1e-3))


def test_a_check_that_runs_out_of_memory_is_over_the_limit() -> None:
    with pytest.raises(ModelRejected) as caught:
        check_model_isolated(bytes(32 << 20), "tflite", Limits(memory_bytes=16 << 20))
    assert caught.value.problem is Problem.CHECK_MEMORY


def test_the_checking_process_can_open_no_file_and_write_none(tmp_path: Path) -> None:
    target = tmp_path / "written"
    script = (
        "import sys\nfrom tinymlaas_modelkit.check._worker import _confine\n"
        "from tinymlaas_modelkit.check import Limits\n_confine(Limits())\n"
        f"for path, mode in (({str(Path(__file__))!r}, 'rb'), ({str(target)!r}, 'wb')):\n"
        "    try:\n        open(path, mode)\n    except OSError as error:\n        print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "24"]
    assert not target.exists()


def test_a_file_over_the_limit_is_refused_with_both_numbers() -> None:
    rejected = rejection(good_onnx(), "onnx", Limits(model_bytes=10))
    assert rejected.problem is Problem.MODEL_TOO_LARGE
    assert rejected.metadata["limit"] == "10"
    assert rejected.metadata["value"] == str(len(good_onnx()))


def test_a_file_with_too_many_tensors_is_refused() -> None:
    assert rejection(good_tflite(), "tflite", Limits(tensors=3)).problem is Problem.TOO_MANY_TENSORS


def test_an_unknown_format_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="onnx, tflite"):
        check_model(good_onnx(), "keras")  # type: ignore[arg-type]


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="nodes"):
        Limits(nodes=0)


def test_hostile_names_reach_no_message_unescaped() -> None:
    rejected = ModelRejected(Problem.NO_SUCH_OP, "node \n\x1b[2J" + "a" * 1000, "é\r\n" * 1000, op="\x00")
    for text in (*rejected.metadata.values(), str(rejected)):
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 600


def test_safe_text_keeps_what_is_harmless() -> None:
    assert safe_text("model/conv1 (Conv2D)") == "model/conv1 (Conv2D)"


def test_a_rejection_survives_pickling_with_its_reason() -> None:
    rejected = ModelRejected(Problem.OP_UNSUPPORTED, "node", "detail", op="Loop")
    copy = pickle.loads(pickle.dumps(rejected))
    assert (copy.reason, copy.metadata, copy.code) == (rejected.reason, rejected.metadata, rejected.code)


def test_shapes_that_follow_by_arithmetic_on_shapes_are_static() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = [constant("zero", 0, np.int64), constant("axis", [0], np.int64), constant("rest", [-1], np.int64)]
    model = onnx_model(nodes, constants, [value("x", [1, 3, 4])], [value("y", ["batch", "features"])])
    (output,) = check_model(model.SerializeToString(), "onnx").outputs
    assert output.shape == (1, 12)


def test_shapes_that_follow_by_a_table_of_positions_are_static() -> None:
    """The causal mask of attention as exporters write it: ranges as long as the input, compared, infinite where hidden."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["row"]),
        helper.make_node("Unsqueeze", ["row", "axis"], ["column"]),
        helper.make_node("Less", ["column", "row"], ["hidden"]),
        helper.make_node("Where", ["hidden", "never", "nothing"], ["mask"]),
        helper.make_node("ReduceSum", ["mask", "axis"], ["sums"], keepdims=0),
        helper.make_node("ConstantOfShape", ["length1"], ["zeros"]),
        helper.make_node("Unsqueeze", ["length", "axis0"], ["length1"]),
        helper.make_node("MatMul", ["x", "zeros2"], ["product"]),
        helper.make_node("Unsqueeze", ["zeros", "axis"], ["zeros2"]),
        helper.make_node("Add", ["product", "mask"], ["y"]),
    ]
    constants = [
        constant("zero", 0, np.int64),
        constant("one", 1, np.int64),
        constant("axis", [1], np.int64),
        constant("axis0", [0], np.int64),
        constant("never", -np.inf),
        constant("nothing", 0),
    ]
    order = [0, 1, 2, 3, 4, 5, 6, 8, 7, 10, 9, 11]
    model = onnx_model([nodes[i] for i in order], constants, [value("x", [3, 3])], [value("y", [3, 3])])
    report = check_model(model.SerializeToString(), "onnx")
    assert report.outputs[0].shape == (3, 3)


def test_zeros_cast_like_a_value_of_another_shape() -> None:
    """The empty state of a causal convolution: CastLike takes only the type of its second operand."""
    constants = [constant("state", [2, 4, 3], np.int64), constant("weights", np.ones((4, 1, 5)))]
    nodes = [
        helper.make_node("ConstantOfShape", ["state"], ["zeros"]),
        helper.make_node("CastLike", ["zeros", "weights"], ["typed"]),
        helper.make_node("Concat", ["typed", "x"], ["padded"], axis=2),
        helper.make_node("Shape", ["padded"], ["length"], start=2, end=3),
        helper.make_node("Slice", ["padded", "three", "length", "two"], ["y"]),
    ]
    constants += [constant("three", [3], np.int64), constant("two", [2], np.int64)]
    model = onnx_model(nodes, constants, [value("x", [2, 4, 8])], [value("y", [2, 4, 8])])
    assert check_model(model.SerializeToString(), "onnx").outputs[0].shape == (2, 4, 8)


def test_a_shape_that_needs_a_value_of_the_input_stays_open() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=7),
        helper.make_node("ReduceMax", ["wide"], ["longest"], keepdims=0),
        helper.make_node("Range", ["zero", "longest", "one"], ["y"]),
    ]
    constants = [constant("zero", 0, np.int64), constant("one", 1, np.int64)]
    rejected = rejection(onnx_model(nodes, constants, outputs=[value("y", [4], 7)]).SerializeToString(), "onnx")
    assert rejected.problem is Problem.SHAPE_NOT_STATIC


def test_a_huge_range_is_not_computed_for_its_shape() -> None:
    nodes = [
        helper.make_node("Range", ["zero", "limit", "one"], ["many"]),
        helper.make_node("Gather", ["many", "zero"], ["first"]),
        helper.make_node("Cast", ["first"], ["wide"], to=1),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    constants = [constant("zero", 0, np.int64), constant("one", 1, np.int64), constant("limit", 1 << 40, np.int64)]
    rejected = rejection(onnx_model(nodes, constants, outputs=[value("y", [2, 3])]).SerializeToString(), "onnx")
    assert (rejected.problem, rejected.metadata["where"]) == (Problem.TENSOR_TOO_LARGE, "node many (Range)")


def test_an_empty_constant_that_is_not_used_as_data_is_no_fault() -> None:
    nodes = [
        helper.make_node("Constant", [], ["roi"], value=constant("", [])),
        helper.make_node("Resize", ["x", "roi", "scales"], ["y"], mode="nearest"),
    ]
    borders = [value("x", [1, 3, 4, 5])], [value("y", [1, 3, 8, 10])]
    model = onnx_model(nodes, [constant("scales", [1, 1, 2, 2])], *borders)
    assert check_model(model.SerializeToString(), "onnx").operators["Resize"] == 1
