"""Operators without weights: reshape, relayout, pools, elementwise, tables, softmax."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_compiler_tvm.int8 import tables
from tinymlaas_compiler_tvm.int8.lowering import (
    Lowering,
    Place,
    activation_of,
    image,
    pointer,
    quantized,
    unsupported,
    words,
)
from tinymlaas_compiler_tvm.native.program import BufferKind
from tinymlaas_modelkit.graph import Op, OpKind, Tensor


def _braces(values: list[int]) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def as_planar(state: Lowering, op: Op, name: str, planar: bool = True) -> str:
    """`name` itself where it lies so already, else a copy of it in the other layout, made by a step of its own."""
    place = state.place(name)
    height, width, channels = image(state.tensor(name))
    if channels == 1 or height * width == 1 or place.planar == planar:
        return name
    tensor = state.tensor(name)
    turned = f"{name}#{'planar' if planar else 'nhwc'}"
    state.graph = dataclasses.replace(state.graph, tensors={**state.graph.tensors, turned: tensor})
    state.last_use[turned] = state.current
    if planar:
        state.planar.add(turned)
    buffer = state.program.buffer(tensor.nbytes, BufferKind.TENSOR, turned)
    source, plane = pointer(place.buffer), height * width
    state.places[turned] = Place(buffer, planar)
    state.use("relayout")
    nhwc, chw = [0, channels, 1, 0], [0, 1, plane, 0]
    shape = [1, plane, channels, 1]
    values = [*shape, *(nhwc if planar else chw), *(chw if planar else nhwc)]
    body = (
        f"static const tim_relayout_desc d = {{{_braces(values[:4])}, {_braces(values[4:8])}, {_braces(values[8:])}}};\n"
        f"  tim_relayout(&d, {source}, {pointer(buffer)});"
    )
    state.step("relayout", op, body, [name], [turned])
    return turned


def lower_reshape(state: Lowering, op: Op) -> None:
    """No step: the same bytes under another name; a copy only where a graph input is a graph output."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    in_name = as_planar(state, op, in_name, planar=False)
    place = state.place(in_name)
    place.buffer.tensors.append(out_name)
    state.places[out_name] = Place(place.buffer, planar=False)


