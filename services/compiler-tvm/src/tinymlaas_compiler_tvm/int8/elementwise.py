"""Operators of two int8 tensors, element by element, with broadcasting and constants; functions of one tensor as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinymlaas_compiler_tvm import arithmetic, float_arithmetic
from tinymlaas_compiler_tvm.int8 import tables
from tinymlaas_compiler_tvm.int8.lowering import (
    Lowering,
    activation_of,
    memory_strides,
    pointer,
    quantized,
    row_major,
    unsupported,
)
from tinymlaas_compiler_tvm.int8.values import Values, braces
from tinymlaas_modelkit.graph import Op, OpKind, Tensor

_REAL_KINDS = {
    OpKind.ADD: 0, OpKind.SUB: 1, OpKind.MUL: 2, OpKind.DIV: 3, OpKind.MINIMUM: 4, OpKind.MAXIMUM: 5, OpKind.PRELU: 6,
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel over rows: the C kernel's name in the program, its function, what follows (n, stride a, stride b)."""

    name: str
    function: str
    values: Values


@dataclass(frozen=True)
class Operands:
    """Two operands and a result: tensors with (scale, zero point)."""

    a: Tensor
    b: Tensor
    out: Tensor
    scales: tuple[float, float, float]
    zeros: tuple[int, int, int]


def _operands(state: Lowering, op: Op) -> Operands:
    found = [quantized(state, op, name) for name in (op.inputs[0], op.inputs[1], op.outputs[0])]
    (a, sa, za), (b, sb, zb), (out, so, zo) = found
    return Operands(a, b, out, (sa, sb, so), (za, zb, zo))


def _add(state: Lowering, op: Op, x: Operands) -> tuple[Kernel, Kernel | None]:
    low, high = state.activation_range(activation_of(op), x.scales[2], x.zeros[2])
    sign = -1 if op.kind is OpKind.SUB else 1
    every = np.arange(-128, 128, dtype=np.int64)
    if state.settings.rounding == "onnx":
        wanted = float_arithmetic.add(every[:, None], every[None, :], x.scales, x.zeros, low, high, sign)
    else:
        wanted = tables.add_table(arithmetic.AddParameters.of(x.scales, x.zeros, low, high, sign))
    linear = tables.linear_add(wanted, x.scales, x.zeros, low, high, sign)
    if linear is not None:
        values: Values = [*linear, low, high]
        return Kernel("add_linear_rows", "tim_add_rows", values), Kernel("add_linear", "tim_add", values)
    if state.settings.rounding == "onnx":
        return _real(state, op, x), None
    p = arithmetic.AddParameters.of(x.scales, x.zeros, low, high, sign)
    values = [
        p.zero_point_1, p.zero_point_2, p.multiplier_1, p.shift_1, p.multiplier_2, p.shift_2, p.multiplier_out, p.shift_out,
        p.zero_point_out, low, high, sign,
    ]  # fmt: skip
    flat = Kernel("add_exact", "tim_add_exact", values)
    tabled = None if state.compact else tables.tabled_add(wanted, x.scales, low, high, sign)
    if tabled is not None:
        swapped, beta, shift, table = tabled
        flat = Kernel("add_tabled", "tim_add_tabled", [int(swapped), beta, shift, low, high, *map(int, table)])
    return Kernel("add_exact_rows", "tim_add_exact_rows", values), flat


def _mul(state: Lowering, op: Op, x: Operands) -> tuple[Kernel, Kernel | None]:
    if state.settings.rounding == "onnx":
        return _real(state, op, x), None
    low, high = state.activation_range(activation_of(op), x.scales[2], x.zeros[2])
    multiplier, shift = arithmetic.quantize_multiplier(x.scales[0] * x.scales[1] / x.scales[2])
    values: Values = [*x.zeros[:2], multiplier, shift, x.zeros[2], low, high]
    return Kernel("mul_rows", "tim_mul_rows", values), Kernel("mul", "tim_mul", values)


def _extreme(state: Lowering, op: Op, x: Operands) -> tuple[Kernel, Kernel | None]:
    if len(set(zip(x.scales, x.zeros, strict=True))) == 1:
        return Kernel("extreme_rows", "tim_extreme_rows", [int(op.kind is OpKind.MAXIMUM)]), None
    return _real(state, op, x), None


def _prelu(state: Lowering, op: Op, x: Operands) -> tuple[Kernel, Kernel | None]:
    if state.settings.rounding == "onnx":
        return _real(state, op, x), None
    # The reference multiplies and divides these scales as doubles.
    m1, s1 = arithmetic.quantize_multiplier(x.scales[0] / x.scales[2])
    m2, s2 = arithmetic.quantize_multiplier(x.scales[0] * x.scales[1] / x.scales[2])
    return Kernel("prelu_rows", "tim_prelu_rows", [*x.zeros[:2], m1, s1, m2, s2, x.zeros[2]]), None


def _div(state: Lowering, op: Op, x: Operands) -> tuple[Kernel, Kernel | None]:
    if state.settings.rounding != "onnx":
        raise unsupported(op, "no kernel with the reference's fixed-point division")
    return _real(state, op, x), None


def _real(state: Lowering, op: Op, x: Operands) -> Kernel:
    """The operator on reals."""
    low, high = state.activation_range(activation_of(op), x.scales[2], x.zeros[2])
    state.program.uses_float = True
    return Kernel("real_binary", "tim_real_binary", [*x.zeros, low, high, _REAL_KINDS[op.kind], *x.scales])


