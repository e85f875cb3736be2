"""Pooling: AveragePool, MaxPool, GlobalAveragePool, GlobalMaxPool and ReduceMean."""

from __future__ import annotations

import math

from tinymlaas_modelkit.graph import Activation, OpKind
from tinymlaas_modelkit.onnx_reader._context import Act, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._ops_conv import explicit_pads, from_image, spatial, to_image
from tinymlaas_modelkit.onnx_reader._ops_shape import reshape_value
from tinymlaas_modelkit.onnx_reader._source import Node, int_tuple


def _window(context: Context, node: Node, image: Act, sequence: bool) -> tuple[dict[str, object], tuple[int, ...]]:
    """Attributes of the pool and the shape of its result (NHWC)."""
    dimensions = 1 if sequence else 2
    n, *size, channels = context.tensors[image.tensor].shape
    kernel = int_tuple(node.attributes["kernel_shape"])
    strides = spatial(node, "strides", dimensions, 1)
    dilations = spatial(node, "dilations", dimensions, 1)
    if any(d != 1 for d in dilations):
        raise NotExpressible("pooling with dilation")
    pads = explicit_pads(node, tuple(size[-dimensions:]), kernel, strides, dilations)
    if sequence:
        kernel, strides, pads = (1, *kernel), (1, *strides), (0, pads[0], 0, pads[1])
    out, grown = [], list(pads)
    for i in range(2):
        span = size[i] + pads[i] + pads[i + 2] - kernel[i]
        if span < 0:
            raise NotExpressible("the window is larger than the padded input")
        count = span // strides[i] + 1
        if node.attributes.get("ceil_mode", 0):
            count = math.ceil(span / strides[i]) + 1
            # A window must start inside the input or the padding before it (ONNX operator AveragePool, ceil_mode).
            if (count - 1) * strides[i] >= size[i] + pads[i]:
                count -= 1
            grown[i + 2] += max((count - 1) * strides[i] + kernel[i] - (size[i] + pads[i] + pads[i + 2]), 0)
        out.append(count)
    if node.op == "AveragePool" and node.attributes.get("count_include_pad", 0) and any(grown):
        raise NotExpressible("average that counts padding (count_include_pad)")
    return {"kernel": kernel, "strides": strides, "pads": tuple(grown)}, (n, *out, channels)


def average_pool(context: Context, node: Node) -> None:
    """AveragePool to AVERAGE_POOL_2D."""
    x = context.act(node)
    target = context.target(node, x.view)
    if not target.integer:
        x = context.real(x)
    image, sequence = to_image(context, x)
    attributes, shape = _window(context, node, image, sequence)
    attributes["activation"] = target.activation
    attributes["order"] = _order(context, image, attributes)
    tensor = context.emit(
        OpKind.AVERAGE_POOL_2D,
        (image.tensor,),
        target.name,
        shape,
        target.quantization,
        attributes,
        node.name,
        target.dtype,
    )
    result = from_image(context, tensor, sequence)
    context.finish(target, result.tensor, result.perm)


def _order(context: Context, image: Act, attributes: dict[str, object]) -> str:
    """The order in which ONNX Runtime adds a window: its MLAS kernels serve AveragePool before version 19 only."""
    _, h, w, _ = context.tensors[image.tensor].shape
    kernel, strides, pads = attributes["kernel"], attributes["strides"], attributes["pads"]
    assert isinstance(strides, tuple)
    assert isinstance(pads, tuple)
    if context.source.opset >= 19 or strides[1] > 2:
        return "sequence"
    return "lanes" if kernel == (h, w) and strides == (1, 1) and not any(pads) else "columns"


def max_pool(context: Context, node: Node) -> None:
    """MaxPool to MAX_POOL_2D; it keeps the quantization, as no value changes."""
    if len([o for o in node.outputs if o]) > 1:
        raise NotExpressible("the indices output is not supported")
    x = context.act(node)
    image, sequence = to_image(context, x)
    attributes, shape = _window(context, node, image, sequence)
    attributes["activation"] = Activation.NONE
    _preserving_pool(context, node, image, attributes, shape, sequence)


