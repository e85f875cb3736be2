"""Operators over whole axes: reductions, arg-max, softmax, top-k, normalizations."""

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
    external,
    integers,
    is_constant,
    known,
    literal,
    lowest,
    reduce_axis,
    reducer,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.elementwise import f


def _axes(node: Node) -> list[int] | None:
    """Axes of a reduction; None where it is the identity."""
    rank = len(shape_of(node.inputs[0]))
    given = node.input(1)
    axes = integers(given, "axes") if given is not None else node.attribute("axes")
    if not axes:
        return None if node.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [axis_of(int(axis), rank) for axis in axes]


def _count(value: Value, axes: Sequence[int]) -> int:
    return int(np.prod([shape_of(value)[axis] for axis in axes], dtype=np.int64))


def reduction(e: Emitter, node: Node) -> list[Value]:
    """ReduceSum, -Mean, -Max, -Min, -Prod, -L1, -L2, -SumSquare, -LogSum, -LogSumExp."""
    x, kind = node.inputs[0], node.op.removeprefix("Reduce")
    axes, keep = _axes(node), bool(node.attribute("keepdims", 1))
    dtype = dtype_of(x)
    if axes is None:
        # The reduction over no axis: of each element by itself.
        axes, keep = [], True
    if dtype != "float32" and kind in ("L2", "LogSum", "LogSumExp"):
        raise Refused(f"element type {dtype}")

    def same(item: Any) -> Any:
        return item

    def square(item: Any) -> Any:
        return item * item

    def absolute(item: Any) -> Any:
        return external("tim_fabsf", item) if dtype == "float32" else choose(item < 0, -item, item).astype(dtype)

    if kind in ("Max", "Min"):
        if dtype == "bool":
            whole = e.reduce(kind.lower(), e.cast(x, "int32"), axes, keep, same, kind.lower())
            return [e.cast(whole, "bool")]
        return [e.reduce(kind.lower(), x, axes, keep, same, kind.lower())]
    if kind == "Prod":
        return [e.reduce("prod", x, axes, keep, same, "prod")]
    if kind == "Mean":
        total = e.reduce("sum", x, axes, keep, same, "sum")
        count = _count(x, axes)
        if dtype == "float32":
            return [e.elementwise("mean", lambda s: s * f(1 / count), total)]
        raise Refused(f"element type {dtype}")
    if kind == "LogSumExp":
        return [_log_sum_exp(e, x, axes, keep)]
    start = {"Sum": same, "LogSum": same, "L1": absolute, "L2": square, "SumSquare": square}[kind]
    total = e.reduce("sum", x, axes, keep, start, "sum")
    if kind == "L2":
        return [e.elementwise("sqrt", lambda s: external("tim_sqrtf", s), total)]
    if kind == "LogSum":
        return [e.elementwise("log", lambda s: external("tim_logf", s), total)]
    return [total]


def _log_sum_exp(e: Emitter, x: Value, axes: Sequence[int], keep: bool) -> Value:
    most = e.reduce("max", x, axes, True, lambda item: item, "max")
    # A maximum that is infinite would make differences that are no numbers.
    most = e.elementwise("finite", lambda m: choose(external("tim_fabsf", m) == f(np.inf), f(0), m), most)
    shifted = e.elementwise("exp", lambda a, m: external("tim_expf", a - m), x, most)
    total = e.reduce("sum", shifted, axes, True, lambda item: item, "sum")
    result = e.elementwise("log", lambda s, m: external("tim_logf", s) + m, total, most)
    own = shape_of(x)
    shape = [1 if axis in axes else extent for axis, extent in enumerate(own) if keep or axis not in axes]
    return e.reshape(result, shape)


