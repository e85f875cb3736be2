"""Summaries count what is in the file; the expected figures are those of the model cards, counted independently."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinymlaas_modelkit.summary import ModelFormat, Precision, TensorSpec, summarize

MACS = {"kws": 2_656_768, "ic": 12_501_632, "vww": 7_489_664, "ad": 264_192, "sww": 826_368}
PARAMETER_BYTES = {"kws": 24_376, "ic": 78_752, "vww": 219_072, "ad": 270_880, "sww": 48_396}


@pytest.mark.parametrize("file", ["int8.tflite", "float.tflite", "int8_qdq.onnx", "float.onnx"])
@pytest.mark.parametrize("model", MACS)
def test_multiply_accumulates_and_precision(zoo: Path, model: str, file: str) -> None:
    summary = summarize((zoo / model / f"{model}_{file}").read_bytes())
    assert summary.macs == MACS[model]
    assert summary.format is (ModelFormat.TFLITE if file.endswith("tflite") else ModelFormat.ONNX)
    assert summary.precision is (Precision.INT8 if file.startswith("int8") else Precision.FLOAT32)


@pytest.mark.parametrize("model", PARAMETER_BYTES)
def test_parameter_bytes_count_a_shared_buffer_once(zoo: Path, model: str) -> None:
    assert summarize((zoo / model / f"{model}_int8.tflite").read_bytes()).parameter_bytes == PARAMETER_BYTES[model]


def test_inputs_and_outputs_with_their_quantization(zoo: Path) -> None:
    for file in ("kws_int8.tflite", "kws_int8_qdq.onnx"):
        summary = summarize((zoo / "kws" / file).read_bytes())
        (given,), (made,) = summary.inputs, summary.outputs
        assert (given.dtype, given.shape, given.zero_point) == ("int8", (1, 49, 10, 1), 83)
        assert given.scale == pytest.approx(0.584702909, rel=1e-7)
        assert made == TensorSpec(made.name, "int8", (1, 12), 1 / 256, -128)


def test_operators_with_counts_and_versions(zoo: Path) -> None:
    operators = {
        o.name: (o.count, o.version) for o in summarize((zoo / "kws" / "kws_int8.tflite").read_bytes()).operators
    }
    assert operators == {
        "AVERAGE_POOL_2D": (1, 2), "CONV_2D": (5, 3), "DEPTHWISE_CONV_2D": (4, 3), "FULLY_CONNECTED": (1, 4),
        "RESHAPE": (1, 1), "SOFTMAX": (1, 2),
    }  # fmt: skip


def test_integer_weights_under_float_activations_are_mixed(zoo: Path) -> None:
    assert summarize((zoo / "kws" / "kws_hybrid.tflite").read_bytes()).precision is Precision.MIXED