def lower_pool(state: Lowering, op: Op) -> None:
    """AVERAGE_POOL_2D and MAX_POOL_2D; quantization of input and output is the same (TFLite)."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    first, in_scale, in_zero = quantized(state, op, in_name)
    second, out_scale, out_zero = quantized(state, op, out_name)
    if (in_scale, in_zero) != (out_scale, out_zero):
        raise unsupported(op, "pool with another quantization at its output")
    low, high = arithmetic.activation_range(activation_of(op), out_scale, out_zero)
    ih, iw, channels = image(first)
    oh, ow, _ = image(second)
    kernel = cast("tuple[int, int]", op.attributes["kernel"])
    strides = cast("tuple[int, int]", op.attributes["strides"])
    pads = cast("tuple[int, int, int, int]", op.attributes.get("pads", (0, 0, 0, 0)))
    source, target = state.place(in_name), state.output(out_name)
    ins, outs = state.strides(in_name), state.strides(out_name)
    values = [ih, iw, channels, *ins, oh, ow, *outs, *kernel, *strides, pads[0], pads[1], low, high]
    state.use("pool")
    average = int(op.kind is OpKind.AVERAGE_POOL_2D)
    body = (
        f"static const tim_pool_desc d = {_braces(values)};\n"
        f"  tim_pool(&d, {pointer(source.buffer)}, {pointer(target.buffer)}, {average});"
    )
    state.step("average_pool" if average else "max_pool", op, body, [in_name], [out_name])


def lower_add(state: Lowering, op: Op) -> None:
    """ADD and SUB of two int8 tensors of one shape."""
    a_name, b_name, out_name = str(op.inputs[0]), str(op.inputs[1]), op.outputs[0]
    if any(state.tensor(name).is_constant for name in (a_name, b_name)):
        raise unsupported(op, "constant operand")
    a, a_scale, a_zero = quantized(state, op, a_name)
    b, b_scale, b_zero = quantized(state, op, b_name)
    out, out_scale, out_zero = quantized(state, op, out_name)
    if a.shape != b.shape:
        raise unsupported(op, "broadcast")
    low, high = arithmetic.activation_range(activation_of(op), out_scale, out_zero)
    sign = -1 if op.kind is OpKind.SUB else 1
    scales, zeros = (a_scale, b_scale, out_scale), (a_zero, b_zero, out_zero)
    wanted = tables.add_table(arithmetic.AddParameters.of(scales, zeros, low, high, sign))
    linear = tables.linear_add(wanted, scales, zeros, low, high, sign)
    source_a, source_b = state.place(a_name), state.place(b_name)
    over = next((name for name in (a_name, b_name) if state.can_overwrite(name, out.nbytes)), None)
    target = state.output(out_name, over=over)
    if linear is not None:
        state.use("add_linear")
        values = [out.elements, *linear, low, high]
        name = "tim_add"
    else:
        state.use("add_exact")
        p = arithmetic.AddParameters.of(scales, zeros, low, high, sign)
        values = [
            out.elements, p.zero_point_1, p.zero_point_2, p.multiplier_1, p.shift_1, p.multiplier_2, p.shift_2,
            p.multiplier_out, p.shift_out, p.zero_point_out, low, high, sign,
        ]  # fmt: skip
        name = "tim_add_exact"
    body = (
        f"static const {name}_desc d = {_braces(values)};\n"
        f"  {name}(&d, {pointer(source_a.buffer)}, {pointer(source_b.buffer)}, {pointer(target.buffer)});"
    )
    state.step("add", op, body, [a_name, b_name], [out_name])


def lower_mul(state: Lowering, op: Op) -> None:
    """MUL of two int8 tensors of one shape."""
    a_name, b_name, out_name = str(op.inputs[0]), str(op.inputs[1]), op.outputs[0]
    if any(state.tensor(name).is_constant for name in (a_name, b_name)):
        raise unsupported(op, "constant operand")
    a, a_scale, a_zero = quantized(state, op, a_name)
    b, b_scale, b_zero = quantized(state, op, b_name)
    out, out_scale, out_zero = quantized(state, op, out_name)
    if a.shape != b.shape:
        raise unsupported(op, "broadcast")
    low, high = arithmetic.activation_range(activation_of(op), out_scale, out_zero)
    multiplier, shift = arithmetic.quantize_multiplier(float(a_scale) * float(b_scale) / float(out_scale))
    source_a, source_b = state.place(a_name), state.place(b_name)
    over = next((name for name in (a_name, b_name) if state.can_overwrite(name, out.nbytes)), None)
    target = state.output(out_name, over=over)
    state.use("mul")
    values = [out.elements, a_zero, b_zero, multiplier, shift, out_zero, low, high]
    body = (
        f"static const tim_mul_desc d = {_braces(values)};\n"
        f"  tim_mul(&d, {pointer(source_a.buffer)}, {pointer(source_b.buffer)}, {pointer(target.buffer)});"
    )
    state.step("mul", op, body, [a_name, b_name], [out_name])


def lower_table(state: Lowering, op: Op) -> None:
    """An elementwise function of one int8 tensor: a table of 256 values."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    _, in_scale, in_zero = quantized(state, op, in_name)
    out, out_scale, out_zero = quantized(state, op, out_name)
    values = tables.unary_table(op, in_scale, in_zero, out_scale, out_zero)
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


def lower_softmax(state: Lowering, op: Op) -> None:
    """SOFTMAX over the last dimension; output scale 1/256, zero point -128 (TFLite's only form)."""
    in_name, out_name = as_planar(state, op, str(op.inputs[0]), planar=False), op.outputs[0]
    tensor, scale, _ = quantized(state, op, in_name)
    _, out_scale, out_zero = quantized(state, op, out_name)
    if (out_scale, out_zero) != (1 / 256, -128):
        raise unsupported(op, "output scale other than 1/256 or zero point other than -128")
    exps = tables.softmax_exps(scale, float(cast("float", op.attributes.get("beta", 1.0))))
    data = words([int(value) for value in exps])
    offset = state.constant(data)
    last = tensor.shape[-1]
    source = state.place(in_name)
    target = state.output(out_name)
    state.use("softmax")
    body = (
        f"static const tim_softmax_desc d = {{{tensor.elements // last}, {last}, {len(exps)}}};\n"
        f"  tim_softmax(&d, (const int32_t *)W({offset}), {pointer(source.buffer)}, {pointer(target.buffer)});"
    )
    state.step("softmax", op, body, [in_name], [out_name], constant_bytes=len(data))


def tensor_strides(state: Lowering, tensor: Tensor, name: str) -> list[int]:
    """Byte strides of a tensor of up to four dimensions, padded in front to four."""
    if state.place(name).planar:
        height, width, channels = image(tensor)
        return [channels * height * width, width, 1, height * width]
    strides = [1]
    for size in reversed(tensor.shape[1:]):
        strides.insert(0, strides[0] * size)
    return [0] * (4 - len(strides)) + strides
