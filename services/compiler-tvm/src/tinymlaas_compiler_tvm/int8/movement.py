"""Operators that move integers without changing them: pad, concatenate, slice, split, transpose. All over NHWC bytes.

An int16 value is two bytes along an axis of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from tinymlaas_compiler_tvm import float_arithmetic
from tinymlaas_compiler_tvm.int8.lowering import Lowering, pointer, quantized, row_major, unsupported
from tinymlaas_compiler_tvm.int8.simple import as_planar
from tinymlaas_compiler_tvm.native.program import Buffer
from tinymlaas_modelkit.graph import DType, Op, Tensor

_RANK = 4


def _integers(op: Op, name: str) -> list[int]:
    return [int(value) for value in cast("Iterable[Any]", op.attributes[name])]


def _copy(
    number: int, source: Buffer, target: Buffer, shape: Iterable[int], ins: Iterable[int], outs: Iterable[int],
    in_offset: int, out_offset: int, size: int,
) -> str:  # fmt: skip
    """C that copies a box of `shape` between strides and offsets in elements of `size` bytes."""
    axes: list[tuple[int, int, int]] = []
    in_offset, out_offset = in_offset * size, out_offset * size
    scaled = [(n, i * size, o * size) for n, i, o in zip(shape, ins, outs, strict=True)]
    for n, i, o in [*scaled, (size, 1, 1)]:
        if n == 1:
            continue
        if axes and axes[-1][1] == i * n and axes[-1][2] == o * n:
            axes[-1] = (axes[-1][0] * n, i, o)
        else:
            axes.append((n, i, o))
    axes = [(1, 0, 0)] * (_RANK - len(axes)) + axes
    outer, axes = axes[:-_RANK], axes[-_RANK:]
    columns = ", ".join("{" + ", ".join(str(axis[k]) for axis in axes) + "}" for k in range(3))
    loops = "".join(f"for (int32_t i{k} = 0; i{k} < {axis[0]}; ++i{k})\n  " for k, axis in enumerate(outer))
    froms = "".join(f" + i{k} * {axis[1]}" for k, axis in enumerate(outer))
    tos = "".join(f" + i{k} * {axis[2]}" for k, axis in enumerate(outer))
    return (
        f"static const tim_relayout_desc d{number} = {{{columns}}};\n"
        f"  {loops}tim_relayout(&d{number}, {pointer(source)} + {in_offset}{froms}, {pointer(target)} + {out_offset}{tos});"
    )


def _same_quantization(state: Lowering, op: Op, names: Iterable[str]) -> int:
    """Bytes of an element of tensors that have one type and quantization; OpUnsupported for others."""
    tensors = [state.tensor(name) for name in names]
    dtype = DType.INT16 if tensors[0].dtype is DType.INT16 else DType.INT8
    kinds = {quantized(state, op, tensor.name, dtype)[1:] for tensor in tensors}
    if len(kinds) != 1:
        raise unsupported(op, "operands with different quantization")
    return dtype.itemsize


def _taken(state: Lowering, op: Op) -> tuple[str, Tensor]:
    name = as_planar(state, op, str(op.inputs[0]), planar=False)
    return name, state.tensor(name)


def lower_transpose(state: Lowering, op: Op) -> None:
    """TRANSPOSE by `permutation`."""
    name, tensor = _taken(state, op)
    size = _same_quantization(state, op, (name, op.outputs[0]))
    strides = row_major(tensor.shape)
    permutation = _integers(op, "permutation")
    out = state.tensor(op.outputs[0])
    source, target = state.place(name).buffer, state.output(op.outputs[0]).buffer
    state.use("relayout")
    body = _copy(0, source, target, out.shape, [strides[p] for p in permutation], row_major(out.shape), 0, 0, size)
    state.step("transpose", op, body, [name], [op.outputs[0]])


def lower_pad(state: Lowering, op: Op) -> None:
    """PAD with the zero point (real 0), or with another real number."""
    name, tensor = _taken(state, op)
    size = _same_quantization(state, op, (name, op.outputs[0]))
    out, scale, zero = quantized(state, op, op.outputs[0], tensor.dtype)
    if size > 1 and (zero or op.attributes.get("value", 0.0) != 0.0):
        raise unsupported(op, "padding with something other than 0", str(tensor.dtype))
    zero = int(float_arithmetic.quantize(float(cast("float", op.attributes.get("value", 0.0))), scale, zero))
    before = [int(pair[0]) for pair in cast("Iterable[Any]", op.attributes["paddings"])]
    outs = row_major(out.shape)
    source, target = state.place(name).buffer, state.output(op.outputs[0]).buffer
    state.use("relayout", "fill")
    offset = sum(count * stride for count, stride in zip(before, outs, strict=True))
    body = f"tim_fill_bytes({pointer(target)}, {zero}, {out.nbytes});\n  " + _copy(
        0, source, target, tensor.shape, row_major(tensor.shape), outs, 0, offset, size
    )
    state.step("pad", op, body, [name], [op.outputs[0]])


def lower_concatenation(state: Lowering, op: Op) -> None:
    """CONCATENATION along `axis`; all operands share one quantization (TFLite's rule for int8)."""
    names = [as_planar(state, op, str(name), planar=False) for name in op.inputs]
    size = _same_quantization(state, op, (*names, op.outputs[0]))
    out = state.tensor(op.outputs[0])
    axis = int(cast("int", op.attributes["axis"])) % len(out.shape)
    outs = row_major(out.shape)
    target = state.output(op.outputs[0]).buffer
    state.use("relayout")
    parts, at = [], 0
    for number, name in enumerate(names):
        tensor = state.tensor(name)
        source = state.place(name).buffer
        parts.append(
            _copy(number, source, target, tensor.shape, row_major(tensor.shape), outs, 0, at * outs[axis], size)
        )
        at += tensor.shape[axis]
    state.step("concatenation", op, "\n  ".join(parts), names, [op.outputs[0]])


def lower_slice(state: Lowering, op: Op) -> None:
    """SLICE and STRIDED_SLICE with positive strides."""
    name, tensor = _taken(state, op)
    size = _same_quantization(state, op, (name, op.outputs[0]))
    begin = _integers(op, "begin")
    steps = _integers(op, "strides") if "strides" in op.attributes else [1] * len(begin)
    out = state.tensor(op.outputs[0])
    if len(out.shape) != len(tensor.shape) or min(steps) < 1 or min(begin) < 0:
        raise unsupported(op, "slice that drops or reverses a dimension")
    strides = row_major(tensor.shape)
    source, target = state.place(name).buffer, state.output(op.outputs[0]).buffer
    state.use("relayout")
    ins = [stride * step for stride, step in zip(strides, steps, strict=True)]
    offset = sum(first * stride for first, stride in zip(begin, strides, strict=True))
    body = _copy(0, source, target, out.shape, ins, row_major(out.shape), offset, 0, size)
    state.step("slice", op, body, [name], [op.outputs[0]])


def lower_split(state: Lowering, op: Op) -> None:
    """SPLIT along `axis` into the outputs."""
    name, tensor = _taken(state, op)
    size = _same_quantization(state, op, (name, *op.outputs))
    axis = int(cast("int", op.attributes["axis"])) % len(tensor.shape)
    strides = row_major(tensor.shape)
    source = state.place(name).buffer
    state.use("relayout")
    parts, at = [], 0
    for number, out_name in enumerate(op.outputs):
        out = state.tensor(out_name)
        target = state.output(out_name).buffer
        parts.append(
            _copy(number, source, target, out.shape, strides, row_major(out.shape), at * strides[axis], 0, size)
        )
        at += out.shape[axis]
    state.step("split", op, "\n  ".join(parts), [name], list(op.outputs))
