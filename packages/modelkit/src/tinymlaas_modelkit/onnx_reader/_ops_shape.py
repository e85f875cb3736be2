"""Operators that move values and change none: Reshape and its kin, Transpose, Concat, Pad, Slice, Split."""

from __future__ import annotations

import math

import numpy as np

from tinymlaas_modelkit.graph import Activation, OpKind
from tinymlaas_modelkit.onnx_reader._context import Act, Const, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._source import Node, int_tuple


def reshape_value(context: Context, x: Act, shape: tuple[int, ...], name: str, origin: str) -> Act:
    """The value, as ONNX sees it, under another shape."""
    x = context.plain(x)
    stored = context.tensors[x.tensor]
    if math.prod(shape) != stored.elements:
        raise NotExpressible(f"reshape of {list(stored.shape)} to {list(shape)}")
    tensor = context.emit(
        OpKind.RESHAPE, (x.tensor,), name, shape, stored.quantization, {"shape": tuple(shape)}, origin, stored.dtype
    )
    return Act(tensor, tuple(range(len(shape))), x.view)


def reshape(context: Context, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the result's static shape is known from inference."""
    value = context.value(node, 0)
    shape = context.source.shape(node.outputs[0])
    if isinstance(value, Const):
        if value.quantization is not None and value.quantization.axis is not None:
            raise NotExpressible("reshape of a constant quantized per channel")
        context.values[node.outputs[0]] = Const(value.name, value.array.reshape(shape), value.quantization)
        return
    context.values[node.outputs[0]] = reshape_value(context, value, shape, node.outputs[0], node.name)


def transpose(context: Context, node: Node) -> None:
    """Transpose costs nothing here: it only changes the permutation that is kept with the value."""
    value = context.value(node, 0)
    rank = value.array.ndim if isinstance(value, Const) else len(value.perm)
    perm = int_tuple(node.attributes.get("perm", tuple(reversed(range(rank)))))
    if sorted(perm) != list(range(rank)):
        raise NotExpressible(f"permutation {list(perm)} of {rank} axes")
    if isinstance(value, Const):
        q = value.quantization
        if q is not None and q.axis is not None:
            q = type(q)(q.scales, q.zero_points, perm.index(q.axis))
        context.values[node.outputs[0]] = Const(value.name, value.array.transpose(perm), q)
    else:
        context.values[node.outputs[0]] = Act(value.tensor, tuple(value.perm[p] for p in perm), value.view)


def identity(context: Context, node: Node) -> None:
    """Identity and Dropout at inference: the value itself."""
    context.values[node.outputs[0]] = context.value(node, 0)


def _emit_moved(
    context: Context,
    node: Node,
    kind: OpKind,
    x: Act,
    shape: tuple[int, ...],
    attributes: dict[str, object],
    output: int = 0,
) -> None:
    stored = context.tensors[x.tensor]
    name = node.outputs[output]
    tensor = context.emit(kind, (x.tensor,), name, shape, stored.quantization, attributes, node.name, stored.dtype)
    context.values[name] = Act(tensor, x.perm, x.view)


def _to_stored(x: Act, values: tuple[int, ...]) -> tuple[int, ...]:
    """Per-axis values from the order of the ONNX axes to that of the stored axes."""
    out = [0] * len(values)
    for onnx_axis, stored_axis in enumerate(x.perm):
        out[stored_axis] = values[onnx_axis]
    return tuple(out)


def pad(context: Context, node: Node) -> None:
    """Pad with a constant to PAD; the value must be the real 0."""
    if str(node.attributes.get("mode", "constant")) != "constant":
        raise NotExpressible(f"padding mode {node.attributes.get('mode')}")
    x = context.act(node)
    pads = context.parameter(node, "pads", 1)
    if pads is None:
        raise NotExpressible("no pads are given")
    value = (
        float(context.const(node, 2).real.reshape(-1)[0])
        if node.has_input(2)
        else float(node.attributes.get("value", 0.0))
    )
    q = context.quantization_of(x)
    if q is not None and not x.view and node.has_input(2):
        value = q.scale * (value - q.zero_point)
    if value != 0.0:
        raise NotExpressible(f"padding with {value}")
    rank = len(x.perm)
    axes = range(rank)
    if node.has_input(3):
        axes_given = int_tuple(context.const(node, 3).array)
        full = [0] * (2 * rank)
        for i, a in enumerate(axes_given):
            full[a % rank], full[a % rank + rank] = pads[i], pads[i + len(axes_given)]
        pads = tuple(full)
    if len(pads) != 2 * rank or min(pads) < 0:
        raise NotExpressible(f"pads {list(pads)} of a tensor of rank {rank}")
    before = _to_stored(x, tuple(pads[a] for a in axes))
    after = _to_stored(x, tuple(pads[a + rank] for a in axes))
    paddings = tuple(zip(before, after, strict=True))
    shape = tuple(d + b + a for d, (b, a) in zip(context.tensors[x.tensor].shape, paddings, strict=True))
    _emit_moved(context, node, OpKind.PAD, x, shape, {"paddings": paddings})


def slice_(context: Context, node: Node) -> None:
    """Slice to SLICE, or STRIDED_SLICE when a step is not 1."""
    x = context.act(node)
    shape = context.shape_of(x)
    rank = len(shape)
    starts, ends = context.parameter(node, "starts", 1), context.parameter(node, "ends", 2)
    if starts is None or ends is None:
        raise NotExpressible("starts or ends are missing")
    axes = context.parameter(node, "axes", 3) or tuple(range(len(starts)))
    steps = context.parameter(node, "steps", 4) or (1,) * len(starts)
    begin, end, stride = [0] * rank, list(shape), [1] * rank
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise NotExpressible("slices that run backwards")
        axis %= rank
        begin[axis], end[axis], stride[axis] = (*slice(start, stop).indices(shape[axis])[:2], step)
    sizes = tuple(max(-(-(e - b) // s), 0) for b, e, s in zip(begin, end, stride, strict=True))
    if min(sizes) < 1:
        raise NotExpressible("the slice is empty")
    b, e, s, size = (_to_stored(x, tuple(v)) for v in (begin, end, stride, sizes))
    if all(v == 1 for v in stride):
        _emit_moved(context, node, OpKind.SLICE, x, size, {"begin": b, "size": size})
    else:
        _emit_moved(context, node, OpKind.STRIDED_SLICE, x, size, {"begin": b, "end": e, "strides": s})


def split(context: Context, node: Node) -> None:
    """Split to SPLIT."""
    x = context.act(node)
    rank = len(x.perm)
    axis = int(node.attributes.get("axis", 0)) % rank
    total, count = context.shape_of(x)[axis], len(node.outputs)
    chunk = -(-total // count)
    sizes = context.parameter(node, "split", 1) or tuple(min(chunk, total - i * chunk) for i in range(count))
    if len(sizes) != count or sum(sizes) != total or min(sizes) < 1:
        raise NotExpressible(f"split of {total} into {list(sizes)}")
    stored, stored_axis = context.tensors[x.tensor], x.perm[axis]
    names = []
    for size, output in zip(sizes, node.outputs, strict=True):
        shape = tuple(size if a == stored_axis else d for a, d in enumerate(stored.shape))
        name = context.unique(output or f"{node.name}_unused")
        context.tensors[name] = type(stored)(name, shape, stored.dtype, stored.quantization)
        names.append(name)
        if output:
            context.values[output] = Act(name, x.perm, x.view)
    context.append(OpKind.SPLIT, (x.tensor,), tuple(names), {"axis": stored_axis, "sizes": tuple(sizes)}, node.name)


def concat(context: Context, node: Node) -> None:
    """Concat to CONCATENATION; integer inputs may have quantizations of their own."""
    values = [context.value(node, i) for i in range(len(node.inputs))]
    acts = [v for v in values if isinstance(v, Act)]
    if not acts:
        context.values[node.outputs[0]] = Const(
            node.outputs[0],
            np.concatenate([v.real for v in values if isinstance(v, Const)], int(node.attributes["axis"])),
        )
        return
    perm, rank = acts[0].perm, len(acts[0].perm)
    axis = perm[int(node.attributes["axis"]) % rank]
    raw = all(not v.view for v in acts) and context.quantization_of(acts[0]) is not None
    views = all(
        v.view if isinstance(v, Act) else v.quantization is not None and v.array.dtype in (np.int8, np.int16)
        for v in values
    )
    target = context.target(node, views)
    names: list[str] = []
    for v in values:
        if isinstance(v, Const):
            array = v.array if target.integer or raw else np.asarray(v.real, np.float32)
            q = v.quantization if target.integer else (context.quantization_of(acts[0]) if raw else None)
            names.append(context.constant(v.name, array.transpose(np.argsort(perm)), q))
        else:
            placed = context.layout(v, perm)
            names.append((placed if target.integer or raw else context.real(placed)).tensor)
    shapes = [context.tensors[n].shape for n in names]
    shape = tuple(sum(s[a] for s in shapes) if a == axis else d for a, d in enumerate(shapes[0]))
    q = context.quantization_of(acts[0]) if raw else target.quantization
    attributes: dict[str, object] = {"axis": axis, "activation": Activation.NONE if raw else target.activation}
    dtype = context.tensors[names[0]].dtype if raw else target.dtype
    tensor = context.emit(OpKind.CONCATENATION, tuple(names), target.name, shape, q, attributes, node.name, dtype)
    context.finish(target, tensor, perm)


def gather(context: Context, node: Node) -> None:
    """Gather with constant indices to GATHER."""
    x = context.plain(context.act(node))
    indices = np.asarray(context.const(node, 1).array)
    stored = context.tensors[x.tensor]
    axis = int(node.attributes.get("axis", 0)) % len(stored.shape)
    if np.any(indices < -stored.shape[axis]) or np.any(indices >= stored.shape[axis]):
        raise NotExpressible("an index beyond the axis")
    shape = (*stored.shape[:axis], *indices.shape, *stored.shape[axis + 1 :])
    attributes: dict[str, object] = {
        "axis": axis,
        "indices": tuple(int(i) % stored.shape[axis] for i in indices.reshape(-1)),
        "indices_shape": tuple(indices.shape),
    }
    _emit_moved(context, node, OpKind.GATHER, Act(x.tensor, x.perm, x.view), shape, attributes)
    context.values[node.outputs[0]] = Act(context.ops[-1].outputs[0], tuple(range(len(shape))), x.view)
