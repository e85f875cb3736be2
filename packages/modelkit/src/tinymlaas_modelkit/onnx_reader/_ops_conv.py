"""Conv: plain, grouped and depthwise, in one and two dimensions, float and int8."""

from __future__ import annotations

from tinymlaas_modelkit.graph import OpKind
from tinymlaas_modelkit.onnx_reader._context import NCHW, Act, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._ops_norm import fold_into
from tinymlaas_modelkit.onnx_reader._source import Node, int_tuple
from tinymlaas_modelkit.onnx_reader._weights import add_weights, can_be_integer

NCW = (0, 2, 1)


def spatial(node: Node, name: str, dimensions: int, default: int) -> tuple[int, ...]:
    """A per-dimension attribute, or its default."""
    values = int_tuple(node.attributes.get(name, [default] * dimensions))
    if len(values) != dimensions:
        raise NotExpressible(f"{name} has {len(values)} values for {dimensions} dimensions")
    return values


def explicit_pads(
    node: Node, size: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    """Pads as (before..., after...) per dimension, with auto_pad resolved (ONNX operator Conv)."""
    count = len(size)
    auto = str(node.attributes.get("auto_pad", "NOTSET"))
    if auto == "VALID":
        return (0,) * (2 * count)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for i in range(count):
            reach = (kernel[i] - 1) * dilations[i] + 1
            total = max((-(-size[i] // strides[i]) - 1) * strides[i] + reach - size[i], 0)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        return (*before, *after)
    pads = int_tuple(node.attributes.get("pads", [0] * (2 * count)))
    if len(pads) != 2 * count:
        raise NotExpressible(f"pads has {len(pads)} values for {count} dimensions")
    if min(pads) < 0:
        raise NotExpressible("negative pads")
    return pads


def to_image(context: Context, x: Act) -> tuple[Act, bool]:
    """The value stored as NHWC; a sequence [N, C, W] becomes an image of height 1 (second result True)."""
    if len(x.perm) == 4:
        return context.layout(x, NCHW), False
    if len(x.perm) != 3:
        raise NotExpressible(f"only one or two spatial dimensions are supported, got {len(x.perm) - 2}")
    stored = context.layout(x, NCW)
    n, w, c = context.tensors[stored.tensor].shape
    return reshaped(context, stored, (n, 1, w, c), NCHW), True


def reshaped(context: Context, x: Act, shape: tuple[int, ...], perm: tuple[int, ...]) -> Act:
    """The stored tensor under another shape."""
    stored = context.tensors[x.tensor]
    name = context.emit(
        OpKind.RESHAPE,
        (x.tensor,),
        f"{x.tensor}_image",
        shape,
        stored.quantization,
        {"shape": shape},
        "layout",
        stored.dtype,
    )
    return Act(name, perm, x.view)


def from_image(context: Context, tensor: str, sequence: bool) -> Act:
    """The counterpart of `to_image` for a result."""
    image = Act(tensor, NCHW)
    if not sequence:
        return image
    n, _, w, c = context.tensors[tensor].shape
    return reshaped(context, image, (n, w, c), NCW)


def conv(context: Context, node: Node) -> None:
    """Conv to CONV_2D or DEPTHWISE_CONV_2D."""
    x = context.act(node)
    weights = context.const(node, 1)
    bias = context.const(node, 2) if node.has_input(2) else None
    weights, bias, last = fold_into(context, node, weights, bias)
    target = context.target(last, x.view and can_be_integer(weights))
    if not target.integer:
        x = context.real(x)
    image, sequence = to_image(context, x)
    dimensions = 1 if sequence else 2
    array = weights.array
    if array.ndim != dimensions + 2:
        raise NotExpressible(f"filter of rank {array.ndim} for an input of rank {dimensions + 2}")
    kernel = array.shape[2:]
    strides = spatial(node, "strides", dimensions, 1)
    dilations = spatial(node, "dilations", dimensions, 1)
    n, *size, channels = context.tensors[image.tensor].shape
    pads = explicit_pads(node, tuple(size[-dimensions:]), kernel, strides, dilations)
    if sequence:
        kernel, strides, dilations, pads = (1, *kernel), (1, *strides), (1, *dilations), (0, pads[0], 0, pads[1])
    group = int(node.attributes.get("group", 1))
    filters, per_group = int(array.shape[0]), int(array.shape[1])
    if group < 1 or per_group * group != channels or filters % group:
        raise NotExpressible(f"{group} groups of {per_group} channels do not match an input of {channels} channels")
    depthwise = group == channels and per_group == 1 and group > 1
    attributes: dict[str, object] = {
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "activation": target.activation,
    }
    spatial_axes = (2,) if sequence else (2, 3)
    move: tuple[int, ...]
    if depthwise:
        move, shape = (1, *spatial_axes, 0), (1, *kernel, filters)
        attributes["depth_multiplier"] = filters // group
    else:
        move, shape = (0, *spatial_axes, 1), (filters, *kernel, per_group)
    input_q = context.quantization_of(image)
    scale = input_q.scale if target.integer and input_q is not None else None
    if weights.quantization is not None and weights.quantization.axis not in (None, 0) and target.integer:
        raise NotExpressible("filter quantized along another axis than the output channels")
    weights_name, bias_name = add_weights(context, weights, move, shape, bias, scale, filters)
    out_size = tuple(
        (size[i] + pads[i] + pads[i + 2] - ((kernel[i] - 1) * dilations[i] + 1)) // strides[i] + 1 for i in range(2)
    )
    if min(out_size) < 1:
        raise NotExpressible("the filter is larger than the padded input")
    kind = OpKind.DEPTHWISE_CONV_2D if depthwise else OpKind.CONV_2D
    tensor = context.emit(
        kind,
        (image.tensor, weights_name, bias_name),
        target.name,
        (n, *out_size, filters),
        target.quantization,
        attributes,
        node.name,
        target.dtype,
    )
    result = from_image(context, tensor, sequence)
    context.finish(target, result.tensor, result.perm)


def conv_transpose(context: Context, node: Node) -> None:
    """ConvTranspose of images, without groups or dilations, to TRANSPOSE_CONV."""
    x = context.act(node)
    weights = context.const(node, 1)
    bias = context.const(node, 2) if node.has_input(2) else None
    if int(node.attributes.get("group", 1)) != 1 or any(
        d != 1 for d in int_tuple(node.attributes.get("dilations", [1]))
    ):
        raise NotExpressible("transposed convolution with groups or dilations")
    if len(x.perm) != 4 or weights.array.ndim != 4:
        raise NotExpressible("only two spatial dimensions are supported")
    if str(node.attributes.get("auto_pad", "NOTSET")) != "NOTSET" or "output_shape" in node.attributes:
        raise NotExpressible("transposed convolution whose padding follows from its shape")
    if weights.quantization is not None and weights.quantization.axis not in (None, 1):
        raise NotExpressible("filter quantized along another axis than the output channels")
    target = context.target(node, x.view and can_be_integer(weights), fuse=False)
    if not target.integer:
        x = context.real(x)
    image = context.layout(x, NCHW)
    n, h, w, channels = context.tensors[image.tensor].shape
    depth, filters, *kernel = weights.array.shape
    if depth != channels:
        raise NotExpressible(f"filter of {depth} channels for {channels}")
    strides, extra = spatial(node, "strides", 2, 1), spatial(node, "output_padding", 2, 0)
    pads = int_tuple(node.attributes.get("pads", [0, 0, 0, 0]))
    size = tuple((s - 1) * strides[i] + kernel[i] + extra[i] - pads[i] - pads[i + 2] for i, s in enumerate((h, w)))
    if min(size) < 1 or min(pads) < 0:
        raise NotExpressible("padding beyond the result")
    input_q = context.quantization_of(image)
    scale = input_q.scale if target.integer and input_q is not None else None
    names = add_weights(context, weights, (1, 2, 3, 0), (filters, *kernel, depth), bias, scale, filters)
    attributes: dict[str, object] = {
        "strides": strides, "pads": pads, "output_padding": extra, "activation": target.activation,
    }  # fmt: skip
    shape = (n, *size, filters)
    inputs = (image.tensor, *names)
    tensor = context.emit(
        OpKind.TRANSPOSE_CONV, inputs, target.name, shape, target.quantization, attributes, node.name, target.dtype
    )
    context.finish(target, tensor, NCHW)
