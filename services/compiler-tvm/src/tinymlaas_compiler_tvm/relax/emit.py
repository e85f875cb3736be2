"""What converters of ONNX operators work with: values that are constants or Relax variables, and kernels written in TE.

A value is a numpy array as long as it is known at compile time; nodes whose inputs are all known are computed then, by the
reference implementation of the onnx package. Everything else becomes `call_tir` of a kernel, which TVM fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# A numpy array or a relax.Expr; TVM has no types that mypy knows.
Value = Any
# Elements of a constant that a kernel takes as literals.
_LITERALS = 1


class Refused(Exception):
    """An operator in a form that has no kernel; the text says what is missing."""


@dataclass(frozen=True)
class Node:
    """An operator to convert: inputs in the schema's order (None where omitted), and how many outputs are wanted."""

    op: str
    inputs: Sequence[Any]
    attributes: dict[str, Any]
    opset: int
    outputs: int

    def input(self, place: int) -> Any:
        """The input at that place, or None."""
        return self.inputs[place] if place < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


Converter = Callable[["Emitter", Node], list[Value]]


def is_constant(value: Value) -> bool:
    """Whether a value is known at compile time."""
    return isinstance(value, np.ndarray)


def shape_of(value: Value) -> tuple[int, ...]:
    """The static shape of a value."""
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    return tuple(int(extent) for extent in value.ty.shape)


def dtype_of(value: Value) -> str:
    """numpy's name of a value's element type."""
    return str(value.dtype) if isinstance(value, np.ndarray) else str(value.ty.dtype)


def known(value: Value | None, what: str) -> Array:
    """The array of a value that has to be known at compile time."""
    if not isinstance(value, np.ndarray):
        raise Refused(f"{what} must be known at compile time")
    return value


