"""What becomes of single constructs: folding, shared and fixed scales, fused activations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from optimizer_models import N, model, values
from tflite_micro import runtime

from tinymlaas_modelkit.check import check_model_here
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.tflite_writer import write_tflite
from tinymlaas_optimizer import LimitExceeded, NotQuantizable, Optimized, Options, Recipe, optimize
from tinymlaas_optimizer import simplify as simplify_module
from tinymlaas_optimizer.graphs import ordered
from tinymlaas_optimizer.runtime import session


def optimized(data: bytes, scale: float = 1.0, **fields: Any) -> Optimized:
    """A model quantized with fields of the quantize step, calibrated with noise."""
    shape = [d.dim_value for d in ModelProto.FromString(data).graph.input[0].type.tensor_type.shape.dim]
    recipe = Recipe.parse({"version": 1, "steps": [{"step": "quantize", **fields}]})
    options = Options((recipe,), sensitivity=False)
    return optimize(data, {"x": scale * values(16, *shape[1:])}, options, check=check_model_here)


def all_operators(result: Optimized) -> Counter[str]:
    assert result.report.taken.size is not None
    return Counter(result.report.taken.size.operators)


def operators(result: Optimized) -> Counter[str]:
    return Counter({k: v for k, v in all_operators(result).items() if not k.endswith("Linear")})


def scales(result: Optimized) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each QuantizeLinear by the type of operator that it follows, or by the graph's input."""
    made = ModelProto.FromString(result.model)
    array = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    writer = {name: node.op_type for node in made.graph.node for name in node.output}
    return {
        writer.get(node.input[0], node.input[0]): (float(array[node.input[1]]), int(array[node.input[2]]))
        for node in made.graph.node
        if node.op_type == "QuantizeLinear"
    }


def snr(result: Optimized) -> float:
    assert result.report.taken.evaluation is not None
    decibels = result.report.taken.evaluation.outputs[0].snr_db
    assert decibels is not None
    return decibels


