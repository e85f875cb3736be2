"""Small models that people's networks are made of, quantized by ONNX Runtime's static quantizer, and their reference run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.helper import make_node as node
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

Array = npt.NDArray[np.generic]
Model = tuple[list[NodeProto], tuple[int, ...], Mapping[str, Array], list[str] | None]
_RNG = np.random.default_rng(11)


def reals(*shape: int, spread: float = 1.0) -> Array:
    """Normally distributed weights."""
    return (_RNG.normal(size=shape) * spread).astype(np.float32)


def _real(value: float) -> Array:
    return np.float32(value)  # type: ignore[return-value]


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(1)
        self.samples = iter([{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.samples, None)  # type: ignore[arg-type]


def quantized(model: Model) -> bytes:
    """The QDQ int8 file of a model with input `x` and output `y`, reals outside."""
    nodes, shape, constants, kinds = model
    graph = helper.make_graph(
        nodes, "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(made), source)
        quantize_static(
            source, target, _Samples(shape), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=kinds,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


def reference(data: bytes, x: Array) -> Array:
    """What ONNX Runtime computes with graph optimizations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": x})[0]
    return result


def _conv(source: str, target: str, weights: str, **attributes: object) -> NodeProto:
    return node("Conv", [source, weights], [target], **attributes)


def _norm(source: str, target: str, prefix: str) -> NodeProto:
    return node("LayerNormalization", [source, f"{prefix}g", f"{prefix}b"], [target], axis=-1)


def _gelu(source: str, target: str) -> list[NodeProto]:
    return [
        node("Div", [source, "root"], ["gelu0"]), node("Erf", ["gelu0"], ["gelu1"]), node("Add", ["gelu1", "one"], ["gelu2"]),
        node("Mul", [source, "gelu2"], ["gelu3"]), node("Mul", ["gelu3", "half"], [target]),
    ]  # fmt: skip


def mobilenet_v1() -> Model:
    """Depthwise and pointwise convolutions with Relu6."""
    limits = {"low": _real(0), "high": _real(6)}
    nodes = [
        _conv("x", "a", "w1", strides=[2, 2], pads=[0, 0, 1, 1]), node("Clip", ["a", "low", "high"], ["b"]),
        _conv("b", "c", "w2", group=8, pads=[1, 1, 1, 1]), node("Clip", ["c", "low", "high"], ["d"]), _conv("d", "y", "w3"),
    ]  # fmt: skip
    return (
        nodes,
        (1, 3, 12, 12),
        {"w1": reals(8, 3, 3, 3), "w2": reals(8, 1, 3, 3), "w3": reals(12, 8, 1, 1)} | limits,
        None,
    )


def mobilenet_v2() -> Model:
    """An inverted residual: expansion, depthwise, projection, addition."""
    nodes = [
        _conv("x", "a", "w1"), node("Relu", ["a"], ["b"]), _conv("b", "c", "w2", group=12, pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["d"]), _conv("d", "e", "w3"), node("Add", ["x", "e"], ["y"]),
    ]  # fmt: skip
    return nodes, (1, 4, 8, 8), {"w1": reals(12, 4, 1, 1), "w2": reals(12, 1, 3, 3), "w3": reals(4, 12, 1, 1)}, None


def mobilenet_v3() -> Model:
    """Hard swish, and squeeze and excite with a hard sigmoid."""
    nodes = [
        _conv("x", "a", "w1", pads=[1, 1, 1, 1]), node("HardSwish", ["a"], ["b"]), node("GlobalAveragePool", ["b"], ["c"]),
        _conv("c", "d", "w2"), node("Relu", ["d"], ["e"]), _conv("e", "f", "w3"),
        node("HardSigmoid", ["f"], ["g"], alpha=1 / 6, beta=0.5), node("Mul", ["b", "g"], ["h"]), _conv("h", "y", "w4"),
    ]  # fmt: skip
    weights = {"w1": reals(8, 3, 3, 3), "w2": reals(4, 8, 1, 1), "w3": reals(8, 4, 1, 1), "w4": reals(6, 8, 1, 1)}
    return nodes, (1, 3, 8, 8), weights, None


