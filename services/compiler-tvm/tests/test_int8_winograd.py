"""Winograd's 3 x 3 convolutions: bit-exact to the reference, chosen by layer, as far as flash allows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, run_parts, zoo_model
from tflite_reference import Case

from tinymlaas_compiler_tvm import compile_model
from tinymlaas_compiler_tvm.certificates import certificate_message, image_bytes
from tinymlaas_compiler_tvm.compile import compile_graph
from tinymlaas_compiler_tvm.errors import OpUnsupported
from tinymlaas_compiler_tvm.int8 import winograd
from tinymlaas_compiler_tvm.int8.lowering import lower_graph
from tinymlaas_compiler_tvm.int8.operators import INT8_OPERATORS
from tinymlaas_compiler_tvm.native.assemble import Interface, assemble
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.parts import CompiledParts
from tinymlaas_compiler_tvm.prepare import numerics_of
from tinymlaas_compiler_tvm.target import machine_for
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_compiler_tvm.winograd_choice import Candidate, choose, estimate
from tinymlaas_modelkit.graph import Activation, OpKind

CPU = "cortex-m4"
SAME, VALID = (1, 1, 1, 1), (0, 0, 0, 0)


def start(rng: np.random.Generator, shape: tuple[int, ...], zero: int) -> Case:
    """A case with one random input `x`."""
    case = Case()
    case.activation("x", shape, 0.05, zero)
    case.values["x"] = rng.integers(-128, 128, shape)
    return case


def built(case: Case, layers: set[str], outputs: tuple[str, ...], cpu: str) -> CompiledParts:
    """The case's module with Winograd at the layers of those outputs."""
    target, graph = TARGETS[cpu], case.graph(("x",), outputs)
    machine = machine_for(target)
    settings = Way(graph, target, Options(objective="latency"), winograd=frozenset(layers)).settings("tflite")
    program = lower_graph(graph, machine, settings, INT8_OPERATORS)
    assert [step.kind for step in program.steps].count(winograd.STEP) == len(layers)

    def described(name: str, buffer: object) -> Interface:
        tensor = graph.tensor(name)
        return Interface(name, str(tensor.dtype), tensor.shape, 1.0, 0, tensor.nbytes, buffer)  # type: ignore[arg-type]

    inputs = [described("x", program.inputs[0])]
    described_outputs = [described(*pair) for pair in zip(outputs, program.outputs, strict=True)]
    return assemble(program, machine, target, inputs, described_outputs, numerics_of(graph, "tflite"), "-Os")


def assert_exact(case: Case, layers: set[str], outputs: tuple[str, ...] = ("y",), cpu: str = CPU) -> CompiledParts:
    """Run with every access checked, compare with the case's values."""
    parts = built(case, layers, outputs, cpu)
    got, run = run_parts(parts, cpu, [case.values["x"].astype(np.int8)])
    for name, value in zip(outputs, got, strict=True):
        np.testing.assert_array_equal(value, case.values[name].astype(np.int8))
    assert run.stack_peak_bytes <= parts.stack_bytes
    return parts


