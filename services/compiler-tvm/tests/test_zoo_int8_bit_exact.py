"""Int8 zoo models: bit-exact to TFLite Micro on every target, inside the figures that the certificate states."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model

from tinymlaas_compiler_tvm import compile_model
from tinymlaas_modelkit.graph import DType
from tinymlaas_modelkit.onnx_reader import read_onnx

MODELS = ("kws", "ic", "vww", "ad", "sww")


@pytest.mark.parametrize("name", MODELS)
def test_every_sample_is_bit_exact_on_cortex_m4(name: str) -> None:
    parts = compile_model(zoo_model(name, "int8_qdq"), TARGETS["cortex-m4"])
    for x, expected in Samples(name).int8:
        outputs, _ = run_parts(parts, "cortex-m4", [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))


@pytest.mark.parametrize("cpu", sorted(TARGETS))
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_is_bit_exact_with_every_access_checked(name: str, cpu: str) -> None:
    parts = compile_model(zoo_model(name, "int8_qdq"), TARGETS[cpu])
    x, expected = Samples(name).int8[1]
    strict = name in ("kws", "ad", "sww")
    outputs, run = run_parts(parts, cpu, [x], strict=strict)
    np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
    if strict:
        assert run.stack_peak_bytes <= parts.stack_bytes
        assert run.arena_high_water <= parts.arena_bytes


def test_kws_on_cortex_m4_keeps_its_budget() -> None:
    parts = compile_model(zoo_model("kws", "int8_qdq"), TARGETS["cortex-m4"])
    x, _ = Samples("kws").int8[0]
    _, run = run_parts(parts, "cortex-m4", [x], strict=False)
    assert len(parts.payload) <= 42_000
    assert parts.arena_bytes + parts.stack_bytes <= 9_200
    assert run.instructions <= 2_700_000


@pytest.mark.parametrize(
    ("name", "cpu", "instructions"),
    [
        ("kws", "cortex-m3", 5_000_000),
        ("ad", "cortex-m3", 400_000),
        ("kws", "cortex-m0plus", 7_700_000),
        ("ic", "cortex-m0plus", 31_380_000),
        ("ad", "cortex-m0plus", 717_000),
    ],
)
def test_cores_without_dsp_keep_their_budget(name: str, cpu: str, instructions: int) -> None:
    parts = compile_model(zoo_model(name, "int8_qdq"), TARGETS[cpu])
    x, _ = Samples(name).int8[0]
    _, run = run_parts(parts, cpu, [x], strict=False)
    assert run.instructions <= instructions


@pytest.mark.parametrize("name", ["kws", "ic", "vww", "ad"])
def test_code_and_tables_add_at_most_24_kilobytes_to_the_weights(name: str) -> None:
    model = zoo_model(name, "int8_qdq")
    tensors = read_onnx(model).tensors.values()
    weights = sum(tensor.nbytes for tensor in tensors if tensor.is_constant and tensor.dtype is DType.INT8)
    assert len(compile_model(model, TARGETS["cortex-m4"]).payload) <= weights + 24_000
