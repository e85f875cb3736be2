"""Each operator of the graph as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from tinymlaas_modelkit.errors import OffendingOperator, UnsupportedOperator
from tinymlaas_modelkit.graph import Activation, Op, OpKind
from tinymlaas_modelkit.onnx_writer._context import NCHW, Context, Perm, Value
from tinymlaas_modelkit.onnx_writer._versions import means_the_same
from tinymlaas_modelkit.quantization import same_quantization


def _source(op: Op, position: int = 0) -> str:
    name = op.inputs[position]
    assert name is not None
    return name


def _ints(op: Op, name: str) -> list[int]:
    values: Any = op.attributes[name]
    return [int(v) for v in values]


def _draft(context: Context, op: Op) -> str:
    return context.unique(f"{op.outputs[0]}/{op.kind.value.lower()}")


def convolution(context: Context, op: Op) -> None:
    """CONV_2D and DEPTHWISE_CONV_2D to Conv."""
    filter_name = _source(op, 1)
    channels = context.graph.tensors[_source(op)].shape[3]
    depthwise = op.kind is OpKind.DEPTHWISE_CONV_2D
    filter_shape = context.graph.tensors[filter_name].shape
    if depthwise:
        # [1, kh, kw, O] to [O, 1, kh, kw]
        weights, group = context.constant(filter_name, (3, 0, 1, 2)), channels
    else:
        weights, group = context.constant(filter_name, (0, 3, 1, 2)), channels // filter_shape[3]
    inputs = [context.real(_source(op), NCHW), weights]
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        inputs.append(context.constant(op.inputs[2], (0,)))
    real = context.node(
        "Conv", inputs, _draft(context, op), group=group, kernel_shape=list(filter_shape[1:3]), pads=_ints(op, "pads"),
        strides=_ints(op, "strides"), dilations=_ints(op, "dilations"),
    )  # fmt: skip
    context.finish(op, real, NCHW)


def fully_connected(context: Context, op: Op) -> None:
    """FULLY_CONNECTED to MatMul and Add."""
    data = _source(op)
    inputs = [context.real(data, context.identity(data)), context.constant(_source(op, 1), (1, 0))]
    real = context.node("MatMul", inputs, _draft(context, op))
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        real = context.node(
            "Add", [real, context.constant(op.inputs[2], (0,))], context.unique(f"{op.outputs[0]}/bias")
        )
    context.finish(op, real, context.identity(op.outputs[0]))


def pool(context: Context, op: Op) -> None:
    """AVERAGE_POOL_2D (padding not counted) and MAX_POOL_2D."""
    name = "AveragePool" if op.kind is OpKind.AVERAGE_POOL_2D else "MaxPool"
    attributes = {"kernel_shape": _ints(op, "kernel"), "strides": _ints(op, "strides"), "pads": _ints(op, "pads")}
    real = context.node(name, [context.real(_source(op), NCHW)], _draft(context, op), **attributes)
    context.finish(op, real, NCHW)


def mean(context: Context, op: Op) -> None:
    """MEAN to ReduceMean."""
    data = _source(op)
    keep = bool(op.attributes["keep_dims"])
    perm = context.perm(data) if keep else context.identity(data)
    axes = sorted(perm.index(a) for a in _ints(op, "axes"))
    _reduced(context, op, "ReduceMean", perm, axes)


def reduce(context: Context, op: Op) -> None:
    """REDUCE_MAX and REDUCE_MIN to ReduceMax and ReduceMin."""
    perm = context.identity(_source(op))
    _reduced(context, op, "ReduceMax" if op.kind is OpKind.REDUCE_MAX else "ReduceMin", perm, sorted(_ints(op, "axes")))


def _reduced(context: Context, op: Op, node: str, perm: Perm, axes: list[int]) -> None:
    keep = bool(op.attributes["keep_dims"])
    inputs, attributes = [context.real(_source(op), perm)], {"keepdims": int(keep)}
    if context.opset >= 18:
        # From version 18 on the axes are an input.
        real = context.node(node, [*inputs, _int64(context, op, "axes", axes)], _draft(context, op), **attributes)
    else:
        real = context.node(node, inputs, _draft(context, op), axes=axes, **attributes)
    context.finish(op, real, perm if keep else context.identity(op.outputs[0]))


def batch_matmul(context: Context, op: Op) -> None:
    """BATCH_MATMUL to MatMul, with a Transpose before an operand that is read transposed."""
    inputs = []
    for position, flag in enumerate(("adj_x", "adj_y")):
        name = _source(op, position)
        perm = context.identity(name)
        real = context.real(name, perm)
        if op.attributes[flag]:
            turned = [*perm[:-2], perm[-1], perm[-2]]
            real = context.node("Transpose", [real], context.unique(f"{real}/turned"), perm=turned)
        inputs.append(real)
    context.finish(op, context.node("MatMul", inputs, _draft(context, op)), context.identity(op.outputs[0]))


def gather(context: Context, op: Op) -> None:
    """GATHER with constant indices to Gather."""
    perm, shape = context.identity(_source(op)), _ints(op, "indices_shape")
    indices = context.initializer(f"{op.outputs[0]}/indices", np.asarray(_ints(op, "indices"), np.int64).reshape(shape))
    axis = int(op.attributes["axis"])  # type: ignore[call-overload]
    _moved(context, op, "Gather", [indices], perm, context.identity(op.outputs[0]), axis=axis)


def transpose_conv(context: Context, op: Op) -> None:
    """TRANSPOSE_CONV to ConvTranspose."""
    filter_name = _source(op, 1)
    weights = context.constant(filter_name, (3, 0, 1, 2))
    inputs = [context.real(_source(op), NCHW), weights]
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        inputs.append(context.constant(op.inputs[2], (0,)))
    kernel = list(context.graph.tensors[filter_name].shape[1:3])
    attributes = {"kernel_shape": kernel, "strides": _ints(op, "strides"), "pads": _ints(op, "pads")}
    attributes["output_padding"] = _ints(op, "output_padding")
    context.finish(op, context.node("ConvTranspose", inputs, _draft(context, op), **attributes), NCHW)


def foreign(context: Context, op: Op) -> None:
    """FOREIGN: the node itself, unless it would mean something else under the file's version of the operator set."""
    serialized = op.attributes["node"]
    assert isinstance(serialized, bytes)
    node = onnx.NodeProto.FromString(serialized)
    opset = int(op.attributes["opset"])  # type: ignore[call-overload]
    if not node.domain and not means_the_same(node.op_type, opset, context.opset):
        detail = f"its form of version {opset} can't be written under version {context.opset}, which others need"
        dtype = str(context.graph.tensors[op.outputs[0]].dtype)
        raise UnsupportedOperator([OffendingOperator(node.op_type, op.origin, dtype, detail)])
    inputs, outputs = iter(op.inputs), iter(op.outputs)
    for position, present in enumerate(node.input):
        if present:
            name = next(inputs)
            assert name is not None
            node.input[position] = context.plain(name)
    for position, present in enumerate(node.output):
        if present:
            name = next(outputs)
            identity = context.identity(name)
            node.output[position] = context.result_name(name, identity)
            context.values[name] = Value(node.output[position], identity)
    node.name = f"{node.op_type}_{len(context.nodes)}"
    context.nodes.append(node)


