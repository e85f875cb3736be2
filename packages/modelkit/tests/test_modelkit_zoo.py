"""The converters on the models that ship with the product: nothing may change on the way from one format to the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tinymlaas_modelkit.graph import DType, Graph, OpKind
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx
from tinymlaas_modelkit.tflite_reader import read_tflite
from tinymlaas_modelkit.tflite_writer import write_tflite

Array = npt.NDArray[Any]
Runner = Callable[[bytes, Array], Array]
MODELS = ("kws", "ad", "ic", "vww", "sww")


def samples(zoo: Path, model: str) -> dict[str, Array]:
    with np.load(zoo / model / "samples.npz") as archive:
        return {name: archive[name] for name in archive.files}


def graph(zoo: Path, model: str, name: str) -> Graph:
    data = (zoo / model / f"{model}_{name}").read_bytes()
    return read_tflite(data) if name.endswith(".tflite") else read_onnx(data)


@pytest.mark.parametrize(("model", "name"), list(itertools.product(MODELS, ("int8.tflite", "int8_qdq.onnx"))))
def test_int8_model_written_as_tflite_gives_the_golden_outputs_bit_for_bit(
    zoo: Path, run_tflm: Runner, model: str, name: str
) -> None:
    data = samples(zoo, model)
    outputs = run_tflm(write_tflite(graph(zoo, model, name)), data["input_int8"])
    np.testing.assert_array_equal(outputs, data["output_int8"])


@pytest.mark.parametrize(("model", "name"), list(itertools.product(MODELS, ("int8.tflite", "int8_qdq.onnx"))))
def test_int8_model_written_as_onnx_gives_what_the_shipped_qdq_file_gives(
    zoo: Path, run_onnx: Runner, model: str, name: str
) -> None:
    inputs = samples(zoo, model)["input_int8"]
    shipped = run_onnx((zoo / model / f"{model}_int8_qdq.onnx").read_bytes(), inputs)
    np.testing.assert_array_equal(run_onnx(write_onnx(graph(zoo, model, name)), inputs), shipped)


@pytest.mark.parametrize(("model", "name"), list(itertools.product(MODELS, ("float.tflite", "float.onnx"))))
def test_float_model_gives_the_same_outputs_in_both_formats(
    zoo: Path, run_tflm: Runner, run_onnx: Runner, model: str, name: str
) -> None:
    data = samples(zoo, model)
    inputs, expected = data["input_float"][:8], data["output_float"][:8]
    read = graph(zoo, model, name)
    tolerance = 1e-5 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(run_tflm(write_tflite(read), inputs), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(run_onnx(write_onnx(read), inputs), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", MODELS)
def test_qdq_file_reads_as_integer_operators_without_transposes(zoo: Path, model: str) -> None:
    read = graph(zoo, model, "int8_qdq.onnx")
    assert {OpKind.TRANSPOSE, OpKind.DEQUANTIZE, OpKind.QUANTIZE}.isdisjoint(op.kind for op in read.ops)
    for op in read.ops:
        assert all(read.tensor(name).dtype is DType.INT8 for name in op.outputs)


def weighted_operators(read: Graph) -> list[tuple[Any, ...]]:
    """Weights, biases, filter scales and attributes of each operator; sorted, as branches may come in any order."""
    found = []
    for op in read.ops:
        if op.kind not in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED):
            continue
        constants = [read.tensor(name) for name in op.inputs[1:] if name is not None]
        arrays = [np.asarray(t.data).tobytes() for t in constants]
        assert constants[0].quantization is not None
        found.append(
            (op.kind, constants[0].shape, *arrays, constants[0].quantization.scales.tobytes(), str(op.attributes))
        )
    return sorted(found)


@pytest.mark.parametrize("model", MODELS)
def test_both_int8_files_read_as_the_same_operators_with_the_same_weights(zoo: Path, model: str) -> None:
    one, other = graph(zoo, model, "int8.tflite"), graph(zoo, model, "int8_qdq.onnx")
    assert weighted_operators(one) == weighted_operators(other)


@pytest.mark.parametrize(("model", "write"), list(itertools.product(("kws", "ad"), (write_tflite, write_onnx))))
def test_writing_twice_gives_the_same_bytes(zoo: Path, model: str, write: Callable[[Graph], bytes]) -> None:
    assert write(graph(zoo, model, "int8_qdq.onnx")) == write(graph(zoo, model, "int8_qdq.onnx"))


@pytest.mark.parametrize("name", ["int8.tflite", "int8_qdq.onnx", "float.onnx"])
def test_writing_and_reading_again_is_a_fixed_point(zoo: Path, name: str) -> None:
    once = write_tflite(graph(zoo, "kws", name))
    assert write_tflite(read_tflite(once)) == once
    onnx_once = write_onnx(read_tflite(once))
    assert write_onnx(read_tflite(write_tflite(read_onnx(onnx_once)))) == write_onnx(read_onnx(onnx_once))
