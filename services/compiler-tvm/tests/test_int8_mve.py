"""Cortex-M55: vector kernels are bit-exact in every form that the portable ones are tested in, and on the zoo's models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import test_int8_kernels as kernels
from compiler_tvm_bench import CORTEX_M55, Samples, run_parts, zoo_model
from test_int8_kernels import CONVOLUTIONS, DEPTHWISE, assert_exact, start

from tinymlaas_compiler_tvm import TargetSpec, arithmetic, compile_model
from tinymlaas_compiler_tvm.errors import TargetUnsupported
from tinymlaas_modelkit.graph import Activation, Op, OpKind
from tinymlaas_simulator import QEMU_PROGRAM, find_qemu

CPU = "cortex-m55"
needs_qemu = pytest.mark.skipif(find_qemu() is None, reason=f"{QEMU_PROGRAM} is not installed")


@needs_qemu
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_the_reference(name: str) -> None:
    kernels.test_convolutions_equal_the_reference(name, CPU)


@needs_qemu
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions_equal_the_reference(name: str) -> None:
    kernels.test_depthwise_convolutions_equal_the_reference(name, CPU)


@needs_qemu
@pytest.mark.parametrize("kind", [OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED])
@pytest.mark.parametrize(
    ("activation", "zero"), [(Activation.NONE, 3), (Activation.RELU6, -128), (Activation.RELU_N1_TO_1, 5)]
)
def test_activations_and_zero_points_equal_the_reference(kind: OpKind, activation: Activation, zero: int) -> None:
    kernels.test_activations_and_zero_points_equal_the_reference(kind, activation, zero, CPU)


@needs_qemu
def test_channels_of_very_different_scales_equal_the_reference() -> None:
    kernels.test_channels_of_very_different_scales_equal_the_reference(CPU)


@needs_qemu
@pytest.mark.parametrize("channels", [8, 5])
def test_a_separable_block_changes_its_layout_on_the_way(channels: int) -> None:
    kernels.test_a_separable_block_works_in_place_over_planes(channels, CPU)


@needs_qemu
@pytest.mark.parametrize(("shape", "channels"), [((1, 7), 1), ((1, 40), 10), ((3, 12), 4), ((1, 16), 8), ((1, 320), 3)])
def test_fully_connected_layers_equal_the_reference(shape: tuple[int, int], channels: int) -> None:
    kernels.test_fully_connected_layers_equal_the_reference(shape, channels, CPU)


@needs_qemu
@pytest.mark.parametrize("seed", range(2))
def test_addition_and_subtraction_equal_the_reference(seed: int) -> None:
    kernels.test_addition_and_subtraction_equal_the_reference(seed, CPU)


@needs_qemu
@pytest.mark.parametrize("shape", [(1, 5, 7, 12), (1, 3, 4, 6)])
def test_the_mean_of_an_image_equals_the_reference(shape: tuple[int, ...]) -> None:
    case = start(np.random.default_rng(5), shape, zero=4)
    _, height, width, channels = shape
    total = case.values["x"].sum(axis=(1, 2))
    case.values["y"] = arithmetic.average_rounded(total, height * width, -128, 127).reshape(1, 1, 1, channels)
    case.activation("y", (1, 1, 1, channels), 0.05, 4)
    attributes = {"kernel": (height, width), "strides": (height, width), "activation": Activation.NONE}
    case.ops.append(Op(OpKind.AVERAGE_POOL_2D, ("x",), ("y",), attributes, "pool"))
    assert_exact(case, CPU, ("x",), ("y",))


@needs_qemu
@pytest.mark.parametrize("average", [True, False])
def test_pools_equal_the_reference(average: bool) -> None:
    kernels.test_pools_equal_the_reference(average, CPU)


@needs_qemu
@pytest.mark.parametrize("depth", [304, 320, 593])
def test_deep_pointwise_layers_equal_the_reference(depth: int) -> None:
    rng = np.random.default_rng(depth)
    case = start(rng, (1, 3, 1, depth), zero=-3)
    case.convolution(rng, "x", "y", kind=OpKind.CONV_2D, channels=5)
    assert_exact(case, CPU, ("x",), ("y",))


# Model: most instructions, most bytes of arena and stack, in one module.
BUDGETS = {
    "kws": (760_000, 16_400),
    "ic": (2_300_000, 35_200),
    "vww": (2_300_000, 56_000),
    "ad": (44_000, 1_100),
    "sww": (240_000, 7_200),
}


@needs_qemu
@pytest.mark.parametrize("name", BUDGETS)
def test_zoo_models_are_bit_exact_within_their_budget(name: str) -> None:
    parts = compile_model(zoo_model(name, "int8_qdq"), CORTEX_M55)
    for index, (x, expected) in enumerate(Samples(name).int8[:2]):
        outputs, run = run_parts(parts, CPU, [x], strict=index == 0)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        instructions, ram = BUDGETS[name]
        assert run.instructions <= instructions
        assert parts.arena_bytes + parts.stack_bytes <= ram


@needs_qemu
@pytest.mark.parametrize("features", [(), ("fpu-sp",), ("mve",), ("mve", "fpu-sp")])
def test_each_set_of_features_is_bit_exact(features: tuple[str, ...]) -> None:
    target = dataclasses.replace(CORTEX_M55, features=("thumb2", "dsp", *features))
    parts = compile_model(zoo_model("ad", "int8_qdq"), target)
    x, expected = Samples("ad").int8[0]
    outputs, run = run_parts(parts, CPU, [x], strict=False)
    np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
    assert (run.instructions < 60_000) == ("mve" in features)


@needs_qemu
@pytest.mark.parametrize("name", ["ad"])
def test_float_models_are_within_the_declared_tolerance(name: str) -> None:
    parts = compile_model(zoo_model(name, "float"), CORTEX_M55)
    x, expected = Samples(name).float[0]
    outputs, _ = run_parts(parts, CPU, [x], strict=False)
    np.testing.assert_allclose(
        outputs[0].reshape(-1), expected.reshape(-1), rtol=parts.numerics.relative, atol=parts.numerics.absolute
    )


def test_an_isa_that_is_not_the_cpus_is_refused() -> None:
    with pytest.raises(TargetUnsupported):
        compile_model(zoo_model("ad", "int8_qdq"), TargetSpec(CPU, "armv8-m.main"))
