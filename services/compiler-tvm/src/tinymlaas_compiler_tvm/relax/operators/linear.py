"""Matrix products, convolutions and pools, in float and in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Converter,
    Emitter,
    Node,
    Value,
    axis_of,
    choose,
    compute,
    dtype_of,
    external,
    is_constant,
    literal,
    lowest,
    reduce_axis,
    reducer,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.elementwise import f
from tinymlaas_compiler_tvm.relax.operators.movement import padded


def gemm(e: Emitter, node: Node) -> list[Value]:
    """Gemm: alpha * A' * B' + beta * C."""
    a, b, c = node.inputs[0], node.inputs[1], node.input(2)
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    a = e.transpose(a, (1, 0)) if node.attribute("transA", 0) else a
    # Rows of weights, one an output: how dense layers want them.
    b = b if node.attribute("transB", 0) else e.transpose(b, (1, 0))
    if alpha != 1.0:
        b = scaled(e, b, alpha)
    y = dense(e, a, b)
    if c is not None and beta != 0.0:
        y = e.elementwise("add", lambda x, z: x + z, y, scaled(e, c, beta))
    return [y]


def scaled(e: Emitter, x: Value, by: float) -> Value:
    """x * by."""
    if by == 1.0:
        return x
    if is_constant(x):
        return (x * np.float32(by)).astype(x.dtype)
    return e.elementwise("scale", lambda a: a * literal(by, dtype_of(x)), x)


def dense(e: Emitter, a: Value, rows: Value, out_dtype: str | None = None) -> Value:
    """a (m, k) times the transpose of rows (n, k)."""
    m, k = shape_of(a)
    n = shape_of(rows)[0]
    dtype = out_dtype or dtype_of(a)

    def build(x: Any, w: Any) -> Any:
        j = reduce_axis(k)
        return compute(
            (m, n), lambda r, c: reducer("sum")(x(r, j.var).astype(dtype) * w(c, j.var).astype(dtype), axis=j), "dense"
        )

    return e.kernel("dense", build, a, rows)


def matmul(e: Emitter, node: Node) -> list[Value]:
    """MatMul with numpy's rules for one dimension and for batches."""
    return [matrix_product(e, node.inputs[0], node.inputs[1])]


def matrix_product(e: Emitter, a: Value, b: Value, out_dtype: str | None = None) -> Value:
    """numpy.matmul, accumulated in `out_dtype`."""
    left, right = shape_of(a), shape_of(b)
    dtype = out_dtype or dtype_of(a)
    if len(right) == 2 and len(left) >= 2 and is_constant(b):
        rows = int(np.prod(left[:-1], dtype=np.int64))
        y = dense(e, e.reshape(a, (rows, left[-1])), e.transpose(b, (1, 0)), dtype)
        return e.reshape(y, (*left[:-1], right[1]))
    a = e.reshape(a, (1, *left)) if len(left) == 1 else a
    b = e.reshape(b, (*right, 1)) if len(right) == 1 else b
    one, two = shape_of(a), shape_of(b)
    batch = np.broadcast_shapes(one[:-2], two[:-2])
    shape = (*batch, one[-2], two[-1])

    def build(x: Any, w: Any) -> Any:
        j = reduce_axis(one[-1])

        def own(index: Sequence[Any], shape: Sequence[int]) -> list[Any]:
            skipped = len(batch) - len(shape)
            return [0 if extent == 1 else index[skipped + place] for place, extent in enumerate(shape)]

        def at(*index: Any) -> Any:
            outer, r, c = index[:-2], index[-2], index[-1]
            item = x(*own(outer, one[:-2]), r, j.var).astype(dtype) * w(*own(outer, two[:-2]), j.var, c).astype(dtype)
            return reducer("sum")(item, axis=j)

        return compute(shape, at, "matmul")

    y = e.kernel("matmul", build, a, b)
    if len(left) == 1 or len(right) == 1:
        kept = (*batch, *(() if len(left) == 1 else (one[-2],)), *(() if len(right) == 1 else (two[-1],)))
        y = e.reshape(y, kept)
    return y


