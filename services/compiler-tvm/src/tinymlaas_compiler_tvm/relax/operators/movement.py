"""Operators that move elements: shapes, slices, gathers, scatters, paddings. Runtime indices never leave their tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Converter,
    Emitter,
    Node,
    Refused,
    Value,
    axis_of,
    choose,
    compute,
    dtype_of,
    integers,
    is_constant,
    known,
    literal,
    reduce_axis,
    shape_of,
)


def reshape(e: Emitter, node: Node) -> list[Value]:
    """Reshape: 0 keeps a dimension unless `allowzero`, -1 takes what is left."""
    x = node.inputs[0]
    own = shape_of(x)
    wanted = integers(node.input(1), "shape") if len(node.inputs) > 1 else list(node.attribute("shape"))
    if not node.attribute("allowzero", 0):
        wanted = [own[place] if extent == 0 else extent for place, extent in enumerate(wanted)]
    return [e.reshape(x, _complete(wanted, own))]


def _complete(wanted: Sequence[int], own: Sequence[int]) -> list[int]:
    elements = int(np.prod(own, dtype=np.int64))
    others = int(np.prod([extent for extent in wanted if extent != -1], dtype=np.int64))
    return [elements // max(others, 1) if extent == -1 else extent for extent in wanted]


def flatten(e: Emitter, node: Node) -> list[Value]:
    """Flatten into two dimensions."""
    own = shape_of(node.inputs[0])
    axis = int(node.attribute("axis", 1))
    axis = axis + len(own) if axis < 0 else axis
    before = int(np.prod(own[:axis], dtype=np.int64))
    return [e.reshape(node.inputs[0], (before, int(np.prod(own[axis:], dtype=np.int64))))]


def squeeze(e: Emitter, node: Node) -> list[Value]:
    """Squeeze."""
    own = shape_of(node.inputs[0])
    given = node.input(1)
    axes = integers(given, "axes") if given is not None else node.attribute("axes")
    if axes is None:
        axes = [axis for axis, extent in enumerate(own) if extent == 1]
    dropped = {axis_of(axis, len(own)) for axis in axes}
    return [e.reshape(node.inputs[0], [extent for axis, extent in enumerate(own) if axis not in dropped])]


def unsqueeze(e: Emitter, node: Node) -> list[Value]:
    """Unsqueeze."""
    own = list(shape_of(node.inputs[0]))
    given = node.input(1)
    axes = integers(given, "axes") if given is not None else list(node.attribute("axes"))
    rank = len(own) + len(axes)
    for axis in sorted(axis_of(axis, rank) for axis in axes):
        own.insert(axis, 1)
    return [e.reshape(node.inputs[0], own)]


def transpose(e: Emitter, node: Node) -> list[Value]:
    """Transpose."""
    rank = len(shape_of(node.inputs[0]))
    return [e.transpose(node.inputs[0], node.attribute("perm") or list(reversed(range(rank))))]


def identity(e: Emitter, node: Node) -> list[Value]:
    """Identity, and Dropout at inference: its mask is all true."""
    del e
    mask = np.ones(shape_of(node.inputs[0]), np.bool_)
    return [node.inputs[0], mask][: node.outputs]


def dropout(e: Emitter, node: Node) -> list[Value]:
    """Dropout at inference."""
    training = node.input(2)
    if training is not None and known(training, "training_mode").any():
        ratio = node.input(1)
        if ratio is None or known(ratio, "ratio").any():
            raise Refused("dropout in training mode")
    return identity(e, node)


def expand(e: Emitter, node: Node) -> list[Value]:
    """Expand."""
    return [broadcast(e, node.inputs[0], integers(node.input(1), "shape"))]


def broadcast(e: Emitter, x: Value, shape: Sequence[int]) -> Value:
    """numpy's broadcast of both shapes."""
    full = np.broadcast_shapes(shape_of(x), tuple(shape))
    if full == shape_of(x):
        return x
    if is_constant(x):
        return np.ascontiguousarray(np.broadcast_to(x, full))
    own = shape_of(x)

    def build(t: Any) -> Any:
        def at(*index: Any) -> Any:
            skipped = len(index) - len(own)
            return t(*(0 if extent == 1 else index[skipped + place] for place, extent in enumerate(own)))

        return compute(full, at, "broadcast")

    return e.kernel("broadcast", build, x)


