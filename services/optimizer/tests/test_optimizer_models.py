"""Real models keep what they compute when they become int8, and run the same on TFLite Micro."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from optimizer_models import ZOO, files, size
from tflite_micro import runtime

from tinymlaas_modelkit.check import ModelRejected, Precision, check_model, check_model_here
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.tflite_writer import write_tflite
from tinymlaas_optimizer import (
    Evaluation,
    NotFloat,
    Optimized,
    Options,
    Recipe,
    SamplesInvalid,
    optimize,
)
from tinymlaas_optimizer.runtime import session

ARENA = 1 << 20
QUIET = Options(sensitivity=False)
FOLDED = Options((Recipe.parse({"version": 1, "steps": [{"step": "fold"}]}),), sensitivity=False)


@cache
def optimized(name: str, options: str = "{}") -> Optimized:
    """A model quantized, with fields of the quantize step."""
    step = {"step": "quantize", **json.loads(options)}
    recipes = [{"version": 1, "steps": [step]}]
    return optimize(*files(name), Options.parse({"recipes": recipes, "sensitivity": False}), check=check_model_here)


def evaluation(of: Optimized) -> Evaluation:
    assert of.report.taken.evaluation is not None
    return of.report.taken.evaluation


def on_both(of: Optimized, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Integer outputs of ONNX Runtime on the QDQ file and of TFLite Micro on its TFLite form, [samples, elements]."""
    (given,) = of.description.inputs
    assert given.scale is not None
    assert given.zero_point is not None
    samples = files(name)[1]["input_float"]
    limits = np.iinfo(given.dtype)
    steps = np.rint(samples / np.float32(given.scale)) + given.zero_point
    integers = np.clip(steps, limits.min, limits.max).astype(given.dtype)
    tflite = write_tflite(read_onnx(of.model))
    check_model(tflite, "tflite")
    interpreter = runtime.Interpreter.from_bytes(tflite, arena_size=ARENA)
    runner = session(of.model)
    rows = []
    for index in range(len(integers)):
        one = integers[index : index + 1]
        interpreter.set_input(one, 0)
        interpreter.invoke()
        rows.append((runner.run(None, {given.name: one})[0].ravel(), interpreter.get_output(0).ravel()))
    return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int64)


@pytest.mark.parametrize(
    ("name", "decibels", "shrinks_to"),
    [("kws", 35, 0.45), ("ic", 24, 0.32), ("vww", 28, 0.34), ("sww", 36, 0.36), ("ad", 34, 0.30)],
)
def test_a_real_model_keeps_its_outputs_and_gets_small(name: str, decibels: float, shrinks_to: float) -> None:
    result = optimized(name)
    (output,) = evaluation(result).outputs
    assert output.snr_db is not None
    assert output.snr_db > decibels
    assert size(result).bytes < shrinks_to * result.report.before.bytes
    assert size(result).bytes == len(result.model)
    assert result.description.precision is Precision.QUANTIZED


@pytest.mark.parametrize("name", ["kws", "ic", "vww", "sww"])
def test_a_classifier_takes_every_sample_for_the_same_class(name: str) -> None:
    found = evaluation(optimized(name))
    assert found.agreement == 1.0
    assert found.accuracy_before == found.accuracy_after
    assert found.labelled == int((files(name)[1]["label"] >= 0).sum())


def test_the_accuracy_of_keyword_spotting_is_that_of_its_labels() -> None:
    found = evaluation(optimized("kws"))
    assert (found.samples, found.labelled, found.accuracy_before) == (21, 20, 0.7)


def test_an_output_that_is_no_classification_gets_no_accuracy() -> None:
    found = evaluation(optimized("ad"))
    assert (found.accuracy_before, found.accuracy_after, found.agreement) == (None, None, None)


@pytest.mark.parametrize(("name", "steps"), [("kws", 5), ("ic", 20), ("vww", 8), ("sww", 2), ("ad", 4)])
def test_tflite_micro_computes_nearly_the_same_from_the_optimized_file(name: str, steps: int) -> None:
    of_onnx, of_tflite = on_both(optimized(name), name)
    assert int(np.abs(of_onnx - of_tflite).max()) <= steps
    if name != "ad":
        assert (of_onnx.argmax(axis=1) == of_tflite.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("name", "options", "given", "steps"),
    [
        ("kws", '{"activations": "int16"}', "int16", 32),
        ("ad", '{"activations": "int16"}', "int16", 16),
        ("ad", '{"mixed": {"to": "int16", "max_layers": 2}}', "int8", 4),
    ],
)
def test_tflite_micro_computes_nearly_the_same_on_int16(name: str, options: str, given: str, steps: int) -> None:
    """`steps` of int16 outputs: 32 are a thousandth of the range."""
    of = optimized(name, options)
    assert [tensor.dtype for tensor in of.description.inputs] == [given]
    graph = read_onnx(of.model)
    assert "int16" in {graph.tensor(op.outputs[0]).dtype.value for op in graph.ops}
    of_onnx, of_tflite = on_both(of, name)
    assert int(np.abs(of_onnx - of_tflite).max()) <= steps
    if name != "ad":
        assert (of_onnx.argmax(axis=1) == of_tflite.argmax(axis=1)).all()