def resnet() -> Model:
    """A residual block with a projection, pooling and a classifier."""
    nodes = [
        _conv("x", "a", "w1", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", ["a"], ["b"]),
        _conv("b", "c", "w2", pads=[1, 1, 1, 1]), _conv("x", "s", "w3", strides=[2, 2]), node("Add", ["c", "s"], ["d"]),
        node("Relu", ["d"], ["e"]), node("MaxPool", ["e"], ["f"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["f"], ["g"]), node("Flatten", ["g"], ["h"]), node("Gemm", ["h", "w4", "b4"], ["y"], transB=1),
    ]  # fmt: skip
    weights = {
        "w1": reals(8, 4, 3, 3),
        "w2": reals(8, 8, 3, 3),
        "w3": reals(8, 4, 1, 1),
        "w4": reals(5, 8),
        "b4": reals(5),
    }
    return nodes, (1, 4, 12, 12), weights, None


def yolo_head() -> Model:
    """Two scales joined: resize, concatenation, leaky Relu, sigmoid of a part."""
    nodes = [
        _conv("x", "a", "w1", pads=[1, 1, 1, 1]), node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        _conv("b", "c", "w2", strides=[2, 2]), node("Resize", ["c", "", "scales"], ["d"], mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor"), node("Concat", ["b", "d"], ["e"], axis=1),
        _conv("e", "f", "w3"), node("Split", ["f", "parts"], ["g", "h"], axis=1), node("Sigmoid", ["g"], ["i"]),
        node("Concat", ["i", "h"], ["y"], axis=1),
    ]  # fmt: skip
    weights = {"w1": reals(6, 3, 3, 3), "w2": reals(4, 6, 1, 1), "w3": reals(8, 10, 1, 1)}
    more = {"scales": np.array([1, 1, 2, 2], np.float32), "parts": np.array([5, 3], np.int64)}
    return nodes, (1, 3, 8, 8), weights | more, None


def gru_step() -> Model:
    """A gated recurrent unit, written out for two steps of one sequence."""
    nodes = [node("Split", ["x"], ["x0", "x1"], axis=1)]
    state = ""
    for step in ("0", "1"):
        nodes += [node("MatMul", [f"x{step}", "wz"], [f"z{step}"]), node("MatMul", [f"x{step}", "wh"], [f"c{step}"])]
        nodes += [node("Sigmoid", [f"z{step}"], [f"s{step}"]), node("Tanh", [f"c{step}"], [f"t{step}"])]
        nodes += [node("Mul", [f"s{step}", f"t{step}"], [f"m{step}"])]
        if state:
            nodes += [node("Sub", ["one", f"s{step}"], ["k"]), node("Mul", ["k", state], ["l"])]
            nodes += [node("Add", ["l", f"m{step}"], ["u"]), node("MatMul", ["u", "wo"], ["y"])]
        state = f"m{step}"
    return nodes, (1, 12), {"wz": reals(6, 5), "wh": reals(6, 5), "wo": reals(5, 4), "one": _real(1)}, None


def lstm() -> Model:
    """ONNX's LSTM operator on reals between quantized layers."""
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]), node("LSTM", ["a", "lw", "lr", "lb"], ["b"], hidden_size=5),
        node("Reshape", ["b", "flat"], ["c"]), node("MatMul", ["c", "w2"], ["y"]),
    ]  # fmt: skip
    weights = {"w1": reals(6, 6, spread=0.4), "lw": reals(1, 20, 6), "lr": reals(1, 20, 5), "lb": reals(1, 40)}
    return nodes, (3, 1, 6), weights | {"flat": np.array([1, 15], np.int64), "w2": reals(15, 4)}, ["MatMul"]


def transformer() -> Model:
    """Attention and feed-forward with layer normalization and Gelu."""
    depth = 8
    nodes = [
        _norm("x", "n", "p"), node("MatMul", ["n", "wq"], ["q"]), node("MatMul", ["n", "wk"], ["k"]),
        node("MatMul", ["n", "wv"], ["v"]), node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]), node("MatMul", ["q", "kt"], ["s"]),
        node("Mul", ["s", "scale"], ["t"]), node("Softmax", ["t"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["o"]),
        node("MatMul", ["o", "wo"], ["r"]), node("Add", ["x", "r"], ["u"]), _norm("u", "m", "q"),
        node("MatMul", ["m", "wf"], ["f"]),
        *_gelu("f", "g"), node("MatMul", ["g", "wg"], ["h"]), node("Add", ["u", "h"], ["y"]),
    ]  # fmt: skip
    weights = {name: reals(depth, depth, spread=0.35) for name in ("wq", "wk", "wv", "wo")}
    weights |= {"wf": reals(depth, 16, spread=0.3), "wg": reals(16, depth, spread=0.3)}
    weights |= {f"{side}{part}": reals(depth) for side in "pq" for part in "gb"}
    numbers = {"scale": _real(0.35), "root": _real(2**0.5), "one": _real(1), "half": _real(0.5)}
    return nodes, (1, 6, depth), weights | numbers, ["MatMul", "Softmax", "Add"]


def sequence_conv() -> Model:
    """Convolutions in one dimension, dilated and depthwise, with an average at the end."""
    nodes = [
        _conv("x", "a", "w1", pads=[2, 2]), node("Relu", ["a"], ["b"]), _conv("b", "c", "w2", group=8, pads=[4, 4], dilations=[2]),
        node("Tanh", ["c"], ["d"]), node("GlobalAveragePool", ["d"], ["e"]), node("Flatten", ["e"], ["f"]),
        node("Gemm", ["f", "w3"], ["y"]),
    ]  # fmt: skip
    return nodes, (1, 3, 24), {"w1": reals(8, 3, 5), "w2": reals(8, 1, 5), "w3": reals(8, 3)}, None


def decoder() -> Model:
    """Upsampling in three ways: transposed convolution, bilinear, pixels out of channels; a grouped convolution."""
    nodes = [
        node("ConvTranspose", ["x", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        node("PRelu", ["a", "slope"], ["b"]), node("Resize", ["b", "", "scales"], ["c"], mode="linear"),
        _conv("c", "d", "w2", group=2, pads=[1, 1, 1, 1]), node("DepthToSpace", ["d"], ["y"], blocksize=2),
    ]  # fmt: skip
    weights = {"w1": reals(3, 4, 3, 3), "b1": reals(4), "slope": reals(4, 1, 1), "w2": reals(8, 2, 3, 3)}
    return nodes, (1, 3, 4, 4), weights | {"scales": np.array([1, 1, 2, 2], np.float32)}, None


BLOCKS = {
    make.__name__: make
    for make in (
        mobilenet_v1, mobilenet_v2, mobilenet_v3, resnet, yolo_head, gru_step, lstm, transformer, sequence_conv, decoder,
    )
}  # fmt: skip
NAMES: Sequence[str] = tuple(BLOCKS)
