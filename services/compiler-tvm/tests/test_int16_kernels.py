"""int16 kernels bit-exact to TFLite Micro's interpreter: each form, on every core, with every memory access checked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from compiler_tvm_bench import CORTEX_M55, TARGETS, run_parts
from int16_cases import Wide

from tinymlaas_compiler_tvm import CompiledParts
from tinymlaas_compiler_tvm.compile import compile_graph
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.graph import Activation, Op, OpKind
from tinymlaas_simulator import QEMU_PROGRAM, find_qemu

CPUS = (
    "cortex-m4",
    "cortex-m3",
    "cortex-m0plus",
    "rv32imc",
    pytest.param(
        "cortex-m55", marks=pytest.mark.skipif(find_qemu() is None, reason=f"{QEMU_PROGRAM} is not installed")
    ),
)
SAME = {"pads": (1, 1, 1, 1), "kernel": (3, 3)}


def assert_exact(case: Wide, cpu: str, **options: str) -> CompiledParts:
    """Compile, run with every access checked, compare with TFLite Micro."""
    target = TARGETS.get(cpu, CORTEX_M55)
    graph = case.graph()
    parts = compile_graph(Way(graph, target, Options(**options)))
    assert (parts.numerics.kind, parts.numerics.reference) == ("BIT_EXACT", "tflite")
    got, run = run_parts(parts, cpu, list(case.inputs.values()))
    for name, value, wanted in zip(graph.outputs, got, case.expected(), strict=True):
        np.testing.assert_array_equal(value.reshape(-1), wanted.reshape(-1), err_msg=name)
        assert np.unique(wanted).size > 1, name
    assert run.stack_peak_bytes <= parts.stack_bytes
    assert run.arena_high_water <= parts.arena_bytes
    return parts


def convolutions(case: Wide) -> None:
    """Forms of CONV_2D, each with an input of its own."""
    forms = {
        "padded": ((6, 8, 8), {**SAME, "activation": Activation.RELU}),
        "odd depth, stride 2": ((9, 9, 3), {"kernel": (3, 3), "pads": (0, 0, 1, 1), "strides": (2, 2)}),
        "one channel in": ((13, 10, 1), {"kernel": (10, 4), "pads": (4, 1, 5, 1), "strides": (2, 2)}),
        "odd channels out": ((4, 5, 4), {**SAME, "channels": 5}),
        "one channel out": ((4, 5, 4), {**SAME, "channels": 1}),
        "pointwise": ((5, 5, 16), {"channels": 12, "per_channel": False}),
        "pointwise, stride 2": ((6, 6, 8), {"strides": (2, 2), "bias": False}),
        "dilated": ((9, 9, 4), {"kernel": (3, 3), "pads": (2, 2, 2, 2), "dilations": (2, 2)}),
        "window of the image": ((4, 3, 8), {"kernel": (4, 3), "channels": 10}),
        "1-d": ((1, 30, 4), {"kernel": (1, 5), "pads": (0, 2, 0, 2)}),
        "Relu6 within": ((4, 4, 6), {**SAME, "activation": Activation.RELU6}),
        "grouped": ((5, 4, 8), {**SAME, "groups": 2}),
        "wide spread": ((3, 3, 6), {"spread": 9.0}),
        "large multipliers": ((3, 4, 2), {"largest": 1, "loud": 30000.0}),
        "sums beyond 32 bits": ((3, 3, 64), {**SAME, "largest": 127, "channels": 2}),
    }
    for name, (shape, settings) in forms.items():
        case.given(f"{name}: x", (1, *shape), 2e-3 if name == "Relu6 within" else 3e-4)
        case.layer(f"{name}: x", f"{name}: y", OpKind.CONV_2D, **settings)
    weights = case.tensors["sums beyond 32 bits: y.w"].data
    assert weights is not None
    weights[:] = np.where(weights < 0, -127, 127)


def depthwise(case: Wide) -> None:
    """Forms of DEPTHWISE_CONV_2D, each with an input of its own."""
    forms = {
        "stride 1": ((6, 5, 4), {**SAME, "activation": Activation.RELU}),
        "stride 2": ((7, 9, 4), {**SAME, "strides": (2, 2)}),
        "no padding": ((7, 6, 4), {"kernel": (3, 3), "bias": False}),
        "5x5": ((6, 7, 2), {"kernel": (5, 5), "pads": (2, 2, 2, 2)}),
        "dilated": ((7, 7, 4), {"kernel": (3, 3), "pads": (2, 2, 2, 2), "dilations": (2, 2)}),
        "odd channels": ((5, 5, 3), SAME),
        "multiplier 2": ((5, 5, 3), {**SAME, "multiplier": 2}),
        "tiny plane": ((1, 1, 8), SAME),
        "column": ((9, 1, 4), {"kernel": (3, 1), "pads": (1, 0, 1, 0)}),
        "large multipliers": ((4, 4, 2), {**SAME, "largest": 1, "loud": 30000.0}),
    }
    for name, (shape, settings) in forms.items():
        case.layer(case.given(f"{name}: x", (1, *shape)), f"{name}: y", OpKind.DEPTHWISE_CONV_2D, **settings)


def dense(case: Wide) -> None:
    """Fully connected layers."""
    forms = {
        "words": ((1, 40), {"channels": 10}),
        "one k": ((1, 1), {"channels": 3}),
        "rows": ((3, 12), {"channels": 4, "per_channel": False, "bias": False}),
        "odd rows": ((3, 7), {"channels": 5, "activation": Activation.RELU}),
        "sums beyond 32 bits": ((1, 600), {"channels": 3}),
    }
    for name, (shape, settings) in forms.items():
        case.layer(case.given(f"{name}: x", shape), f"{name}: y", OpKind.FULLY_CONNECTED, **settings)
    weights = case.tensors["sums beyond 32 bits: y.w"].data
    assert weights is not None
    weights[:] = np.where(weights < 0, -127, 127)


def without_weights(case: Wide) -> None:
    """Sums, products, pools, softmax."""
    shape = (1, 5, 6, 4)
    for kind, scale, activation in (
        (OpKind.ADD, 5e-4, Activation.NONE),
        (OpKind.ADD, 2e-4, Activation.RELU),
        (OpKind.SUB, 6e-4, Activation.NONE),
        (OpKind.MUL, 4e-3, Activation.NONE),
    ):
        name = f"{kind} {scale}"
        a, b = case.given(f"{name}: a", shape, 3e-4), case.given(f"{name}: b", shape, 1.7e-4)
        case.op(kind, (a, b), case.activation(f"{name}: y", shape, scale), activation=activation)
    for kind, pads in ((OpKind.AVERAGE_POOL_2D, (0, 0, 1, 0)), (OpKind.MAX_POOL_2D, (0, 0, 1, 0))):
        out = case.activation(f"{kind}: y", (1, 3, 3, 4))
        attributes = {"kernel": (2, 2), "strides": (2, 2), "pads": pads, "activation": Activation.NONE}
        case.op(kind, (case.given(f"{kind}: x", shape),), out, **attributes)
    out = case.activation("whole: y", (1, 1, 1, 4))
    attributes = {"kernel": (5, 6), "strides": (5, 6), "pads": (0, 0, 0, 0), "activation": Activation.NONE}
    case.op(OpKind.AVERAGE_POOL_2D, (case.given("whole: x", shape),), out, **attributes)
    for kind, scale in ((OpKind.RELU, 3e-4), (OpKind.RELU, 1.1e-4), (OpKind.RELU6, 3e-4)):
        name = f"{kind} {scale}"
        case.op(kind, (case.given(f"{name}: x", shape),), case.activation(f"{name}: y", shape, scale))
    for scale in (1e-5, 3e-4, 2e-2):
        name = f"softmax {scale}"
        case.op(
            OpKind.SOFTMAX,
            (case.given(f"{name}: x", (5, 12), scale),),
            case.activation(f"{name}: y", (5, 12), 1 / 32768),
            beta=1.0,
        )


def moving(case: Wide) -> None:
    """Operators that move values, and means."""
    case.given("x", (1, 4, 5, 6))
    case.op(OpKind.TRANSPOSE, ("x",), case.activation("turned", (1, 6, 4, 5)), permutation=(0, 3, 1, 2))
    paddings = ((0, 0), (1, 0), (0, 2), (0, 0))
    case.op(OpKind.PAD, ("x",), case.activation("padded", (1, 5, 7, 6)), paddings=paddings)
    case.given("z", (1, 4, 5, 3))
    case.op(
        OpKind.CONCATENATION, ("x", "z"), case.activation("joined", (1, 4, 5, 9)), axis=3, activation=Activation.NONE
    )
    case.op(OpKind.SLICE, ("x",), case.activation("cut", (1, 2, 5, 3)), begin=(0, 1, 0, 2), size=(1, 2, 5, 3))
    parts = tuple(case.activation(name, (1, 4, 5, 2)) for name in ("first", "second", "third"))
    case.ops.append(Op(OpKind.SPLIT, ("x",), parts, {"axis": 3, "sizes": (2, 2, 2)}, "node split"))
    case.op(OpKind.MEAN, ("x",), case.activation("mean", (1, 1, 1, 6), 2e-4), axes=(1, 2), keep_dims=True)
    case.op(OpKind.MEAN, ("x",), case.activation("other mean", (1, 4, 6), 3e-4), axes=(2,), keep_dims=False)


def separable(case: Wide) -> None:
    """A network of layers that work in place, one after the other."""
    case.given("x", (1, 9, 10, 1))
    case.layer("x", "a", OpKind.CONV_2D, **SAME, channels=8, activation=Activation.RELU)
    case.layer("a", "b", OpKind.DEPTHWISE_CONV_2D, **SAME, activation=Activation.RELU)
    case.layer("b", "c", OpKind.CONV_2D, channels=8, activation=Activation.RELU)
    case.layer("c", "d", OpKind.CONV_2D, **SAME, channels=8, activation=Activation.RELU)
    case.op(OpKind.ADD, ("b", "d"), case.activation("e", (1, 9, 10, 8), case.scale("d")), activation=Activation.NONE)
    case.layer("e", "f", OpKind.CONV_2D, **SAME, strides=(2, 2), channels=6)
    case.op(OpKind.RESHAPE, ("f",), case.activation("g", (1, 150), case.scale("f")), shape=(1, 150))
    case.layer("g", "y", OpKind.FULLY_CONNECTED, channels=12)


def mixed(case: Wide) -> None:
    """Layers of int8 between layers of int16, and the other way round."""
    case.given("x", (1, 6, 7, 4))
    case.layer("x", "a", OpKind.CONV_2D, **SAME, channels=8, activation=Activation.RELU, loud=40.0, narrow=True)
    case.layer("a", "b", OpKind.DEPTHWISE_CONV_2D, **SAME, loud=40.0, narrow=True)
    case.layer("b", "c", OpKind.CONV_2D, channels=8)
    case.layer("c", "d", OpKind.DEPTHWISE_CONV_2D, **SAME)
    case.layer("d", "e", OpKind.CONV_2D, channels=4, loud=40.0, narrow=True)
    case.layer("e", "y", OpKind.CONV_2D, channels=4, loud=40.0, narrow=True)
    case.op(OpKind.QUANTIZE, ("d",), case.activation("z", (1, 6, 7, 8), 9e-4))


GROUPS: tuple[Callable[[Wide], None], ...] = (convolutions, depthwise, dense, without_weights, moving, separable, mixed)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("build", GROUPS, ids=lambda build: build.__name__)
def test_int16_equals_tflite_micro(build: Callable[[Wide], None], cpu: str) -> None:
    case = Wide(np.random.default_rng(len(build.__name__)))
    build(case)
    assert_exact(case, cpu)
