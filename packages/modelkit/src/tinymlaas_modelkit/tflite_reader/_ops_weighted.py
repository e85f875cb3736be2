"""CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED."""

from __future__ import annotations

import dataclasses

import numpy as np

from tinymlaas_modelkit.graph import DType, OpKind, Tensor
from tinymlaas_modelkit.tflite_reader._context import (
    Context,
    NotExpressible,
    activation,
    require_one_type,
    required,
    same_pads,
)
from tinymlaas_modelkit.tflite_reader._file import RawOp
from tinymlaas_modelkit.tflite_schema import schema


def _weights(context: Context, op: RawOp) -> tuple[Tensor, str | None]:
    require_one_type(context, op)
    filter_, data = context.input(op, 1), context.input(op)
    if filter_.data is None:
        raise NotExpressible("the filter is computed, not constant")
    wanted = DType.INT8 if data.dtype is DType.INT16 else data.dtype
    if filter_.dtype != wanted:
        raise NotExpressible(f"hybrid: {filter_.dtype} filter with {data.dtype} activations")
    if filter_.quantization is not None and filter_.quantization.zero_points.any():
        raise NotExpressible("integer filters need zero point 0 (symmetric weights)")
    return filter_, _bias(context, op)


def _bias(context: Context, op: RawOp) -> str | None:
    """The bias as float32 or int32: that of an operator on int16 is int64 in the file."""
    name = context.name(op.inputs[2]) if len(op.inputs) > 2 else None
    if name is None or context.tensors[name].dtype is not DType.INT64:
        return name
    bias = context.tensors[name]
    limits = np.iinfo(np.int32)
    if bias.data is None or np.any(np.asarray(bias.data) > limits.max) or np.any(np.asarray(bias.data) < limits.min):
        raise NotExpressible("a bias beyond 32 bits, or computed")
    narrow = np.asarray(bias.data).astype(np.int32)
    context.tensors[name] = dataclasses.replace(bias, dtype=DType.INT32, data=narrow)
    return name


def conv_2d(context: Context, op: RawOp) -> None:
    """CONV_2D and DEPTHWISE_CONV_2D with explicit pads."""
    depthwise = op.name == "DEPTHWISE_CONV_2D"
    filter_, bias = _weights(context, op)
    table = required(op, "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions")
    data = context.input(op)
    if len(data.shape) != 4 or len(filter_.shape) != 4:
        raise NotExpressible("only two spatial dimensions are supported")
    strides = (int(table.StrideH()), int(table.StrideW()))
    dilations = (int(table.DilationHFactor()), int(table.DilationWFactor()))
    if min(strides) < 1 or min(dilations) < 1:
        raise NotExpressible("strides and dilations start at 1")
    kernel = filter_.shape[1:3]
    reach = ((kernel[0] - 1) * dilations[0] + 1, (kernel[1] - 1) * dilations[1] + 1)
    same = table.Padding() == schema.Padding.SAME
    pads = same_pads((data.shape[1], data.shape[2]), reach, strides) if same else (0, 0, 0, 0)
    attributes: dict[str, object] = {
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "activation": activation(table.FusedActivationFunction()),
    }
    if depthwise:
        if filter_.shape[3] % data.shape[3]:
            raise NotExpressible(f"{filter_.shape[3]} filters for {data.shape[3]} channels")
        attributes["depth_multiplier"] = filter_.shape[3] // data.shape[3]
    elif filter_.shape[3] == 0 or data.shape[3] % filter_.shape[3]:
        raise NotExpressible(f"filter of {filter_.shape[3]} channels for an input of {data.shape[3]}")
    kind = OpKind.DEPTHWISE_CONV_2D if depthwise else OpKind.CONV_2D
    context.add(kind, op, (data.name, filter_.name, bias), attributes)


def fully_connected(context: Context, op: RawOp) -> None:
    """FULLY_CONNECTED; the flattening that TFLite implies becomes a RESHAPE of its own."""
    filter_, bias = _weights(context, op)
    table = required(op, "FullyConnectedOptions")
    if table.WeightsFormat() != schema.FullyConnectedOptionsWeightsFormat.DEFAULT:
        raise NotExpressible("shuffled weights")
    data, out = context.input(op), context.output(op)
    depth = filter_.shape[-1]
    keep = bool(table.KeepNumDims()) and len(data.shape) > 2
    name = data.name
    if data.shape[-1] != depth or (len(data.shape) != 2 and not keep):
        if data.elements % depth:
            raise NotExpressible(f"input of {data.elements} values for weights that read {depth}")
        name = context.reshaped(data, (data.elements // depth, depth), op)
    if out.shape[-1] != filter_.shape[0]:
        raise NotExpressible(f"output of shape {list(out.shape)} for {filter_.shape[0]} units")
    attributes: dict[str, object] = {"activation": activation(table.FusedActivationFunction()), "keep_num_dims": keep}
    context.add(OpKind.FULLY_CONNECTED, op, (name, filter_.name, bias), attributes)
