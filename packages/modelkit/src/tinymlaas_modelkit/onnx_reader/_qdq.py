"""QuantizeLinear and DequantizeLinear: which quantization each integer tensor has, and the nodes themselves.

uint8 activations inside the model become int8 with the zero point moved by 128: the same reals, one integer type.
"""

from __future__ import annotations

import numpy as np

from tinymlaas_modelkit.errors import MalformedModel
from tinymlaas_modelkit.graph import DType, OpKind, Quantization
from tinymlaas_modelkit.onnx_reader._context import NARROW, Act, Const, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._source import Node, Source
from tinymlaas_modelkit.quantization import quantize, same_quantization

# Operators that move values without changing them: input and output share one quantization.
PRESERVING = frozenset(
    {
        "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
        "MaxPool", "Pad", "Concat", "Resize", "Gather", "Relu", "Clip", "DepthToSpace", "Expand",
    }
)  # fmt: skip


def _parameters(source: Source, node: Node) -> Quantization | None:
    """Scale and zero point of a Q or DQ node when they are constants."""
    scale = source.constants.get(node.inputs[1])
    zero = source.constants.get(node.inputs[2]) if node.has_input(2) else None
    if scale is None or (node.has_input(2) and zero is None):
        return None
    scales = np.asarray(scale, dtype=np.float32).reshape(-1)
    zeros = np.zeros(scales.shape, np.int32) if zero is None else np.asarray(zero).astype(np.int32).reshape(-1)
    if not np.all(np.isfinite(scales)) or np.any(scales <= 0):
        raise MalformedModel("BAD_VALUE", "a scale is not a positive finite number", node.name)
    if zeros.size != scales.size:
        raise MalformedModel("SHAPE_MISMATCH", "scale and zero point differ in size", node.name)
    axis = int(node.attributes.get("axis", 1)) if scales.size > 1 else None
    return Quantization(scales, zeros, axis)


def is_shifted(source: Source, name: str) -> bool:
    """Whether an activation is stored as int8 though the file says uint8."""
    return source.dtypes.get(name) == "uint8"


def _stored(source: Source, name: str, q: Quantization) -> Quantization:
    return Quantization(q.scales, q.zero_points - 128, q.axis) if is_shifted(source, name) else q


def find_quantizations(source: Source) -> dict[str, Quantization]:
    """The quantization of each integer activation, from the QuantizeLinear that makes or the DequantizeLinear that
    reads it."""
    found: dict[str, Quantization] = {}
    for node in source.nodes:
        if node.op == "QuantizeLinear" and len(node.inputs) >= 2:
            name = node.outputs[0]
            zero = node.inputs[2] if node.has_input(2) else ""
            source.dtypes[name] = source.dtypes.get(zero) or source.dtypes.get(name) or "uint8"
        elif node.op == "DequantizeLinear" and len(node.inputs) >= 2 and node.inputs[0] not in source.constants:
            name = node.inputs[0]
        else:
            continue
        q = _parameters(source, node)
        if q is not None and name not in found:
            found[name] = _stored(source, name, q)
    integer = ("int8", "uint8", "int16")
    movers = [
        n for n in source.nodes if n.op in PRESERVING and n.outputs and source.dtypes.get(n.outputs[0]) in integer
    ]
    changed = True
    while changed:
        changed = False
        for node in movers:
            data = node.inputs if node.op == "Concat" else node.inputs[:1]
            names = [n for n in (*data, *node.outputs) if n and n not in source.constants]
            known = next((found[n] for n in names if n in found), None)
            if known is None:
                continue
            for name in names:
                if name not in found:
                    found[name] = known
                    changed = True
    return found


def _constant_quantization(context: Context, node: Node, rank: int) -> Quantization:
    q = _parameters(context.source, node)
    if q is None:
        raise NotExpressible("scale or zero point is computed")
    if q.axis is None:
        return q
    return Quantization(q.scales, q.zero_points, q.axis % rank if rank else None)


def dequantize_linear(context: Context, node: Node) -> None:
    """DequantizeLinear: a view of the integers, of a constant or of an activation."""
    value = context.value(node, 0)
    if isinstance(value, Const):
        q = _constant_quantization(context, node, value.array.ndim)
        array = value.array
        if array.dtype == np.uint8:
            array = (array.astype(np.int16) - 128).astype(np.int8)
            q = Quantization(q.scales, q.zero_points - 128, q.axis)
        context.values[node.outputs[0]] = Const(value.name, array, q)
        return
    q_file = _parameters(context.source, node)
    if q_file is None:
        raise NotExpressible("scale or zero point is computed")
    if context.dtype_of(value).value not in context.integers:
        raise NotExpressible(f"activations of {context.source.dtypes.get(node.inputs[0])} are not supported")
    if q_file.scales.size != 1:
        raise NotExpressible("activations quantized per channel are not supported")
    q = _stored(context.source, node.inputs[0], q_file)
    if not same_quantization(q, context.quantization_of(value)):
        raise NotExpressible("the tensor is read with another quantization than it was written with")
    context.values[node.outputs[0]] = Act(value.tensor, value.perm, view=True)


def quantize_linear(context: Context, node: Node) -> None:
    """QuantizeLinear that no operator absorbed: of a constant, of a view (requantization), or of a float tensor."""
    value = context.value(node, 0)
    name = node.outputs[0]
    dtype = context.source.dtypes.get(name)
    if isinstance(value, Const):
        q = _constant_quantization(context, node, value.array.ndim)
        integer = np.dtype(dtype or "uint8")
        context.values[name] = Const(value.name, quantize(value.real, q, integer))
        return
    if name not in context.quantizations:
        raise NotExpressible("scale or zero point is computed")
    q = context.quantizations[name]
    if dtype not in context.integers or q.scales.size != 1:
        raise NotExpressible(f"activations of {dtype}, or per channel, are not supported")
    stored = context.tensors[value.tensor]
    stored_as = DType.INT8 if dtype in NARROW else DType(dtype)
    if value.view and stored.dtype is stored_as and same_quantization(q, stored.quantization):
        context.values[name] = Act(value.tensor, value.perm)
        return
    tensor = context.emit(OpKind.QUANTIZE, (value.tensor,), name, stored.shape, q, {}, node.name, stored_as)
    context.values[name] = Act(tensor, value.perm)