def arg_extreme(e: Emitter, node: Node) -> list[Value]:
    """ArgMax and ArgMin: the first (or last) place that holds the extreme."""
    x = node.inputs[0]
    own, dtype = shape_of(x), dtype_of(x)
    axis = axis_of(int(node.attribute("axis", 0)), len(own))
    last = bool(node.attribute("select_last_index", 0))
    combine = "max" if node.op == "ArgMax" else "min"
    extreme = e.reduce(combine, x, [axis], True, lambda item: item, combine)

    def build(t: Any, m: Any) -> Any:
        k = reduce_axis(own[axis])

        def at(*index: Any) -> Any:
            def place(each: Any) -> list[Any]:
                return [each if number == axis else given for number, given in enumerate(index)]

            hit = t(*place(k.var)) == m(*place(0))
            miss = literal(-1 if last else own[axis] - 1, "int32")
            found = choose(hit, k.var.astype("int32"), miss)
            return reducer("max" if last else "min")(found, axis=k)

        return compute([1 if number == axis else extent for number, extent in enumerate(own)], at, "arg")

    del dtype
    place = e.kernel("arg", build, x, extreme)
    result = e.cast(place, "int64")
    if node.attribute("keepdims", 1):
        return [result]
    return [e.reshape(result, [extent for number, extent in enumerate(own) if number != axis])]


def softmax(e: Emitter, node: Node) -> list[Value]:
    """Softmax, LogSoftmax and Hardmax; up to operator set 12 over all dimensions from the axis on."""
    x = node.inputs[0]
    own = shape_of(x)
    axis = axis_of(int(node.attribute("axis", -1 if node.opset >= 13 else 1)), len(own))
    if node.opset < 13:
        outer = int(np.prod(own[:axis], dtype=np.int64))
        x = e.reshape(x, (outer, int(np.prod(own[axis:], dtype=np.int64))))
        return [e.reshape(_softmax(e, node, x, 1), own)]
    return [_softmax(e, node, x, axis)]


def _softmax(e: Emitter, node: Node, x: Value, axis: int) -> Value:
    from tvm import topi

    if node.op == "Hardmax":
        places = arg_extreme(e, Node("ArgMax", [x], {"axis": axis}, node.opset, 1))[0]
        shape = [1] * len(shape_of(x))
        shape[axis] = shape_of(x)[axis]
        numbers = np.arange(shape[axis], dtype=np.int64).reshape(shape)
        return e.elementwise("hardmax", lambda p, n: choose(p == n, f(1), f(0)), places, numbers)
    if node.op == "Softmax":
        return e.kernel("softmax", lambda t: topi.nn.softmax(t, axis), x)
    most = e.reduce("max", x, [axis], True, lambda item: item, "max")
    total = _sum_of(e, e.elementwise("exp", lambda a, m: external("tim_expf", a - m), x, most), [axis])
    return e.elementwise("log_softmax", lambda a, m, s: a - m - external("tim_logf", s), x, most, total)


def _sum_of(e: Emitter, x: Value, axes: Sequence[int]) -> Value:
    return e.reduce("sum", x, axes, True, lambda item: item, "sum")


def _mean_of(e: Emitter, x: Value, axes: Sequence[int]) -> Value:
    count = _count(x, axes)
    return e.elementwise("mean", lambda s: s * f(1 / count), _sum_of(e, x, axes))


def standardized(e: Emitter, x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value, Value]:
    """(x - mean) / sqrt(variance + epsilon) over axes, the mean, and the inverse deviation."""
    mean = _mean_of(e, x, axes)
    centred = e.elementwise("centre", lambda a, m: a - m, x, mean)
    variance = _mean_of(e, e.elementwise("square", lambda a: a * a, centred), axes)
    inverse = e.elementwise("rsqrt", lambda v: f(1) / external("tim_sqrtf", v + f(epsilon)), variance)
    return e.elementwise("scale", lambda a, i: a * i, centred, inverse), mean, inverse


def _per_channel(e: Emitter, value: Value, rank: int) -> Value:
    return e.reshape(value, (1, shape_of(value)[0], *[1] * (rank - 2)))