_KERNELS: dict[OpKind, Callable[[Lowering, Op, Operands], tuple[Kernel, Kernel | None]]] = {
    OpKind.ADD: _add,
    OpKind.SUB: _add,
    OpKind.MUL: _mul,
    OpKind.DIV: _div,
    OpKind.MINIMUM: _extreme,
    OpKind.MAXIMUM: _extreme,
    OpKind.PRELU: _prelu,
}


def _broadcast(shape: tuple[int, ...], strides: list[int], rank: int) -> list[int]:
    """Strides of an operand over a result of that rank: 0 where it repeats."""
    return [0] * (rank - len(shape)) + [0 if size == 1 else step for size, step in zip(shape, strides, strict=True)]


def _axes(shape: tuple[int, ...], columns: tuple[list[int], ...]) -> list[tuple[int, ...]]:
    """(extent, strides...) by falling stride of the last column, neighbours joined wherever one stride continues the other."""
    axes = [(n, *steps) for n, *steps in zip(shape, *columns, strict=True) if n != 1]
    axes.sort(key=lambda axis: -axis[-1])
    joined: list[tuple[int, ...]] = []
    for axis in axes:
        if joined and all(outer == inner * axis[0] for outer, inner in zip(joined[-1][1:], axis[1:], strict=True)):
            joined[-1] = (joined[-1][0] * axis[0], *axis[1:])
        else:
            joined.append(axis)
    return joined or [(1, *([1] * len(columns)))]


def _source(state: Lowering, tensor: Tensor) -> tuple[str, list[int]]:
    """C for an operand's address, and its strides in bytes."""
    if tensor.data is not None:
        return f"(const int8_t *)W({state.constant(tensor.data.tobytes(), 1)})", row_major(tensor.shape)
    return pointer(state.place(tensor.name).buffer), memory_strides(state, tensor)


def lower_binary(state: Lowering, op: Op) -> None:
    """ADD, SUB, MUL, DIV, MINIMUM, MAXIMUM, PRELU."""
    x = _operands(state, op)
    if np.broadcast_shapes(x.a.shape, x.b.shape) != x.out.shape:
        raise unsupported(op, f"shapes {x.a.shape} and {x.b.shape}")
    if activation_of(op) != "NONE" and op.kind in (OpKind.MINIMUM, OpKind.MAXIMUM, OpKind.PRELU):
        raise unsupported(op, "fused activation")
    rows, flat = _KERNELS[op.kind](state, op, x)
    rank = len(x.out.shape)
    (from_a, steps_a), (from_b, steps_b) = _source(state, x.a), _source(state, x.b)
    wide_a, wide_b = _broadcast(x.a.shape, steps_a, rank), _broadcast(x.b.shape, steps_b, rank)
    over = None
    for tensor in (x.a, x.b):
        same = tensor.shape == x.out.shape and state.lies_as(tensor.name, x.out.name)
        if over is None and tensor.data is None and same and state.can_overwrite(tensor.name, x.out.nbytes):
            over = tensor.name
    target = state.output(x.out.name, over=over)
    wide_out = memory_strides(state, x.out)
    *outer, (n, step_a, step_b, step_out) = _axes(x.out.shape, (wide_a, wide_b, wide_out))
    assert step_out == 1
    if not outer and step_a == step_b == 1 and flat is not None:
        kernel, values = flat, [n, *flat.values]
    else:
        kernel, values = rows, [n, step_a, step_b, *rows.values]
    state.use(kernel.name)
    lines = [f"static const {kernel.function}_desc d = {braces(values)};"]
    index = {"a": "", "b": "", "out": ""}
    for number, (extent, *steps) in enumerate(outer):
        lines.append(f"for (int32_t i{number} = 0; i{number} < {extent}; ++i{number})")
        for side, step in zip(index, steps, strict=True):
            index[side] += f" + i{number} * {step}" if step else ""
    call = f"{kernel.function}(&d, {from_a}{index['a']}, {from_b}{index['b']}, {pointer(target.buffer)}{index['out']});"
    names = [tensor.name for tensor in (x.a, x.b) if tensor.data is None]
    constant_bytes = sum(tensor.nbytes for tensor in (x.a, x.b) if tensor.data is not None)
    state.step(op.kind.lower(), op, "\n  ".join([*lines, call]), names, [x.out.name], constant_bytes=constant_bytes)


def lower_table(state: Lowering, op: Op) -> None:
    """A function of one int8 tensor: a table of 256 values."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    _, in_scale, in_zero = quantized(state, op, in_name)
    out, out_scale, out_zero = quantized(state, op, out_name)
    make = tables.real_table if state.settings.rounding == "onnx" else tables.unary_table
    values = make(op, in_scale, in_zero, out_scale, out_zero)
    if values is None:
        raise unsupported(op, "no table for this function")
    source = state.place(in_name)
    target = state.output(out_name, over=in_name)
    # Indexed by the byte: 0..127, then -128..-1.
    data = np.roll(values, 128).astype(np.int8).tobytes()
    offset = state.constant(data, 1)
    state.use("table")
    body = f"tim_table(W({offset}), {pointer(source.buffer)}, {pointer(target.buffer)}, {out.elements});"
    state.step(op.kind.lower(), op, body, [in_name], [out_name], constant_bytes=len(data))