BINARY = {
    OpKind.ADD: "Add", OpKind.SUB: "Sub", OpKind.MUL: "Mul", OpKind.DIV: "Div", OpKind.MINIMUM: "Min", OpKind.MAXIMUM: "Max",
    OpKind.PRELU: "PRelu",
}  # fmt: skip


def binary(context: Context, op: Op) -> None:
    """Operators of two tensors; constants and tensors of lower rank broadcast."""
    name = BINARY[op.kind]
    tensors = [context.graph.tensors[_source(op, i)] for i in (0, 1)]
    rank = max(len(t.shape) for t in tensors)
    computed = [t for t in tensors if not t.is_constant]
    lead = max(computed, key=lambda t: len(t.shape))
    flat = any(len(t.shape) != rank and t.elements > 1 for t in tensors)
    perm: Perm = context.identity(op.outputs[0]) if flat else context.perm(lead.name)
    inputs = []
    for tensor in tensors:
        own = perm if len(tensor.shape) == rank else context.identity(tensor.name)
        inputs.append(context.real(tensor.name, own))
    context.finish(op, context.node(name, inputs, _draft(context, op)), perm)


def unary(context: Context, op: Op) -> None:
    """Operators on one element at a time keep the layout."""
    data = _source(op)
    perm = context.perm(data)
    real = context.real(data, perm)
    match op.kind:
        case OpKind.RELU:
            real = context.activated(real, Activation.RELU)
        case OpKind.RELU6:
            real = context.activated(real, Activation.RELU6)
        case OpKind.LEAKY_RELU:
            real = context.node("LeakyRelu", [real], _draft(context, op), alpha=float(op.attributes["alpha"]))  # type: ignore[arg-type]
        case _:
            names = {OpKind.LOGISTIC: "Sigmoid", OpKind.TANH: "Tanh", OpKind.HARD_SWISH: "HardSwish"}
            real = context.node(names[op.kind], [real], _draft(context, op))
    context.finish(op, real, perm)