def tile(e: Emitter, node: Node) -> list[Value]:
    """Tile."""
    own = shape_of(node.inputs[0])
    repeats = integers(node.input(1), "repeats")
    shape = [extent * times for extent, times in zip(own, repeats, strict=True)]

    def build(t: Any) -> Any:
        from tvm import tirx

        return compute(
            shape, lambda *i: t(*(tirx.floormod(each, int(own[place])) for place, each in enumerate(i))), "tile"
        )

    return [e.kernel("tile", build, node.inputs[0])]


def concat(e: Emitter, node: Node) -> list[Value]:
    """Concat."""
    return [concatenate(e, list(node.inputs), int(node.attribute("axis")))]


def concatenate(e: Emitter, values: Sequence[Value], axis: int) -> Value:
    """Values joined along an axis."""
    values = [value for value in values if 0 not in shape_of(value)] or values[:1]
    if len(values) == 1:
        return values[0]
    if all(is_constant(value) for value in values):
        return np.concatenate(values, axis)
    shapes = [shape_of(value) for value in values]
    axis = axis_of(axis, len(shapes[0]))
    ends = np.cumsum([shape[axis] for shape in shapes])
    shape = list(shapes[0])
    shape[axis] = int(ends[-1])

    def build(*tensors: Any) -> Any:
        def at(*index: Any) -> Any:
            def part(number: int) -> Any:
                before = int(ends[number - 1]) if number else 0
                place = list(index)
                place[axis] = index[axis] - before
                return tensors[number](*place)

            result = part(len(tensors) - 1)
            for number in reversed(range(len(tensors) - 1)):
                result = choose(index[axis] < int(ends[number]), part(number), result)
            return result

        return compute(shape, at, "concat")

    return e.kernel("concat", build, *values)