def global_max_pool(context: Context, node: Node) -> None:
    """GlobalMaxPool to a MAX_POOL_2D over the whole image."""
    image, sequence = to_image(context, context.act(node))
    n, h, w, c = context.tensors[image.tensor].shape
    attributes: dict[str, object] = {
        "kernel": (h, w),
        "strides": (h, w),
        "pads": (0, 0, 0, 0),
        "activation": Activation.NONE,
    }
    _preserving_pool(context, node, image, attributes, (n, 1, 1, c), sequence)


def _preserving_pool(
    context: Context, node: Node, image: Act, attributes: dict[str, object], shape: tuple[int, ...], sequence: bool
) -> None:
    stored = context.tensors[image.tensor]
    tensor = context.emit(
        OpKind.MAX_POOL_2D,
        (image.tensor,),
        node.outputs[0],
        shape,
        stored.quantization,
        attributes,
        node.name,
        stored.dtype,
    )
    result = from_image(context, tensor, sequence)
    context.values[node.outputs[0]] = Act(result.tensor, result.perm, image.view)


def _mean(context: Context, node: Node, axes: tuple[int, ...], keep_dims: bool, order: str = "") -> None:
    x = context.act(node)
    rank = len(x.perm)
    stored_axes = tuple(sorted({x.perm[a % rank] for a in axes}))
    kept = tuple(1 if a in {b % rank for b in axes} else d for a, d in enumerate(context.shape_of(x)))
    target = context.target(node, x.view, fuse=False)
    if not target.integer:
        x = context.real(x)
    shape = tuple(1 if a in stored_axes else d for a, d in enumerate(context.tensors[x.tensor].shape))
    attributes: dict[str, object] = {"axes": stored_axes, "keep_dims": True}
    if order:
        attributes["order"] = order
    tensor = context.emit(
        OpKind.MEAN, (x.tensor,), target.name, shape, target.quantization, attributes, node.name, target.dtype
    )
    result = Act(tensor, x.perm)
    if not keep_dims:
        squeezed = tuple(d for a, d in enumerate(kept) if a not in {b % rank for b in axes})
        result = reshape_value(context, result, squeezed, f"{target.name}_squeezed", node.name)
    context.finish(target, result.tensor, result.perm)


def global_average_pool(context: Context, node: Node) -> None:
    """GlobalAveragePool to MEAN over the spatial axes."""
    rank = len(context.act(node).perm)
    if rank < 3:
        raise NotExpressible(f"input of rank {rank}")
    _mean(context, node, tuple(range(2, rank)), True, "lanes")


def reduce_mean(context: Context, node: Node) -> None:
    """ReduceMean to MEAN."""
    x = context.act(node)
    axes = context.parameter(node, "axes", 1)
    if not axes:
        if node.attributes.get("noop_with_empty_axes", 0):
            context.values[node.outputs[0]] = x
            return
        axes = tuple(range(len(x.perm)))
    if not axes:
        raise NotExpressible("mean of a scalar")
    _mean(context, node, axes, bool(node.attributes.get("keepdims", 1)))


def reduce_extreme(context: Context, node: Node) -> None:
    """ReduceMax and ReduceMin to REDUCE_MAX and REDUCE_MIN; they keep the quantization, as no value changes."""
    x = context.act(node)
    axes = context.parameter(node, "axes", 1) or tuple(range(len(x.perm)))
    rank = len(x.perm)
    chosen = {a % rank for a in axes}
    stored = context.tensors[x.tensor]
    stored_axes = tuple(sorted(x.perm[a] for a in chosen))
    shape = tuple(1 if a in stored_axes else d for a, d in enumerate(stored.shape))
    kind = OpKind.REDUCE_MAX if node.op == "ReduceMax" else OpKind.REDUCE_MIN
    attributes: dict[str, object] = {"axes": stored_axes, "keep_dims": True}
    name = node.outputs[0]
    tensor = context.emit(kind, (x.tensor,), name, shape, stored.quantization, attributes, node.name, stored.dtype)
    result = Act(tensor, x.perm, x.view)
    if not node.attributes.get("keepdims", 1):
        squeezed = tuple(d for a, d in enumerate(context.shape_of(x)) if a not in chosen)
        result = reshape_value(context, result, squeezed, f"{name}_squeezed", node.name)
    context.values[name] = result
