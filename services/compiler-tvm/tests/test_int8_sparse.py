"""Kernels that leave out single zeros: bit-exact at any share of zeros, chosen where they pay, and never in a dense model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model
from tflite_reference import Case

from tinymlaas_compiler_tvm import CompiledParts, compile, requant
from tinymlaas_compiler_tvm.compile import compile_graph
from tinymlaas_compiler_tvm.int8 import sparse
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.sparse import Cost
from tinymlaas_compiler_tvm.int8.sparse_streams import channel_stream, dense_stream, entries
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.graph import Activation, Graph, OpKind
from tinymlaas_modelkit.onnx_reader import read_onnx

M4 = TARGETS["cortex-m4"]
LAYERS = (OpKind.CONV_2D, OpKind.FULLY_CONNECTED)


def built(graph: Graph, cpu: str, objective: str = "balanced") -> CompiledParts:
    return compile_graph(Way(graph, TARGETS[cpu], Options(objective=objective)))


def sparse_steps(parts: CompiledParts) -> int:
    return sum(report.count for report in parts.operators if report.operator.endswith(sparse.SPARSE))


def assert_exact(parts: CompiledParts, case: Case, cpu: str) -> None:
    got, run = run_parts(parts, cpu, [case.values["x"].astype(np.int8)])
    np.testing.assert_array_equal(got[0], case.values["y"].astype(np.int8))
    assert run.stack_peak_bytes <= parts.stack_bytes


def convolutions(zeros: float, activation: Activation, out_zero: int, spread: float = 1.5) -> Case:
    """3 by 3 and pointwise, over planes and not, in place and growing, odd numbers of pixels and channels, strides."""
    rng = np.random.default_rng(int(100 * zeros))
    case = Case()
    case.activation("x", (1, 9, 7, 3), 0.05, -3)
    case.values["x"] = rng.integers(-128, 128, (1, 9, 7, 3))
    form = {"activation": activation, "out_zero": out_zero, "spread": spread}
    wide = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
    conv, depthwise = OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D
    case.convolution(rng, "x", "a", kind=conv, channels=20, zeros=zeros, **wide, **form)
    case.convolution(rng, "a", "b", kind=depthwise, **wide, **form)
    case.convolution(rng, "b", "c", kind=conv, channels=12, zeros=zeros, **form)
    case.convolution(rng, "c", "d", kind=depthwise, **wide, **form)
    case.convolution(rng, "d", "e", kind=conv, channels=33, zeros=zeros, **form)
    case.convolution(rng, "e", "f", kind=conv, channels=7, zeros=zeros, strides=(2, 2), **wide, **form)
    case.convolution(rng, "f", "y", kind=conv, channels=5, zeros=zeros, kernel=(2, 3), dilations=(2, 1), **form)
    return case


def fully_connected(zeros: float, depth: int, per_channel: bool) -> Case:
    rng = np.random.default_rng(depth)
    case = Case()
    case.activation("x", (2, depth), 0.05, 9)
    case.values["x"] = rng.integers(-128, 128, (2, depth))
    case.convolution(
        rng, "x", "y", kind=OpKind.FULLY_CONNECTED, channels=11, zeros=zeros, per_channel=per_channel, largest=60,
        activation=Activation.NONE if per_channel else Activation.RELU, out_zero=4 if per_channel else -128,
    )  # fmt: skip
    return case


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out zeros wherever that is possible, whether it pays or not."""
    monkeypatch.setattr(Cost, "better_than", lambda *_: True)
    monkeypatch.setattr(compile, "_better", lambda made, *_: made[0])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m3"])
def test_sparse_convolutions_equal_the_reference(cpu: str, zeros: float) -> None:
    signed = cpu == "cortex-m4" and zeros < 0.9
    case = convolutions(zeros, Activation.NONE if signed else Activation.RELU, 7 if signed else -128)
    parts = built(case.graph(("x",), ("y",)), cpu)
    assert sparse_steps(parts) == 5
    assert_exact(parts, case, cpu)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("cpu", ["rv32imc", "cortex-m0plus", "cortex-m33"])
def test_sparse_convolutions_equal_the_reference_on_other_cores(cpu: str) -> None:
    case = convolutions(0.8, Activation.NONE, 7)
    parts = built(case.graph(("x",), ("y",)), cpu)
    assert sparse_steps(parts) == 5
    assert_exact(parts, case, cpu)


@pytest.mark.usefixtures("always")
def test_sparse_channels_of_very_different_scales_equal_the_reference() -> None:
    for cpu in ("cortex-m4", "cortex-m3"):
        case = convolutions(0.7, Activation.NONE, 3, spread=12.0)
        parts = built(case.graph(("x",), ("y",)), cpu)
        assert sparse_steps(parts) > 0
        assert_exact(parts, case, cpu)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("depth", [31, 512, 600])
def test_sparse_fully_connected_layers_equal_the_reference(depth: int, zeros: float) -> None:
    for cpu in ("cortex-m4", "cortex-m3", "rv32imc" if zeros == 0.5 else "cortex-m0plus"):
        case = fully_connected(zeros, depth, per_channel=zeros in (0.0, 0.8))
        parts = built(case.graph(("x",), ("y",)), cpu)
        assert sparse_steps(parts) == 1
        assert_exact(parts, case, cpu)