def batch_normalization(e: Emitter, node: Node) -> list[Value]:
    """BatchNormalization at inference: one multiply and one add a channel."""
    if node.attribute("training_mode", 0) or node.outputs > 1:
        raise Refused("batch normalization in training mode")
    x, gamma, beta, mean, variance = node.inputs[:5]
    epsilon = float(node.attribute("epsilon", 1e-5))
    rank = len(shape_of(x))
    if all(is_constant(value) for value in (gamma, beta, mean, variance)):
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        offset = (beta - mean * scale).astype(np.float32)
        scale = scale.astype(np.float32)
        scaled = e.elementwise("multiply", lambda a, s: a * s, x, _per_channel(e, scale, rank))
        return [e.elementwise("add", lambda a, o: a + o, scaled, _per_channel(e, offset, rank))]
    values = [_per_channel(e, value, rank) for value in (gamma, beta, mean, variance)]
    return [
        e.elementwise(
            "batch_norm", lambda a, g, b, m, v: (a - m) / external("tim_sqrtf", v + f(epsilon)) * g + b, x, *values
        )
    ]


def instance_normalization(e: Emitter, node: Node) -> list[Value]:
    """InstanceNormalization."""
    x, gamma, beta = node.inputs[:3]
    rank = len(shape_of(x))
    y, _, _ = standardized(e, x, range(2, rank), float(node.attribute("epsilon", 1e-5)))
    return [
        e.elementwise("affine", lambda a, g, b: a * g + b, y, _per_channel(e, gamma, rank), _per_channel(e, beta, rank))
    ]


def layer_normalization(e: Emitter, node: Node) -> list[Value]:
    """LayerNormalization and RMSNormalization over the dimensions from `axis` on."""
    x, gamma = node.inputs[0], node.inputs[1]
    rank = len(shape_of(x))
    axes = list(range(axis_of(int(node.attribute("axis", -1)), rank), rank))
    epsilon = float(node.attribute("epsilon", 1e-5))
    if node.op == "RMSNormalization":
        square = _mean_of(e, e.elementwise("square", lambda a: a * a, x), axes)
        inverse = e.elementwise("rsqrt", lambda v: f(1) / external("tim_sqrtf", v + f(epsilon)), square)
        return [e.elementwise("affine", lambda a, i, g: a * i * g, x, inverse, gamma)]
    y, mean, inverse = standardized(e, x, axes, epsilon)
    y = e.elementwise("multiply", lambda a, g: a * g, y, gamma)
    if node.input(2) is not None:
        y = e.elementwise("add", lambda a, b: a + b, y, node.inputs[2])
    return [y, mean, inverse][: node.outputs]


