"""Operators alone, as ONNX nodes with their constants, and what quantizing and judging them takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import make_node
from onnxruntime.quantization import CalibrationDataReader

from tinymlaas_modelkit.graph import Graph

Array = npt.NDArray[Any]
Runner = Callable[[bytes, Array], Array]
Case = tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, Array]]

RNG = np.random.default_rng(7)
IMAGE = (1, 3, 8, 8)


def reals(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def conv(filter_shape: tuple[int, ...], shape: tuple[int, ...] = IMAGE, bias: bool = True, **attributes: Any) -> Case:
    constants = {"w": reals(*filter_shape)} | ({"b": reals(filter_shape[0])} if bias else {})
    return [make_node("Conv", ["x", *constants], ["y"], **attributes)], shape, constants


def after_conv(*nodes: onnx.NodeProto, shape: tuple[int, ...] = IMAGE, **constants: Array) -> Case:
    """Nodes that read `t`, the result of a convolution with four filters."""
    first = make_node("Conv", ["x", "w", "b"], ["t"], pads=[1, 1, 1, 1])
    return [first, *nodes], shape, {"w": reals(4, 3, 3, 3), "b": reals(4), **constants}


def alone(
    op: str, shape: tuple[int, ...] = IMAGE, constants: dict[str, Array] | None = None, **attributes: Any
) -> Case:
    constants = constants or {}
    return [make_node(op, ["x", *constants], ["y"], **attributes)], shape, constants


CASES: dict[str, Case] = {
    "conv": conv((4, 3, 3, 3), pads=[1, 1, 1, 1]),
    "conv without bias": conv((4, 3, 3, 3), bias=False),
    "conv with stride and padding that TFLite has no word for": conv((4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv dilated": conv((4, 3, 3, 3), dilations=[2, 2]),
    "conv SAME_LOWER": conv((4, 3, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv SAME_UPPER": conv((4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv grouped": conv((6, 2, 3, 3), (1, 4, 8, 8), group=2),
    "depthwise": conv((4, 1, 3, 3), (1, 4, 8, 8), group=4, pads=[1, 1, 1, 1]),
    "depthwise with multiplier": conv((8, 1, 3, 3), (1, 4, 8, 8), group=4),
    "conv in one dimension": conv((4, 3, 3), (1, 3, 16), pads=[1, 1]),
    "depthwise in one dimension": conv((3, 1, 3), (1, 3, 16), group=3),
    "conv and relu": after_conv(make_node("Relu", ["t"], ["y"])),
    "conv and clip to 6": after_conv(
        make_node("Clip", ["t", "low", "high"], ["y"]), low=np.float32(0), high=np.float32(6)
    ),
    "conv and batch normalization": after_conv(
        make_node("BatchNormalization", ["t", "gamma", "beta", "mean", "variance"], ["y"]),
        gamma=reals(4), beta=reals(4), mean=reals(4), variance=np.abs(reals(4)) + 0.5,
    ),
    "gemm": alone("Gemm", (1, 16), {"w": reals(5, 16), "b": reals(5)}, transB=1),
    "gemm not transposed": alone("Gemm", (1, 16), {"w": reals(16, 5), "b": reals(5)}),
    "matmul": alone("MatMul", (1, 16), {"w": reals(16, 5)}),
    "matmul of three dimensions and add": (
        [make_node("MatMul", ["x", "w"], ["t"]), make_node("Add", ["t", "b"], ["y"])],
        (1, 4, 16),
        {"w": reals(16, 5), "b": reals(5)},
    ),
    "flatten and gemm": after_conv(
        make_node("Flatten", ["t"], ["u"]), make_node("Gemm", ["u", "g", "c"], ["y"], transB=1),
        g=reals(5, 256) / 16, c=reals(5),
    ),
    "average pool": after_conv(make_node("AveragePool", ["t"], ["y"], kernel_shape=[2, 2], strides=[2, 2])),
    "average pool SAME": after_conv(
        make_node("AveragePool", ["t"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    ),
    "average pool with ceil": after_conv(
        make_node("AveragePool", ["t"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), shape=(1, 3, 7, 7)
    ),
    "max pool": after_conv(make_node("MaxPool", ["t"], ["y"], kernel_shape=[2, 2], strides=[2, 2])),
    "max pool padded": after_conv(
        make_node("MaxPool", ["t"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    ),
    "global average pool": after_conv(
        make_node("GlobalAveragePool", ["t"], ["u"]), make_node("Flatten", ["u"], ["y"])
    ),
    "global max pool": after_conv(make_node("GlobalMaxPool", ["t"], ["y"])),
    "reduce mean": after_conv(make_node("ReduceMean", ["t"], ["y"], axes=[2, 3], keepdims=0)),
    "add of two branches and relu": after_conv(
        make_node("Conv", ["x", "w2"], ["u"]), make_node("Add", ["t", "u"], ["v"]), make_node("Relu", ["v"], ["y"]),
        w2=reals(4, 3, 1, 1),
    ),
    "add of a constant": alone("Add", constants={"c": reals(3, 1, 1)}),
    "multiply by a constant": after_conv(make_node("Mul", ["t", "c"], ["y"]), c=reals(1, 4, 1, 1)),
    "subtract": after_conv(make_node("Conv", ["x", "w2"], ["u"]), make_node("Sub", ["t", "u"], ["y"]), w2=reals(4, 3, 1, 1)),
    "squeeze and excite": after_conv(
        make_node("GlobalAveragePool", ["t"], ["u"]), make_node("Sigmoid", ["u"], ["v"]), make_node("Mul", ["t", "v"], ["y"])
    ),
    "relu": alone("Relu"),
    "concat": after_conv(make_node("Concat", ["t", "x"], ["y"], axis=1)),
    "pad": alone("Pad", constants={"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    "reshape": after_conv(make_node("Reshape", ["t", "s"], ["y"]), s=ints(1, -1)),
    "reshape by computed shape": after_conv(
        make_node("Shape", ["t"], ["shape"]), make_node("Gather", ["shape", "zero"], ["batch"]),
        make_node("Concat", ["batch", "rest"], ["s"], axis=0), make_node("Reshape", ["t", "s"], ["y"]),
        zero=ints(0), rest=ints(-1),
    ),
    "squeeze and unsqueeze": (
        [make_node("Squeeze", ["x", "a"], ["t"]), make_node("Unsqueeze", ["t", "b"], ["y"])],
        (1, 3, 1, 8),
        {"a": ints(2), "b": ints(1)},
    ),
    "softmax": alone("Softmax", (1, 12), axis=-1),
    "softmax over channels": alone("Softmax", (1, 5, 4, 4), axis=1),
    "sigmoid": after_conv(make_node("Sigmoid", ["t"], ["y"])),
    "tanh": after_conv(make_node("Tanh", ["t"], ["y"])),
    "hard swish": after_conv(make_node("HardSwish", ["t"], ["y"])),
    "leaky relu": after_conv(make_node("LeakyRelu", ["t"], ["y"], alpha=0.1)),
    "transpose": after_conv(make_node("Transpose", ["t"], ["y"], perm=[0, 2, 3, 1])),
    "slice": after_conv(
        make_node("Slice", ["t", "s", "e", "a"], ["y"]), s=ints(1, 2), e=ints(3, 100), a=ints(1, 3)
    ),
    "slice with steps": after_conv(
        make_node("Slice", ["t", "s", "e", "a", "n"], ["y"]), s=ints(1, 0), e=ints(8, 100), a=ints(2, 3), n=ints(2, 3)
    ),
    "split": after_conv(
        make_node("Split", ["t", "s"], ["u", "v"], axis=1), make_node("Add", ["u", "v"], ["y"]), s=ints(2, 2)
    ),
    "split in unequal parts": after_conv(
        make_node("Split", ["t", "s"], ["u", "v"], axis=1), make_node("Concat", ["v", "u"], ["y"], axis=1), s=ints(1, 3)
    ),
    "resize nearest": after_conv(
        make_node(
            "Resize", ["t", "", "f"], ["y"],
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        ),
        f=np.asarray([1, 1, 2, 2], np.float32),
    ),
    "resize linear": after_conv(
        make_node("Resize", ["t", "", "f"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"),
        f=np.asarray([1, 1, 2, 2], np.float32),
    ),
}  # fmt: skip


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the samples to the quantizer."""

    def __init__(self, inputs: Array) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter([{"x": sample[None]} for sample in inputs])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def inputs_for(shape: tuple[int, ...]) -> Array:
    return (np.random.default_rng(11).normal(size=(4, *shape[1:])) * 2).astype(np.float32)


def coarsest_scale(graph: Graph) -> float:
    """The largest step of an activation: one rounding the other way shows as one such step at most."""
    scales = [t.quantization.scale for t in graph.tensors.values() if t.quantization is not None and not t.is_constant]
    return max(scales, default=0.0)
