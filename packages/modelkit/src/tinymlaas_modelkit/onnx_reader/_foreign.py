"""Nodes that the graph has no operator for, kept as they are: FOREIGN, computed on reals by whoever takes the graph."""

from __future__ import annotations

import onnx
from onnx import helper

from tinymlaas_modelkit.graph import DType, OpKind, Tensor
from tinymlaas_modelkit.onnx_reader._context import Act, Const, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._qdq import PRESERVING, is_shifted
from tinymlaas_modelkit.onnx_reader._source import Node

ELEMENT_TYPES = frozenset(dtype.value for dtype in DType)
ELEMENTWISE = frozenset(
    (
        "Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
        "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
        "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Pow", "Reciprocal", "Relu",
        "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish",
        "Tan", "Tanh", "ThresholdedRelu", "Where",
    )
)  # fmt: skip
"""ONNX operators whose results depend on the elements at the same place only."""

_ON_INTEGERS = PRESERVING | {"DequantizeLinear", "QuantizeLinear", "Shape"}


def must_be_foreign(context: Context, node: Node) -> bool:
    """Whether a node computes on plain integers or truth values, which operators of the graph don't."""
    for name in node.inputs:
        value = context.values.get(name)
        if isinstance(value, Act) and not value.view:
            dtype = context.dtype_of(value)
            if dtype is not DType.FLOAT32 and (dtype.value not in context.integers or node.op not in _ON_INTEGERS):
                return True
    return False


def foreign(context: Context, node: Node) -> None:
    """Emit a node as FOREIGN; NotExpressible for one with bodies, with element types or shapes that are not known."""
    proto = onnx.NodeProto()
    proto.op_type = node.op.rsplit(".", 1)[-1]
    proto.domain = node.op.rpartition(".")[0]
    for name, value in node.attributes.items():
        if isinstance(value, onnx.GraphProto):
            raise NotExpressible("a body of its own")
        proto.attribute.append(helper.make_attribute(name, value))
    proto.input[:] = ["x" if name else "" for name in node.inputs]
    proto.output[:] = ["y" if name else "" for name in node.outputs]
    perm = _common_layout(context, node)
    inputs = tuple(_operand(context, name, perm) for name in node.inputs if name)
    outputs = []
    for name in filter(None, node.outputs):
        dtype, shape = context.source.dtypes.get(name, ""), context.source.shapes.get(name)
        if dtype not in ELEMENT_TYPES or shape is None:
            raise NotExpressible(f"{dtype or 'unknown'} result without a static shape")
        layout = perm or tuple(range(len(shape)))
        stored = tuple(shape[layout.index(axis)] for axis in range(len(shape)))
        outputs.append(Tensor(context.unique(name), stored, DType(dtype)))
        context.tensors[outputs[-1].name] = outputs[-1]
    attributes: dict[str, object] = {
        "node": proto.SerializeToString(deterministic=True),
        "opset": context.source.opset,
    }
    context.append(OpKind.FOREIGN, inputs, tuple(tensor.name for tensor in outputs), attributes, node.name)
    for name, tensor in zip(filter(None, node.outputs), outputs, strict=True):
        context.values[name] = Act(tensor.name, perm or tuple(range(len(tensor.shape))))


def _common_layout(context: Context, node: Node) -> tuple[int, ...] | None:
    """The layout of all operands of an operator that doesn't mind which: of one shape, or constants of one element."""
    values = [context.values[name] for name in node.inputs if name]
    acts = [value for value in values if isinstance(value, Act)]
    if node.op not in ELEMENTWISE or not acts:
        return None
    same = {(value.perm, context.shape_of(value)) for value in acts}
    if len(same) != 1 or any(isinstance(value, Const) and value.array.size != 1 for value in values):
        return None
    if any(isinstance(value, Const) and value.array.ndim > len(acts[0].perm) for value in values):
        return None
    return acts[0].perm


def _operand(context: Context, name: str, perm: tuple[int, ...] | None) -> str:
    value = context.values[name]
    if isinstance(value, Const):
        array = value.real
        if array.dtype.name not in ELEMENT_TYPES:
            raise NotExpressible(f"constant of {array.dtype.name}")
        return context.constant(value.name, array)
    if is_shifted(context.source, name) and not value.view:
        raise NotExpressible("computes on uint8 as such")
    return context.real(context.plain(value) if perm is None else value).tensor
