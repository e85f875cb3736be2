"""Channels that are constant whatever the input are not computed, and the outputs stay the same bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, run_parts, zoo_model
from tflite_reference import Case

from tinymlaas_compiler_tvm import compile_model
from tinymlaas_compiler_tvm.compile import compile_graph
from tinymlaas_compiler_tvm.int8.dead_channels import thinned
from tinymlaas_compiler_tvm.int8.lowering import Settings
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.target import machine_for
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.graph import Activation, OpKind

M4 = TARGETS["cortex-m4"]


def block(seed: int, out_zero: int, spread: float) -> Case:
    """Two separable blocks and a fully connected layer; most channels of a wide `spread` are too faint to move their output."""
    rng = np.random.default_rng(seed)
    case = Case()
    case.activation("x", (1, 6, 5, 3), 0.05, -128)
    case.values["x"] = rng.integers(-128, 128, (1, 6, 5, 3))
    relu = {"activation": Activation.RELU if out_zero == -128 else Activation.NONE, "out_zero": out_zero}
    pads = (1, 1, 1, 1)
    case.convolution(rng, "x", "a", kind=OpKind.CONV_2D, kernel=(3, 3), pads=pads, channels=16, spread=spread, **relu)
    case.convolution(rng, "a", "b", kind=OpKind.DEPTHWISE_CONV_2D, kernel=(3, 3), pads=pads, **relu)
    case.convolution(rng, "b", "c", kind=OpKind.CONV_2D, channels=24, spread=spread, **relu)
    case.convolution(rng, "c", "d", kind=OpKind.DEPTHWISE_CONV_2D, kernel=(3, 3), pads=pads, strides=(2, 2), **relu)
    case.convolution(rng, "d", "y", kind=OpKind.CONV_2D, channels=5, activation=Activation.NONE, out_zero=4)
    return case


@pytest.mark.parametrize("spread", [1.0, 30.0, 60.0])
@pytest.mark.parametrize("out_zero", [-128, 7])
@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m3"])
def test_outputs_stay_bit_exact(cpu: str, out_zero: int, spread: float) -> None:
    case = block(int(spread) + out_zero + 200, out_zero, spread)
    target = TARGETS[cpu]
    parts = compile_graph(Way(case.graph(("x",), ("y",)), target, Options()))
    got, _ = run_parts(parts, cpu, [case.values["x"].astype(np.int8)])
    np.testing.assert_array_equal(got[0], case.values["y"].astype(np.int8))


def test_faint_channels_go_in_groups_of_four_and_strong_ones_stay() -> None:
    settings = Settings()
    faint = block(3, -128, 60.0).graph(("x",), ("y",))
    after = thinned(faint, machine_for(M4), settings)
    assert after.ops == faint.ops
    for name in ("a", "b", "c", "d"):
        channels = after.tensor(name).shape[-1]
        assert channels % 4 == 0
        assert channels < faint.tensor(name).shape[-1]
    assert after.tensor("y").shape == faint.tensor("y").shape
    strong = block(3, -128, 1.0).graph(("x",), ("y",))
    assert thinned(strong, machine_for(M4), settings) is strong


def test_a_model_that_decay_has_thinned_costs_what_is_left_of_it() -> None:
    parts = compile_model(zoo_model("vww", "int8_qdq"), M4)
    assert len(parts.payload) < 80_000