def split(e: Emitter, node: Node) -> list[Value]:
    """Split: sizes given, or equal parts of which the last may be smaller."""
    x = node.inputs[0]
    own = shape_of(x)
    axis = axis_of(int(node.attribute("axis", 0)), len(own))
    given = node.input(1)
    sizes = integers(given, "split") if given is not None else node.attribute("split")
    if sizes is None:
        part = -(-own[axis] // node.outputs)
        sizes = [min(part, own[axis] - part * number) for number in range(node.outputs)]
    results, start = [], 0
    for size in sizes:
        results.append(take_slice(e, x, {axis: (start, 1, size)}))
        start += size
    return results


def take_slice(e: Emitter, x: Value, boxes: dict[int, tuple[int, int, int]]) -> Value:
    """Elements start, start + step, ... (count of them) along the axes in `boxes`."""
    own = shape_of(x)
    shape = [boxes[axis][2] if axis in boxes else extent for axis, extent in enumerate(own)]
    if 0 in shape:
        return np.zeros(shape, dtype_of(x))
    if is_constant(x):
        result = x
        for axis, (start, step, count) in boxes.items():
            result = np.take(result, start + step * np.arange(count), axis)
        return result
    if all(start == 0 and step == 1 and count == own[axis] for axis, (start, step, count) in boxes.items()):
        return x

    def build(t: Any) -> Any:
        def at(*index: Any) -> Any:
            return t(
                *(boxes[axis][0] + each * boxes[axis][1] if axis in boxes else each for axis, each in enumerate(index))
            )

        return compute(shape, at, "slice")

    return e.kernel("slice", build, x)


def slices(e: Emitter, node: Node) -> list[Value]:
    """Slice, with bounds as inputs or (up to operator set 9) as attributes."""
    x = node.inputs[0]
    own = shape_of(x)
    if node.opset < 10:
        starts, ends = list(node.attribute("starts")), list(node.attribute("ends"))
        axes = list(node.attribute("axes") or range(len(starts)))
        steps = [1] * len(starts)
    else:
        starts, ends = integers(node.input(1), "starts"), integers(node.input(2), "ends")
        given_axes, given_steps = node.input(3), node.input(4)
        axes = integers(given_axes, "axes") if given_axes is not None else list(range(len(starts)))
        steps = integers(given_steps, "steps") if given_steps is not None else [1] * len(starts)
    boxes = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(axis, len(own))
        chosen = range(*slice(start, end, step).indices(own[place]))
        if step < 0 and end < -own[place]:
            chosen = range(*slice(start, None, step).indices(own[place]))
        boxes[place] = (chosen.start, chosen.step, len(chosen))
    return [take_slice(e, x, boxes)]


def pad(e: Emitter, node: Node) -> list[Value]:
    """Pad in modes constant, reflect, edge and wrap; negative pads cut."""
    x = node.inputs[0]
    own = shape_of(x)
    rank = len(own)
    pads = integers(node.input(1), "pads") if node.opset >= 11 else list(node.attribute("pads"))
    axes_input = node.input(3)
    axes = [axis_of(a, rank) for a in integers(axes_input, "axes")] if axes_input is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for number, axis in enumerate(axes):
        before[axis], after[axis] = pads[number], pads[number + len(axes)]
    mode = str(node.attribute("mode", "constant"))
    fill = node.input(2) if node.opset >= 11 else np.array(node.attribute("value", 0.0), np.float32)
    return [padded(e, x, before, after, mode, fill)]


def padded(
    e: Emitter, x: Value, before: Sequence[int], after: Sequence[int], mode: str = "constant", fill: Value | None = None
) -> Value:
    """`x` with elements added around (or cut, where negative)."""
    own, dtype = shape_of(x), dtype_of(x)
    shape = [extent + b + a for extent, b, a in zip(own, before, after, strict=True)]
    if any(extent <= 0 for extent in shape):
        raise Refused("an empty result")
    if not any(before) and not any(after):
        return x
    if mode != "constant":
        # Which element each place takes is known now: gather along each axis in turn.
        for axis, (b, a) in enumerate(zip(before, after, strict=True)):
            if b or a:
                extent = own[axis]
                places = np.arange(-b, extent + a)
                if mode == "edge":
                    places = np.clip(places, 0, extent - 1)
                elif mode == "wrap":
                    places = places % extent
                elif mode == "reflect":
                    period = max(2 * (extent - 1), 1)
                    places = places % period
                    places = np.where(places >= extent, period - places, places)
                else:
                    raise Refused(f"mode {mode}")
                x = gather_constant(e, x, places, axis)
        return x
    values = [x] if fill is None or is_constant(fill) else [x, fill]
    constant = literal(np.asarray(fill).reshape(-1)[0] if fill is not None and is_constant(fill) else 0, dtype)

    def build(t: Any, *more: Any) -> Any:
        def at(*index: Any) -> Any:
            from tvm import tirx

            inside, place = [], []
            for axis, each in enumerate(index):
                place.append(each - before[axis] if before[axis] else each)
                if before[axis] > 0:
                    inside.append(each >= before[axis])
                if after[axis] > 0:
                    inside.append(each < before[axis] + own[axis])
            item = t(*place)
            outside = more[0](*([0] * len(more[0].shape))) if more else constant
            return choose(tirx.all(*inside), item, outside) if inside else item

        return compute(shape, at, "pad")

    return e.kernel("pad", build, *values)


def gather_constant(e: Emitter, x: Value, places: Any, axis: int) -> Value:
    """Elements of an axis at places that are known."""
    places = np.asarray(places, np.int32)
    if is_constant(x):
        return np.take(x, places, axis)
    own = shape_of(x)
    if np.array_equal(places, np.arange(own[axis])):
        return x
    steps = np.diff(places)
    if len(places) == 1 or (steps == steps[0]).all():
        step = int(steps[0]) if len(places) > 1 else 1
        return take_slice(e, x, {axis: (int(places[0]), step, len(places))})
    shape = list(own)
    shape[axis] = len(places)

    def build(t: Any, p: Any) -> Any:
        return compute(
            shape, lambda *i: t(*(p(each) if place == axis else each for place, each in enumerate(i))), "gather"
        )

    return e.kernel("gather", build, x, places)


def safe_index(index: Any, extent: int, dtype: str) -> Any:
    """A runtime index, counted from the end if negative, held inside of [0, extent)."""
    from tvm import tirx

    wide = index.astype("int64") if dtype != "int64" else index
    whole = choose(wide < literal(0, "int64"), wide + literal(extent, "int64"), wide)
    return tirx.max(tirx.min(whole, literal(extent - 1, "int64")), literal(0, "int64"))


def gather(e: Emitter, node: Node) -> list[Value]:
    """Gather."""
    x, indices = node.inputs[0], node.inputs[1]
    own, wanted = shape_of(x), shape_of(indices)
    axis = axis_of(int(node.attribute("axis", 0)), len(own))
    dtype = dtype_of(indices)
    if isinstance(indices, np.ndarray):
        places = np.where(indices < 0, indices + own[axis], indices).reshape(-1)
        flat = gather_constant(e, x, places, axis)
        return [e.reshape(flat, (*own[:axis], *wanted, *own[axis + 1 :]))]
    shape = (*own[:axis], *wanted, *own[axis + 1 :])

    def build(t: Any, p: Any) -> Any:
        def at(*index: Any) -> Any:
            where = safe_index(p(*index[axis : axis + len(wanted)]), own[axis], dtype)
            return t(*index[:axis], where, *index[axis + len(wanted) :])

        return compute(shape, at, "gather")

    return [e.kernel("gather", build, x, indices)]


def gather_elements(e: Emitter, node: Node) -> list[Value]:
    """GatherElements."""
    x, indices = node.inputs[0], node.inputs[1]
    own, dtype = shape_of(x), dtype_of(indices)
    axis = axis_of(int(node.attribute("axis", 0)), len(own))

    def build(t: Any, p: Any) -> Any:
        def at(*index: Any) -> Any:
            where = safe_index(p(*index), own[axis], dtype)
            return t(*(where if place == axis else each for place, each in enumerate(index)))

        return compute(shape_of(indices), at, "gather_elements")

    return [e.kernel("gather_elements", build, x, indices)]


def gather_nd(e: Emitter, node: Node) -> list[Value]:
    """GatherND."""
    x, indices = node.inputs[0], node.inputs[1]
    own, wanted, dtype = shape_of(x), shape_of(indices), dtype_of(indices)
    batch = int(node.attribute("batch_dims", 0))
    depth = wanted[-1]
    outer = wanted[:-1]
    shape = (*outer, *own[batch + depth :])

    def build(t: Any, p: Any) -> Any:
        def at(*index: Any) -> Any:
            from tvm import tirx

            rows, rest = index[: len(outer)], index[len(outer) :]
            where = [
                safe_index(p(*rows, tirx.IntImm("int64", place)), own[batch + place], dtype) for place in range(depth)
            ]
            return t(*index[:batch], *where, *rest)

        return compute(shape, at, "gather_nd")

    return [e.kernel("gather_nd", build, x, indices)]


def trilu(e: Emitter, node: Node) -> list[Value]:
    """Trilu."""
    given = node.input(1)
    k = integers(given, "k")[0] if given is not None else 0
    own = shape_of(node.inputs[0])
    mask = (
        np.triu(np.ones(own[-2:], np.bool_), k)
        if node.attribute("upper", 1)
        else np.tril(np.ones(own[-2:], np.bool_), k)
    )
    zero = np.zeros(1, dtype_of(node.inputs[0]))
    return [e.elementwise("trilu", choose, mask, node.inputs[0], zero)]


def one_hot(e: Emitter, node: Node) -> list[Value]:
    """OneHot; indices outside of [-depth, depth) give rows of the off value."""
    indices, values = node.inputs[0], node.inputs[2]
    depth = int(known(node.inputs[1], "depth").reshape(-1)[0])
    own, have = shape_of(indices), dtype_of(indices)
    axis = axis_of(int(node.attribute("axis", -1)), len(own) + 1)
    shape = (*own[:axis], depth, *own[axis:])

    def build(p: Any, v: Any) -> Any:
        def at(*index: Any) -> Any:
            chosen = p(*index[:axis], *index[axis + 1 :])
            wide = chosen.astype("int32") if have == "float32" else chosen.astype("int64")
            place = index[axis].astype(str(wide.ty.dtype))
            hit = (wide == place) | (wide + depth == place)
            return choose(hit, v(1), v(0))

        return compute(shape, at, "one_hot")

    return [e.kernel("one_hot", build, indices, values)]


def eye_like(e: Emitter, node: Node) -> list[Value]:
    """EyeLike: a constant, since the shape is."""
    import onnx

    del e
    rows, columns = shape_of(node.inputs[0])
    to = node.attribute("dtype")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(to))) if to else np.dtype(dtype_of(node.inputs[0]))
    if str(dtype) not in ("float32", "int8", "uint8", "int16", "int32", "int64", "bool"):
        raise Refused(f"element type {dtype}")
    return [np.eye(rows, columns, int(node.attribute("k", 0)), dtype)]


