"""Fourier transforms by known matrices, columns back to images, determinants, scatters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    extents,
    integers,
    reduce_axis,
    reducer,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.elementwise import f
from tinymlaas_compiler_tvm.relax.operators.linear import matrix_product
from tinymlaas_compiler_tvm.relax.operators.movement import gather_constant, padded


def dft(e: Emitter, node: Node) -> list[Value]:
    """DFT: a product with the matrix of roots of unity, real and imaginary parts side by side."""
    x = node.inputs[0]
    own = shape_of(x)
    rank = len(own)
    if node.opset >= 20:
        given = node.input(2)
        axis = integers(given, "axis")[0] if given is not None else -2
    else:
        axis = int(node.attribute("axis", 1))
    axis = axis_of(axis, rank)
    inverse, onesided = bool(node.attribute("inverse", 0)), bool(node.attribute("onesided", 0))
    length_input = node.input(1)
    half_given = onesided and inverse
    if length_input is not None:
        length = integers(length_input, "dft_length")[0]
    else:
        length = 2 * (own[axis] - 1) if half_given else own[axis]
    order = [each for each in range(rank - 1) if each != axis] + [axis, rank - 1]
    moved = e.transpose(x, order)
    wanted = length // 2 + 1 if half_given else length
    moved = _fitted(e, moved, rank - 2, wanted)
    y = _transformed(e, moved, length, inverse, onesided)
    back = [order.index(each) for each in range(rank)]
    return [e.transpose(y, back)]


def _fitted(e: Emitter, x: Value, axis: int, length: int) -> Value:
    """An axis cut or filled with zeros to a length."""
    after = [0] * len(shape_of(x))
    after[axis] = length - shape_of(x)[axis]
    return padded(e, x, [0] * len(after), after)


def _transformed(e: Emitter, x: Value, length: int, inverse: bool, onesided: bool) -> Value:
    """The transform over the last axis but one; the last axis holds real and (if it is 2 long) imaginary parts."""
    own = shape_of(x)
    parts, have = own[-1], own[-2]
    turn = 2 * np.pi / length * (1 if inverse else -1)
    if inverse and onesided:
        # Half a spectrum of a real signal: the other half is its mirror image.
        k, n = np.arange(have)[:, None], np.arange(length)[None]
        share = np.where((k == 0) | ((length % 2 == 0) & (k == length // 2)), 1.0, 2.0) / length
        matrix = np.stack([share * np.cos(turn * k * n), -share * np.sin(turn * k * n)], 1)[:, :, :, None]
        out, results = length, 1
        matrix = matrix[:, :parts]
    else:
        out = length // 2 + 1 if onesided else length
        n, k = np.arange(have)[:, None], np.arange(out)[None]
        scale = 1 / length if inverse else 1.0
        cosine, sine = scale * np.cos(turn * n * k), scale * np.sin(turn * n * k)
        # [place, part in, frequency, part out]
        matrix = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], 1)[:, :parts]
        results = 2
    flat = e.reshape(x, (int(np.prod(own[:-2], dtype=np.int64)), have * parts))
    y = matrix_product(e, flat, np.ascontiguousarray(matrix.reshape(have * parts, out * results).astype(np.float32)))
    return e.reshape(y, (*own[:-2], out, results))


def stft(e: Emitter, node: Node) -> list[Value]:
    """STFT: frames, a window, a transform."""
    x, step_input, window, length_input = node.inputs[0], node.input(1), node.input(2), node.input(3)
    own = shape_of(x)
    step = integers(step_input, "frame_step")[0]
    if length_input is not None:
        length = integers(length_input, "frame_length")[0]
    elif window is not None:
        length = shape_of(window)[0]
    else:
        raise Refused("neither window nor frame_length")
    if len(own) == 2:
        x = e.reshape(x, (*own, 1))
        own = shape_of(x)
    frames = (own[1] - length) // step + 1
    places = (np.arange(frames)[:, None] * step + np.arange(length)[None]).reshape(-1)
    cut = e.reshape(gather_constant(e, x, places, 1), (own[0], frames, length, own[2]))
    if window is not None:
        shaped = e.reshape(window, (1, 1, shape_of(window)[0], 1))
        if shape_of(window)[0] != length:
            spare = length - shape_of(window)[0]
            shaped = padded(e, shaped, [0, 0, spare // 2, 0], [0, 0, spare - spare // 2, 0])
        cut = e.elementwise("window", lambda a, w: a * w, cut, shaped)
    return [_transformed(e, cut, length, False, bool(node.attribute("onesided", 1)))]


def col2im(e: Emitter, node: Node) -> list[Value]:
    """Col2Im: each image place sums the columns that cover it."""
    x = node.inputs[0]
    image, block = integers(node.input(1), "image_shape"), integers(node.input(2), "block_shape")
    rank = len(image)
    strides = [int(s) for s in node.attribute("strides") or [1] * rank]
    dilations = [int(d) for d in node.attribute("dilations") or [1] * rank]
    pads = [int(p) for p in node.attribute("pads") or [0] * (2 * rank)]
    batch, wide, columns = shape_of(x)
    taps = int(np.prod(block, dtype=np.int64))
    counts = [
        (image[a] + pads[a] + pads[a + rank] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1 for a in range(rank)
    ]
    if int(np.prod(counts, dtype=np.int64)) != columns:
        raise Refused("columns that do not cover the image")
    full = e.reshape(x, (batch, wide // taps, *block, *counts))

    def build(t: Any) -> Any:
        rows = [reduce_axis(block[a], f"k{a}") for a in range(rank)]

        def at(n: Any, c: Any, *index: Any) -> Any:
            from tvm import tirx

            where, conditions = [], []
            for a in range(rank):
                reach = index[a] + pads[a] - rows[a].var * dilations[a]
                conditions += [
                    tirx.floormod(reach, strides[a]) == 0, reach >= 0, reach < counts[a] * strides[a]
                ]  # fmt: skip
                where.append(tirx.floordiv(reach, strides[a]))
            item = t(n, c, *(row.var for row in rows), *where)
            return reducer("sum")(choose(tirx.all(*conditions), item, f(0)), axis=rows)

        return compute((batch, wide // taps, *image), at, "col2im")

    return [e.kernel("col2im", build, full)]


def determinant(e: Emitter, node: Node) -> list[Value]:
    """Det, by minors, up to 4 x 4."""
    x = node.inputs[0]
    own = shape_of(x)
    size = own[-1]
    if size > 4:
        raise Refused(f"a matrix of {size} rows")

    def build(t: Any) -> Any:
        def minor(outer: Sequence[Any], rows: list[int], columns: list[int]) -> Any:
            if len(rows) == 1:
                return t(*outer, rows[0], columns[0])
            total = None
            for place, column in enumerate(columns):
                inner = minor(outer, rows[1:], [each for each in columns if each != column])
                term = t(*outer, rows[0], column) * inner
                total = term if total is None else (total + term if place % 2 == 0 else total - term)
            return total

        return compute(own[:-2], lambda *i: minor(i, list(range(size)), list(range(size))), "det")

    return [e.kernel("det", build, x)]


def _combined(kind: str) -> Callable[[Any, Any], Any]:
    return {
        "none": lambda old, new: new,
        "add": lambda old, new: old + new,
        "mul": lambda old, new: old * new,
        "max": lambda old, new: choose(new > old, new, old),
        "min": lambda old, new: choose(new < old, new, old),
    }[kind]


def _sequential(
    e: Emitter,
    hint: str,
    data: Value,
    values: Sequence[Value],
    updates: int,
    target: Callable[..., tuple[Any, Any, Any]],
    kind: str,
) -> Value:
    """A copy of `data` (flat), changed by `updates` in order.

    `target(number, *buffers)` gives the flat place, whether it is inside, and the new value; places outside change nothing.
    """
    from tvm import te, tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    count = int(np.prod(shape_of(data), dtype=np.int64))
    combine = _combined(kind)

    def build(*tensors: Any) -> Any:
        def generate(ins: Sequence[Any], outs: Sequence[Any]) -> Any:
            buffers = [T.buffer_proxy(each) for each in ins]
            out = T.buffer_proxy(outs[0])
            with IRBuilder() as builder:
                with T.seq_scope():
                    with T.serial(0, count) as i:
                        out[i] = buffers[0][i]
                    with T.serial(0, updates) as i:
                        place, inside, value = target(i, *buffers[1:])
                        with T.If(inside), T.Then():
                            out[place] = combine(out[place], value)
                return builder.get()

        # Buffers of our own: TE's have an offset that is known at run time only.
        buffers = [tirx.decl_buffer(each.shape, each.dtype, f"b{number}") for number, each in enumerate(tensors)]
        changed = tirx.decl_buffer(extents((count,)), dtype_of(data), "changed")
        return te.extern(
            [extents((count,))], tensors, generate, in_buffers=buffers, out_buffers=[changed], name=hint, tag=hint
        )

    flat = [e.reshape(each, (int(np.prod(shape_of(each), dtype=np.int64)),)) for each in (data, *values)]
    return e.reshape(e.kernel(hint, build, *flat), shape_of(data))


def scatter_elements(e: Emitter, node: Node) -> list[Value]:
    """ScatterElements and Scatter, updates in order."""
    from tvm import tirx

    data, indices, updates = node.inputs[:3]
    own, shape = shape_of(data), shape_of(indices)
    axis = axis_of(int(node.attribute("axis", 0)), len(own))
    strides = [int(np.prod(own[a + 1 :], dtype=np.int64)) for a in range(len(own))]

    def target(number: Any, where: Any, new: Any) -> tuple[Any, Any, Any]:
        index = where[number].astype("int32")
        index = choose(index < 0, index + own[axis], index)
        place, rest = index * strides[axis], number
        for a in reversed(range(len(shape))):
            if a != axis:
                place = place + tirx.floormod(rest, shape[a]) * strides[a]
            rest = tirx.floordiv(rest, shape[a])
        return place, tirx.all(index >= 0, index < own[axis]), new[number]

    count = int(np.prod(shape, dtype=np.int64))
    kind = str(node.attribute("reduction", "none"))
    return [_sequential(e, "scatter_elements", data, [indices, updates], count, target, kind)]


def scatter_nd(e: Emitter, node: Node) -> list[Value]:
    """ScatterND, updates in order."""
    from tvm import tirx

    data, indices, updates = node.inputs[:3]
    own, shape = shape_of(data), shape_of(indices)
    depth = shape[-1]
    inner = int(np.prod(own[depth:], dtype=np.int64))
    strides = [int(np.prod(own[a + 1 :], dtype=np.int64)) for a in range(len(own))]

    def target(number: Any, where: Any, new: Any) -> tuple[Any, Any, Any]:
        row = tirx.floordiv(number, inner)
        place, conditions = tirx.floormod(number, inner), []
        for a in range(depth):
            index = where[row * depth + a].astype("int32")
            index = choose(index < 0, index + own[a], index)
            conditions += [index >= 0, index < own[a]]
            place = place + index * strides[a]
        return place, tirx.all(*conditions), new[number]

    count = int(np.prod(shape_of(updates), dtype=np.int64))
    kind = str(node.attribute("reduction", "none"))
    return [_sequential(e, "scatter_nd", data, [indices, updates], count, target, kind)]


def tensor_scatter(e: Emitter, node: Node) -> list[Value]:
    """TensorScatter: an update written into a cache at a place that is given for each batch."""
    from tvm import tirx

    past, update, starts = node.inputs[0], node.inputs[1], node.input(2)
    own, shape = shape_of(past), shape_of(update)
    axis = axis_of(int(node.attribute("axis", -2)), len(own))
    circular = str(node.attribute("mode", "linear")) == "circular"
    starts = np.zeros(own[0], np.int64) if starts is None else starts

    def build(old: Any, new: Any, first: Any) -> Any:
        def at(*index: Any) -> Any:
            distance = index[axis].astype("int32") - first(index[0]).astype("int32")
            if circular:
                distance = tirx.floormod(distance, own[axis])
            inside = tirx.all(distance >= 0, distance < shape[axis])
            place = [distance if a == axis else each for a, each in enumerate(index)]
            return choose(inside, new(*place), old(*index))

        return compute(own, at, "tensor_scatter")

    return [e.kernel("tensor_scatter", build, past, update, starts)]


CONVERTERS: dict[str, Converter] = {
    "Col2Im": col2im,
    "DFT": dft,
    "Det": determinant,
    "STFT": stft,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
}
