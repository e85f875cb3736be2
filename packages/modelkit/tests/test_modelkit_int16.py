"""int16 activations: each operator alone, written in TFLite's 16x8 mode, computes what ONNX Runtime makes of the file.

The files are made by ONNX Runtime's static quantizer: int8 weights per channel, symmetric activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from modelkit_cases import (
    CASES,
    Array,
    Calibration,
    Case,
    Runner,
    after_conv,
    coarsest_scale,
    conv,
    inputs_for,
    reals,
)
from onnx.helper import make_node
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from tinymlaas_modelkit.errors import UnsupportedOperator
from tinymlaas_modelkit.graph import DType, Graph, OpKind
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx
from tinymlaas_modelkit.quantization import same_quantization
from tinymlaas_modelkit.tflite_reader import read_tflite
from tinymlaas_modelkit.tflite_reader._file import parse
from tinymlaas_modelkit.tflite_writer import write_tflite

pytestmark = pytest.mark.filterwarnings("ignore")

# Without an int16 kernel in TFLite Micro, or left in float by the quantizer.
WITHOUT = {"resize linear", "hard swish", "relu", "squeeze and unsqueeze"}
ALL = {name: case for name, case in CASES.items() if name not in WITHOUT} | {
    "depthwise without bias": conv((4, 1, 3, 3), (1, 4, 8, 8), bias=False, group=4),
    "sums beyond 32 bits": (
        [make_node("Conv", ["x", "w", "b"], ["y"])],
        (1, 1024, 2, 2),
        {"w": (1 + 0.01 * np.abs(reals(2, 1024, 1, 1))).astype(np.float32), "b": reals(2)},
    ),
}
# TFLite's requantization to int16 has a factor of 16 bits: one step more where two such values meet.
STEPS = 2.0


def wide(
    source: bytes, inputs: Array, folder: Path, overrides: dict[str, Any] | None = None, int8: bool = False
) -> bytes:
    """The file quantized with int16 activations, or with those of `overrides` alone."""
    (folder / "float.onnx").write_bytes(source)
    quantize_static(
        str(folder / "float.onnx"),
        str(folder / "int16.onnx"),
        Calibration(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if int8 else QuantType.QInt16,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": not int8, "TensorQuantOverrides": overrides or {}},
    )
    return (folder / "int16.onnx").read_bytes()


def types_of(graph: Graph, kind: OpKind) -> list[tuple[DType, DType]]:
    """Element types of the first input and of the output, of each operator of a kind."""
    ops = [op for op in graph.ops if op.kind is kind]
    return [(graph.tensor(op.inputs[0] or "").dtype, graph.tensor(op.outputs[0]).dtype) for op in ops]


@pytest.mark.parametrize("name", ALL)
def test_operator_on_int16_differs_by_two_steps_at_most(
    make_onnx: Callable[..., bytes], run_onnx: Runner, run_tflm: Runner, tmp_path: Path, name: str
) -> None:
    nodes, shape, constants = ALL[name]
    inputs = inputs_for(shape) if name != "sums beyond 32 bits" else np.abs(inputs_for(shape)) * 0.01 + 1
    source = wide(make_onnx(nodes, shape, constants), inputs, tmp_path)
    graph = read_onnx(source)
    assert {t.dtype for t in graph.tensors.values() if t.quantization is not None and not t.is_constant} == {
        DType.INT16
    }
    step = coarsest_scale(graph)
    tflite, expected = write_tflite(graph), run_onnx(source, inputs)
    tolerance = step * STEPS * 1.001
    np.testing.assert_allclose(run_tflm(tflite, inputs), expected, rtol=1e-6, atol=tolerance)
    np.testing.assert_allclose(run_onnx(write_onnx(read_tflite(tflite)), inputs), expected, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", ["conv", "depthwise", "gemm", "depthwise without bias"])
def test_file_is_in_the_16x8_mode(make_onnx: Callable[..., bytes], tmp_path: Path, name: str) -> None:
    nodes, shape, constants = ALL[name]
    raw = parse(write_tflite(read_onnx(wide(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path))))
    (op,) = (op for op in raw.ops if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"))
    given, weights, bias, result = (raw.tensors[index] for index in (*op.inputs, *op.outputs))
    assert [t.dtype for t in (given, weights, bias, result)] == [DType.INT16, DType.INT8, DType.INT64, DType.INT16]
    assert op.version == {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7}[op.name]
    for tensor in (given, bias, result):
        assert tensor.quantization is not None
        assert not tensor.quantization.zero_points.any()


@pytest.mark.parametrize("name", ["conv", "depthwise without bias", "gemm", "add of two branches and relu"])
def test_16x8_file_is_read_and_written_again_bit_for_bit(
    make_onnx: Callable[..., bytes], tmp_path: Path, name: str
) -> None:
    nodes, shape, constants = ALL[name]
    once = write_tflite(read_onnx(wide(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path)))
    first, second = parse(once), parse(write_tflite(read_tflite(once)))
    for a, b in zip(first.ops, second.ops, strict=True):
        assert (a.name, a.version) == (b.name, b.version)
        for i, j in zip((*a.inputs, *a.outputs), (*b.inputs, *b.outputs), strict=True):
            x, y = (None if k < 0 else raw.tensors[k] for k, raw in ((i, first), (j, second)))
            assert (x is None) == (y is None)
            if x is not None and y is not None:
                assert (x.dtype, x.shape) == (y.dtype, y.shape)
                assert same_quantization(x.quantization, y.quantization)
                assert (x.data is None and y.data is None) or np.array_equal(np.asarray(x.data), np.asarray(y.data))


def test_int16_is_written_under_a_version_that_has_it(
    make_onnx: Callable[..., bytes], run_onnx: Runner, tmp_path: Path
) -> None:
    nodes, shape, constants = CASES["conv"]
    inputs = inputs_for(shape)
    # The quantizer's file is of version 14, with QuantizeLinear of a domain that takes int16 before ONNX's own does.
    source = wide(make_onnx(nodes, shape, constants), inputs, tmp_path)
    made = write_onnx(read_onnx(source))
    model = onnx.load_from_string(made)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    np.testing.assert_array_equal(run_onnx(made, inputs), run_onnx(source, inputs))


@pytest.mark.parametrize("wider", [False, True])
def test_a_foreign_node_is_never_written_under_a_version_that_changes_it(
    make_onnx: Callable[..., bytes], run_onnx: Runner, wider: bool
) -> None:
    shape, inputs = (1, 4, 8), inputs_for((1, 4, 8))
    scales = {"scale": np.float32(1e-3), "zero": np.int16(0)} if wider else {}

    def source(operator: str, opset: int) -> bytes:
        # ONNX Runtime takes int16 there before version 21, and so does the reader.
        around = [
            make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            make_node("DequantizeLinear", ["q", "scale", "zero"], ["r"]),
        ]
        return make_onnx(
            [*(around if wider else []), make_node(operator, ["r" if wider else "x"], ["y"])],
            shape,
            scales,
            opset=opset,
        )

    kept = write_onnx(read_onnx(source("Erf", 11), foreign=True))
    assert onnx.load_from_string(kept).opset_import[0].version == (21 if wider else 13)
    assert np.abs(run_onnx(kept, inputs)).max() > 0
    # Before version 13 the axis is 1 where none is given, and all behind it are one.
    with pytest.raises(UnsupportedOperator) as caught:
        write_onnx(read_onnx(source("LogSoftmax", 11), foreign=True))
    assert [(o.op, o.dtype) for o in caught.value.operators] == [("LogSoftmax", "float32")]


def test_bias_beyond_32_bits_is_refused(make_onnx: Callable[..., bytes], tmp_path: Path) -> None:
    nodes, shape, constants = CASES["conv"]
    graph = read_onnx(wide(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path))
    tensors = dict(graph.tensors)
    (name,) = (op.inputs[2] or "" for op in graph.ops if op.kind is OpKind.CONV_2D)
    tensors[name] = dataclasses.replace(tensors[name], data=np.full(4, 1 << 40, np.int64))
    with pytest.raises(UnsupportedOperator, match="32 bits"):
        read_tflite(write_tflite(dataclasses.replace(graph, tensors=tensors)))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_outputs_of_fixed_range_have_the_scale_that_the_kernels_demand(
    make_onnx: Callable[..., bytes], tmp_path: Path, name: str
) -> None:
    nodes, shape, constants = CASES[name]
    raw = parse(write_tflite(read_onnx(wide(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path))))
    (op,) = (op for op in raw.ops if op.name in ("SOFTMAX", "LOGISTIC"))
    result = raw.tensors[op.outputs[0]]
    assert result.dtype is DType.INT16
    assert result.quantization is not None
    assert (result.quantization.scale, result.quantization.zero_point) == (1 / 32768, 0)


MIXED: dict[str, Case] = {
    "convolutions": after_conv(make_node("Conv", ["t", "w2"], ["y"]), w2=reals(4, 4, 1, 1)),
    "add of two branches": after_conv(
        make_node("Conv", ["x", "w2"], ["u"]), make_node("Add", ["t", "u"], ["y"]), w2=reals(4, 3, 1, 1)
    ),
    "concat": after_conv(make_node("Concat", ["t", "x"], ["y"], axis=1)),
    "softmax": after_conv(make_node("Softmax", ["t"], ["y"], axis=1)),
    "average pool": after_conv(make_node("GlobalAveragePool", ["t"], ["y"])),
}


@pytest.mark.parametrize("name", MIXED)
def test_layers_of_int8_and_int16_meet_in_a_quantize(
    make_onnx: Callable[..., bytes], run_onnx: Runner, run_tflm: Runner, tmp_path: Path, name: str
) -> None:
    nodes, shape, constants = MIXED[name]
    inputs = inputs_for(shape)
    overrides = {"t": [{"quant_type": QuantType.QInt16, "symmetric": True}]}
    source = wide(make_onnx(nodes, shape, constants), inputs, tmp_path, overrides, int8=True)
    graph = read_onnx(source)
    assert (DType.INT8, DType.INT16) in types_of(graph, OpKind.CONV_2D)
    raw = parse(write_tflite(graph))
    computing = [op for op in raw.ops if op.name not in ("QUANTIZE", "DEQUANTIZE")]
    for op in computing:
        assert raw.tensors[op.inputs[0]].dtype is raw.tensors[op.outputs[0]].dtype, op.name
    assert any(raw.tensors[op.inputs[0]].dtype is DType.INT16 for op in computing)
    found = run_tflm(write_tflite(graph), inputs)
    np.testing.assert_allclose(found, run_onnx(source, inputs), rtol=1e-6, atol=coarsest_scale(graph) * 1.001)


def test_operators_without_an_int16_kernel_are_refused_by_name(make_onnx: Callable[..., bytes]) -> None:
    scales = ["scale", "zero"]
    nodes = [
        make_node("QuantizeLinear", ["x", *scales], ["a"]),
        make_node("DequantizeLinear", ["a", *scales], ["b"]),
        make_node("HardSwish", ["b"], ["c"]),
        make_node("QuantizeLinear", ["c", *scales], ["d"]),
        make_node("DequantizeLinear", ["d", *scales], ["e"]),
        make_node("Resize", ["e", "", "f"], ["g"], mode="linear", coordinate_transformation_mode="half_pixel"),
        make_node("QuantizeLinear", ["g", *scales], ["h"]),
        make_node("DequantizeLinear", ["h", *scales], ["y"]),
    ]
    constants = {"scale": np.float32(1e-3), "zero": np.int16(0), "f": np.asarray([1, 1, 2, 2], np.float32)}
    graph = read_onnx(make_onnx(nodes, (1, 3, 8, 8), constants, opset=21))
    with pytest.raises(UnsupportedOperator) as caught:
        write_tflite(graph)
    detail = "TFLite Micro has no int16 kernel"
    assert [(o.op, o.dtype, o.detail) for o in caught.value.operators] == [
        ("HARD_SWISH", "int16", detail),
        ("RESIZE_BILINEAR", "int16", detail),
    ]


def test_int16_off_zero_is_refused(make_onnx: Callable[..., bytes], tmp_path: Path) -> None:
    nodes, shape, constants = CASES["conv"]
    source = wide(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path)
    model = onnx.load_from_string(source)
    for tensor in model.graph.initializer:
        if tensor.name == "y_zero_point":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int16(5), tensor.name))
    with pytest.raises(UnsupportedOperator, match="zero point 0"):
        write_tflite(read_onnx(bytes(model.SerializeToString())))


def test_whoever_takes_no_int16_is_told_so(make_onnx: Callable[..., bytes], tmp_path: Path) -> None:
    nodes, shape, constants = CASES["conv"]
    source = wide(make_onnx(nodes, shape, constants), inputs_for(shape), tmp_path)
    with pytest.raises(UnsupportedOperator, match="int16"):
        read_onnx(source, wide=False)
    narrow = read_onnx(source, foreign=True, wide=False)
    assert DType.INT16 not in {
        narrow.tensor(o).dtype for op in narrow.ops for o in op.outputs if op.kind is not OpKind.FOREIGN
    }
