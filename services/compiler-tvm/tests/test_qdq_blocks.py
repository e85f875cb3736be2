"""Blocks of people's networks as QDQ ONNX: int8 kernels with islands of reals, against ONNX Runtime on a simulated Cortex-M4."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, run_parts
from qdq_models import BLOCKS, NAMES, quantized, reference

from tinymlaas_compiler_tvm import CompiledParts, OpUnsupported, check_model, compile_model
from tinymlaas_compiler_tvm.parts import Numerics


def largest_difference(data: bytes, parts: CompiledParts, cpu: str, shape: tuple[int, ...], samples: int) -> float:
    rng = np.random.default_rng(3)
    largest = 0.0
    for number in range(samples):
        x = rng.normal(size=shape).astype(np.float32)
        got, run = run_parts(parts, cpu, [x], strict=number == 0)
        want = reference(data, x)
        largest = max(largest, float(np.abs(got[0].reshape(want.shape) - want).max()))
        assert run.stack_peak_bytes <= parts.stack_bytes
    return largest


@pytest.mark.parametrize("name", NAMES)
def test_a_block_computes_what_onnx_runtime_does(name: str) -> None:
    model = BLOCKS[name]()
    data = quantized(model)
    parts = compile_model(data, TARGETS["cortex-m4"], {"rounding": "onnx"})
    assert (parts.numerics.kind, parts.numerics.reference) == (Numerics.WITHIN_TOLERANCE, "onnx")
    assert largest_difference(data, parts, "cortex-m4", model[1], 3) <= parts.numerics.absolute
    kinds = {step.operator for step in parts.certificate.steps}
    assert kinds & {"conv2d", "conv2d_pointwise", "dense", "depthwise", "transpose_conv"}, "weights must stay int8"


@pytest.mark.parametrize("name", ["mobilenet_v2", "sequence_conv"])
def test_purely_integer_blocks_give_the_same_bits(name: str) -> None:
    model = BLOCKS[name]()
    data = quantized(model)
    parts = compile_model(data, TARGETS["cortex-m4"], {"rounding": "onnx"})
    assert largest_difference(data, parts, "cortex-m4", model[1], 3) == 0.0


def test_cores_without_an_fpu_compute_a_mixed_graph_too() -> None:
    model = BLOCKS["mobilenet_v3"]()
    data = quantized(model)
    for cpu in ("cortex-m3", "rv32imc"):
        parts = compile_model(data, TARGETS[cpu], {"rounding": "onnx"})
        assert largest_difference(data, parts, cpu, model[1], 1) <= parts.numerics.absolute


def test_a_function_of_several_operators_becomes_one_table() -> None:
    model = BLOCKS["mobilenet_v3"]()
    parts = compile_model(quantized(model), TARGETS["cortex-m4"])
    assert "table" in {step.operator for step in parts.certificate.steps}


def test_what_no_path_takes_is_named_by_its_node() -> None:
    from onnx.helper import make_node

    nodes = [
        make_node("Conv", ["x", "w"], ["a"]),
        make_node("RandomUniformLike", ["a"], ["u"], name="odd"),
        make_node("Relu", ["u"], ["y"]),
    ]
    data = quantized((nodes, (1, 2, 3, 3), {"w": np.ones((2, 2, 1, 1), np.float32)}, ["Conv"]))
    with pytest.raises(OpUnsupported) as caught:
        compile_model(data, TARGETS["cortex-m4"])
    assert (caught.value.metadata["op"], caught.value.metadata["node"]) == ("RandomUniformLike", "odd")
    refused = [node for node in check_model(data, TARGETS["cortex-m4"]).nodes if not node.supported]
    assert [(node.operator, node.node, node.reason) for node in refused] == [
        ("RandomUniformLike", "odd", "OP_UNSUPPORTED")
    ]
