"""Shape inference that also computes what shapes are computed from.

Exporters write `x.view(x.size(0), -1)` as Shape, Gather, Concat, Reshape, and standard function bodies do the same. With
static inputs all of it is known; `onnx.shape_inference` follows only part of it (its data propagation, rank 1 at most).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = npt.NDArray[np.generic]
# The most elements of a value that is computed here: an attention mask of 256 x 256.
MAX_ELEMENTS: Final = 1 << 16
# Each round finds at least one more shape; deeper chains than this are no shape arithmetic.
_ROUNDS: Final = 64
_ELEMENTWISE: Final = frozenset((
    "Add", "And", "Cast", "Ceil", "Clip", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Sqrt", "Sub",
    "Where",
))  # fmt: skip
_MOVES: Final = frozenset((
    "CastLike", "Reshape", "Slice", "Squeeze", "Transpose", "Trilu", "Unsqueeze", "ReduceMax", "ReduceProd", "ReduceSum",
))  # fmt: skip
_FROM_SHAPE: Final = frozenset(("Shape", "Size"))
# Without one of these, there is no arithmetic that inference does not follow itself.
_SOURCES: Final = frozenset((*_FROM_SHAPE, "ConstantOfShape", "Range"))
# Operators whose schema has no inference (onnx 1.23), with a result like their first input.
_SHAPE_OF_INPUT: Final = frozenset(("GroupNormalization",))
# Attributes whose default the inference takes for another than their operator's definition says (onnx 1.23).
_DEFAULTS: Final[Mapping[str, Mapping[str, int]]] = {"STFT": {"onesided": 1}}
_MAKES: Final = frozenset(("Concat", "ConstantOfShape", "Expand", "Gather", "Range", "Tile"))


def may_fold(data: bytes) -> bool:
    """Whether the bytes of a model may name an operator that shape arithmetic starts from: if so, `prepare` is worth its time."""
    return any(name.encode() in data for name in _SOURCES)


def prepare() -> None:
    """Load what folding needs, 0.3 s of work, for a process that will open no files later."""
    import onnx.reference.ops._op_list  # noqa: F401


def infer_shapes(model: ModelProto) -> ModelProto:
    """Inferred types in `graph.value_info` and `graph.output`; `graph.initializer` has what was computed besides the constants.

    Only these three are to be read: shape arithmetic is gone from the nodes, and some are replaced by others of equal shape.
    Strict: raises onnx.shape_inference.InferenceError or ValueError where operators contradict each other. Trusts sizes: the
    file must have passed `check_structure`.
    """
    inferred = _inferred(model)
    if not _open(inferred) or not any(node.op_type in _SOURCES for node in model.graph.node):
        return inferred
    work = ModelProto()
    work.CopyFrom(model)
    for _ in range(_ROUNDS):
        if not _fold(work, inferred):
            return inferred
        inferred = _inferred(work)
        if not _open(inferred):
            return inferred
    return inferred


def _inferred(model: ModelProto) -> ModelProto:
    if any(node.op_type in (*_SHAPE_OF_INPUT, *_DEFAULTS) for node in model.graph.node):
        copy = ModelProto()
        copy.CopyFrom(model)
        for node in copy.graph.node:
            if node.op_type in _SHAPE_OF_INPUT and node.input:
                node.CopyFrom(helper.make_node("Identity", [node.input[0]], node.output, name=node.name))
            given = {attribute.name for attribute in node.attribute}
            for name, value in _DEFAULTS.get(node.op_type, {}).items():
                if name not in given:
                    node.attribute.append(helper.make_attribute(name, value))
        model = copy
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _shapes(inferred: ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes of what is inferred or declared."""
    graph = inferred.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _open(inferred: ModelProto) -> bool:
    """Whether some result has no static shape."""
    shapes = _shapes(inferred)
    return any(name and name not in shapes for node in inferred.graph.node for name in node.output)


def _fold(work: ModelProto, inferred: ModelProto) -> bool:
    """Replace each node whose value is known by an initializer; False if there was none."""
    shapes = _shapes(inferred)
    known: dict[str, Array] = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in work.graph.initializer
        if prod(tensor.dims) <= MAX_ELEMENTS
    }
    outputs = {value.name for value in work.graph.output}
    opset = next(entry.version for entry in work.opset_import if entry.domain in ("", "ai.onnx"))
    kept: list[NodeProto] = []
    found: dict[str, Array] = {}
    for node in work.graph.node:
        value = None
        if len(node.output) == 1 and node.output[0] not in outputs:
            value = _value(node, known, shapes, opset)
        if value is None:
            kept.append(node)
            continue
        known[node.output[0]] = value
        if node.op_type != "Constant":
            found[node.output[0]] = value
        else:
            kept.append(node)
    if not found:
        return False
    copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del work.graph.node[:]
    work.graph.node.extend(copies)
    work.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())
    return True


def _value(
    node: NodeProto, known: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], opset: int
) -> Array | None:
    """What a node computes, or None if that is not known or not shape arithmetic."""
    if node.op_type in _FROM_SHAPE:
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        return _run(node, [np.broadcast_to(np.float32(0), shape)], opset)
    if node.op_type == "Constant":
        return _run(node, [], opset)
    if node.op_type not in _ELEMENTWISE | _MOVES | _MAKES or any(name and name not in known for name in node.input):
        return None
    given = [known[name] if name else None for name in node.input]
    if _size(node, [value for value in given if value is not None]) > MAX_ELEMENTS:
        return None
    return _run(node, given, opset)


def _size(node: NodeProto, given: Sequence[Array]) -> int:
    """A bound of the elements of a node's result, before it is made."""
    if node.op_type in _ELEMENTWISE:
        return prod(np.broadcast_shapes(*(value.shape for value in given)))
    if node.op_type in ("ConstantOfShape", "Expand"):
        asked = prod(max(1, int(dim)) for dim in given[-1].reshape(-1))
        return asked if node.op_type == "ConstantOfShape" else asked * max(1, given[0].size)
    if node.op_type == "Tile":
        return given[0].size * prod(max(1, int(times)) for times in given[1].reshape(-1))
    if node.op_type == "Range":
        start, limit, delta = (float(value.reshape(-1)[0]) for value in given)
        return int(abs((limit - start) / delta)) + 1 if delta else MAX_ELEMENTS + 1
    if node.op_type == "Gather":
        return given[0].size * max(1, given[1].size)
    return sum(value.size for value in given)


def _run(node: NodeProto, given: Sequence[Array | None], opset: int) -> Array | None:
    """The node's result by onnx's reference implementation; None where that refuses, for inference to say why."""
    from onnx.reference import ReferenceEvaluator

    names = [name for name, value in zip(node.input, given, strict=False) if value is not None]
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)],
        [helper.make_empty_tensor_value_info(node.output[0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feeds = {name: value for name, value in zip(node.input, given, strict=False) if value is not None}
    try:
        (value,) = ReferenceEvaluator(model).run(None, feeds)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    result = np.asarray(value)
    return result if result.size <= MAX_ELEMENTS and result.dtype.kind in "biuf" else None
