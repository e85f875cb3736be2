"""Operators that move values, against numpy, and elementwise operators against the TFLite Micro interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, run_parts
from tflite_reference import Case

from tinymlaas_compiler_tvm.compile import compile_graph
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.graph import Activation, Op, OpKind
from tinymlaas_modelkit.tflite_writer import write_tflite

SHAPE = (1, 4, 5, 6)


def outputs_of(case: Case, cpu: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> list[np.ndarray]:
    target = TARGETS[cpu]
    parts = compile_graph(Way(case.graph(inputs, outputs), target, Options()))
    got, _ = run_parts(parts, cpu, [case.values[name].astype(np.int8) for name in inputs])
    return got


def moved(kind: OpKind, attributes: Mapping[str, object], expected: list[np.ndarray], inputs: int = 1) -> None:
    case = Case()
    rng = np.random.default_rng(1)
    names = tuple("xz"[:inputs])
    for name in names:
        case.activation(name, SHAPE, 0.1, 7)
        case.values[name] = rng.integers(-128, 128, SHAPE)
    outs = tuple(f"y{i}" for i in range(len(expected)))
    for name, value in zip(outs, expected, strict=True):
        case.activation(name, value.shape, 0.1, 7)
    case.ops.append(Op(kind, names, outs, attributes, "move"))
    for got, value in zip(outputs_of(case, "cortex-m4", names, outs), expected, strict=True):
        np.testing.assert_array_equal(got, value)


def sample(inputs: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(-128, 128, SHAPE) for _ in range(inputs)]


@pytest.mark.parametrize("permutation", [(0, 3, 1, 2), (0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3)])
def test_transpose_moves_every_value(permutation: tuple[int, ...]) -> None:
    moved(OpKind.TRANSPOSE, {"permutation": permutation}, [sample()[0].transpose(permutation)])


def test_pad_fills_with_the_zero_point() -> None:
    paddings = ((0, 0), (1, 2), (0, 3), (0, 0))
    moved(OpKind.PAD, {"paddings": paddings}, [np.pad(sample()[0], paddings, constant_values=7)])


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concatenation_joins_along_the_axis(axis: int) -> None:
    attributes = {"axis": axis, "activation": Activation.NONE}
    moved(OpKind.CONCATENATION, attributes, [np.concatenate(sample(2), axis=axis)], inputs=2)


def test_slices_take_their_box() -> None:
    x = sample()[0]
    moved(OpKind.SLICE, {"begin": (0, 1, 2, 0), "size": (1, 2, 3, 4)}, [x[:, 1:3, 2:5, 0:4]])
    strided = {"begin": (0, 0, 1, 0), "end": (1, 4, 5, 6), "strides": (1, 2, 2, 3)}
    moved(OpKind.STRIDED_SLICE, strided, [x[:, ::2, 1:5:2, ::3]])


def test_split_gives_every_part() -> None:
    x = sample()[0]
    moved(OpKind.SPLIT, {"axis": 3, "sizes": (3, 3)}, [x[..., :3], x[..., 3:]])


def micro(case: Case, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> np.ndarray:
    """The TFLite Micro interpreter's output."""
    runtime = pytest.importorskip(
        "tflite_micro.python.tflite_micro.runtime", reason="the tflite-micro wheel is missing"
    )
    interpreter = runtime.Interpreter.from_bytes(write_tflite(case.graph(inputs, outputs)), arena_size=1 << 20)
    for index, name in enumerate(inputs):
        interpreter.set_input(case.values[name].astype(np.int8), index)
    interpreter.invoke()
    return interpreter.get_output(0)


def elementwise(
    kind: OpKind, attributes: Mapping[str, object], scale: float, zero: int, out: tuple[float, int]
) -> Case:
    case = Case()
    shape = (1, 4, 8, 8)
    case.activation("x", shape, scale, zero)
    case.values["x"] = np.arange(-128, 128).reshape(shape)
    case.activation("y", shape, *out)
    case.ops.append(Op(kind, ("x",), ("y",), attributes, "function"))
    return case


@pytest.mark.parametrize("scale", [0.004, 0.02, 0.11])
@pytest.mark.parametrize(
    ("kind", "attributes", "out"),
    [
        (OpKind.QUANTIZE, {}, (0.07, -3)),
        (OpKind.RELU, {}, (0.05, -128)),
        (OpKind.LEAKY_RELU, {"alpha": 0.1}, (0.06, -20)),
        (OpKind.SOFTMAX, {"beta": 1.0}, (1 / 256, -128)),
        (OpKind.LOGISTIC, {}, (1 / 256, -128)),
        (OpKind.TANH, {}, (1 / 128, 0)),
        (OpKind.HARD_SWISH, {}, (0.06, -100)),
    ],
)
def test_elementwise_operators_equal_tflite_micro(
    kind: OpKind, attributes: Mapping[str, object], out: tuple[float, int], scale: float
) -> None:
    case = elementwise(kind, attributes, scale, -11, out)
    np.testing.assert_array_equal(outputs_of(case, "cortex-m4", ("x",), ("y",))[0], micro(case, ("x",), ("y",)))


