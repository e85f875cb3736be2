"""Operators that move values: RESHAPE and its kin, TRANSPOSE, CONCATENATION, PAD, slices, SPLIT."""

from __future__ import annotations

from tinymlaas_modelkit.graph import OpKind
from tinymlaas_modelkit.tflite_reader._context import (
    Context,
    NotExpressible,
    activation,
    options,
    require_one_type,
    required,
)
from tinymlaas_modelkit.tflite_reader._file import RawOp


def reshape(context: Context, op: RawOp) -> None:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the output tensor says the shape."""
    data, out = context.input(op), context.output(op)
    require_one_type(context, op)
    if data.elements != out.elements:
        raise NotExpressible(f"reshape of {list(data.shape)} to {list(out.shape)}")
    context.add(OpKind.RESHAPE, op, (data.name,), {"shape": out.shape})


def transpose(context: Context, op: RawOp) -> None:
    """TRANSPOSE by a constant permutation."""
    require_one_type(context, op)
    data, permutation = context.input(op), context.integers(op, 1)
    if sorted(permutation) != list(range(len(data.shape))):
        raise NotExpressible(f"permutation {list(permutation)} of {len(data.shape)} axes")
    context.add(OpKind.TRANSPOSE, op, (data.name,), {"permutation": permutation})


def concatenation(context: Context, op: RawOp) -> None:
    """CONCATENATION along one axis."""
    require_one_type(context, op)
    table, out = required(op, "ConcatenationOptions"), context.output(op)
    tensors = [context.input(op, i) for i in range(len(op.inputs))]
    if any(t.dtype != out.dtype for t in tensors):
        raise NotExpressible("inputs of several element types")
    attributes: dict[str, object] = {
        "axis": int(table.Axis()) % len(out.shape),
        "activation": activation(table.FusedActivationFunction()),
    }
    context.add(OpKind.CONCATENATION, op, tuple(t.name for t in tensors), attributes)


def pad(context: Context, op: RawOp) -> None:
    """PAD, and PADV2 with a constant value; `value` is a real number."""
    require_one_type(context, op)
    data, flat = context.input(op), context.integers(op, 1)
    if len(flat) != 2 * len(data.shape) or min(flat) < 0:
        raise NotExpressible(f"paddings {list(flat)} of a tensor of rank {len(data.shape)}")
    attributes: dict[str, object] = {"paddings": tuple(zip(flat[::2], flat[1::2], strict=True))}
    if op.name == "PADV2":
        value = context.input(op, 2)
        if value.data is None or value.elements != 1:
            raise NotExpressible("the padding value is computed, not constant")
        raw = value.data.reshape(-1)[0]
        q = data.quantization
        attributes["value"] = float(raw) if q is None else q.scale * (int(raw) - q.zero_point)
    context.add(OpKind.PAD, op, (data.name,), attributes)


def slice_(context: Context, op: RawOp) -> None:
    """SLICE with constant begin; the output tensor says the size."""
    require_one_type(context, op)
    data, out, begin = context.input(op), context.output(op), context.integers(op, 1)
    if len(begin) != len(data.shape) or any(
        b < 0 or b + s > d for b, s, d in zip(begin, out.shape, data.shape, strict=True)
    ):
        raise NotExpressible(f"slice at {list(begin)} of {list(data.shape)}")
    context.add(OpKind.SLICE, op, (data.name,), {"begin": begin, "size": out.shape})


def strided_slice(context: Context, op: RawOp) -> None:
    """STRIDED_SLICE with positive strides; begin and end masks are resolved."""
    require_one_type(context, op)
    data, table = context.input(op), options(op, "StridedSliceOptions")
    begin, end, strides = (context.integers(op, i) for i in (1, 2, 3))
    masks = [0] * 5 if table is None else [
        table.BeginMask(), table.EndMask(), table.EllipsisMask(), table.NewAxisMask(), table.ShrinkAxisMask()
    ]  # fmt: skip
    if any(masks[2:]):
        raise NotExpressible("ellipsis, new axis and shrink masks")
    if len(begin) != len(data.shape) or min(strides) < 1:
        raise NotExpressible("slices that run backwards or name other axes")
    starts, stops = [], []
    for axis, (b, e, s, d) in enumerate(zip(begin, end, strides, data.shape, strict=True)):
        first, last, _ = slice(None if masks[0] >> axis & 1 else b, None if masks[1] >> axis & 1 else e, s).indices(d)
        starts.append(first)
        stops.append(last)
    attributes: dict[str, object] = {"begin": tuple(starts), "end": tuple(stops), "strides": strides}
    context.add(OpKind.STRIDED_SLICE, op, (data.name,), attributes)


def split(context: Context, op: RawOp) -> None:
    """SPLIT (axis, data) and SPLIT_V (data, sizes, axis)."""
    data = context.input(op, 1 if op.name == "SPLIT" else 0)
    axis = context.integers(op, 0 if op.name == "SPLIT" else 2)[0] % len(data.shape)
    sizes = tuple(context.output(op, i).shape[axis] for i in range(len(op.outputs)))
    if sum(sizes) != data.shape[axis]:
        raise NotExpressible(f"split of {data.shape[axis]} into {list(sizes)}")
    context.add(OpKind.SPLIT, op, (data.name,), {"axis": axis, "sizes": sizes})