def softmax(context: Context, op: Op) -> None:
    """SOFTMAX over the last axis."""
    data = _source(op)
    perm = context.identity(data)
    real, beta = context.real(data, perm), float(op.attributes["beta"])  # type: ignore[arg-type]
    if beta != 1.0:
        scale = context.initializer(f"{op.outputs[0]}/beta", np.asarray(beta, np.float32))
        real = context.node("Mul", [real, scale], context.unique(f"{op.outputs[0]}/scaled"))
    context.finish(op, context.node("Softmax", [real], _draft(context, op), axis=-1), perm)


def convert(context: Context, op: Op) -> None:
    """QUANTIZE and DEQUANTIZE: the reals of the input, quantized anew if the output is integer."""
    data = _source(op)
    perm = context.perm(data)
    context.finish(op, context.real(data, perm), perm)


def _moved(
    context: Context, op: Op, node: str, inputs: list[str], perm_in: Perm, perm_out: Perm, **attributes: Any
) -> None:
    """An operator that moves elements: on the integers themselves where the quantization stays, else on the reals."""
    data, out = context.graph.tensors[_source(op)], context.graph.tensors[op.outputs[0]]
    if same_quantization(data.quantization, out.quantization) and data.dtype == out.dtype:
        name = context.result_name(out.name, perm_out)
        context.node(node, [context.stored(data.name, perm_in), *inputs], name, **attributes)
        context.values[out.name] = Value(name, perm_out)
        return
    real = context.node(node, [context.real(data.name, perm_in), *inputs], _draft(context, op), **attributes)
    context.finish(op, real, perm_out)


def _int64(context: Context, op: Op, name: str, values: Any) -> str:
    return context.initializer(f"{op.outputs[0]}/{name}", np.asarray(values, np.int64).reshape(-1))


def reshape(context: Context, op: Op) -> None:
    """RESHAPE in the layout of the graph."""
    identity_in, identity_out = context.identity(_source(op)), context.identity(op.outputs[0])
    _moved(context, op, "Reshape", [_int64(context, op, "shape", op.attributes["shape"])], identity_in, identity_out)


def transpose(context: Context, op: Op) -> None:
    """TRANSPOSE in the layout of the graph."""
    identity = context.identity(_source(op))
    _moved(context, op, "Transpose", [], identity, identity, perm=_ints(op, "permutation"))


def slice_(context: Context, op: Op) -> None:
    """SLICE and STRIDED_SLICE to Slice."""
    data = _source(op)
    begin = _ints(op, "begin")
    if op.kind is OpKind.SLICE:
        end = [b + s for b, s in zip(begin, _ints(op, "size"), strict=True)]
        steps = [1] * len(begin)
    else:
        end, steps = _ints(op, "end"), _ints(op, "strides")
    perm = context.perm(data)
    axes = list(range(len(perm)))
    parts = {"starts": begin, "ends": end, "axes": axes, "steps": steps}
    inputs = [
        _int64(context, op, name, values if name == "axes" else [values[p] for p in perm])
        for name, values in parts.items()
    ]
    _moved(context, op, "Slice", inputs, perm, perm)


def pad(context: Context, op: Op) -> None:
    """PAD to Pad on the reals."""
    data = _source(op)
    perm = context.perm(data)
    paddings: Any = op.attributes["paddings"]
    pads = [paddings[p][0] for p in perm] + [paddings[p][1] for p in perm]
    value = np.asarray(op.attributes.get("value", 0.0), np.float32)
    inputs = [
        context.real(data, perm),
        _int64(context, op, "pads", pads),
        context.initializer(f"{op.outputs[0]}/value", value),
    ]
    context.finish(op, context.node("Pad", inputs, _draft(context, op)), perm)


