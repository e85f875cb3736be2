"""Pooling, element-by-element operators, reductions."""

from __future__ import annotations

from tinymlaas_modelkit.graph import DType, OpKind
from tinymlaas_modelkit.tflite_reader._context import (
    Context,
    NotExpressible,
    activation,
    options,
    require_one_type,
    required,
    same_pads,
)
from tinymlaas_modelkit.tflite_reader._file import RawOp
from tinymlaas_modelkit.tflite_schema import schema


def pool_2d(context: Context, op: RawOp) -> None:
    """AVERAGE_POOL_2D and MAX_POOL_2D with explicit pads."""
    require_one_type(context, op)
    table, data = required(op, "Pool2DOptions"), context.input(op)
    if len(data.shape) != 4:
        raise NotExpressible(f"input of rank {len(data.shape)}")
    kernel = (int(table.FilterHeight()), int(table.FilterWidth()))
    strides = (int(table.StrideH()), int(table.StrideW()))
    if min(*kernel, *strides) < 1:
        raise NotExpressible("window and strides start at 1")
    same = table.Padding() == schema.Padding.SAME
    pads = same_pads((data.shape[1], data.shape[2]), kernel, strides) if same else (0, 0, 0, 0)
    attributes: dict[str, object] = {
        "kernel": kernel,
        "strides": strides,
        "pads": pads,
        "activation": activation(table.FusedActivationFunction()),
    }
    context.add(OpKind(op.name), op, (data.name,), attributes)


def binary(context: Context, op: RawOp) -> None:
    """ADD, SUB, MUL with broadcasting."""
    require_one_type(context, op)
    table = options(op, {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[op.name])
    fused = activation(table.FusedActivationFunction() if table is not None else 0)
    a, b = context.input(op, 0), context.input(op, 1)
    if a.dtype != b.dtype:
        raise NotExpressible(f"operands {a.dtype} and {b.dtype}")
    context.add(OpKind(op.name), op, (a.name, b.name), {"activation": fused})


def unary(context: Context, op: RawOp) -> None:
    """RELU, RELU6, LOGISTIC, TANH, HARD_SWISH, LEAKY_RELU, SOFTMAX."""
    require_one_type(context, op)
    attributes: dict[str, object] = {}
    if op.name == "LEAKY_RELU":
        attributes["alpha"] = float(required(op, "LeakyReluOptions").Alpha())
    if op.name == "SOFTMAX":
        attributes["beta"] = float(required(op, "SoftmaxOptions").Beta())
    context.add(OpKind(op.name), op, (context.input(op).name,), attributes)


def quantize(context: Context, op: RawOp) -> None:
    """QUANTIZE and DEQUANTIZE between float32, int8, uint8 and int16."""
    data, out = context.input(op), context.output(op)
    if data.data is not None:
        raise NotExpressible("a constant is converted at run time (hybrid weights)")
    for tensor in (data, out):
        if tensor.dtype not in (DType.FLOAT32, DType.INT8, DType.UINT8, DType.INT16):
            raise NotExpressible(f"element type {tensor.dtype}")
        if tensor.dtype is not DType.FLOAT32 and tensor.quantization is None:
            raise NotExpressible(f"{tensor.dtype} without scale and zero point")
    context.add(OpKind(op.name), op, (data.name,), {})


def mean(context: Context, op: RawOp) -> None:
    """MEAN over constant axes."""
    require_one_type(context, op)
    data = context.input(op)
    rank = len(data.shape)
    axes = tuple(sorted({a % rank for a in context.integers(op, 1)}))
    keep = bool(required(op, "ReducerOptions").KeepDims())
    context.add(OpKind.MEAN, op, (data.name,), {"axes": axes, "keep_dims": keep})


def resize(context: Context, op: RawOp) -> None:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR to a constant size."""
    require_one_type(context, op)
    kind = "ResizeBilinearOptions" if op.name == "RESIZE_BILINEAR" else "ResizeNearestNeighborOptions"
    table = required(op, kind)
    attributes: dict[str, object] = {
        "size": context.integers(op, 1),
        "align_corners": bool(table.AlignCorners()),
        "half_pixel_centers": bool(table.HalfPixelCenters()),
    }
    context.add(OpKind(op.name), op, (context.input(op).name,), attributes)