@pytest.mark.parametrize("objective", ["balanced", "latency", "flash", "ram"])
def test_every_objective_is_exact_and_no_worse_than_without(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = convolutions(0.8, Activation.RELU, -128)
    graph = case.graph(("x",), ("y",))
    parts = built(graph, "cortex-m4", objective)
    assert_exact(parts, case, "cortex-m4")
    monkeypatch.setattr(sparse, "possible", lambda *_: False)
    others = built(graph, "cortex-m4", objective)
    if objective == "ram":
        ram = [each.arena_bytes + each.stack_bytes for each in (parts, others)]
        assert ram[0] <= ram[1]
        return
    assert sparse_steps(parts) > 0
    counts = [
        run_parts(each, "cortex-m4", [case.values["x"].astype(np.int8)])[1].instructions for each in (parts, others)
    ]
    assert counts[0] < counts[1] or objective == "flash"
    assert len(parts.payload) < len(others.payload) or objective != "flash"


def pruned(graph: Graph, share: float) -> Graph:
    """A graph whose layers' smallest weights are zero."""
    tensors = dict(graph.tensors)
    for op in graph.ops:
        if op.kind in LAYERS:
            tensor = tensors[str(op.inputs[1])]
            assert tensor.data is not None
            data = tensor.data.copy()
            order = np.argsort(np.abs(data.astype(np.int64)), axis=None, kind="stable")
            data.reshape(-1)[order[: int(share * data.size)]] = 0
            tensors[tensor.name] = dataclasses.replace(tensor, data=data)
    return dataclasses.replace(graph, tensors=tensors)


@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m3", "rv32imc"])
def test_a_pruned_model_takes_fewer_instructions_and_less_flash(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = pruned(read_onnx(zoo_model("kws", "int8_qdq")), 0.8)
    x, _ = Samples("kws").int8[0]
    parts = built(graph, cpu)
    monkeypatch.setattr(sparse, "possible", lambda *_: False)
    others = built(graph, cpu)
    got, run = run_parts(parts, cpu, [x], strict=False)
    expected, before = run_parts(others, cpu, [x], strict=False)
    np.testing.assert_array_equal(got[0], expected[0])
    assert run.instructions < 0.7 * before.instructions
    assert len(parts.payload) < 0.75 * len(others.payload)


@pytest.mark.parametrize("model", ["kws", "ad"])
def test_a_dense_model_stays_as_it_is(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read_onnx(zoo_model(model, "int8_qdq"))
    parts = built(graph, "cortex-m4")
    monkeypatch.setattr(sparse, "possible", lambda *_: False)
    assert built(graph, "cortex-m4").payload == parts.payload


def test_costs_are_weighed_by_the_objective() -> None:
    fast, small = Cost(100, 60), Cost(130, 40)
    assert fast.better_than(small, "latency")
    assert not fast.better_than(small, "flash")
    assert small.better_than(fast, "flash")
    assert small.better_than(fast, "balanced")
    assert not any(fast.better_than(fast, objective) for objective in ("latency", "flash", "balanced", "ram"))


def random_layer(zeros: float, channels: int, k: int) -> Layer:
    rng = np.random.default_rng(k)
    weights = np.where(rng.random((channels, k)) < zeros, 0, rng.integers(1, 100, (channels, k)))
    ones = np.ones(channels, np.int64)
    return Layer(weights, 5 * ones, requant.Fit(11 * ones, 10**6 * ones, ones, None), -128, 127)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.8, 0.99])
def test_estimated_bytes_are_those_of_the_streams(zeros: float) -> None:
    for channels, k in ((3, 1), (16, 64), (5, 300)):
        layer = random_layer(zeros, channels, k)
        matrix = sum(len(channel_stream(layer, channel)) for channel in range(channels))
        dense = sum(len(dense_stream(layer, channel, layer.uniform)) for channel in range(channels))
        assert sparse.matrix_cost(layer, 10).bytes == matrix
        assert sparse.dense_cost(layer, 1).bytes == dense


@pytest.mark.parametrize("family", ["dsp", "long"])
@pytest.mark.parametrize("objective", ["latency", "flash", "balanced"])
def test_zeros_are_left_out_where_there_are_many(objective: str, family: str) -> None:
    def pays(zeros: float) -> bool:
        layer = random_layer(zeros, 64, 64)
        return sparse.matrix_cost(layer, 125).better_than(sparse.other_matrix_cost(layer, 125, family), objective)

    assert [pays(zeros) for zeros in (0.0, 0.1, 0.6, 0.8, 0.95)] == [False, False, True, True, True]


def test_entries_give_back_the_row_and_bridge_wide_gaps() -> None:
    rng = np.random.default_rng(2)
    for zeros in (0.0, 0.5, 0.97, 1.0):
        row = np.where(rng.random(200) < zeros, 0, rng.integers(-127, 128, 200))
        again, place = np.zeros(200, np.int64), 0
        for gap, weight in entries(row):
            assert 0 <= gap < 16
            place += gap
            again[place] = weight
            place += 1
        np.testing.assert_array_equal(again, row)