@pytest.mark.parametrize("scale", [0.02, 0.0235294, 0.11])
def test_relu6_equals_tflite_micro_where_scales_are_shared(scale: float) -> None:
    case = elementwise(OpKind.RELU6, {}, scale, -60, (scale, -60))
    np.testing.assert_array_equal(outputs_of(case, "cortex-m4", ("x",), ("y",))[0], micro(case, ("x",), ("y",)))


@pytest.mark.parametrize("kind", [OpKind.ADD, OpKind.SUB, OpKind.MUL])
@pytest.mark.parametrize("seed", range(3))
def test_binary_operators_equal_tflite_micro(kind: OpKind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case()
    for name in "xzy":
        case.activation(name, (1, 256, 16, 1), float(rng.uniform(0.02, 0.2)), int(rng.integers(-128, 128)))
    for name in "xz":
        case.values[name] = rng.integers(-128, 128, (1, 256, 16, 1))
    case.ops.append(Op(kind, ("x", "z"), ("y",), {"activation": Activation.NONE}, "binary"))
    got = outputs_of(case, "cortex-m4", ("x", "z"), ("y",))[0]
    np.testing.assert_array_equal(got, micro(case, ("x", "z"), ("y",)))


@pytest.mark.parametrize(
    ("kind", "attributes", "shape", "out_shape", "out"),
    [
        (OpKind.MEAN, {"axes": (1, 2), "keep_dims": True}, (1, 7, 5, 6), (1, 1, 1, 6), (0.013, 4)),
        (OpKind.MEAN, {"axes": (1, 2), "keep_dims": True}, (1, 8, 8, 64), (1, 1, 1, 64), (0.03, -9)),
        (OpKind.MEAN, {"axes": (3,), "keep_dims": True}, (1, 4, 5, 16), (1, 4, 5, 1), (0.02, -50)),
        (
            OpKind.RESIZE_NEAREST_NEIGHBOR,
            {"size": (9, 8), "align_corners": False, "half_pixel_centers": False},
            (1, 5, 4, 3), (1, 9, 8, 3), None,
        ),
        (
            OpKind.RESIZE_BILINEAR,
            {"size": (9, 8), "align_corners": False, "half_pixel_centers": True},
            (1, 5, 4, 3), (1, 9, 8, 3), None,
        ),
        (
            OpKind.RESIZE_BILINEAR,
            {"size": (9, 7), "align_corners": True, "half_pixel_centers": False},
            (1, 4, 5, 3), (1, 9, 7, 3), None,
        ),
    ],
)  # fmt: skip
def test_reductions_and_resizing_equal_tflite_micro(
    kind: OpKind,
    attributes: Mapping[str, object],
    shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    out: tuple[float, int] | None,
) -> None:
    case = Case()
    case.activation("x", shape, 0.04, -7)
    case.values["x"] = np.random.default_rng(3).integers(-128, 128, shape)
    case.activation("y", out_shape, *(out or (0.04, -7)))
    case.ops.append(Op(kind, ("x",), ("y",), attributes, "reduction"))
    np.testing.assert_array_equal(outputs_of(case, "cortex-m4", ("x",), ("y",))[0], micro(case, ("x",), ("y",)))


@pytest.mark.parametrize("kind", [OpKind.ADD, OpKind.SUB, OpKind.MUL])
@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (1, 6, 4, 1), (1, 6, 1, 5), (1, 1, 1, 1)])
def test_broadcasting_and_constants_equal_tflite_micro(kind: OpKind, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for constant in (False, True):
        case = Case()
        case.activation("x", (1, 6, 4, 5), 0.05, -3)
        case.activation("z", shape, 0.08, 11)
        case.activation("y", (1, 6, 4, 5), 0.11, -20)
        for name in "xz":
            case.values[name] = rng.integers(-128, 128, case.tensors[name].shape)
        if constant:
            case.tensors["z"] = dataclasses.replace(case.tensors["z"], data=case.values["z"].astype(np.int8))
        case.ops.append(Op(kind, ("x", "z"), ("y",), {"activation": Activation.NONE}, "binary"))
        names = ("x",) if constant else ("x", "z")
        np.testing.assert_array_equal(outputs_of(case, "cortex-m4", names, ("y",))[0], micro(case, names, ("y",)))


def test_a_transpose_of_five_dimensions_moves_every_value() -> None:
    case = Case()
    shape, order = (2, 3, 4, 3, 5), (4, 2, 0, 3, 1)
    case.activation("x", shape, 0.1, 7)
    case.values["x"] = np.random.default_rng(1).integers(-128, 128, shape)
    expected = case.values["x"].transpose(order)
    case.activation("y", expected.shape, 0.1, 7)
    case.ops.append(Op(OpKind.TRANSPOSE, ("x",), ("y",), {"permutation": order}, "move"))
    np.testing.assert_array_equal(outputs_of(case, "cortex-m4", ("x",), ("y",))[0], expected)
