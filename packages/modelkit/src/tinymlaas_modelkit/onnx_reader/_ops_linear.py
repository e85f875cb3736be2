"""MatMul and Gemm with constant weights: FULLY_CONNECTED, with the bias of an Add that follows."""

from __future__ import annotations

import dataclasses

import numpy as np

from tinymlaas_modelkit.graph import OpKind
from tinymlaas_modelkit.onnx_reader._context import Const, Context, NotExpressible, Target
from tinymlaas_modelkit.onnx_reader._source import Node
from tinymlaas_modelkit.onnx_reader._weights import add_weights, can_be_integer


def _fully_connected(
    context: Context,
    node: Node,
    weights: Const,
    transposed: bool,
    bias: Const | None,
    result: Node,
    absorbed: tuple[int, ...],
) -> None:
    """Emit FULLY_CONNECTED for `node`; its result is that of `result` (the Add of the bias, or the node itself)."""
    x = context.act(node)
    if weights.array.ndim != 2:
        raise NotExpressible(f"weights of rank {weights.array.ndim}; only matrices are supported")
    move = (0, 1) if transposed else (1, 0)
    channels = int(weights.array.shape[move[0]])
    depth = int(weights.array.shape[move[1]])
    integer = (
        x.view
        and can_be_integer(weights)
        and (bias is None or bias.quantization is None or bias.array.dtype == np.int32)
    )
    target: Target = context.target(result, integer)
    if not target.integer:
        x = context.real(x)
    x = context.plain(x)
    shape = context.tensors[x.tensor].shape
    if not shape or shape[-1] != depth:
        raise NotExpressible(f"input of shape {list(shape)} for weights that read {depth} values")
    q = weights.quantization
    if target.integer and q is not None and q.axis not in (None, move[0]):
        raise NotExpressible("weights quantized along another axis than the output channels")
    input_q = context.quantization_of(x)
    scale = input_q.scale if target.integer and input_q is not None else None
    weights_name, bias_name = add_weights(context, weights, move, (channels, depth), bias, scale, channels)
    attributes: dict[str, object] = {"activation": target.activation, "keep_num_dims": len(shape) > 2}
    out = (*shape[:-1], channels)
    tensor = context.emit(
        OpKind.FULLY_CONNECTED,
        (x.tensor, weights_name, bias_name),
        target.name,
        out,
        target.quantization,
        attributes,
        node.name,
        target.dtype,
    )
    context.done.update(absorbed)
    context.finish(target, tensor, tuple(range(len(out))))


def matmul(context: Context, node: Node) -> None:
    """MatMul of a computed tensor and a constant matrix."""
    if not isinstance(context.value(node, 1), Const):
        _batch_matmul(context, node)
        return
    weights = context.const(node, 1)
    bias: Const | None = None
    result = node
    absorbed: tuple[int, ...] = ()
    follower = context.source.sole_consumer(node.outputs[0])
    if follower is not None and follower.op == "Add":
        other = follower.inputs[1] if follower.inputs[0] == node.outputs[0] else follower.inputs[0]
        candidate = _ready_constant(context, other)
        if candidate is not None and weights.array.ndim == 2 and _is_bias(candidate, int(weights.array.shape[1])):
            bias, result, absorbed = candidate, follower, (follower.index,)
    _fully_connected(context, node, weights, False, bias, result, absorbed)


def _batch_matmul(context: Context, node: Node) -> None:
    """MatMul of two computed tensors to BATCH_MATMUL."""
    a, b = context.act(node, 0), context.act(node, 1)
    if len(a.perm) != len(b.perm) or len(a.perm) < 2:
        raise NotExpressible("a product of computed tensors of different rank")
    target = context.target(node, a.view and b.view, fuse=False)
    if not target.integer:
        a, b = context.real(a), context.real(b)
    operands, flags = [], []
    for x in (a, b):
        rank = len(x.perm)
        turned = x.perm == (*range(rank - 2), rank - 1, rank - 2)
        operands.append(x if turned else context.plain(x))
        flags.append(turned)
    shapes = [context.shape_of(x) for x in operands]
    try:
        batch = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    except ValueError as error:
        raise NotExpressible(f"shapes {shapes} do not broadcast") from error
    shape = (*(int(d) for d in batch), shapes[0][-2], shapes[1][-1])
    attributes: dict[str, object] = {"adj_x": flags[0], "adj_y": flags[1]}
    names = tuple(x.tensor for x in operands)
    tensor = context.emit(
        OpKind.BATCH_MATMUL, names, target.name, shape, target.quantization, attributes, node.name, target.dtype
    )
    context.finish(target, tensor, tuple(range(len(shape))))


def _ready_constant(context: Context, name: str) -> Const | None:
    """The constant of that name, also when its DequantizeLinear stands later in the file."""
    value = context.values.get(name)
    if value is None:
        maker = next((n for n in context.source.nodes if name in n.outputs), None)
        if maker is not None and maker.op == "DequantizeLinear" and maker.inputs[0] in context.source.constants:
            from tinymlaas_modelkit.onnx_reader._qdq import dequantize_linear

            dequantize_linear(context, maker)
            value = context.values.get(name)
    return value if isinstance(value, Const) else None


def _is_bias(constant: Const, channels: int) -> bool:
    shape = constant.array.shape
    # An int8 constant is an operand of an Add of its own, not the bias that int32 accumulators take.
    integer_operand = constant.quantization is not None and constant.array.dtype != np.int32
    return not integer_operand and len(shape) >= 1 and shape[-1] == channels and constant.array.size == channels


def gemm(context: Context, node: Node) -> None:
    """Gemm with constant B and C."""
    if node.attributes.get("transA", 0):
        raise NotExpressible("transposed input (transA)")
    weights = context.const(node, 1)
    bias = context.const(node, 2) if node.has_input(2) else None
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    if alpha != 1.0:
        if weights.quantization is not None:
            raise NotExpressible(f"alpha {alpha} with quantized weights")
        weights = dataclasses.replace(weights, array=np.asarray(weights.array * np.float32(alpha), np.float32))
    if bias is not None and beta != 1.0:
        if bias.quantization is not None:
            raise NotExpressible(f"beta {beta} with a quantized bias")
        bias = dataclasses.replace(bias, array=np.asarray(bias.array * np.float32(beta), np.float32))
    transposed = bool(node.attributes.get("transB", 0))
    if bias is not None and weights.array.ndim == 2:
        channels = int(weights.array.shape[0 if transposed else 1])
        if bias.array.size not in (1, channels):
            raise NotExpressible(f"bias of {bias.array.size} values for {channels} outputs")
    _fully_connected(context, node, weights, transposed, bias, node, ())
