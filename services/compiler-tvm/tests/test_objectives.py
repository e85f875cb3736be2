"""Objectives trade speed, flash and RAM; the table that the tests print (`pytest -s`) shows each trade."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model
from tflite_reference import Case

from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_compiler_tvm import DoesNotFit, compile_model
from tinymlaas_compiler_tvm.compile import compile_graph, tuned
from tinymlaas_compiler_tvm.fitting import compile_to_fit
from tinymlaas_compiler_tvm.int8.variants import shipped, signature
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.target import machine_for
from tinymlaas_compiler_tvm.tune import Figures
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.graph import OpKind
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_pluginkit import CompileJob

CPU = "cortex-m4"
OBJECTIVES = ("latency", "balanced", "flash", "ram")


@functools.cache
def figures(model: str) -> dict[str, Figures]:
    """Each objective's figures, after a check that the outputs are the same."""
    x, expected = Samples(model).int8[0]
    found = {}
    for objective in OBJECTIVES:
        parts = compile_model(zoo_model(model, "int8_qdq"), TARGETS[CPU], {"objective": objective})
        outputs, run = run_parts(parts, CPU, [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        found[objective] = Figures(run.instructions, len(parts.payload), parts.arena_bytes + parts.stack_bytes)
    print(f"\n{model} on {CPU}    instructions   payload B   arena + stack B")
    for objective, each in found.items():
        print(f"  {objective:10}{each.instructions:16,}{each.payload_bytes:12,}{each.ram_bytes:12,}")
    return found


@pytest.mark.parametrize("cpu", ["cortex-m3", "cortex-m4", "rv32imc"])
def test_latency_never_loses_to_balanced(cpu: str) -> None:
    x, expected = Samples("sww").int8[0]
    counts = []
    for objective in ("latency", "balanced"):
        parts = compile_model(zoo_model("sww", "int8_qdq"), TARGETS[cpu], {"objective": objective})
        outputs, run = run_parts(parts, cpu, [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        counts.append(run.instructions)
    assert counts[0] <= counts[1]


@pytest.mark.parametrize("model", ["kws", "ad"])
def test_each_objective_is_the_best_at_what_it_names(model: str) -> None:
    found = figures(model)
    assert found["latency"].instructions == min(each.instructions for each in found.values())
    assert found["flash"].payload_bytes == min(each.payload_bytes for each in found.values())
    assert found["ram"].ram_bytes == min(each.ram_bytes for each in found.values())


def test_the_objectives_are_worth_having() -> None:
    kws, ad = figures("kws"), figures("ad")
    assert kws["latency"].instructions < kws["flash"].instructions
    assert kws["flash"].payload_bytes < kws["latency"].payload_bytes
    assert ad["ram"].ram_bytes < ad["latency"].ram_bytes


@pytest.mark.parametrize("objective", ["latency", "flash"])
def test_a_search_never_ends_worse_than_it_began_and_tells_its_progress(objective: str) -> None:
    rng = np.random.default_rng(5)
    case = Case()
    case.activation("x", (1, 64), 0.05, -128)
    case.values["x"] = rng.integers(-128, 128, (1, 64))
    case.convolution(rng, "x", "y", kind=OpKind.FULLY_CONNECTED, channels=16)
    graph, target = case.graph(("x",), ("y",)), TARGETS[CPU]
    options = Options(objective=objective, tune=1)
    told: list[float] = []
    chosen, parts = tuned(Way(graph, target, options), lambda _, share: told.append(share))
    plain = compile_graph(Way(graph, target, Options(objective=objective)))
    got, run = run_parts(parts, CPU, [case.values["x"].astype(np.int8)])
    np.testing.assert_array_equal(got[0], case.values["y"].astype(np.int8))
    _, before = run_parts(plain, CPU, [case.values["x"].astype(np.int8)])
    cost = Figures(run.instructions, len(parts.payload), 0).cost(objective)
    assert cost <= Figures(before.instructions, len(plain.payload), 0).cost(objective)
    assert told == sorted(told)
    assert len(told) == 2
    assert any(line.startswith("tune 1:") for line in parts.log)
    again = compile_graph(Way(graph, target, Options(objective=objective), chosen))
    assert again.payload == parts.payload


def test_the_shipped_database_knows_the_shapes_of_the_zoo() -> None:
    graph = read_onnx(zoo_model("ad", "int8_qdq"))
    known = shipped(machine_for(TARGETS[CPU]), "balanced")
    layers = [op for op in graph.ops if op.kind is OpKind.FULLY_CONNECTED]
    assert any(signature(graph, op) in known for op in layers)


def test_the_log_states_the_arena_beside_its_lower_bound() -> None:
    parts = compile_model(zoo_model("ad", "int8_qdq"), TARGETS[CPU])
    (line,) = [line for line in parts.log if line.startswith("arena ")]
    assert f"lower bound {parts.certificate.arena_lower_bound} B (no plan is smaller)" in line


def test_balanced_gives_up_speed_layer_by_layer_where_flash_is_short(tmp_path: Path) -> None:
    target = target_pb2.Target(cpu="cortex-m0plus", isa="armv6-m", features=["thumb2"])
    regions = ((target_pb2.MemoryRegion.KIND_RAM, 32 << 10), (target_pb2.MemoryRegion.KIND_FLASH, 43_520))
    for kind, size in regions:
        target.memory_regions.add(kind=kind, total_bytes=size)
    job = CompileJob(
        zoo_model("kws", "int8_qdq"),
        tensor_pb2.MODEL_FORMAT_ONNX,
        target,
        {"objective": "balanced"},
        target_pb2.PAYLOAD_KIND_NATIVE,
        tmp_path,
    )
    x, expected = Samples("kws").int8[0]
    counts = []
    for flash, kept in ((41_500, "0 of 5"), (43_520, "2 of 5"), (46_500, "5 of 5")):
        target.memory_regions[1].total_bytes = flash
        made = compile_to_fit(job)
        assert f"objective flash but for {kept} layers" in made.parts.log[0]
        assert made.image_bytes <= flash
        outputs, run = run_parts(made.parts, "cortex-m0plus", [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        counts.append(run.instructions)
    assert counts[0] > counts[1] > counts[2]
    target.memory_regions[1].total_bytes = 43_520
    with pytest.raises(DoesNotFit):  # what was asked for is not overruled
        compile_to_fit(dataclasses.replace(job, options={"objective": "latency"}))
    target.memory_regions[1].total_bytes = 20_000
    with pytest.raises(DoesNotFit):
        compile_to_fit(job)