def concatenation(context: Context, op: Op) -> None:
    """CONCATENATION to Concat on the reals."""
    computed = [n for n in op.inputs if n is not None and not context.graph.tensors[n].is_constant]
    perm = context.perm(computed[0]) if computed else context.identity(op.outputs[0])
    inputs = [context.real(n, perm) for n in op.inputs if n is not None]
    axis = perm.index(int(op.attributes["axis"]))  # type: ignore[call-overload]
    context.finish(op, context.node("Concat", inputs, _draft(context, op), axis=axis), perm)


def split(context: Context, op: Op) -> None:
    """SPLIT to one Slice for each part, which keeps integers as they are."""
    data = _source(op)
    perm = context.perm(data)
    axis, start = int(op.attributes["axis"]), 0  # type: ignore[call-overload]
    for output, size in zip(op.outputs, _ints(op, "sizes"), strict=True):
        part = Op(OpKind.SLICE, op.inputs, (output,), {}, op.origin)
        values = {"starts": [start], "ends": [start + size], "axes": [perm.index(axis)]}
        inputs = [_int64(context, part, name, v) for name, v in values.items()]
        _moved(context, part, "Slice", inputs, perm, perm)
        start += size


def resize(context: Context, op: Op) -> None:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR to Resize."""
    out = context.graph.tensors[op.outputs[0]].shape
    sizes = _int64(context, op, "sizes", [out[p] for p in NCHW])
    mode = "asymmetric"
    if op.attributes["align_corners"]:
        mode = "align_corners"
    elif op.attributes["half_pixel_centers"]:
        mode = "half_pixel"
    attributes: dict[str, Any] = {"coordinate_transformation_mode": mode, "mode": "linear"}
    if op.kind is OpKind.RESIZE_NEAREST_NEIGHBOR:
        # TFLite takes floor((x + 0.5) * scale) with half-pixel centers, which is round-half-up of ONNX's coordinate.
        rounding = {"asymmetric": "floor", "half_pixel": "round_prefer_ceil", "align_corners": "round_prefer_ceil"}
        attributes |= {"mode": "nearest", "nearest_mode": rounding[mode]}
    real = context.node("Resize", [context.real(_source(op), NCHW), "", "", sizes], _draft(context, op), **attributes)
    context.finish(op, real, NCHW)


WRITERS: Mapping[OpKind, Callable[[Context, Op], None]] = {
    OpKind.ADD: binary,
    OpKind.SUB: binary,
    OpKind.MUL: binary,
    OpKind.DIV: binary,
    OpKind.MAXIMUM: binary,
    OpKind.MINIMUM: binary,
    OpKind.PRELU: binary,
    OpKind.BATCH_MATMUL: batch_matmul,
    OpKind.FOREIGN: foreign,
    OpKind.GATHER: gather,
    OpKind.REDUCE_MAX: reduce,
    OpKind.REDUCE_MIN: reduce,
    OpKind.TRANSPOSE_CONV: transpose_conv,
    OpKind.AVERAGE_POOL_2D: pool,
    OpKind.MAX_POOL_2D: pool,
    OpKind.CONCATENATION: concatenation,
    OpKind.CONV_2D: convolution,
    OpKind.DEPTHWISE_CONV_2D: convolution,
    OpKind.DEQUANTIZE: convert,
    OpKind.QUANTIZE: convert,
    OpKind.FULLY_CONNECTED: fully_connected,
    OpKind.HARD_SWISH: unary,
    OpKind.LEAKY_RELU: unary,
    OpKind.LOGISTIC: unary,
    OpKind.TANH: unary,
    OpKind.RELU: unary,
    OpKind.RELU6: unary,
    OpKind.MEAN: mean,
    OpKind.PAD: pad,
    OpKind.RESHAPE: reshape,
    OpKind.RESIZE_BILINEAR: resize,
    OpKind.RESIZE_NEAREST_NEIGHBOR: resize,
    OpKind.SLICE: slice_,
    OpKind.STRIDED_SLICE: slice_,
    OpKind.SOFTMAX: softmax,
    OpKind.SPLIT: split,
    OpKind.TRANSPOSE: transpose,
}