CONV = N("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
WEIGHTS: dict[str, npt.NDArray[Any]] = {"w": values(6, 4, 3, 3), "b": values(6)}


def test_batch_normalization_is_folded_into_the_convolution() -> None:
    statistics = {"s": values(6), "o": values(6), "m": values(6), "v": np.abs(values(6)) + 0.5}
    normal = N("BatchNormalization", ["c", "s", "o", "m", "v"], ["y"])
    result = optimized(model([CONV, normal], {**WEIGHTS, **statistics}))
    assert operators(result) == {"Conv": 1}
    assert snr(result) > 30


def test_constants_are_folded_and_dead_operators_dropped() -> None:
    nodes = [
        N("Add", ["k1", "k2"], ["k"]),
        N("Add", ["x", "k"], ["y"]),
        N("Exp", ["x"], ["unused"]),
        N("Identity", ["unused"], ["unused_too"]),
    ]
    result = optimized(model(nodes, {"k1": np.ones((1, 4, 1, 1), np.float32), "k2": values(1, 4, 1, 1)}))
    assert operators(result) == {"Add": 1}


@pytest.mark.parametrize("first", [[], [N("Shape", ["x"], ["n"])]], ids=["constant", "shape"])
def test_folding_is_bounded(monkeypatch: pytest.MonkeyPatch, first: list[NodeProto]) -> None:
    monkeypatch.setattr(simplify_module, "MAX_FOLDED_BYTES", 1000)
    nodes = [*first, N("ConstantOfShape", ["n"], ["k"]), N("Add", ["x", "k"], ["y"])]
    with pytest.raises(LimitExceeded) as caught:
        optimized(model(nodes, {} if first else {"n": np.array([1, 4, 8, 8], np.int64)}))
    assert (caught.value.code, caught.value.metadata["most"]) == ("RESOURCE_EXHAUSTED", "1000")


def test_an_old_opset_is_raised_so_that_weights_can_have_scales_per_channel() -> None:
    result = optimized(model([CONV, N("Relu", ["c"], ["y"])], WEIGHTS, opset=11))
    assert result.description.version == 13


@pytest.mark.parametrize("symmetric", [False, True])
def test_relu_is_not_separated_from_its_convolution(symmetric: bool) -> None:
    data = model([CONV, N("Relu", ["c"], ["y"])], WEIGHTS)
    result = optimized(data, symmetric_activations=symmetric)
    assert all_operators(result)["QuantizeLinear"] == 1
    (op,) = (op for op in read_onnx(result.model).ops if op.kind.value == "CONV_2D")
    assert op.attributes["activation"] == "RELU"


def test_relu6_is_not_separated_from_its_convolution() -> None:
    limits = {"low": np.float32(0), "high": np.float32(6)}
    nodes = [CONV, N("Clip", ["c", "low", "high"], ["y"])]
    result = optimized(model(nodes, {**WEIGHTS, **{k: np.asarray(v) for k, v in limits.items()}}), scale=3.0)
    (op,) = (op for op in read_onnx(result.model).ops if op.kind.value == "CONV_2D")
    assert op.attributes["activation"] == "RELU6"
    assert all_operators(result)["QuantizeLinear"] == 1


@pytest.mark.parametrize(
    "pool",
    [
        N("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        N("AveragePool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        N("GlobalAveragePool", ["c"], ["p"]),
    ],
    ids=lambda node: node.op_type,
)
def test_a_pool_and_a_reshape_share_the_scale_of_their_input(pool: NodeProto) -> None:
    nodes = [CONV, pool, N("Flatten", ["p"], ["y"])]
    found = scales(optimized(model(nodes, WEIGHTS)))
    assert found[pool.op_type] == found["Conv"] == found["Flatten"]


def test_all_tensors_of_a_concatenation_share_one_scale() -> None:
    nodes = [CONV, N("Relu", ["c"], ["r"]), N("Concat", ["r", "x"], ["y"], axis=1)]
    result = optimized(model(nodes, WEIGHTS))
    found = scales(result)
    assert (
        found["Relu"]
        == found["Concat"]
        == (result.description.inputs[0].scale, result.description.inputs[0].zero_point)
    )


@pytest.mark.parametrize(
    ("op", "scale"), [("Softmax", (1 / 256, -128)), ("Sigmoid", (1 / 256, -128)), ("Tanh", (1 / 128, 0))]
)
def test_an_operator_with_a_fixed_output_scale_gets_it(op: str, scale: tuple[float, int]) -> None:
    result = optimized(model([N("MatMul", ["x", "w"], ["m"]), N(op, ["m"], ["y"])], {"w": values(8, 5)}, (1, 8)))
    assert scales(result)[op] == scale
    assert (result.description.outputs[0].scale, result.description.outputs[0].zero_point) == scale


def test_fixed_scales_that_contradict_each_other_are_refused_with_the_operator() -> None:
    nodes = [N("Sigmoid", ["x"], ["s"]), N("Tanh", ["x"], ["t"]), N("Concat", ["s", "t"], ["y"], axis=1)]
    with pytest.raises(NotQuantizable) as caught:
        optimized(model(nodes, {}, (1, 8)))
    assert caught.value.metadata["op"] in ("Sigmoid", "Tanh")
    assert caught.value.code == "FAILED_PRECONDITION"


@pytest.mark.parametrize("order", [("m", "b"), ("b", "m")])
def test_a_product_and_an_addition_become_one_operator_with_an_int32_bias(order: tuple[str, str]) -> None:
    nodes = [N("MatMul", ["x", "w"], ["m"]), N("Add", list(order), ["y"])]
    result = optimized(model(nodes, {"w": values(8, 5), "b": values(5)}, (1, 8)))
    assert operators(result) == {"Gemm": 1}
    made = ModelProto.FromString(result.model)
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    gemm = next(node for node in made.graph.node if node.op_type == "Gemm")
    bias = next(node for node in made.graph.node if gemm.input[2] in node.output)
    assert types[bias.input[0]] == TensorProto.INT32


def test_the_scale_of_a_bias_is_that_of_input_times_weights() -> None:
    made = ModelProto.FromString(optimized(model([CONV, N("Relu", ["c"], ["y"])], WEIGHTS)).model)
    array = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    writer = {name: node for node in made.graph.node for name in node.output}
    conv = next(node for node in made.graph.node if node.op_type == "Conv")
    of_input, of_weights, of_bias = (array[writer[name].input[1]] for name in conv.input)
    assert np.array_equal(of_bias, of_input * of_weights)


def test_weights_are_symmetric_and_never_minus_128() -> None:
    made = ModelProto.FromString(optimized(model([CONV, N("Relu", ["c"], ["y"])], WEIGHTS)).model)
    array = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    writer = {name: node for node in made.graph.node for name in node.output}
    conv = next(node for node in made.graph.node if node.op_type == "Conv")
    weights = writer[conv.input[1]]
    assert not array[weights.input[2]].any()
    assert array[weights.input[0]].min() == -127


def test_a_tensor_that_is_read_twice_and_is_an_output_keeps_both() -> None:
    nodes = [CONV, N("Relu", ["c"], ["y"]), N("MaxPool", ["y"], ["z"], kernel_shape=[2, 2])]
    result = optimized(model(nodes, WEIGHTS, outputs=("y", "z")))
    assert [tensor.dtype for tensor in result.description.outputs] == ["int8", "int8"]
    assert [tensor.name for tensor in result.description.outputs] == ["y", "z"]
    assert snr(result) > 30


def test_a_tensor_that_is_always_zero_gets_a_scale_all_the_same() -> None:
    nodes = [N("MatMul", ["x", "w"], ["m"]), N("Relu", ["m"], ["r"]), N("MatMul", ["r", "v"], ["y"])]
    data = model(nodes, {"w": np.zeros((8, 4), np.float32), "v": values(4, 3)}, (1, 8))
    assert all(scale > 0 for scale, _ in scales(optimized(data)).values())


def test_values_that_are_not_finite_are_refused_with_the_tensor() -> None:
    with pytest.raises(NotQuantizable, match="not finite") as caught:
        optimized(model([N("Log", ["x"], ["y"])], {}, (1, 8)))
    assert caught.value.metadata["tensor"] == "y"


def test_the_order_of_nodes_follows_the_graph_and_not_the_file() -> None:
    nodes = [N("Neg", ["b"], ["y"]), N("Abs", ["a"], ["b"]), N("Relu", ["x"], ["a"]), N("Exp", ["x"], ["unread"])]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    assert [node.op_type for node in ordered(graph)] == ["Relu", "Abs", "Neg"]


def test_a_network_in_channels_first_layout_runs_nearly_the_same_on_tflite_micro() -> None:
    """A residual block, a concatenation, pools and a classifier, as PyTorch exports them."""
    nodes = [
        N("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        N("BatchNormalization", ["c1", "s", "o", "m", "v"], ["n1"]),
        N("Relu", ["n1"], ["r1"]),
        N("Conv", ["r1", "w2", "b1"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=6),
        N("Add", ["c2", "r1"], ["a"]),
        N("Relu", ["a"], ["r2"]),
        N("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        N("AveragePool", ["r2"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        N("Concat", ["p", "q"], ["k"], axis=1),
        N("GlobalAveragePool", ["k"], ["g"]),
        N("Flatten", ["g"], ["f"]),
        N("Gemm", ["f", "w3", "b3"], ["l"], transB=1),
        N("Softmax", ["l"], ["y"], axis=1),
    ]
    statistics = {"s": values(6), "o": values(6), "m": values(6), "v": np.abs(values(6)) + 0.5}
    weights = {
        "w1": values(6, 4, 3, 3),
        "b1": values(6),
        "w2": values(6, 1, 3, 3),
        "w3": values(5, 12),
        "b3": values(5),
    }
    result = optimized(model(nodes, {**statistics, **weights}))
    assert result.report.taken.evaluation is not None
    assert result.report.taken.evaluation.agreement == 1.0
    (given,) = result.description.inputs
    assert given.scale is not None
    assert given.zero_point is not None
    integers = np.clip(np.rint(values(16, 4, 8, 8) / np.float32(given.scale)) + given.zero_point, -128, 127)
    graph = read_onnx(result.model)
    interpreter = runtime.Interpreter.from_bytes(write_tflite(graph), arena_size=1 << 18)
    runner = session(result.model)
    stored = graph.tensor(graph.inputs[0]).shape
    assert stored == (1, 4, 8, 8)
    for sample in integers.astype(np.int8):
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        expected = runner.run(None, {"x": sample[None]})[0].astype(np.int64)
        assert np.abs(interpreter.get_output(0).astype(np.int64) - expected).max() <= 6
