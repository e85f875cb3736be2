"""Integer kernels on random data against the numpy reference, every memory access checked."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import CORTEX_M55, TARGETS, run_parts
from tflite_reference import Case

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_compiler_tvm.compile import compile_graph
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.graph import Activation, Op, OpKind

CPUS = ("cortex-m4", "cortex-m3", "cortex-m0plus", "rv32imc")
DSP_AND_PORTABLE = ("cortex-m4", "cortex-m3", "cortex-m0plus")


def assert_exact(case: Case, cpu: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **options: str) -> None:
    """Compile, run with every access checked, compare with the case's values."""
    target = TARGETS.get(cpu, CORTEX_M55)
    parts = compile_graph(Way(case.graph(inputs, outputs), target, Options(**options)))
    got, run = run_parts(parts, cpu, [case.values[name].astype(np.int8) for name in inputs])
    for name, value in zip(outputs, got, strict=True):
        np.testing.assert_array_equal(value, case.values[name].astype(np.int8))
    assert run.stack_peak_bytes <= parts.stack_bytes


def start(rng: np.random.Generator, shape: tuple[int, ...], zero: int = -128) -> Case:
    """A case with one random input `x`."""
    case = Case()
    case.activation("x", shape, 0.05, zero)
    case.values["x"] = rng.integers(-128, 128, shape)
    return case


CONVOLUTIONS = {
    "3x3 padded": {"shape": (6, 8, 8), "kernel": (3, 3), "pads": (1, 1, 1, 1), "channels": 8},
    "3x3 odd width": {"shape": (5, 7, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1), "channels": 6},
    "3 channels, stride 2": {
        "shape": (9, 9, 3),
        "kernel": (3, 3),
        "pads": (0, 0, 1, 1),
        "strides": (2, 2),
        "channels": 8,
    },
    "one channel in": {"shape": (13, 10, 1), "kernel": (10, 4), "pads": (4, 1, 5, 1), "strides": (2, 2), "channels": 8},
    "odd channels out": {"shape": (4, 4, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1), "channels": 5},
    "one channel out": {"shape": (4, 5, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1), "channels": 1},
    "pointwise": {"shape": (5, 5, 16), "channels": 12},
    "pointwise, stride 2": {"shape": (6, 6, 8), "channels": 16, "strides": (2, 2)},
    "pointwise, odd depth": {"shape": (3, 3, 7), "channels": 4},
    "dilated": {"shape": (9, 9, 4), "kernel": (3, 3), "pads": (2, 2, 2, 2), "dilations": (2, 2), "channels": 4},
    "asymmetric stride": {"shape": (8, 9, 4), "kernel": (3, 2), "strides": (2, 1), "channels": 4},
    "no padding": {"shape": (7, 6, 8), "kernel": (5, 3), "channels": 4},
    "window of the image": {"shape": (4, 3, 8), "kernel": (4, 3), "channels": 10},
    "1-d": {"shape": (1, 30, 4), "kernel": (1, 5), "pads": (0, 2, 0, 2), "channels": 8},
}


