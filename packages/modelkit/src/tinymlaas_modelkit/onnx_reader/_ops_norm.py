"""BatchNormalization at inference: folded into the convolution before it, or a multiplication and an addition."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.graph import Activation, OpKind
from tinymlaas_modelkit.onnx_reader._context import Const, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._source import Node

Array = npt.NDArray[Any]


def _affine(context: Context, node: Node) -> tuple[Array, Array]:
    """Factor and offset per channel, float64: y = x * factor + offset."""
    if node.attributes.get("training_mode", 0):
        raise NotExpressible("training mode")
    gamma, beta, mean, variance = (
        np.asarray(context.const(node, i).real, np.float64).reshape(-1) for i in (1, 2, 3, 4)
    )
    factor = gamma / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    return factor, beta - mean * factor


def fold_into(context: Context, conv: Node, weights: Const, bias: Const | None) -> tuple[Const, Const | None, Node]:
    """Filter, bias and last node of a convolution with the BatchNormalization after it, if there is one, folded in."""
    follower = context.source.sole_consumer(conv.outputs[0])
    if follower is None or follower.op != "BatchNormalization" or weights.quantization is not None:
        return weights, bias, conv
    if not all(isinstance(context.values.get(n), Const) for n in follower.inputs[1:]):
        return weights, bias, conv
    factor, offset = _affine(context, follower)
    array = np.asarray(weights.array, np.float64) * factor.reshape(-1, *(1,) * (weights.array.ndim - 1))
    base = 0.0 if bias is None else np.asarray(bias.real, np.float64).reshape(-1)
    context.done.add(follower.index)
    folded = dataclasses.replace(weights, array=array.astype(np.float32))
    name = follower.inputs[2] if bias is None else bias.name
    return folded, Const(name, (base * factor + offset).astype(np.float32)), follower


def batch_normalization(context: Context, node: Node) -> None:
    """BatchNormalization that no convolution took: MUL and ADD with a constant per channel (axis 1)."""
    x = context.real(context.act(node))
    factor, offset = _affine(context, node)
    rank = len(x.perm)
    shape = [1] * rank
    shape[x.perm[1]] = factor.size
    target = context.target(node, integer=False)
    stored = context.tensors[x.tensor].shape
    scale = context.constant(f"{node.inputs[1]}/factor", factor.astype(np.float32).reshape(shape))
    scaled = context.emit(
        OpKind.MUL,
        (x.tensor, scale),
        f"{node.outputs[0]}/scaled",
        stored,
        None,
        {"activation": Activation.NONE},
        node.name,
    )
    addend = context.constant(f"{node.inputs[2]}/offset", offset.astype(np.float32).reshape(shape))
    tensor = context.emit(
        OpKind.ADD, (scaled, addend), target.name, stored, None, {"activation": target.activation}, node.name
    )
    context.finish(target, tensor, x.perm)