def integers(value: Value | None, what: str) -> list[int]:
    """The integers of a constant."""
    return [int(each) for each in known(value, what).reshape(-1)]


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis as a place from 0."""
    if not -rank <= axis < max(rank, 1):
        raise Refused(f"axis {axis} of {rank} dimensions")
    return axis % rank if rank else 0


def extents(shape: Sequence[int]) -> list[Any]:
    """A shape for TE: 64-bit constants as Relax has them."""
    from tvm import tirx

    return [tirx.IntImm("int64", int(extent)) for extent in shape]


def reduce_axis(extent: int, name: str = "k") -> Any:
    """A reduction axis over [0, extent)."""
    from tvm import te, tirx

    return te.reduce_axis((0, tirx.IntImm("int64", int(extent))), name)


def compute(shape: Sequence[int], body: Callable[..., Any], name: str = "compute") -> Any:
    """te.compute over a static shape."""
    from tvm import te

    return te.compute(extents(shape), body, name=name)


def literal(value: Any, dtype: str) -> Any:
    """A scalar of TIR."""
    from tvm import tirx

    if dtype == "bool":
        return tirx.const(bool(value), "bool")
    return tirx.const(float(value) if dtype.startswith("float") else int(value), dtype)


def external(name: str, *arguments: Any, dtype: str = "float32") -> Any:
    """A call of a C function that `floatmath` provides."""
    from tvm import tirx

    return tirx.call_pure_extern(dtype, name, *arguments)


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """`condition ? yes : no`; only the chosen one is evaluated."""
    from tvm import tirx

    return tirx.if_then_else(condition, yes, no)


def lowest(dtype: str) -> Any:
    """The least value of a type: minus infinity for floats."""
    return literal(-np.inf if dtype == "float32" else (0 if dtype == "bool" else np.iinfo(dtype).min), dtype)


def highest(dtype: str) -> Any:
    """The greatest value of a type: infinity for floats."""
    return literal(np.inf if dtype == "float32" else (1 if dtype == "bool" else np.iinfo(dtype).max), dtype)


class Emitter:
    """Emits kernels into a Relax function."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def expr(self, value: Value) -> Any:
        """A value as a Relax expression."""
        from tvm import relax

        return relax.const(np.asarray(value, order="C"), str(value.dtype)) if isinstance(value, np.ndarray) else value

    def kernel(self, hint: str, body: Callable[..., Any], *values: Value) -> Value:
        """The result of a kernel; `body` gets a TE tensor for each value."""
        return self.builder.emit_te(body, *(self.expr(value) for value in values), primfunc_name_hint=hint)

    def elementwise(self, hint: str, body: Callable[..., Any], *values: Value) -> Value:
        """`body` of the scalars at each place, with numpy's broadcast; constants of one element become literals."""
        shape = np.broadcast_shapes(*(shape_of(value) for value in values))
        if 0 in shape:
            return np.zeros(shape, dtype_of(values[0]))
        fixed = [
            literal(value.reshape(-1)[0], str(value.dtype))
            if isinstance(value, np.ndarray) and value.size == _LITERALS
            else None
            for value in values
        ]
        shapes = [shape_of(value) for value in values]

        def build(*tensors: Any) -> Any:
            def at(*index: Any) -> Any:
                given = iter(tensors)
                scalars = [
                    constant if constant is not None else _at(next(given), own, index)
                    for constant, own in zip(fixed, shapes, strict=True)
                ]
                return body(*scalars)

            return compute(shape, at, hint)

        moving = [value for value, constant in zip(values, fixed, strict=True) if constant is None]
        if not moving:
            raise Refused("an operator of constants only")
        return self.kernel(hint, build, *moving)

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another element type, as ONNX's Cast."""
        have = dtype_of(value)
        if have == dtype:
            return value
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        return self.elementwise("cast", lambda x: cast_scalar(x, have, dtype), value)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        if shape_of(value) == tuple(shape):
            return value
        from tvm import topi

        return self.kernel("reshape", lambda x: topi.reshape(x, extents(shape)), value)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Axes in another order."""
        order = [int(axis) for axis in order]
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value.transpose(order))
        if order == list(range(len(order))):
            return value
        own = shape_of(value)
        shape = [own[axis] for axis in order]
        if [axis for axis in order if own[axis] != 1] == sorted(axis for axis in order if own[axis] != 1):
            return self.reshape(value, shape)

        def build(x: Any) -> Any:
            def at(*index: Any) -> Any:
                place = [index[order.index(axis)] for axis in range(len(order))]
                return x(*place)

            return compute(shape, at, "transpose")

        return self.kernel("transpose", build, value)

    def reduce(self, hint: str, value: Value, axes: Sequence[int], keep: bool, start: Any, combine: str) -> Value:
        """A reduction (`sum`, `max`, `min`, `prod`) over axes of `start(scalar)`."""
        own = shape_of(value)
        reduced = sorted(set(axes))
        kept = [axis for axis in range(len(own)) if axis not in reduced]
        shape = [1 if axis in reduced else extent for axis, extent in enumerate(own) if keep or axis not in reduced]

        def build(x: Any) -> Any:
            rows = {axis: reduce_axis(own[axis], f"k{axis}") for axis in reduced}

            def at(*index: Any) -> Any:
                given = [each for place, each in enumerate(index) if not keep or place in kept]
                places = {axis: given[number] for number, axis in enumerate(kept)}
                item = x(*(rows[axis].var if axis in rows else places[axis] for axis in range(len(own))))
                return reducer(combine)(start(item), axis=list(rows.values()))

            return compute(shape, at, hint)

        return self.kernel(hint, build, value) if reduced else self.elementwise(hint, start, value)


def reducer(combine: str) -> Any:
    """TE's reduction of that name."""
    from tvm import te, tirx

    if combine == "sum":
        return te.sum
    if combine == "prod":
        return te.comm_reducer(lambda x, y: x * y, lambda dtype: literal(1, str(dtype)), name="prod")
    # TE's own begin with the least finite value.
    if combine == "max":
        return te.comm_reducer(lambda x, y: tirx.max(x, y), lambda dtype: lowest(str(dtype)), name="max")
    return te.comm_reducer(lambda x, y: tirx.min(x, y), lambda dtype: highest(str(dtype)), name="min")


def _at(tensor: Any, shape: tuple[int, ...], index: Sequence[Any]) -> Any:
    """The scalar of a tensor that numpy's broadcast puts at `index`."""
    skipped = len(index) - len(shape)
    return tensor(*(0 if extent == 1 else index[skipped + place] for place, extent in enumerate(shape)))


def cast_scalar(x: Any, have: str, want: str) -> Any:
    """ONNX's Cast of a scalar: truncation to integers, anything but zero is true, integers wrap."""
    if have == want:
        return x
    if want == "bool":
        return x != literal(0, have)
    if have == "bool":
        return choose(x, literal(1, want), literal(0, want))
    if have == "float32" and want != "int64":
        # By way of 32 bits, from where narrower integers wrap.
        return x.astype("int32").astype(want)
    return x.astype(want)
