"""Operators that put elements together and take them apart: slices, splits, paddings, repetitions, running sums."""

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
    literal,
    reduce_axis,
    shape_of,
)


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
    "Expand": expand,
    "Pad": pad,
    "Slice": slices,
    "Split": split,
    "Tile": tile,
}
