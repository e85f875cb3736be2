"""Float zoo models by way of TVM: within the declared tolerance of ONNX Runtime's outputs."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model

from tinymlaas_compiler_tvm import compile_model


@pytest.mark.parametrize("name", ["kws", "ad"])
def test_float_outputs_are_within_the_declared_tolerance_on_cortex_m4(name: str) -> None:
    parts = compile_model(zoo_model(name, "float"), TARGETS["cortex-m4"])
    assert parts.numerics.reference == "onnx"
    scale = max(float(np.abs(expected).max()) for _, expected in Samples(name).float)
    assert parts.numerics.relative == 1e-5
    assert 0 < parts.numerics.absolute <= 1e-5 * max(scale, 1.0)  # a softmax's range is 1
    for x, expected in Samples(name).float:  # near zero, sums that cancel differ most
        outputs, _ = run_parts(parts, "cortex-m4", [x], strict=False)
        np.testing.assert_allclose(
            outputs[0].reshape(-1), expected.reshape(-1), rtol=parts.numerics.relative, atol=parts.numerics.absolute
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ic", "vww"])
def test_larger_float_models_are_within_the_declared_tolerance(name: str) -> None:
    parts = compile_model(zoo_model(name, "float"), TARGETS["cortex-m4"])
    x, expected = Samples(name).float[0]
    outputs, _ = run_parts(parts, "cortex-m4", [x], strict=False)
    np.testing.assert_allclose(
        outputs[0].reshape(-1), expected.reshape(-1), rtol=parts.numerics.relative, atol=parts.numerics.absolute
    )


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m3", "rv32imc"])
def test_cores_without_an_fpu_compute_the_same(cpu: str) -> None:
    parts = compile_model(zoo_model("ad", "float"), TARGETS[cpu])
    x, expected = Samples("ad").float[0]
    outputs, _ = run_parts(parts, cpu, [x], strict=False)
    np.testing.assert_allclose(
        outputs[0].reshape(-1), expected.reshape(-1), rtol=parts.numerics.relative, atol=parts.numerics.absolute
    )


def test_a_float_module_stays_inside_its_arena_and_stack() -> None:
    parts = compile_model(zoo_model("ad", "float"), TARGETS["cortex-m4"])
    x, _ = Samples("ad").float[0]
    _, run = run_parts(parts, "cortex-m4", [x], strict=True)
    assert run.stack_peak_bytes <= parts.stack_bytes