LAYERS = {
    "same": {"shape": (8, 8, 16), "channels": 16},
    "valid": {"shape": (8, 10, 8), "channels": 12, "pads": VALID},
    "odd sizes": {"shape": (5, 7, 4), "channels": 6},
    "valid, odd": {"shape": (7, 9, 20), "channels": 8, "pads": VALID},
    "one pixel": {"shape": (3, 3, 4), "channels": 4, "pads": VALID},
    "one column more": {"shape": (4, 5, 4), "channels": 4},
    "two columns more": {"shape": (3, 6, 4), "channels": 4},
    "three columns more": {"shape": (2, 7, 4), "channels": 4},
    "odd channels out": {"shape": (6, 6, 8), "channels": 5},
    "one channel out": {"shape": (5, 6, 4), "channels": 1},
    "padding on one side": {"shape": (5, 6, 8), "channels": 4, "pads": (0, 0, 1, 1)},
    "more padding": {"shape": (4, 3, 4), "channels": 4, "pads": (2, 2, 1, 2)},
    "64 channels": {"shape": (4, 4, 64), "channels": 4},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_the_reference(name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    settings = {"pads": SAME, **LAYERS[name]}
    case = start(rng, (1, *settings.pop("shape")), int(rng.integers(-128, 128)))
    case.convolution(rng, "x", "y", kind=OpKind.CONV_2D, kernel=(3, 3), **settings)
    assert_exact(case, {"y"})


@pytest.mark.parametrize(
    ("activation", "zero", "spread"),
    [
        (Activation.NONE, 3, 1.5),  # negative sums are rounded otherwise
        (Activation.RELU, -20, 1.5),  # a clamp above the least int8
        (Activation.RELU6, -128, 12.0),  # a shift a channel, and multipliers that leave no room for the factor 4
        (Activation.NONE, 0, 12.0),
    ],
)
def test_activations_and_scales_equal_the_reference(activation: Activation, zero: int, spread: float) -> None:
    rng = np.random.default_rng(zero + 200)
    case = start(rng, (1, 4, 6, 8), -7)
    case.convolution(
        rng, "x", "y", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=7, activation=activation,
        out_zero=zero, spread=spread,
    )  # fmt: skip
    assert_exact(case, {"y"})


def test_layers_work_in_place() -> None:
    rng = np.random.default_rng(11)
    case = start(rng, (1, 6, 8, 8), 9)
    case.convolution(rng, "x", "a", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=12)
    case.convolution(rng, "a", "b", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=12)
    case.convolution(rng, "b", "y", kind=OpKind.CONV_2D, kernel=(3, 3), pads=VALID, channels=7)
    parts = assert_exact(case, {"a", "b", "y"}, cpu="cortex-m7")
    assert {"a", "b", "y"} in [set(buffer.name.split("+")) for buffer in parts.certificate.buffers]


def test_layers_read_and_write_planes() -> None:
    rng = np.random.default_rng(12)
    case = start(rng, (1, 5, 8, 8), -128)
    case.convolution(rng, "x", "a", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=9)
    case.convolution(rng, "a", "b", kind=OpKind.CONV_2D, channels=8)
    case.convolution(rng, "b", "c", kind=OpKind.DEPTHWISE_CONV_2D, kernel=(3, 3), pads=SAME)
    case.convolution(rng, "c", "d", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=8)
    case.convolution(rng, "d", "y", kind=OpKind.DEPTHWISE_CONV_2D, kernel=(3, 3), pads=SAME)
    assert_exact(case, {"a", "d"}, cpu="cortex-m33")


class Ends(np.random.Generator):
    """Random integers from both ends of their range only."""

    def integers(self, low, high=None, size=None, *rest, **named):  # type: ignore[no-untyped-def]
        """As NumPy's."""
        return np.where(super().integers(0, 2, size) == 1, high - 1, low)


def test_sums_at_the_limit_do_not_overflow() -> None:
    case = start(np.random.default_rng(4), (1, 6, 4, 56), 0)
    (weights, *_) = Ends(np.random.PCG64(3)).integers(-127, 128, (4, 3, 3, 56))
    case.values["x"][:, :3, :3] = np.where(weights > 0, 127, -128)
    assert (weights * case.values["x"][:, :3, :3]).sum() > 0.97 * 2**23
    case.convolution(
        Ends(np.random.PCG64(3)), "x", "y", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=4,
        activation=Activation.NONE, out_zero=3,
    )  # fmt: skip
    assert np.abs(winograd.transformed(np.full((3, 3, 1), -128))).max() << 4 < 1 << 15
    assert_exact(case, {"y"})


def test_layers_whose_sums_may_pass_the_limit_are_refused() -> None:
    rng = Ends(np.random.PCG64(3))
    case = start(rng, (1, 3, 4, 64), 0)  # 9 * 64 * 127 * 128 is more than 2**23
    case.convolution(rng, "x", "y", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=2)
    with pytest.raises(OpUnsupported, match="23 bits"):
        built(case, {"y"}, ("y",), CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": (2, 2)},
        {"dilations": (2, 2), "pads": (2, 2, 2, 2)},
        {"kernel": (3, 1)},
        {"shape": (6, 6, 6)},
    ],
)
def test_other_forms_stay_as_they_are(settings: dict[str, object]) -> None:
    rng = np.random.default_rng(1)
    wanted = {"shape": (6, 6, 8), "kernel": (3, 3), "channels": 2, **settings}
    case = start(rng, (1, *wanted.pop("shape")), 0)  # type: ignore[misc]
    case.convolution(rng, "x", "y", kind=OpKind.CONV_2D, **wanted)  # type: ignore[arg-type]
    assert not winograd.suits(case.graph(("x",), ("y",)), case.ops[0])


def test_the_layers_that_save_most_a_byte_come_first_as_far_as_flash_goes() -> None:
    found = [Candidate("a", 1000, 10), Candidate("b", 900, 30), Candidate("c", 800, 4)]
    assert choose(found, None) == ["c", "a", "b"]
    assert choose(found, 44) == ["c", "a", "b"]
    assert choose(found, 43) == ["c", "a"]
    assert choose(found, 35) == ["c", "a"]
    assert choose(found, 34) == choose(found, 14) == ["c", "a"]
    assert choose([*found, Candidate("d", 90, 6)], 21) == ["c", "a", "d"]  # what is too large is passed over
    assert choose(found, 3) == choose(found, -5) == []


def test_small_images_and_pruned_weights_are_not_worth_it() -> None:
    assert estimate("y", 32, 32, 16, 16, 2304).saved > 500_000
    assert estimate("y", 32, 32, 16, 16, 230).saved < 0  # most weights are zero
    assert estimate("y", 1, 1, 64, 64, 36_864).saved < 0  # one pixel of the eight of two tiles
    assert estimate("y", 8, 8, 64, 64, 36_864).added > 64 * 64 * 23  # 16 halfwords for 9 bytes


def two_layers() -> Case:
    """A cheap layer of many weights after a dear one of few."""
    rng = np.random.default_rng(21)
    case = start(rng, (1, 16, 16, 8), -128)
    case.convolution(rng, "x", "a", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=16)
    case.convolution(rng, "a", "b", kind=OpKind.CONV_2D, kernel=(4, 4), strides=(4, 4), channels=32)
    case.convolution(rng, "b", "y", kind=OpKind.CONV_2D, kernel=(3, 3), pads=SAME, channels=32)
    return case


def test_latency_takes_the_layers_that_the_flash_holds_and_others_never() -> None:
    case = two_layers()
    graph = case.graph(("x",), ("y",))
    x = case.values["x"].astype(np.int8)

    def made(objective: str, flash: int) -> tuple[list[tuple[str, ...]], CompiledParts, int]:
        target = dataclasses.replace(TARGETS[CPU], flash_bytes=flash)
        parts = compile_graph(Way(graph, target, Options(objective=objective)))
        assert not flash or image_bytes(parts, certificate_message(parts)) <= flash
        got, run = run_parts(parts, CPU, [x], strict=False)
        np.testing.assert_array_equal(got[0], case.values["y"].astype(np.int8))
        layers = [step.nodes for step in parts.certificate.steps if step.operator == winograd.STEP]
        return layers, parts, run.instructions

    both, parts, fewest = made("latency", 0)
    assert both == [("node a",), ("node y",)]
    size = image_bytes(parts, certificate_message(parts))
    one, _, more = made("latency", size - 10_000)
    assert one == [("node a",)]
    none, parts, most = made("latency", size - 27_000)
    assert none == []
    assert fewest < more < most
    for objective in ("balanced", "flash", "ram"):
        assert made(objective, 0)[0] == []


def test_ic_is_bit_exact_with_fewer_instructions() -> None:
    x, expected = Samples("ic").int8[0]
    counts = []
    for objective in ("latency", "balanced"):
        parts = compile_model(zoo_model("ic", "int8_qdq"), TARGETS[CPU], {"objective": objective})
        outputs, run = run_parts(parts, CPU, [x], strict=False)
        np.testing.assert_array_equal(outputs[0].reshape(-1), expected.reshape(-1))
        counts.append(run.instructions)
    assert counts[0] < 0.62 * counts[1]
