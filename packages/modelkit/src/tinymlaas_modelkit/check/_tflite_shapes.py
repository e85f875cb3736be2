"""Shapes of TFLite operators: what each operator computes must be what the file declares, since kernels trust it.

Covers the operators that the compilers here know (graph.OpKind); others pass, and are refused by the readers.
Source: TFLite reference kernels' Prepare functions, as described in the TensorFlow Lite operator documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from ._rejection import ModelRejected, Problem

if TYPE_CHECKING:
    from ._tflite import TfliteOp, TfliteTensor

Shape = tuple[int, ...]
_SAME: Final = 0
_SAME_AS_INPUT: Final = frozenset(
    {
        "SOFTMAX", "LOGISTIC", "RELU", "RELU6", "RELU_N1_TO_1", "TANH", "LEAKY_RELU", "HARD_SWISH", "QUANTIZE",
        "DEQUANTIZE",
    }
)  # fmt: skip


class _Mismatch(Exception):
    """Two shapes that do not go together; the text says which."""


def check_tflite_shapes(op: TfliteOp, tensors: Sequence[TfliteTensor]) -> None:
    """SHAPE_MISMATCH unless the operator's inputs go together and give the declared output.

    BAD_VALUE for bad strides.
    """
    given = [tensors[index] if index >= 0 else None for index in op.inputs]
    made = [tensors[index].shape for index in op.outputs]
    check = _CHECKS.get(op.name)
    try:
        if check is not None:
            expected = check(op, [t for t in given if t is not None], made)
            if expected is not None and [expected] * len(made) != made:
                raise _Mismatch(f"declares {[list(shape) for shape in made]}, computes {list(expected)}")
        elif op.name in _SAME_AS_INPUT and given[0] is not None and made[0] != given[0].shape:
            raise _Mismatch(f"declares {list(made[0])}, computes {list(given[0].shape)}")
    except _Mismatch as error:
        raise ModelRejected(Problem.SHAPE_MISMATCH, op.label, str(error), op=op.name) from error


def _option(op: TfliteOp, slot: int, default: int = 0) -> int:
    value = op.options.get(slot, default)
    return int(value) if isinstance(value, int | float) else default


def _need(condition: bool, detail: str) -> None:
    if not condition:
        raise _Mismatch(detail)


def _window(op: TfliteOp, size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Output size of a sliding window along one dimension (TFLite's SAME and VALID)."""
    if stride < 1 or dilation < 1 or kernel < 1:
        detail = f"kernel {kernel}, stride {stride}, dilation {dilation}"
        raise ModelRejected(Problem.BAD_VALUE, op.label, detail, op=op.name)
    reach = (kernel - 1) * dilation + 1
    return -(-size // stride) if padding == _SAME else -(-(size - reach + 1) // stride)


def _bias(given: Sequence[TfliteTensor], channels: int) -> None:
    if len(given) > 2:
        _need(prod(given[2].shape) == channels, f"bias {list(given[2].shape)} for {channels} channels")


def _convolution(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape:
    x, w = given[0].shape, given[1].shape
    _need(len(x) == 4 and len(w) == 4, f"input {list(x)}, filter {list(w)}")
    depthwise = op.name == "DEPTHWISE_CONV_2D"
    if depthwise:
        channels = w[3]
        _need(w[0] == 1 and x[3] > 0 and channels % x[3] == 0, f"input {list(x)}, filter {list(w)}")
        multiplier = _option(op, 3)
        _need(multiplier in (0, channels // x[3]), f"depth multiplier {multiplier} for {x[3]} to {channels} channels")
    else:
        channels = w[0]
        _need(w[3] > 0 and x[3] % w[3] == 0 and channels % (x[3] // w[3]) == 0, f"input {list(x)}, filter {list(w)}")
    _bias(given, channels)
    dilation = (_option(op, 6, 1), _option(op, 5, 1)) if depthwise else (_option(op, 5, 1), _option(op, 4, 1))
    padding = _option(op, 0)
    height = _window(op, x[1], w[1], _option(op, 2), dilation[0], padding)
    width = _window(op, x[2], w[2], _option(op, 1), dilation[1], padding)
    return x[0], height, width, channels


def _pool(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape:
    x = given[0].shape
    _need(len(x) == 4, f"input {list(x)}")
    height = _window(op, x[1], _option(op, 4), _option(op, 2), 1, _option(op, 0))
    width = _window(op, x[2], _option(op, 3), _option(op, 1), 1, _option(op, 0))
    return x[0], height, width, x[3]


def _fully_connected(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    x, w = given[0].shape, given[1].shape
    _need(len(w) == 2 and w[1] > 0 and prod(x) % w[1] == 0, f"input {list(x)}, filter {list(w)}")
    _bias(given, w[0])
    if _option(op, 2):
        _need(x[-1] == w[1], f"input {list(x)}, filter {list(w)}")
        return (*x[:-1], w[0])
    _need(made[0] == (prod(x) // w[1], w[0]) or (prod(made[0]) == prod(x) // w[1] * w[0] and made[0][-1:] == (w[0],)),
          f"declares {list(made[0])} for input {list(x)} and filter {list(w)}")  # fmt: skip
    return None


def _broadcast(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape:
    try:
        return tuple(int(dim) for dim in np.broadcast_shapes(given[0].shape, given[1].shape))
    except ValueError as error:
        raise _Mismatch(f"{list(given[0].shape)} with {list(given[1].shape)}") from error


def _same_elements(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> None:
    _need(prod(given[0].shape) == prod(made[0]), f"{list(given[0].shape)} to {list(made[0])}")


def _concatenation(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape:
    first = given[0].shape
    axis = _option(op, 0)
    _need(-len(first) <= axis < len(first), f"axis {axis} of {list(first)}")
    axis %= len(first)
    _need(all(len(t.shape) == len(first) for t in given), "inputs of different rank")
    rest = {(*t.shape[:axis], *t.shape[axis + 1 :]) for t in given}
    _need(len(rest) == 1, "inputs differ in another dimension than the axis")
    return (*first[:axis], sum(t.shape[axis] for t in given), *first[axis + 1 :])


def _integers(tensor: TfliteTensor) -> list[int] | None:
    """The values of a small constant of integers; None if it is computed."""
    values = tensor.values()
    if values is None:
        return None
    _need(
        values.dtype.kind == "i" and values.size <= 64,
        f"{values.size} values of {values.dtype} where a few integers belong",
    )
    return [int(value) for value in values.reshape(-1)]


def _transpose(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    order = _integers(given[1])
    if order is None:
        return None
    x = given[0].shape
    _need(sorted(order) == list(range(len(x))), f"permutation {order} of {list(x)}")
    return tuple(x[axis] for axis in order)


def _mean(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    axes = _integers(given[1])
    if axes is None:
        return None
    x = given[0].shape
    _need(all(-len(x) <= axis < len(x) for axis in axes), f"axes {axes} of {list(x)}")
    gone = {axis % len(x) for axis in axes}
    keep = bool(_option(op, 0))
    return tuple(1 if axis in gone else dim for axis, dim in enumerate(x) if keep or axis not in gone)


def _pad(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    pads = _integers(given[1])
    if pads is None:
        return None
    x = given[0].shape
    _need(len(pads) == 2 * len(x) and min(pads, default=0) >= 0, f"paddings {pads} of {list(x)}")
    return tuple(dim + pads[2 * axis] + pads[2 * axis + 1] for axis, dim in enumerate(x))


def _slice(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    begin, size = _integers(given[1]), _integers(given[2])
    if begin is None or size is None:
        return None
    x = given[0].shape
    _need(len(begin) == len(size) == len(x), f"begin {begin}, size {size} of {list(x)}")
    out = tuple(dim - start if count == -1 else count for dim, start, count in zip(x, begin, size, strict=True))
    inside = all(start >= 0 and 0 <= count <= dim - start for dim, start, count in zip(x, begin, out, strict=True))
    _need(inside, f"begin {begin}, size {size} of {list(x)}")
    return out


def _strided_slice(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    lists = [_integers(tensor) for tensor in given[1:4]]
    if _option(op, 2) or _option(op, 3) or _option(op, 5) or None in lists:
        return None
    begin, end, strides = ([] if values is None else values for values in lists)
    x = given[0].shape
    _need(len(begin) == len(end) == len(strides) == len(x), f"begin {begin}, end {end} of {list(x)}")
    out = []
    for axis, dim in enumerate(x):
        stride = strides[axis]
        _need(stride != 0, f"strides {strides}")
        # A set bit in a mask stands for the whole range on that side; Python's slices clamp as TFLite does.
        first = None if _option(op, 0) >> axis & 1 else begin[axis]
        shrunk = bool(_option(op, 4) >> axis & 1)
        if shrunk:
            _need(-dim <= begin[axis] < dim, f"begin {begin} of {list(x)}")
            continue
        last = None if _option(op, 1) >> axis & 1 else end[axis]
        out.append(len(range(*slice(first, last, stride).indices(dim))))
    return tuple(out)


def _split(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    where = _integers(given[0])
    x = given[1].shape
    if where is None:
        return None
    _need(len(where) == 1 and -len(x) <= where[0] < len(x), f"axis {where} of {list(x)}")
    axis = where[0] % len(x)
    _need(x[axis] % len(made) == 0, f"{len(made)} parts of {list(x)} along axis {axis}")
    return (*x[:axis], x[axis] // len(made), *x[axis + 1 :])


def _resize(op: TfliteOp, given: Sequence[TfliteTensor], made: Sequence[Shape]) -> Shape | None:
    size = _integers(given[1])
    x = given[0].shape
    _need(len(x) == 4, f"input {list(x)}")
    if size is None:
        return None
    _need(len(size) == 2, f"size {size}")
    return x[0], size[0], size[1], x[3]


_CHECKS: Final[Mapping[str, Callable[[TfliteOp, Sequence[TfliteTensor], Sequence[Shape]], Shape | None]]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _broadcast,
    "SUB": _broadcast,
    "MUL": _broadcast,
    "RESHAPE": _same_elements,
    "SQUEEZE": _same_elements,
    "CONCATENATION": _concatenation,
    "TRANSPOSE": _transpose,
    "MEAN": _mean,
    "PAD": _pad,
    "SLICE": _slice,
    "SPLIT": _split,
    "STRIDED_SLICE": _strided_slice,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
}
