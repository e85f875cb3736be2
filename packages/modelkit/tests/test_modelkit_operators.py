"""Each operator alone: the ONNX file, read and written as TFLite and as ONNX again, computes the same in both executors.

The int8 forms are made by ONNX Runtime's static quantizer, per channel, as the optimizer makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from modelkit_cases import CASES, Array, Calibration, Runner, coarsest_scale, inputs_for
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from tinymlaas_modelkit.graph import DType, OpKind
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx
from tinymlaas_modelkit.tflite_reader import read_tflite
from tinymlaas_modelkit.tflite_writer import write_tflite


@pytest.mark.parametrize("name", CASES)
def test_float_operator_computes_the_same_in_every_format(
    make_onnx: Callable[..., bytes], run_onnx: Runner, run_tflm: Runner, name: str
) -> None:
    nodes, shape, constants = CASES[name]
    source, inputs = make_onnx(nodes, shape, constants), inputs_for(shape)
    expected = run_onnx(source, inputs)
    tflite = write_tflite(read_onnx(source))
    np.testing.assert_allclose(run_tflm(tflite, inputs), expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(run_onnx(write_onnx(read_tflite(tflite)), inputs), expected, rtol=1e-5, atol=2e-5)


def quantized(source: bytes, inputs: Array, folder: Path, activations: QuantType) -> bytes:
    (folder / "float.onnx").write_bytes(source)
    quantize_static(
        str(folder / "float.onnx"),
        str(folder / "int8.onnx"),
        Calibration(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
    )
    return (folder / "int8.onnx").read_bytes()


# One step in the input of these is several in the output.
STEPS = {"multiply by a constant": 2.5, "conv and batch normalization": 2.5, "flatten and gemm": 2.0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8], ids=["int8", "uint8"])
@pytest.mark.parametrize("name", CASES)
def test_quantized_operator_differs_by_one_step_at_most(
    make_onnx: Callable[..., bytes],
    run_onnx: Runner,
    run_tflm: Runner,
    tmp_path: Path,
    name: str,
    activations: QuantType,
) -> None:
    nodes, shape, constants = CASES[name]
    inputs = inputs_for(shape)
    source = quantized(make_onnx(nodes, shape, constants), inputs, tmp_path, activations)
    expected = run_onnx(source, inputs)
    graph = read_onnx(source)
    tolerance = coarsest_scale(graph) * STEPS.get(name, 1.0) * 1.001 + 2e-5
    tflite = write_tflite(graph)
    np.testing.assert_allclose(run_tflm(tflite, inputs), expected, rtol=1e-5, atol=tolerance)
    np.testing.assert_allclose(run_onnx(write_onnx(read_tflite(tflite)), inputs), expected, rtol=1e-5, atol=tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["conv", "depthwise", "gemm", "add of two branches and relu", "concat", "average pool"]
)
def test_quantized_operator_is_computed_on_integers(make_onnx: Callable[..., bytes], tmp_path: Path, name: str) -> None:
    nodes, shape, constants = CASES[name]
    graph = read_onnx(quantized(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path, QuantType.QInt8))
    compute = [op for op in graph.ops if op.kind not in (OpKind.QUANTIZE, OpKind.DEQUANTIZE)]
    assert compute
    for op in compute:
        assert all(graph.tensor(o).dtype is DType.INT8 for o in op.outputs), op


def test_network_in_nchw_has_no_transposes_inside(make_onnx: Callable[..., bytes]) -> None:
    nodes, shape, constants = CASES["flatten and gemm"]
    kinds = [op.kind for op in read_onnx(make_onnx(nodes, shape, constants)).ops]
    assert kinds == [OpKind.TRANSPOSE, OpKind.CONV_2D, OpKind.RESHAPE, OpKind.FULLY_CONNECTED]