def window(
    node: Node, spatial: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """(strides, dilations, pads before, pads after) of a convolution or pool, `auto_pad` resolved."""
    rank = len(spatial)
    strides = [int(s) for s in node.attribute("strides") or [1] * rank]
    dilations = [int(d) for d in node.attribute("dilations") or [1] * rank]
    pads = [int(p) for p in node.attribute("pads") or [0] * (2 * rank)]
    auto = str(node.attribute("auto_pad", "NOTSET"))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(rank):
            covered = (kernel[axis] - 1) * dilations[axis] + 1
            total = max((-(-spatial[axis] // strides[axis]) - 1) * strides[axis] + covered - spatial[axis], 0)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    return strides, dilations, pads[:rank], pads[rank:]


def conv(e: Emitter, node: Node) -> list[Value]:
    """Conv in one, two or three dimensions, grouped or not."""
    y = convolution(e, node, node.inputs[0], node.inputs[1], "float32")
    if node.input(2) is not None:
        channels = shape_of(node.inputs[2])[0]
        bias = e.reshape(node.inputs[2], (1, channels, *[1] * (len(shape_of(y)) - 2)))
        y = e.elementwise("add", lambda a, b: a + b, y, bias)
    return [y]


def convolution(e: Emitter, node: Node, x: Value, w: Value, out_dtype: str) -> Value:
    """The sum of products of a convolution, without bias."""
    from tvm import topi

    own, filters = shape_of(x), shape_of(w)
    groups = int(node.attribute("group", 1))
    strides, dilations, before, after = window(node, own[2:], filters[2:])
    if len(own) == 3:
        # One dimension is two, of which one has a single place.
        wide = {
            **node.attributes, "strides": [1, strides[0]], "dilations": [1, dilations[0]],
            "pads": [0, before[0], 0, after[0]], "auto_pad": "NOTSET", "kernel_shape": [1, filters[2]],
        }  # fmt: skip
        flat = Node("Conv", (), wide, node.opset, 1)
        image, weights = e.reshape(x, (*own[:2], 1, own[2])), e.reshape(w, (*filters[:2], 1, filters[2]))
        y = convolution(e, flat, image, weights, out_dtype)
        shape = shape_of(y)
        return e.reshape(y, (*shape[:2], shape[3]))
    if len(own) == 4:
        pads = (before[0], before[1], after[0], after[1])
        return e.kernel(
            "conv2d" if groups == 1 else "group_conv2d",
            lambda a, b: topi.nn.conv(a, b, strides, pads, dilations, groups, "NCHW", "OIHW", out_dtype),
            x,
            w,
        )
    return _convolution_any(e, x, w, groups, strides, dilations, before, after, out_dtype)


def _convolution_any(
    e: Emitter, x: Value, w: Value, groups: int, strides: Sequence[int], dilations: Sequence[int],
    before: Sequence[int], after: Sequence[int], out_dtype: str,
) -> Value:  # fmt: skip
    rank = len(strides)
    image = padded(e, x, [0, 0, *before], [0, 0, *after])
    full, filters = shape_of(image), shape_of(w)
    spatial = [(full[2 + a] - (filters[2 + a] - 1) * dilations[a] - 1) // strides[a] + 1 for a in range(rank)]
    per_group = filters[0] // groups

    def build(t: Any, v: Any) -> Any:
        channel = reduce_axis(filters[1], "c")
        taps = [reduce_axis(filters[2 + a], f"k{a}") for a in range(rank)]

        def at(n: Any, out: Any, *places: Any) -> Any:
            from tvm import tirx

            source = channel.var if groups == 1 else tirx.floordiv(out, per_group) * filters[1] + channel.var
            where = [places[a] * strides[a] + taps[a].var * dilations[a] for a in range(rank)]
            item = t(n, source, *where).astype(out_dtype) * v(out, channel.var, *(tap.var for tap in taps)).astype(
                out_dtype
            )
            return reducer("sum")(item, axis=[channel, *taps])

        return compute((full[0], filters[0], *spatial), at, "conv")

    return e.kernel("conv", build, image, w)


def conv_transpose(e: Emitter, node: Node) -> list[Value]:
    """ConvTranspose: a gather over the input places that touch each output place."""
    x, w, bias = node.inputs[0], node.inputs[1], node.input(2)
    own, filters = shape_of(x), shape_of(w)
    rank = len(own) - 2
    groups = int(node.attribute("group", 1))
    strides = [int(s) for s in node.attribute("strides") or [1] * rank]
    dilations = [int(d) for d in node.attribute("dilations") or [1] * rank]
    extra = [int(p) for p in node.attribute("output_padding") or [0] * rank]
    pads = [int(p) for p in node.attribute("pads") or [0] * (2 * rank)]
    full = [strides[a] * (own[2 + a] - 1) + extra[a] + (filters[2 + a] - 1) * dilations[a] + 1 for a in range(rank)]
    auto, wanted = str(node.attribute("auto_pad", "NOTSET")), node.attribute("output_shape")
    if auto in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = [own[2 + a] * strides[a] for a in range(rank)]
    if wanted:
        for a in range(rank):
            total = full[a] - int(wanted[a])
            if total < 0:
                # More places than the kernel reaches: they hold the bias alone.
                pads[a], pads[a + rank] = 0, total
            else:
                half = total // 2
                pads[a], pads[a + rank] = (half, total - half) if auto == "SAME_UPPER" else (total - half, half)
    spatial = [full[a] - pads[a] - pads[a + rank] for a in range(rank)]
    inside, outside = own[1] // groups, filters[1]

    def build(t: Any, v: Any) -> Any:
        channel = reduce_axis(inside, "c")
        taps = [reduce_axis(filters[2 + a], f"k{a}") for a in range(rank)]

        def at(n: Any, out: Any, *places: Any) -> Any:
            from tvm import tirx

            group = tirx.floordiv(out, outside)
            source = group * inside + channel.var
            conditions, where = [], []
            for a in range(rank):
                reach = places[a] + pads[a] - taps[a].var * dilations[a]
                if strides[a] > 1:
                    conditions.append(tirx.floormod(reach, strides[a]) == 0)
                conditions += [reach >= 0, reach < own[2 + a] * strides[a]]
                where.append(tirx.floordiv(reach, strides[a]))
            weight = v(source, out - group * outside, *(tap.var for tap in taps))
            item = choose(tirx.all(*conditions), t(n, source, *where) * weight, f(0))
            return reducer("sum")(item, axis=[channel, *taps])

        return compute((own[0], groups * outside, *spatial), at, "conv_transpose")

    y = e.kernel("conv_transpose", build, x, w)
    if bias is not None:
        shaped = e.reshape(bias, (1, groups * outside, *[1] * rank))
        y = e.elementwise("add", lambda a, b: a + b, y, shaped)
    return [y]


def _pool_shape(
    node: Node, spatial: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """(output, strides, dilations, pads before) of a pool; windows that start in the padding at the end are left out."""
    strides, dilations, before, after = window(node, spatial, kernel)
    ceil = bool(node.attribute("ceil_mode", 0))
    out = []
    for axis, extent in enumerate(spatial):
        room = extent + before[axis] + after[axis] - (kernel[axis] - 1) * dilations[axis] - 1
        count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
        if ceil and (count - 1) * strides[axis] >= extent + before[axis]:
            count -= 1
        out.append(count)
    return out, strides, dilations, before


def pool(e: Emitter, node: Node) -> list[Value]:
    """MaxPool, AveragePool and LpPool in any number of dimensions; MaxPool also gives places."""
    x = node.inputs[0]
    own, dtype = shape_of(x), dtype_of(x)
    kernel = [int(k) for k in node.attribute("kernel_shape")]
    rank = len(kernel)
    out, strides, dilations, before = _pool_shape(node, own[2:], kernel)
    _, _, _, after = window(node, own[2:], kernel)
    norm = int(node.attribute("p", 2))

    def build(t: Any, *more: Any) -> Any:
        taps = [reduce_axis(kernel[a], f"k{a}") for a in range(rank)]

        def at(n: Any, c: Any, *places: Any) -> Any:
            from tvm import tirx

            where, conditions = [], []
            for a in range(rank):
                place = places[a] * strides[a] + taps[a].var * dilations[a] - before[a]
                where.append(place)
                last = (out[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] - before[a]
                if before[a]:
                    conditions.append(place >= 0)
                if last >= own[2 + a]:
                    conditions.append(place < own[2 + a])
            item = t(n, c, *where)
            if node.op == "LpPool":
                size = external("tim_fabsf", item)
                item = item * item if norm == 2 else size if norm == 1 else external("tim_powf", size, f(norm))
            outside = lowest(dtype) if node.op == "MaxPool" else literal(0, dtype)
            if more:
                # The place of the maximum: the first one that holds it.
                flat: Any = n * own[1] + c
                for a in _flat_order(node, rank):
                    flat = flat * own[2 + a] + where[a]
                conditions.append(item == more[0](n, c, *places))
                item, outside = flat.astype("int64"), literal((1 << 31) - 1, "int64")
            value = choose(tirx.all(*conditions), item, outside) if conditions else item
            combine = "min" if more else "max" if node.op == "MaxPool" else "sum"
            return reducer(combine)(value, axis=taps)

        return compute((own[0], own[1], *out), at, "pool")

    y = e.kernel("pool", build, x)
    if node.op == "MaxPool":
        return [y] if node.outputs == 1 else [y, e.kernel("pool_places", build, x, y)]
    if node.op == "LpPool":
        if norm == 1:
            return [y]
        root = (lambda s: external("tim_sqrtf", s)) if norm == 2 else (lambda s: external("tim_powf", s, f(1 / norm)))
        return [e.elementwise("root", root, y)]
    counts = _counts(node, own[2:], kernel, out, strides, dilations, before, after)
    if (counts == counts.reshape(-1)[0]).all():
        share = np.array([1 / counts.reshape(-1)[0]], np.float32)
        return [e.elementwise("average", lambda s, c: s * c, y, share)]
    return [e.elementwise("average", lambda s, c: s * c, y, (1 / counts).astype(np.float32)[None, None])]


def _flat_order(node: Node, rank: int) -> list[int]:
    """Axes from the slowest to the fastest in MaxPool's flat places (`storage_order` 1: column-major)."""
    return list(reversed(range(rank))) if node.attribute("storage_order", 0) else list(range(rank))


def _counts(
    node: Node, spatial: Sequence[int], kernel: Sequence[int], out: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], before: Sequence[int], after: Sequence[int],
) -> Any:  # fmt: skip
    """How many elements each place of an average has: with padding where `count_include_pad`, never beyond it."""
    include = bool(node.attribute("count_include_pad", 0))
    counts = np.ones((), np.int64)
    for a, extent in enumerate(spatial):
        low, high = (-before[a], extent + after[a]) if include else (0, extent)
        places = np.arange(out[a])[:, None] * strides[a] + np.arange(kernel[a])[None] * dilations[a] - before[a]
        counts = np.multiply.outer(counts, ((places >= low) & (places < high)).sum(1))
    return np.maximum(counts, 1)


def global_pool(e: Emitter, node: Node) -> list[Value]:
    """GlobalAveragePool, GlobalMaxPool, GlobalLpPool."""
    x = node.inputs[0]
    own, axes = shape_of(x), list(range(2, len(shape_of(x))))
    if node.op == "GlobalMaxPool":
        return [e.reduce("max", x, axes, True, lambda item: item, "max")]
    if node.op == "GlobalAveragePool":
        count = int(np.prod(own[2:], dtype=np.int64))
        total = e.reduce("sum", x, axes, True, lambda item: item, "sum")
        return [e.elementwise("average", lambda s: s * f(1 / count), total)]
    p = int(node.attribute("p", 2))
    if p == 2:
        total = e.reduce("sum", x, axes, True, lambda item: item * item, "sum")
        return [e.elementwise("root", lambda s: external("tim_sqrtf", s), total)]
    total = e.reduce("sum", x, axes, True, lambda item: external("tim_powf", external("tim_fabsf", item), f(p)), "sum")
    return [e.elementwise("root", lambda s: external("tim_powf", s, f(1 / p)), total)]


def max_unpool(e: Emitter, node: Node) -> list[Value]:
    """MaxUnpool: each output place takes the value whose stored place it is, else 0."""
    from tinymlaas_compiler_tvm.relax.emit import integers

    x, places = node.inputs[0], node.inputs[1]
    own = shape_of(x)
    kernel = [int(k) for k in node.attribute("kernel_shape")]
    rank = len(kernel)
    strides = [int(s) for s in node.attribute("strides") or [1] * rank]
    pads = [int(p) for p in node.attribute("pads") or [0] * (2 * rank)]
    natural = [(own[2 + a] - 1) * strides[a] + kernel[a] - pads[a] - pads[a + rank] for a in range(rank)]
    given = node.input(2)
    shape = integers(given, "output_shape") if given is not None else [own[0], own[1], *natural]
    count = int(np.prod(own, dtype=np.int64))
    # Places were made for the natural shape; a larger output holds it at its start.
    flat = int(np.prod([own[0], own[1], *natural], dtype=np.int64))
    values, wheres = e.reshape(x, (count,)), e.reshape(places, (count,))

    def build(t: Any, p: Any) -> Any:
        k = reduce_axis(count)
        return compute(
            (flat,),
            lambda i: reducer("sum")(choose(p(k.var) == i.astype("int64"), t(k.var), f(0)), axis=k),
            "unpool",
        )

    y = e.reshape(e.kernel("unpool", build, values, wheres), (own[0], own[1], *natural))
    return [padded(e, y, [0] * len(shape), [want - have for want, have in zip(shape, shape_of(y), strict=True)])]


def integer_product(e: Emitter, node: Node) -> list[Value]:
    """MatMulInteger and ConvInteger: int32 sums of (value - zero point)."""
    a, b = node.inputs[0], node.inputs[1]
    a, b = shifted(e, a, node.input(2), -2), shifted(e, b, node.input(3), -1 if node.op == "MatMulInteger" else 0)
    if node.op == "MatMulInteger":
        return [matrix_product(e, a, b, "int32")]
    return [convolution(e, node, a, b, "int32")]


def shifted(e: Emitter, x: Value, zero: Value | None, axis: int) -> Value:
    """int32 values less their zero point; one that is a vector belongs to `axis`."""
    wide = e.cast(x, "int32")
    if zero is None:
        return wide
    rank, extents_ = len(shape_of(x)), shape_of(zero)
    if len(extents_) == 1 and extents_[0] != 1:
        shape = [1] * rank
        shape[axis_of(axis, rank)] = extents_[0]
        zero = e.reshape(zero, shape)
    zero = e.cast(zero, "int32")
    if is_constant(wide) and is_constant(zero):
        return wide - zero
    return e.elementwise("shift", lambda v, z: v - z, wide, zero)


def einsum(e: Emitter, node: Node) -> list[Value]:
    """Einsum of one or two operands without ellipsis in the reduced part."""
    from tvm import topi

    equation = str(node.attribute("equation")).replace(" ", "")
    if "..." in equation:
        equation = _without_ellipsis(equation, [len(shape_of(value)) for value in node.inputs])
    if "->" not in equation:
        letters = sorted(letter for letter in set(equation) - {","} if equation.count(letter) == 1)
        equation = f"{equation}->{''.join(letters)}"
    return [e.kernel("einsum", lambda *tensors: topi.einsum(equation, *tensors), *node.inputs)]


def _without_ellipsis(equation: str, ranks: Sequence[int]) -> str:
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    left, _, right = equation.partition("->")
    terms, most = [], 0
    for term, rank in zip(left.split(","), ranks, strict=True):
        count = rank - len(term.replace("...", "")) if "..." in term else 0
        most = max(most, count)
        terms.append((term, count))
    done = ",".join(term.replace("...", "".join(spare[most - count : most])) for term, count in terms)
    if not _:
        letters = sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
        return f"{done}->{''.join(spare[:most])}{''.join(letters)}"
    return f"{done}->{right.replace('...', ''.join(spare[:most]))}"


CONVERTERS: dict[str, Converter] = {
    "AveragePool": pool,
    "Conv": conv,
    "ConvInteger": integer_product,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool,
    "GlobalLpPool": global_pool,
    "GlobalMaxPool": global_pool,
    "LpPool": pool,
    "MatMul": matmul,
    "MatMulInteger": integer_product,
    "MaxPool": pool,
    "MaxUnpool": max_unpool,
}
