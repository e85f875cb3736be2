"""Int8 zoo models: bit-exact to TFLite Micro on every target, inside the figures that the certificate states."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model

from tinymlaas_compiler_tvm import compile_model

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


def test_the_objective_flash_gives_the_smallest_payload_and_latency_the_fewest_instructions() -> None:
    figures = {}
    x, expected = Samples("kws").int8[0]
    for objective in ("flash", "balanced", "latency"):
        parts = compile_model(zoo_model("kws", "int8_qdq"), TARGETS["cortex-m4"], {"objective": objective})
        outputs, run = run_parts(parts, "cortex-m4", [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        figures[objective] = (len(parts.payload), run.instructions)
    assert figures["flash"][0] < figures["balanced"][0]
    assert figures["latency"][1] <= figures["balanced"][1] < figures["flash"][1]


def test_the_objective_ram_gives_the_smallest_arena() -> None:
    x, expected = Samples("ad").int8[0]
    arenas = {}
    for objective in ("balanced", "ram"):
        parts = compile_model(zoo_model("ad", "int8_qdq"), TARGETS["cortex-m4"], {"objective": objective})
        outputs, _ = run_parts(parts, "cortex-m4", [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        arenas[objective] = parts.arena_bytes
    assert arenas["ram"] < arenas["balanced"]
