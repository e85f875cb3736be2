"""Models with int16 activations: from the file to the module, their budgets, and what is still computed on reals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model
from int16_cases import Wide, symmetric
from test_int16_kernels import assert_exact, separable

from tinymlaas_compiler_tvm import check_model, compile_model
from tinymlaas_compiler_tvm.certificates import certificate_message
from tinymlaas_modelkit.graph import Activation, DType, Graph, OpKind, Tensor
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx

M4 = TARGETS["cortex-m4"]


def widened(graph: Graph) -> Graph:
    """The same network with int16 activations: steps of 1/256 and no zero points, so that no value is cut off."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in graph.tensors.items():
        q = tensor.quantization
        if tensor.dtype is DType.INT8 and not tensor.is_constant and q is not None:
            tensors[name] = dataclasses.replace(tensor, dtype=DType.INT16, quantization=symmetric(q.scale / 128))
        else:
            tensors[name] = tensor
    for op in graph.ops:
        if op.kind is OpKind.SOFTMAX:
            tensors[op.outputs[0]] = dataclasses.replace(tensors[op.outputs[0]], quantization=symmetric(1 / 32768))
        if len(op.inputs) > 2 and op.inputs[2] is not None:
            bias = tensors[op.inputs[2]]
            q = bias.quantization
            assert bias.data is not None
            scaled = (
                None if q is None else dataclasses.replace(q, scales=(q.scales / np.float32(128)).astype(np.float32))
            )
            data = (np.asarray(bias.data).astype(np.int64) * 128).astype(np.int32)
            tensors[bias.name] = dataclasses.replace(bias, data=data, quantization=scaled)
    return dataclasses.replace(graph, tensors=tensors)


def kws() -> Graph:
    """The zoo's keyword spotter with int16 activations."""
    return widened(read_onnx(zoo_model("kws", "int8_qdq")))


def test_a_file_becomes_a_module_that_equals_tflite_micro_within_its_budget() -> None:
    graph = kws()
    parts = compile_model(write_onnx(graph), M4)
    case = Wide(np.random.default_rng(0), dict(graph.tensors), list(graph.ops))
    for x, _ in Samples("kws").int8[:3]:
        shape = graph.tensor(graph.inputs[0]).shape
        case.inputs[graph.inputs[0]] = ((x.astype(np.int16) - 83) * 128).reshape(shape)
        got, run = run_parts(parts, "cortex-m4", list(case.inputs.values()), strict=False)
        np.testing.assert_array_equal(got[0].reshape(-1), case.expected()[0].reshape(-1))
    narrow = compile_model(zoo_model("kws", "int8_qdq"), M4)
    assert run.instructions <= 3_600_000
    assert parts.arena_bytes <= 2 * narrow.arena_bytes
    assert len(parts.payload) <= len(narrow.payload)
    assert [tensor.dtype for tensor in (*parts.inputs, *parts.outputs)] == ["int16", "int16"]
    assert certificate_message(parts).arena_bytes == parts.arena_bytes


def small() -> Wide:
    """A padded convolution."""
    case = Wide(np.random.default_rng(5))
    case.given("x", (1, 6, 5, 4))
    case.layer("x", "y", OpKind.CONV_2D, kernel=(3, 3), pads=(1, 1, 1, 1), activation=Activation.RELU)
    return case


def test_a_check_tells_what_is_computed_on_int16() -> None:
    verdict = check_model(write_onnx(small().graph()), M4)
    assert verdict.supported
    assert {node.dtype for node in verdict.nodes if node.operator == "CONV_2D"} == {"int16"}


@pytest.mark.parametrize("objective", ["flash", "latency", "ram"])
def test_every_objective_gives_the_same_outputs(objective: str) -> None:
    case = Wide(np.random.default_rng(2))
    separable(case)
    assert_exact(case, "cortex-m4", objective=objective)


def test_another_rounding_is_computed_on_reals() -> None:
    parts = compile_model(write_onnx(small().graph()), M4, {"rounding": "onnx"})
    assert parts.numerics.reference == "onnx"
    assert not any("int16" in report.operator for report in parts.operators)


def test_an_operator_without_kernel_leaves_int16_to_reals_and_says_so() -> None:
    case = small()
    shape = case.tensors["y"].shape
    case.op(OpKind.LOGISTIC, ("y",), case.activation("z", shape, 1 / 32768))
    parts = compile_model(write_onnx(case.graph()), M4)
    assert "int16 is computed on reals" in parts.log[0]
    assert "LOGISTIC" in parts.log[0]
    assert parts.numerics.reference == "onnx"


def test_reals_at_the_border_leave_int16_to_reals_and_say_so() -> None:
    case = small()
    shape = case.tensors["y"].shape
    case.tensors["z"] = Tensor("z", shape, DType.FLOAT32)
    case.op(OpKind.DEQUANTIZE, ("y",), "z")
    parts = compile_model(write_onnx(case.graph()), M4)
    assert "int16 is computed on reals" in parts.log[0]
    assert parts.numerics.reference == "onnx"