@pytest.mark.parametrize("cpu", DSP_AND_PORTABLE)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_the_reference(name: str, cpu: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    settings = dict(CONVOLUTIONS[name])
    case = start(rng, (1, *settings.pop("shape")), zero=int(rng.integers(-128, 20)))
    case.convolution(rng, "x", "y", kind=OpKind.CONV_2D, **settings)
    assert_exact(case, cpu, ("x",), ("y",))


@pytest.mark.parametrize("cpu", DSP_AND_PORTABLE)
@pytest.mark.parametrize(
    ("activation", "zero"),
    [
        (Activation.NONE, 3),
        (Activation.NONE, -128),
        (Activation.RELU, -20),
        (Activation.RELU6, -128),
        (Activation.RELU_N1_TO_1, 5),
    ],
)
@pytest.mark.parametrize("kind", [OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED])
def test_activations_and_zero_points_equal_the_reference(
    kind: OpKind, activation: Activation, zero: int, cpu: str
) -> None:
    rng = np.random.default_rng(zero + 200)
    shape = (1, 24) if kind is OpKind.FULLY_CONNECTED else (1, 5, 6, 8)
    case = start(rng, shape, zero=-7)
    pads = (1, 1, 1, 1) if kind is OpKind.DEPTHWISE_CONV_2D else (0, 0, 0, 0)
    kernel = (3, 3) if kind is OpKind.DEPTHWISE_CONV_2D else (1, 1)
    case.convolution(
        rng, "x", "y", kind=kind, kernel=kernel, pads=pads, channels=8, activation=activation, out_zero=zero
    )
    assert_exact(case, cpu, ("x",), ("y",))


@pytest.mark.parametrize("cpu", DSP_AND_PORTABLE)
def test_channels_of_very_different_scales_equal_the_reference(cpu: str) -> None:
    for kind in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED):
        for activation in (Activation.RELU, Activation.NONE):
            rng = np.random.default_rng(17)
            case = start(rng, (1, 16) if kind is OpKind.FULLY_CONNECTED else (1, 4, 4, 16))
            kernel, pads = ((3, 3), (1, 1, 1, 1)) if kind is OpKind.DEPTHWISE_CONV_2D else ((1, 1), (0, 0, 0, 0))
            case.convolution(
                rng, "x", "y", kind=kind, kernel=kernel, pads=pads, channels=16, activation=activation,
                out_zero=-128 if activation is Activation.RELU else 0, spread=12.0,
            )  # fmt: skip
            assert_exact(case, cpu, ("x",), ("y",))


