"""Operators that pick elements by index. Runtime indices never leave their tensor."""

from __future__ import annotations

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
    known,
    literal,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.movement import gather_constant


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


CONVERTERS: dict[str, Converter] = {
    "EyeLike": eye_like,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "ReverseSequence": reverse_sequence,
    "Trilu": trilu,
}