def group_normalization(e: Emitter, node: Node) -> list[Value]:
    """GroupNormalization: scale and bias a group (operator set 18) or a channel (21)."""
    x, gamma, beta = node.inputs[:3]
    own = shape_of(x)
    groups = int(node.attribute("num_groups"))
    grouped = (own[0], groups, own[1] // groups, *own[2:])
    y, _, _ = standardized(e, e.reshape(x, grouped), range(2, len(grouped)), float(node.attribute("epsilon", 1e-5)))
    if node.opset >= 21:
        y = e.reshape(y, own)
    rank = len(shape_of(y))
    y = e.elementwise("affine", lambda a, g, b: a * g + b, y, _per_channel(e, gamma, rank), _per_channel(e, beta, rank))
    return [e.reshape(y, own)]


def mean_variance_normalization(e: Emitter, node: Node) -> list[Value]:
    """MeanVarianceNormalization: (x - mean) / (deviation + 1e-9)."""
    x = node.inputs[0]
    axes = [axis_of(int(a), len(shape_of(x))) for a in node.attribute("axes") or (0, 2, 3)]
    mean = _mean_of(e, x, axes)
    centred = e.elementwise("centre", lambda a, m: a - m, x, mean)
    variance = _mean_of(e, e.elementwise("square", lambda a: a * a, centred), axes)
    return [e.elementwise("scale", lambda a, v: a / (external("tim_sqrtf", v) + f(1e-9)), centred, variance)]


def lp_normalization(e: Emitter, node: Node) -> list[Value]:
    """LpNormalization by the 1- or 2-norm; where the norm is 0, zeros."""
    x = node.inputs[0]
    axis = axis_of(int(node.attribute("axis", -1)), len(shape_of(x)))
    if int(node.attribute("p", 2)) == 2:
        total = _sum_of(e, e.elementwise("square", lambda a: a * a, x), [axis])
        norm = e.elementwise("sqrt", lambda s: external("tim_sqrtf", s), total)
    else:
        norm = _sum_of(e, e.elementwise("abs", lambda a: external("tim_fabsf", a), x), [axis])
    return [e.elementwise("divide", lambda a, n: choose(n == f(0), f(0), a / n), x, norm)]


def local_response(e: Emitter, node: Node) -> list[Value]:
    """LRN across channels."""
    x = node.inputs[0]
    own = shape_of(x)
    size = int(node.attribute("size"))
    alpha, beta = float(node.attribute("alpha", 1e-4)), float(node.attribute("beta", 0.75))
    bias = float(node.attribute("bias", 1.0))
    before = (size - 1) // 2

    def build(t: Any) -> Any:
        k = reduce_axis(size)

        def at(*index: Any) -> Any:
            from tvm import tirx

            channel = index[1] + k.var - before
            inside = tirx.all(channel >= 0, channel < own[1])
            item = choose(inside, t(index[0], channel, *index[2:]), f(0))
            return reducer("sum")(item * item, axis=k)

        return compute(own, at, "squares")

    total = e.kernel("squares", build, x)
    return [
        e.elementwise("lrn", lambda a, s: a / external("tim_powf", f(bias) + f(alpha / size) * s, f(beta)), x, total)
    ]


def top_k(e: Emitter, node: Node) -> list[Value]:
    """TopK by rank: each element counts those before it, then each place takes the element of that rank."""
    x = node.inputs[0]
    own, dtype = shape_of(x), dtype_of(x)
    k = int(known(node.inputs[1], "k").reshape(-1)[0]) if node.opset >= 10 else int(node.attribute("k"))
    axis = axis_of(int(node.attribute("axis", -1)), len(own))
    largest = bool(node.attribute("largest", 1))
    if k < 1:
        raise Refused("an empty result")

    def place(index: Sequence[Any], each: Any) -> list[Any]:
        return [each if number == axis else given for number, given in enumerate(index)]

    def rank(t: Any) -> Any:
        other = reduce_axis(own[axis])

        def at(*index: Any) -> Any:
            mine, theirs = t(*index), t(*place(index, other.var))
            ahead = theirs > mine if largest else theirs < mine
            tie = (theirs == mine) & (other.var < index[axis])
            return reducer("sum")(choose(ahead | tie, literal(1, "int32"), literal(0, "int32")), axis=other)

        return compute(own, at, "rank")

    ranks = e.kernel("rank", rank, x)
    shape = [k if number == axis else extent for number, extent in enumerate(own)]

    def chosen(values: bool) -> Any:
        def build(t: Any, r: Any) -> Any:
            other = reduce_axis(own[axis])

            def at(*index: Any) -> Any:
                here = place(index, other.var)
                hit = r(*here) == index[axis].astype("int32")
                item = t(*here) if values else other.var.astype("int32")
                return reducer("max")(choose(hit, item, lowest(str(item.ty.dtype))), axis=other)

            return compute(shape, at, "chosen")

        return build

    del dtype
    results = [e.kernel("top_values", chosen(True), x, ranks)]
    if node.outputs > 1:
        results.append(e.cast(e.kernel("top_places", chosen(False), x, ranks), "int64"))
    return results


CONVERTERS: dict[str, Converter] = {
    "ArgMax": arg_extreme,
    "ArgMin": arg_extreme,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "Hardmax": softmax,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": layer_normalization,
    **{
        f"Reduce{kind}": reduction
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "Softmax": softmax,
    "TopK": top_k,
}
