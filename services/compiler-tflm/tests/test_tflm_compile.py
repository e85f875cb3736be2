"""Compiling for TFLite Micro: payloads, memory figures, operators, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tflite_micro.python.tflite_micro import runtime

from tinymlaas_compiler_tflm import DoesNotFit, PayloadKind, TargetSpec, TargetUnsupported, check_model, compile_model
from tinymlaas_compiler_tflm.arena import estimate_32_bit
from tinymlaas_compiler_tflm.compile import numerics_of
from tinymlaas_compiler_tflm.interpreter import inspect
from tinymlaas_compiler_tflm.parts import CompiledParts, Method, Numerics, NumericsKind
from tinymlaas_modelkit.errors import UnsupportedOperator
from tinymlaas_modelkit.summary import ModelFormat, ModelSummary, Precision, TensorSpec

MODELS = ("kws", "ad", "ic", "vww", "sww")
FILES = {
    "int8.tflite": ModelFormat.TFLITE,
    "int8_qdq.onnx": ModelFormat.ONNX,
    "float.tflite": ModelFormat.TFLITE,
    "float.onnx": ModelFormat.ONNX,
}
# Arenas in use on a Cortex-M4 (32 bits) with the reference kernels of TFLite Micro, measured on MLPerf Tiny models.
CORTEX_M4 = {"kws": 22_772, "ic": 54_340, "vww": 100_660, "ad": 2_260}


def compiled(zoo: Path, model: str, file: str, kind: PayloadKind = PayloadKind.TFLITE) -> CompiledParts:
    return compile_model((zoo / model / f"{model}_{file}").read_bytes(), FILES[file], TargetSpec(), kind=kind)


@pytest.mark.parametrize(("model", "file"), list(itertools.product(MODELS, FILES)))
def test_each_model_compiles_and_runs_in_the_arena_that_is_claimed(zoo: Path, model: str, file: str) -> None:
    parts = compiled(zoo, model, file)
    interpreter = runtime.Interpreter.from_bytes(parts.payload, arena_size=parts.arena_bytes)
    with np.load(zoo / model / "samples.npz") as samples:
        suffix = "int8" if file.startswith("int8") else "float"
        given, expected = samples[f"input_{suffix}"][:2], samples[f"output_{suffix}"][:2]
    for sample, wanted in zip(given, expected, strict=True):
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        if suffix == "int8":
            np.testing.assert_array_equal(interpreter.get_output(0)[0], wanted)
        else:
            bound = {"rtol": parts.numerics.relative, "atol": parts.numerics.absolute}
            np.testing.assert_allclose(interpreter.get_output(0)[0], wanted, **bound)
            assert bound["rtol"] == 1e-5
            assert 0 < bound["atol"] <= 1e-5 * max(1.0, float(np.abs(expected).max()))
    assert parts.numerics.kind is (NumericsKind.BIT_EXACT if suffix == "int8" else NumericsKind.WITHIN_TOLERANCE)


@pytest.mark.parametrize(
    ("precision", "outputs", "claim"),
    [
        (Precision.INT8, ("int8",), Numerics(NumericsKind.BIT_EXACT)),
        (Precision.MIXED, ("int8",), Numerics(NumericsKind.WITHIN_LSB, lsb=2)),
        (Precision.MIXED, ("float32",), Numerics(NumericsKind.WITHIN_TOLERANCE, 1e-5, 32e-5)),
        (Precision.MIXED, ("int8", "float32"), Numerics(NumericsKind.WITHIN_TOLERANCE, 1e-5, 32e-5)),
        (Precision.FLOAT32, ("int64",), Numerics(NumericsKind.BIT_EXACT)),
    ],
)
def test_the_claim_is_of_a_class_that_the_outputs_types_can_have(
    precision: Precision, outputs: tuple[str, ...], claim: Numerics
) -> None:
    """IM-GOLD-003: else no module can be sealed."""
    made = tuple(TensorSpec(f"y{number}", dtype, (1, 4)) for number, dtype in enumerate(outputs))
    summary = ModelSummary(ModelFormat.TFLITE, precision, (), 0, 0, (), made)
    found = numerics_of(summary, 57.0)
    assert (found.kind, found.lsb, found.relative) == (claim.kind, claim.lsb, claim.relative)
    assert found.absolute == pytest.approx(claim.absolute)


def test_tflite_model_is_its_own_payload_byte_for_byte(zoo: Path) -> None:
    assert compiled(zoo, "kws", "int8.tflite").payload == (zoo / "kws" / "kws_int8.tflite").read_bytes()


def test_same_request_gives_the_same_parts(zoo: Path) -> None:
    assert compiled(zoo, "kws", "int8_qdq.onnx") == compiled(zoo, "kws", "int8_qdq.onnx")


def test_claimed_arena_is_the_smallest_that_works_to_one_step(zoo: Path) -> None:
    parts = compiled(zoo, "kws", "int8.tflite")
    report = inspect(parts.payload)
    assert parts.arena_bytes == max(report.smallest, report.total) == 24_272
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(parts.payload, arena_size=report.smallest - 16)


@pytest.mark.parametrize("model", CORTEX_M4)
def test_arena_for_32_bits_bounds_what_a_cortex_m4_used(zoo: Path, model: str) -> None:
    bounds = estimate_32_bit(inspect((zoo / model / f"{model}_int8.tflite").read_bytes()))
    assert bounds.lower <= CORTEX_M4[model] <= bounds.upper


def test_every_figure_says_how_it_was_obtained(zoo: Path) -> None:
    parts = compiled(zoo, "kws", "int8.tflite")
    arenas = {f.method: f for f in parts.figures if f.metric == "ARENA_BYTES"}
    assert arenas[Method.SIMULATED].value == parts.arena_bytes
    assert arenas[Method.SIMULATED].conditions["pointer_bytes"] == "8"
    estimated = arenas[Method.ESTIMATED]
    assert estimated.conditions["bound"] == "upper"
    assert int(estimated.conditions["lower_bytes"]) < estimated.value < parts.arena_bytes


def test_operators_are_exactly_those_of_the_file_with_versions(zoo: Path) -> None:
    operators = {o.name: (o.version, o.count) for o in compiled(zoo, "ic", "int8.tflite").operators}
    assert operators == {
        "ADD": (2, 3), "AVERAGE_POOL_2D": (2, 1), "CONV_2D": (3, 9), "FULLY_CONNECTED": (4, 1), "RESHAPE": (1, 1),
        "SOFTMAX": (2, 1),
    }  # fmt: skip


def test_hybrid_model_is_refused_as_unsupported_not_as_too_large(zoo: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="Hybrid models are not supported") as caught:
        compile_model((zoo / "kws" / "kws_hybrid.tflite").read_bytes(), ModelFormat.TFLITE, TargetSpec())
    assert caught.value.operators[0].op == "CONV_2D"
    assert ".cc" not in str(caught.value)


def test_operator_without_kernel_is_refused_by_name(one_operator: Callable[..., bytes]) -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        compile_model(one_operator("GELU"), ModelFormat.TFLITE, TargetSpec())
    assert [(o.op, o.count) for o in caught.value.operators] == [("GELU", 1)]


def test_target_without_the_interpreter_is_refused(zoo: Path) -> None:
    model = (zoo / "kws" / "kws_int8.tflite").read_bytes()
    with pytest.raises(TargetUnsupported) as caught:
        compile_model(model, ModelFormat.TFLITE, TargetSpec(runtimes=()))
    assert caught.value.metadata == {"constraint": "runtime", "value": "none"}


def test_target_whose_interpreter_lacks_an_operator_is_refused_with_its_name(zoo: Path) -> None:
    model = (zoo / "kws" / "kws_int8.tflite").read_bytes()
    linked = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "RESHAPE", "SOFTMAX")
    with pytest.raises(UnsupportedOperator) as caught:
        compile_model(model, ModelFormat.TFLITE, TargetSpec(runtimes=(("tflite-micro", linked),)))
    assert [o.op for o in caught.value.operators] == ["AVERAGE_POOL_2D"]


@pytest.mark.parametrize(
    ("region", "target"), [("ram", TargetSpec(ram_bytes=16_000)), ("flash", TargetSpec(flash_bytes=50_000))]
)
def test_target_that_is_too_small_is_refused_in_numbers(zoo: Path, region: str, target: TargetSpec) -> None:
    model = (zoo / "kws" / "kws_int8.tflite").read_bytes()
    with pytest.raises(DoesNotFit) as caught:
        compile_model(model, ModelFormat.TFLITE, target)
    need = {"ram": "24272", "flash": str(len(model))}[region]
    assert caught.value.metadata == {
        "region": region,
        "need": need,
        "have": str(target.ram_bytes or target.flash_bytes),
    }


@pytest.mark.parametrize("file", FILES)
def test_check_admits_what_compiles_with_estimates_only(zoo: Path, file: str) -> None:
    check = check_model((zoo / "kws" / f"kws_{file}").read_bytes(), FILES[file], TargetSpec())
    assert check.supported
    assert check.operators
    assert all(o.supported for o in check.operators)
    assert {f.method for f in check.figures} == {Method.ESTIMATED}


def test_check_tells_which_operators_are_refused_and_why(zoo: Path, one_operator: Callable[..., bytes]) -> None:
    check = check_model(one_operator("GELU"), ModelFormat.TFLITE, TargetSpec())
    assert not check.supported
    assert [(o.operator, o.supported) for o in check.operators] == [("GELU", False)]
    hybrid = check_model((zoo / "kws" / "kws_hybrid.tflite").read_bytes(), ModelFormat.TFLITE, TargetSpec())
    verdicts = {o.operator: o.supported for o in hybrid.operators}
    assert not hybrid.supported
    assert verdicts["CONV_2D"] is False
    assert verdicts["SOFTMAX"] is True


def test_check_of_a_small_target_keeps_the_error_that_compiling_would_end_with(zoo: Path) -> None:
    check = check_model((zoo / "kws" / "kws_int8.tflite").read_bytes(), ModelFormat.TFLITE, TargetSpec(ram_bytes=100))
    assert not check.supported
    assert isinstance(check.error, DoesNotFit)
