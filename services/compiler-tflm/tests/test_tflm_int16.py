"""Models with int16 activations: compiled in TFLite's 16x8 mode, with what is claimed of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tflite_micro.python.tflite_micro import runtime

from tinymlaas_compiler_tflm import PayloadKind, TargetSpec, check_model, compile_model
from tinymlaas_compiler_tflm.parts import CompiledParts, Numerics, NumericsKind
from tinymlaas_modelkit.errors import UnsupportedOperator
from tinymlaas_modelkit.summary import ModelFormat

LARGEST = np.iinfo(np.int16).max


def wide(model: onnx.ModelProto, layers: int | None = None) -> bytes:
    """An int8 QDQ model with the activations of its first nodes, or of all, on int16: symmetric, over the same range."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    model.graph.initializer.append(numpy_helper.from_array(np.int16(0), "zero16"))
    makers = {output: node for node in model.graph.node for output in node.output}
    borders = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in borders:
        if node.input[0] in known or (layers is not None and _place(model, makers, node) >= layers):
            continue
        scale, zero = float(known[node.input[1]]), int(known[node.input[2]])
        step = max(-128 - zero, 127 - zero, key=abs) * scale / LARGEST
        if makers[node.input[0]].op_type == "Softmax":
            step = 1 / 32768
        name = f"{node.name}/scale16"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(abs(step)), name))
        node.input[1:] = [name, "zero16"]
    wide_borders = {value for node in borders if node.input[2] == "zero16" for value in (*node.input[:1], *node.output)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in wide_borders or value.name == "input":
            value.type.tensor_type.elem_type = onnx.TensorProto.INT16
    del model.graph.value_info[:]
    model.opset_import[0].version, model.ir_version = 21, 10
    return bytes(model.SerializeToString())


def _place(model: onnx.ModelProto, makers: dict[str, onnx.NodeProto], node: onnx.NodeProto) -> int:
    """The number of the QuantizeLinear that a node is, or whose result it reads; 0 at the model's input."""
    quantizing = [each.output[0] for each in model.graph.node if each.op_type == "QuantizeLinear"]
    name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    while name not in quantizing:
        if name not in makers:
            return 0
        name = makers[name].input[0]
    return 1 + quantizing.index(name)


@pytest.fixture(scope="module")
def kws(zoo: Path) -> bytes:
    return wide(onnx.load(zoo / "kws" / "kws_int8_qdq.onnx"))


@pytest.fixture(scope="module")
def parts(kws: bytes) -> CompiledParts:
    return compile_model(kws, ModelFormat.ONNX, TargetSpec())


def outputs(payload: bytes, arena: int, given: np.ndarray) -> np.ndarray:
    interpreter = runtime.Interpreter.from_bytes(payload, arena_size=arena)
    found = []
    for sample in given:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        found.append(np.array(interpreter.get_output(0))[0])
    return np.stack(found)


def test_model_runs_in_the_arena_that_is_claimed_and_is_nearer_to_the_float_model_than_in_int8(
    zoo: Path, parts: CompiledParts
) -> None:
    (given,), (result,) = parts.inputs, parts.outputs
    assert (given.dtype, given.zero_point) == ("int16", 0)
    assert (result.dtype, result.scale, result.zero_point) == ("int16", 1 / 32768, 0)
    assert parts.numerics == Numerics(NumericsKind.BIT_EXACT)
    assert given.scale is not None
    with np.load(zoo / "kws" / "samples.npz") as samples:
        steps = np.rint(samples["input_float"] / given.scale)
        expected = samples["output_float"]
        narrow = (samples["output_int8"].astype(float) + 128) / 256
    integers = np.clip(steps, -LARGEST - 1, LARGEST).astype(np.int16)
    found = outputs(parts.payload, parts.arena_bytes, integers) / 32768
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.square(found - expected).mean() < np.square(narrow - expected).mean() / 2


def test_operators_are_those_of_the_int8_model_in_versions_for_int16(parts: CompiledParts) -> None:
    assert {o.name: (o.version, o.count) for o in parts.operators} == {
        "AVERAGE_POOL_2D": (3, 1), "CONV_2D": (4, 5), "DEPTHWISE_CONV_2D": (5, 4), "FULLY_CONNECTED": (7, 1),
        "RESHAPE": (1, 1), "SOFTMAX": (3, 1),
    }  # fmt: skip


def test_layers_of_int16_and_int8_are_bit_exact_too(zoo: Path) -> None:
    mixed = wide(onnx.load(zoo / "kws" / "kws_int8_qdq.onnx"), layers=4)
    parts = compile_model(mixed, ModelFormat.ONNX, TargetSpec())
    assert parts.numerics == Numerics(NumericsKind.BIT_EXACT)
    assert [tensor.dtype for tensor in (*parts.inputs, *parts.outputs)] == ["int16", "int8"]
    versions = {(o.name, o.version) for o in parts.operators}
    assert {("CONV_2D", 3), ("CONV_2D", 4), ("QUANTIZE", 1)} <= versions


def test_static_firmware_gets_a_source_package(kws: bytes) -> None:
    package = compile_model(kws, ModelFormat.ONNX, TargetSpec(), kind=PayloadKind.SOURCE_PACKAGE)
    assert package.inputs[0].dtype == "int16"
    assert package.kind is PayloadKind.SOURCE_PACKAGE


def test_operator_without_an_int16_kernel_is_refused_by_name(kws: bytes) -> None:
    model = onnx.load_from_string(kws)
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.CopyFrom(onnx.helper.make_node("HardSwish", softmax.input, softmax.output, softmax.name))
    check = check_model(bytes(model.SerializeToString()), ModelFormat.ONNX, TargetSpec())
    assert not check.supported
    assert isinstance(check.error, UnsupportedOperator)
    refused = {o.operator: o.detail for o in check.operators if not o.supported}
    assert refused == {"HARD_SWISH": "TFLite Micro has no int16 kernel"}