DEPTHWISE = {
    "stride 1": {"shape": (6, 5, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "stride 1, wide": {"shape": (3, 18, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "stride 2, even": {"shape": (8, 8, 4), "kernel": (3, 3), "pads": (0, 0, 1, 1), "strides": (2, 2)},
    "stride 2, odd": {"shape": (7, 9, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)},
    "no padding": {"shape": (7, 6, 4), "kernel": (3, 3)},
    "tiny plane": {"shape": (1, 1, 8), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "column": {"shape": (9, 1, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "5x5": {"shape": (6, 7, 4), "kernel": (5, 5), "pads": (2, 2, 2, 2)},
    "dilated": {"shape": (7, 7, 4), "kernel": (3, 3), "pads": (2, 2, 2, 2), "dilations": (2, 2)},
    "multiplier 2": {"shape": (5, 5, 3), "kernel": (3, 3), "pads": (1, 1, 1, 1), "multiplier": 2},
    "one channel, multiplier 8": {"shape": (9, 6, 1), "kernel": (10, 8), "pads": (4, 3, 5, 4), "multiplier": 8},
    "asymmetric stride": {"shape": (8, 6, 4), "kernel": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 1)},
    "whole plane": {"shape": (4, 3, 8), "kernel": (4, 3)},
}


@pytest.mark.parametrize("cpu", DSP_AND_PORTABLE)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions_equal_the_reference(name: str, cpu: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    settings = dict(DEPTHWISE[name])
    case = start(rng, (1, *settings.pop("shape")), zero=int(rng.integers(-128, 20)))
    case.convolution(rng, "x", "y", kind=OpKind.DEPTHWISE_CONV_2D, **settings)
    assert_exact(case, cpu, ("x",), ("y",))


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("channels", [8, 12, 5])
def test_a_separable_block_works_in_place_over_planes(channels: int, cpu: str) -> None:
    rng = np.random.default_rng(channels)
    case = start(rng, (1, 10, 7, 1))
    case.convolution(rng, "x", "a", kind=OpKind.CONV_2D, kernel=(3, 3), pads=(1, 1, 1, 1), channels=8)
    case.convolution(rng, "a", "b", kind=OpKind.DEPTHWISE_CONV_2D, kernel=(3, 3), pads=(1, 1, 1, 1))
    case.convolution(rng, "b", "c", kind=OpKind.CONV_2D, channels=channels)
    case.convolution(rng, "c", "d", kind=OpKind.DEPTHWISE_CONV_2D, kernel=(3, 3), pads=(1, 1, 1, 1), strides=(2, 2))
    case.convolution(rng, "d", "y", kind=OpKind.CONV_2D, channels=4, activation=Activation.NONE, out_zero=9)
    assert_exact(case, cpu, ("x",), ("y",))


@pytest.mark.parametrize("cpu", DSP_AND_PORTABLE)
@pytest.mark.parametrize("shape", [(1, 7), (1, 40), (3, 12), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3, 4, 10])
def test_fully_connected_layers_equal_the_reference(shape: tuple[int, int], channels: int, cpu: str) -> None:
    rng = np.random.default_rng(channels * 100 + shape[1])
    case = start(rng, shape, zero=3)
    case.convolution(
        rng, "x", "y", kind=OpKind.FULLY_CONNECTED, channels=channels, per_channel=channels == 4,
        activation=Activation.NONE, out_zero=-5,
    )  # fmt: skip
    assert_exact(case, cpu, ("x",), ("y",))


@pytest.mark.parametrize("largest", [1, 5, 12, 40, 127])
@pytest.mark.parametrize("value", [-128, 127])
def test_sums_that_share_a_word_hold_the_largest_inputs(largest: int, value: int) -> None:
    rng = np.random.default_rng(largest)
    for kind, shape, kernel in ((OpKind.CONV_2D, (1, 4, 5, 8), (3, 2)), (OpKind.FULLY_CONNECTED, (1, 99), (1, 1))):
        case = start(rng, shape, zero=-3)
        x = np.where(rng.integers(0, 20, shape) == 0, -value, value)
        case.values["x"] = np.clip(x, -128, 127)
        case.convolution(
            rng,
            "x",
            "y",
            kind=kind,
            kernel=kernel,
            channels=14,
            activation=Activation.NONE,
            out_zero=2,
            largest=largest,
        )
        assert_exact(case, "cortex-m0plus", ("x",), ("y",))


def test_the_longest_chunk_of_a_dense_layer_stays_within_reach_of_its_loads() -> None:
    rng = np.random.default_rng(3)
    case = start(rng, (1, 128), zero=-3)
    case.convolution(rng, "x", "y", kind=OpKind.FULLY_CONNECTED, channels=14, activation=Activation.NONE, largest=1)
    assert_exact(case, "cortex-m0plus", ("x",), ("y",), objective="latency")


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("seed", range(4))
def test_addition_and_subtraction_equal_the_reference(seed: int, cpu: str) -> None:
    rng = np.random.default_rng(seed)
    for kind in (OpKind.ADD, OpKind.SUB):
        case = start(rng, (1, 4, 5, 3), zero=int(rng.integers(-128, 127)))
        scales = tuple(float(np.float32(s)) for s in rng.uniform(0.01, 0.2, 3))
        zeros = tuple(int(z) for z in rng.integers(-128, 128, 3))
        for name, scale, zero in zip("xzy", scales, zeros, strict=True):
            case.activation(name, (1, 4, 5, 3), scale, zero)
        case.values["z"] = rng.integers(-128, 128, (1, 4, 5, 3))
        sign = 1 if kind is OpKind.ADD else -1
        low, high = arithmetic.activation_range(Activation.RELU, scales[2], zeros[2])
        parameters = arithmetic.AddParameters.of(scales, zeros, low, high, sign)
        case.values["y"] = parameters.apply(case.values["x"], case.values["z"])
        case.ops.append(Op(kind, ("x", "z"), ("y",), {"activation": Activation.RELU}, "sum"))
        assert_exact(case, cpu, ("x", "z"), ("y",))


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("average", [True, False])
def test_pools_equal_the_reference(average: bool, cpu: str) -> None:
    rng = np.random.default_rng(3)
    case = start(rng, (1, 7, 6, 5), zero=4)
    x = case.values["x"]
    out = np.zeros((1, 4, 3, 5), np.int64)
    for i in range(4):
        for j in range(3):
            window = x[:, max(2 * i - 1, 0) : min(2 * i + 2, 7), max(2 * j - 1, 0) : min(2 * j + 2, 6)]
            count = window.shape[1] * window.shape[2]
            pooled = arithmetic.average_rounded(window.sum(axis=(1, 2)), count, -128, 127)
            out[:, i, j] = pooled if average else window.max(axis=(1, 2))
    case.values["y"] = out
    case.activation("y", out.shape, 0.05, 4)
    attributes = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "activation": Activation.NONE}
    kind = OpKind.AVERAGE_POOL_2D if average else OpKind.MAX_POOL_2D
    case.ops.append(Op(kind, ("x",), ("y",), attributes, "pool"))
    assert_exact(case, cpu, ("x",), ("y",))