def shape(e: Emitter, node: Node) -> list[Value]:
    """Shape: a constant."""
    del e
    own = shape_of(node.inputs[0])
    end = node.attribute("end")
    return [np.array(own[int(node.attribute("start", 0)) : end], np.int64)]


def size(e: Emitter, node: Node) -> list[Value]:
    """Size: a constant."""
    del e
    return [np.array(np.prod(shape_of(node.inputs[0]), dtype=np.int64), np.int64)]


def depth_to_space(e: Emitter, node: Node) -> list[Value]:
    """DepthToSpace in the modes DCR and CRD."""
    x = node.inputs[0]
    n, c, h, w = shape_of(x)
    block = int(node.attribute("blocksize"))
    depth = c // block**2
    if str(node.attribute("mode", "DCR")) == "DCR":
        x = e.transpose(e.reshape(x, (n, block, block, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        x = e.transpose(e.reshape(x, (n, depth, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return [e.reshape(x, (n, depth, h * block, w * block))]


def space_to_depth(e: Emitter, node: Node) -> list[Value]:
    """SpaceToDepth (mode DCR; CRD where the file asks for it)."""
    x = node.inputs[0]
    n, c, h, w = shape_of(x)
    block = int(node.attribute("blocksize"))
    x = e.reshape(x, (n, c, h // block, block, w // block, block))
    order = (0, 1, 3, 5, 2, 4) if str(node.attribute("mode", "DCR")) == "CRD" else (0, 3, 5, 1, 2, 4)
    return [e.reshape(e.transpose(x, order), (n, c * block**2, h // block, w // block))]


def reverse_sequence(e: Emitter, node: Node) -> list[Value]:
    """ReverseSequence: the first `lengths[b]` elements of the time axis in reverse."""
    x, lengths = node.inputs[0], node.inputs[1]
    own = shape_of(x)
    batch, time = int(node.attribute("batch_axis", 1)), int(node.attribute("time_axis", 0))

    def build(t: Any, p: Any) -> Any:
        def at(*index: Any) -> Any:
            length = p(index[batch])
            place = choose(index[time] < length, length - 1 - index[time], index[time].astype("int64"))
            place = safe_index(place, own[time], "int64")
            return t(*(place if axis == time else each for axis, each in enumerate(index)))

        return compute(own, at, "reverse_sequence")

    return [e.kernel("reverse_sequence", build, x, e.cast(lengths, "int64"))]


def center_crop_pad(e: Emitter, node: Node) -> list[Value]:
    """CenterCropPad."""
    x = node.inputs[0]
    own = shape_of(x)
    wanted = integers(node.input(1), "shape")
    axes = [axis_of(int(a), len(own)) for a in node.attribute("axes") or range(len(own))]
    before, after = [0] * len(own), [0] * len(own)
    for axis, target in zip(axes, wanted, strict=True):
        have = own[axis]
        if target >= have:
            before[axis] = (target - have) // 2
            after[axis] = target - have - before[axis]
        else:
            start = (have - target) // 2
            before[axis], after[axis] = -start, -(have - target - start)
    return [padded(e, x, before, after)]


def cumulative(e: Emitter, node: Node) -> list[Value]:
    """CumSum and CumProd, as a reduction over the elements up to each place."""
    from tinymlaas_compiler_tvm.relax.emit import reducer

    x = node.inputs[0]
    own, dtype = shape_of(x), dtype_of(x)
    axis = axis_of(integers(node.input(1), "axis")[0], len(own))
    exclusive, backward = bool(node.attribute("exclusive", 0)), bool(node.attribute("reverse", 0))
    combine = "sum" if node.op == "CumSum" else "prod"
    neutral = literal(0 if combine == "sum" else 1, dtype)

    def build(t: Any) -> Any:
        k = reduce_axis(own[axis])

        def at(*index: Any) -> Any:
            here = index[axis]
            inside = (
                (k.var > here if exclusive else k.var >= here)
                if backward
                else k.var < here
                if exclusive
                else k.var <= here
            )
            item = t(*(k.var if place == axis else each for place, each in enumerate(index)))
            return reducer(combine)(choose(inside, item, neutral), axis=k)

        return compute(own, at, "cumulative")

    return [e.kernel("cumulative", build, x)]


CONVERTERS: dict[str, Converter] = {
    "CenterCropPad": center_crop_pad,
    "Concat": concat,
    "CumProd": cumulative,
    "CumSum": cumulative,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Identity": identity,
    "OneHot": one_hot,
    "Pad": pad,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape,
    "Size": size,
    "Slice": slices,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