def test_no_operator_is_added_on_the_way_to_tflite() -> None:
    kinds = [op.kind.value for op in read_onnx(optimized("kws").model).ops]
    assert "QUANTIZE" not in kinds
    assert sorted(set(kinds)) == [
        "AVERAGE_POOL_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "RESHAPE",
        "SOFTMAX",
    ]
    assert len(kinds) == 13


@pytest.mark.parametrize(
    "options",
    [
        '{"calibration": "entropy"}',
        '{"calibration": "percentile", "percentile": 99.9}',
        '{"symmetric_activations": true}',
        '{"per_channel": false}',
        '{"io": "float32"}',
    ],
)
def test_every_way_to_quantize_keeps_the_classes_of_keyword_spotting(options: str) -> None:
    result = optimized("kws", options)
    assert evaluation(result).agreement == 1.0
    read_onnx(result.model)


def test_symmetric_activations_have_zero_points_of_zero_but_for_softmax() -> None:
    model = onnx.ModelProto.FromString(optimized("kws", '{"symmetric_activations": true}').model)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = {node.input[0]: values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    softmax = next(node.output[0] for node in model.graph.node if node.op_type == "Softmax")
    assert int(zeros.pop(softmax)) == -128
    assert not any(zero.any() for zero in zeros.values())


def test_weights_have_one_scale_for_each_channel_unless_told_otherwise() -> None:
    def scale_sizes(data: bytes) -> set[int]:
        model = onnx.ModelProto.FromString(data)
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        return {values[node.input[1]].size for node in model.graph.node if node.op_type == "DequantizeLinear"}

    assert scale_sizes(optimized("kws").model) == {1, 12, 64}
    assert scale_sizes(optimized("kws", '{"per_channel": false}').model) == {1}


def test_float_borders_keep_the_types_of_the_model() -> None:
    result = optimized("kws", '{"io": "float32"}')
    assert [t.dtype for t in (*result.description.inputs, *result.description.outputs)] == ["float32", "float32"]
    assert evaluation(result).outputs == evaluation(optimized("kws")).outputs


def test_without_quantization_the_model_is_only_simplified() -> None:
    model, _ = files("kws")
    result = optimize(model, None, FOLDED)
    assert result.description.precision is Precision.FLOAT
    assert result.report.taken.evaluation is None
    assert size(result).operators["Gemm"] == 1
    assert "MatMul" not in size(result).operators


def test_the_same_request_gives_the_same_bytes() -> None:
    model, arrays = files("kws")
    again = optimize(model, arrays, QUIET, check=check_model_here)
    first = optimized("kws")
    assert (again.model, again.recipe, again.picture) == (first.model, first.recipe, first.picture)
    assert again.report.to_json() == first.report.to_json()


def test_names_in_the_file_make_no_difference() -> None:
    data, arrays = files("kws")
    model = onnx.ModelProto.FromString(data)
    borders = {value.name for value in (*model.graph.input, *model.graph.output)}

    def renamed(name: str) -> str:
        return name if name in borders or not name else f"other/{name[::-1]}"

    for node in model.graph.node:
        node.name = renamed(node.name)
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in (*model.graph.initializer, *model.graph.value_info):
        tensor.name = renamed(tensor.name)
    model.producer_name = "another exporter"
    again = optimize(model.SerializeToString(), arrays, QUIET, check=check_model_here)
    assert again.model == optimized("kws").model


def test_progress_names_every_step_and_never_goes_back() -> None:
    seen: list[tuple[str, float]] = []
    optimize(*files("sww"), progress=lambda step, share: seen.append((step, share)), check=check_model_here)
    steps = list(dict.fromkeys(step.removeprefix("int8: ") for step, _ in seen))
    assert steps == ["check", "run the float model", "fold", "calibrate", "int8", "measure layers", "report"]
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_report_is_json() -> None:
    report = json.loads(optimized("kws").report.to_json())
    assert report["before"]["bytes"] == len(files("kws")[0])
    (result,) = report["results"]
    assert result["recipe"]["steps"][1]["calibration"] == "minmax"
    assert result["evaluation"]["agreement"] == 1.0
    assert json.loads(optimized("kws").recipe) == result["recipe"]


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(NotFloat) as caught:
        optimize((ZOO / "kws/kws_int8_qdq.onnx").read_bytes(), {"input": np.zeros((1, 49, 10, 1), np.int8)})
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "MODEL_NOT_FLOAT")


def test_quantization_without_samples_is_refused() -> None:
    with pytest.raises(SamplesInvalid, match="need calibration samples"):
        optimize(files("kws")[0])


def test_a_broken_model_is_refused_as_the_check_refuses_it() -> None:
    with pytest.raises(ModelRejected) as caught:
        optimize(files("kws")[0][:5000], files("kws")[1])
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "MODEL_INVALID")
