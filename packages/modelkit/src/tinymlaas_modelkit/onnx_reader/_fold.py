"""Constants computed from constants: the shape arithmetic that exporters leave around Reshape and its kin."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tinymlaas_modelkit.onnx_reader._context import Const, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._source import Node

FOLDABLE = frozenset(
    {
        "Add", "Cast", "Concat", "Div", "Equal", "Expand", "Flatten", "Floor", "Gather", "Identity", "Max", "Min", "Mul", "Neg",
        "Range", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
MAX_ELEMENTS = 4_000_000
"""Largest constant that is made by folding; a file of 300 bytes can ask for 64 GiB."""


def shape_of(context: Context, node: Node) -> None:
    """Shape of a value of static shape: a constant."""
    value = context.value(node, 0)
    shape = value.array.shape if isinstance(value, Const) else context.shape_of(value)
    rank = len(shape)
    start, end, _ = slice(node.attributes.get("start", 0), node.attributes.get("end", None)).indices(rank)
    context.values[node.outputs[0]] = Const(node.outputs[0], np.asarray(shape[start:end], np.int64))


def can_fold(context: Context, node: Node) -> bool:
    """Whether all inputs are plain constants and the operator is one that folding knows."""
    if node.op not in FOLDABLE or not any(node.inputs) or len(node.outputs) != 1:
        return False
    values = [context.values.get(n) for n in node.inputs if n]
    return all(isinstance(v, Const) and v.quantization is None for v in values)


def fold(context: Context, node: Node) -> None:
    """Evaluate the node with ONNX's reference evaluator."""
    shape = context.source.shapes.get(node.outputs[0])
    if shape is None or math.prod(shape) > MAX_ELEMENTS:
        raise NotExpressible("a constant of unknown or excessive size would have to be computed")
    names = [n for n in dict.fromkeys(node.inputs) if n]
    arrays = [np.asarray(v.array) for v in (context.values[n] for n in names) if isinstance(v, Const)]
    proto = helper.make_node(node.op, list(node.inputs), list(node.outputs), **dict(node.attributes))
    output = helper.make_value_info(node.outputs[0], onnx.TypeProto())
    initializers = [numpy_helper.from_array(a, n) for n, a in zip(names, arrays, strict=True)]
    graph = helper.make_graph([proto], "fold", [], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", context.source.opset)])
    try:
        (result,) = ReferenceEvaluator(model).run(None, {})
    except Exception as error:
        raise NotExpressible(f"the constant cannot be computed: {type(error).__name__}") from error
    context.values[node.outputs[0]] = Const(node.outputs[0], np.asarray(result))
