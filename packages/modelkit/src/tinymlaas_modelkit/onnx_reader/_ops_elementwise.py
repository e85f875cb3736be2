"""Element by element: Add, Sub, Mul with broadcasting, activations, Softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinymlaas_modelkit.graph import Activation, DType, OpKind
from tinymlaas_modelkit.onnx_reader._context import Act, Const, Context, NotExpressible, Value, activation_of
from tinymlaas_modelkit.onnx_reader._ops_shape import reshape_value
from tinymlaas_modelkit.onnx_reader._source import Node
from tinymlaas_modelkit.quantization import same_quantization

BINARY = {
    "Add": OpKind.ADD, "Sub": OpKind.SUB, "Mul": OpKind.MUL, "Div": OpKind.DIV, "Min": OpKind.MINIMUM, "Max": OpKind.MAXIMUM,
    "PRelu": OpKind.PRELU,
}  # fmt: skip
_FOLDED: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Min": np.minimum, "Max": np.maximum,
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x),
}  # fmt: skip
UNARY = {
    "Sigmoid": OpKind.LOGISTIC,
    "Tanh": OpKind.TANH,
    "HardSwish": OpKind.HARD_SWISH,
    "LeakyRelu": OpKind.LEAKY_RELU,
}


def _integer_operand(value: Value) -> bool:
    if isinstance(value, Act):
        return value.view
    return (
        value.quantization is not None
        and value.array.dtype in (np.int8, np.int16)
        and value.quantization.scales.size == 1
    )


def _rank(value: Value) -> int:
    return value.array.ndim if isinstance(value, Const) else len(value.perm)


def binary(context: Context, node: Node) -> None:
    """Add, Sub, Mul, Div, Min, Max and PRelu of two tensors, one of which may be constant."""
    if len(node.inputs) != 2:
        raise NotExpressible(f"{node.op} of {len(node.inputs)} tensors")
    a, b = context.value(node, 0), context.value(node, 1)
    if isinstance(a, Const) and isinstance(b, Const):
        folded = _FOLDED[node.op](a.real, b.real)
        context.values[node.outputs[0]] = Const(node.outputs[0], np.asarray(folded, a.real.dtype))
        return
    fuse = node.op in ("Add", "Sub", "Mul", "Div")
    target = context.target(node, _integer_operand(a) and _integer_operand(b), fuse=fuse)
    rank = max(_rank(a), _rank(b))
    if not target.integer:
        a = context.real(a) if isinstance(a, Act) else a
        b = context.real(b) if isinstance(b, Act) else b
    first = max((v for v in (a, b) if isinstance(v, Act)), key=lambda v: len(v.perm))
    if _rank(first) < rank:
        first = _expanded(context, first, rank, node)
    perm = first.perm
    names = tuple(_operand(context, v, rank, perm, target.integer, node) for v in (a, b))
    shapes = [context.tensors[n].shape for n in names]
    try:
        shape = tuple(int(d) for d in np.broadcast_shapes(*shapes))
    except ValueError as error:
        raise NotExpressible(f"shapes {shapes} do not broadcast") from error
    attributes: dict[str, object] = {"activation": target.activation} if fuse else {}
    tensor = context.emit(
        BINARY[node.op], names, target.name, shape, target.quantization, attributes, node.name, target.dtype
    )
    context.finish(target, tensor, perm)


def _expanded(context: Context, x: Act, rank: int, node: Node) -> Act:
    if len(x.perm) == rank:
        return x
    shape = (1,) * (rank - len(x.perm)) + context.shape_of(x)
    return reshape_value(context, x, shape, f"{x.tensor}_expanded", node.name)


def _operand(context: Context, value: Value, rank: int, perm: tuple[int, ...], integer: bool, node: Node) -> str:
    """The operand as a tensor of that rank, stored in that layout."""
    if isinstance(value, Act):
        return context.layout(_expanded(context, value, rank, node), perm).tensor
    array = value.array if integer else np.asarray(value.real, np.float32)
    array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(np.argsort(perm))
    return context.constant(value.name, array, value.quantization if integer else None)


def unary(context: Context, node: Node) -> None:
    """Sigmoid, Tanh, HardSwish, LeakyRelu."""
    x = context.act(node)
    target = context.target(node, x.view, fuse=False)
    if not target.integer:
        x = context.real(x)
    attributes: dict[str, object] = {}
    if node.op == "LeakyRelu":
        attributes["alpha"] = float(node.attributes.get("alpha", 0.01))
    shape = context.tensors[x.tensor].shape
    tensor = context.emit(
        UNARY[node.op], (x.tensor,), target.name, shape, target.quantization, attributes, node.name, target.dtype
    )
    context.finish(target, tensor, x.perm)


def relu(context: Context, node: Node) -> None:
    """Relu or Clip that no operator absorbed."""
    x = context.act(node)
    own = context.quantization_of(x)
    if own is not None and not x.view:
        raise NotExpressible("Relu or Clip on bare integers")
    stored = context.tensors[x.tensor]
    activation = activation_of(context, node, own, DType.INT8 if own is None else stored.dtype)
    if activation is Activation.NONE:
        context.values[node.outputs[0]] = x
        return
    kinds = {Activation.RELU: OpKind.RELU, Activation.RELU6: OpKind.RELU6}
    if activation is None or activation not in kinds:
        raise NotExpressible("only the bounds 0, 6 and infinity are supported")
    target = context.target(node, x.view, fuse=False)
    kept = stored.dtype is target.dtype and same_quantization(own, target.quantization)
    if x.view and (not target.integer or kept):
        # On integers it is a clamp that keeps the quantization, so its result is a view like its input.
        tensor = context.emit(
            kinds[activation], (x.tensor,), target.name, stored.shape, own, {}, node.name, stored.dtype
        )
        context.values[node.outputs[0]] = Act(tensor, x.perm, view=True)
        return
    tensor = context.emit(
        kinds[activation], (x.tensor,), target.name, stored.shape, target.quantization, {}, node.name, target.dtype
    )
    context.finish(target, tensor, x.perm)


def softmax(context: Context, node: Node) -> None:
    """Softmax over one axis, which is stored last."""
    x = context.act(node)
    rank = len(x.perm)
    axis = int(node.attributes.get("axis", -1 if context.source.opset >= 13 else 1)) % rank
    shape = context.shape_of(x)
    if context.source.opset < 13 and any(d != 1 for d in shape[axis + 1 :]):
        raise NotExpressible("softmax over several axes (opset below 13)")
    if x.perm[axis] != rank - 1:
        others = [a for a in range(rank) if a != axis]
        wanted = [0] * rank
        for position, a in enumerate([*others, axis]):
            wanted[a] = position
        x = context.layout(x, tuple(wanted))
    target = context.target(node, x.view, fuse=False)
    if not target.integer:
        x = context.real(x)
    stored = context.tensors[x.tensor].shape
    tensor = context.emit(
        OpKind.SOFTMAX, (x.tensor,), target.name, stored, target.quantization, {"beta": 1.0}, node.name, target.dtype
    )
    context.finish(target, tensor, x.perm)
