"""The QDQ form of a float case: int8 at the borders, DequantizeLinear and QuantizeLinear around the operator.

Parameters come from the ranges of the case's own data, as a quantizer would choose them: weights are symmetric int8
constants, biases int32 with the product of both scales, and operators that only move values keep the scale. The
reference dequantizes, runs the operator of the onnx package's reference implementation, and quantizes; where that has
no operator, ONNX Runtime runs the QDQ model with graph optimizations off (not the other way round: its Resize, for
one, departs from the specification).
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.onnx_nodes.cases import Array, Case

# Operators that come between Q and DQ in quantized networks.
OPERATORS = frozenset(
    (
        "Abs", "Add", "AveragePool", "BatchNormalization", "Ceil", "Celu", "Clip", "Concat", "Conv", "ConvTranspose", "Cos",
        "DepthToSpace", "Div", "Elu", "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU", "Gather", "GatherElements",
        "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish",
        "Identity", "InstanceNormalization", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MatMul",
        "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "Pow", "RMSNormalization", "RNN",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "Selu", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus",
        "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Tile",
        "Transpose", "Unsqueeze", "Where",
    )
)  # fmt: skip
_MOVES = frozenset(
    (
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Identity",
        "Max", "MaxPool", "Min", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Resize", "Slice", "SpaceToDepth",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "AveragePool", "GlobalAveragePool",
    )
)  # fmt: skip
_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_FIXED_OUTPUT = {"Softmax": (1 / 256, -128), "Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)}
_OLDEST, _NEWEST_QUANTIZED = 10, 13


def qdq_case(case: Case) -> Case | None:
    """The QDQ form of a case; None if the operator or its types have none."""
    model = onnx.load_from_string(case.model)
    graph = model.graph
    if case.operator not in OPERATORS or len(graph.node) != 1 or graph.node[0].op_type != case.operator:
        return None
    borders = [*case.inputs, *case.outputs]
    floats = [x for x in borders if x.dtype == np.float32]
    if any(x.dtype != np.float32 for x in case.outputs) or not any(x.dtype == np.float32 for x in case.inputs):
        return None
    if any(not np.isfinite(x).all() or x.size == 0 for x in floats) or not _raised(model):
        return None
    shared = _parameters(floats) if case.operator in _MOVES else None
    nodes: list[onnx.NodeProto] = []
    inputs: list[Array] = []
    kept: list[onnx.ValueInfoProto] = []
    scales: list[float] = []
    # What the operator gets: the quantized values as reals.
    reals: dict[str, Array] = {}
    node = graph.node[0]
    for place, (value, array) in enumerate(zip(list(graph.input), case.inputs, strict=True)):
        name = value.name
        if array.dtype != np.float32:
            kept.append(value)
            inputs.append(array)
            reals[name] = array
            continue
        at = list(node.input).index(name)
        if case.operator in _WEIGHTED and place > 0 and at == 2:
            scale = scales[0] * scales[1]
            stored = np.round(array / scale).astype(np.int32)
            graph.initializer.append(numpy_helper.from_array(stored, f"{name}_q"))
            _dequantize(graph, nodes, name, scale, np.zeros((), np.int32))
            reals[name] = stored.astype(np.float32) * np.float32(scale)
            continue
        weight = case.operator in _WEIGHTED and place > 0 and at == 1
        scale, zero = (_symmetric(array), 0) if weight else shared or _parameters([array])
        scales.append(scale)
        stored = np.clip(np.round(array / np.float32(scale)) + zero, -128, 127).astype(np.int8)
        if weight:
            graph.initializer.append(numpy_helper.from_array(stored, f"{name}_q"))
        else:
            kept.append(helper.make_tensor_value_info(f"{name}_q", onnx.TensorProto.INT8, array.shape))
            inputs.append(stored)
        _dequantize(graph, nodes, name, scale, np.array(zero, np.int8))
        reals[name] = (stored.astype(np.float32) - zero) * np.float32(scale)
    nodes.append(node)
    declared = []
    for value, array in zip(graph.output, case.outputs, strict=True):
        scale, zero = _FIXED_OUTPUT.get(case.operator) or shared or _parameters([array])
        name = value.name
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        graph.initializer.append(numpy_helper.from_array(np.array(zero, np.int8), f"{name}_zero"))
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_q"]))
        declared.append(helper.make_tensor_value_info(f"{name}_q", onnx.TensorProto.INT8, array.shape))
    ordered = helper.make_graph(nodes, "qdq", kept, declared, list(graph.initializer))
    quantized = helper.make_model(ordered, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    if not kept:
        return None
    expected = _reference(
        case, quantized, {value.name: array for value, array in zip(kept, inputs, strict=True)}, reals
    )
    if expected is None or any(x.dtype != np.int8 for x in expected):
        return None
    return Case(
        f"{case.name} (QDQ)",
        case.operator,
        quantized.SerializeToString(),
        tuple(inputs),
        tuple(expected),
        0.0,
        0.0,
        lsb=1,
    )


def _raised(model: onnx.ModelProto) -> bool:
    """Whether the operator set has QuantizeLinear, raised to one that has where the operator is the same there."""
    entry = next(each for each in model.opset_import if each.domain in ("", "ai.onnx"))
    model.ir_version = max(model.ir_version, 7)
    name = model.graph.node[0].op_type
    if entry.version >= _NEWEST_QUANTIZED:
        return True
    for version in range(_NEWEST_QUANTIZED, _OLDEST - 1, -1):
        have = onnx.defs.get_schema(name, entry.version).since_version
        if onnx.defs.get_schema(name, version).since_version == have:
            entry.version = version
            return True
    return False


def _parameters(arrays: list[Array]) -> tuple[float, int]:
    """Scale and zero point of int8 over the range of all arrays, which holds 0."""
    low = min(0.0, *(float(x.min()) for x in arrays))
    high = max(0.0, *(float(x.max()) for x in arrays))
    scale = float(np.float32((high - low) / 255)) or 1.0
    return scale, int(np.clip(round(-128 - low / scale), -128, 127))


def _symmetric(array: Array) -> float:
    return float(np.float32(np.abs(array).max() / 127)) or 1.0


def _dequantize(graph: Any, nodes: list[onnx.NodeProto], name: str, scale: float, zero: Array) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(zero, f"{name}_zero"))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [name]))


def _reference(
    case: Case, quantized: onnx.ModelProto, feeds: dict[str, Array], reals: dict[str, Array]
) -> list[Array] | None:
    """Outputs by the onnx package's operator on the dequantized inputs, or by ONNX Runtime where that has none."""
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    def evaluator() -> list[Any]:
        parameters = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
        results = ReferenceEvaluator(onnx.load_from_string(case.model)).run(None, reals)
        names = [value.name for value in onnx.load_from_string(case.model).graph.output]
        return [
            np.clip(
                np.rint(np.asarray(y) / parameters[f"{name}_scale"]) + parameters[f"{name}_zero"], -128, 127
            ).astype(np.int8)
            for name, y in zip(names, results, strict=True)
        ]

    def runtime() -> list[Any]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            quantized.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, feeds))

    for execute in (evaluator, runtime):
        # What an executor can't do is told by exceptions without a common base.
        with contextlib.suppress(Exception), np.errstate(all="ignore"):
            return [np.asarray(each) for each in execute()]
    return None
