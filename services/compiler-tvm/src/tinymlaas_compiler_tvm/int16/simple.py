"""int16 operators without weights: pools, sums and products, changes of scale and type, softmax, reshape."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_compiler_tvm.int8.lowering import (
    Lowering,
    Place,
    activation_of,
    pointer,
    quantized,
    row_major,
    unsupported,
)
from tinymlaas_compiler_tvm.int8.reduction import mean_multiplier
from tinymlaas_compiler_tvm.int8.values import braces
from tinymlaas_compiler_tvm.int16 import c_simple, reference
from tinymlaas_modelkit.graph import Activation, DType, Op, OpKind, Tensor

# Sums of so many int16 values stay below 2**31.
_MOST_VALUES = 1 << 16
_LIMITS = {DType.INT8: (-128, 127), DType.INT16: (reference.LOW, reference.HIGH)}
_CTYPES = {DType.INT8: "int8_t", DType.INT16: "int16_t"}


def symmetric(state: Lowering, op: Op, name: str | None) -> tuple[Tensor, float]:
    """(tensor, scale) of an int16 tensor; OpUnsupported for any other, or with a zero point."""
    tensor, scale, zero = quantized(state, op, name, DType.INT16)
    if zero:
        raise unsupported(op, "zero point other than 0", "int16")
    return tensor, scale


def lower_reshape(state: Lowering, op: Op) -> None:
    """No step: the same bytes under another name."""
    place = state.place(str(op.inputs[0]))
    place.buffer.tensors.append(op.outputs[0])
    state.places[op.outputs[0]] = Place(place.buffer, planar=False)


def lower_pool(state: Lowering, op: Op) -> None:
    """AVERAGE_POOL_2D and MAX_POOL_2D of one image; the quantization stays."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    (first, in_scale), (second, out_scale) = symmetric(state, op, in_name), symmetric(state, op, out_name)
    if in_scale != out_scale or len(first.shape) != 4 or first.shape[0] != 1:
        raise unsupported(op, "pool with another quantization at its output, or of several images", "int16")
    low, high = reference.activation_range(activation_of(op), out_scale)
    kernel = cast("tuple[int, int]", op.attributes["kernel"])
    if kernel[0] * kernel[1] >= _MOST_VALUES:
        raise unsupported(op, "window of 65536 values or more", "int16")
    strides = cast("tuple[int, int]", op.attributes["strides"])
    pads = cast("tuple[int, int, int, int]", op.attributes.get("pads", (0, 0, 0, 0)))
    _, ih, iw, channels = first.shape
    oh, ow = second.shape[1:3]
    target = state.output(out_name)
    values = (ih, iw, channels, oh, ow, *kernel, *strides, pads[0], pads[1], low, high)
    average = op.kind is OpKind.AVERAGE_POOL_2D
    state.use("pool16")
    body = (
        f"static const tim_pool16_desc d = {braces(values)};\n"
        f"  tim_pool16(&d, {pointer(state.place(in_name).buffer, 'int16_t')}, {pointer(target.buffer, 'int16_t')}, {int(average)});"
    )
    state.step("average_pool_int16" if average else "max_pool_int16", op, body, [in_name], [out_name])


def lower_binary(state: Lowering, op: Op) -> None:
    """ADD, SUB and MUL of two computed tensors of one shape."""
    first, second = str(op.inputs[0]), str(op.inputs[1])
    (a, sa), (b, sb), (out, so) = (symmetric(state, op, name) for name in (first, second, op.outputs[0]))
    if a.shape != out.shape or b.shape != out.shape or a.is_constant or b.is_constant:
        raise unsupported(op, "operands of different shapes, or a constant", "int16")
    low, high = reference.activation_range(activation_of(op), so)
    if op.kind is OpKind.MUL:
        multiplier, shift = arithmetic.quantize_multiplier(sa * sb / so)
        if shift > 0:
            raise unsupported(op, "product of a larger scale than the result", "int16")
        kernel, values = "mul16", [out.elements, multiplier, shift, low, high]
    else:
        p = arithmetic.AddParameters.of((sa, sb, so), (0, 0, 0), low, high, -1 if op.kind is OpKind.SUB else 1, bits=15)
        if p.shift_out > 0:
            raise unsupported(op, "result of a much finer scale than its operands", "int16")
        values = [
            out.elements, p.multiplier_1, p.shift_1, p.multiplier_2, p.shift_2, p.multiplier_out, p.shift_out, low, high, p.sign,
        ]  # fmt: skip
        kernel = "add16"
    over = next((name for name in (first, second) if state.can_overwrite(name, out.nbytes)), None)
    sources = [pointer(state.place(name).buffer, "int16_t") for name in (first, second)]
    target = state.output(out.name, over=over)
    state.use(kernel)
    body = (
        f"static const tim_{kernel}_desc d = {braces(values)};\n"
        f"  tim_{kernel}(&d, {sources[0]}, {sources[1]}, {pointer(target.buffer, 'int16_t')});"
    )
    state.step(f"{op.kind.lower()}_int16", op, body, [first, second], [out.name])


def lower_quantize(state: Lowering, op: Op) -> None:
    """QUANTIZE from int16 or int8 to the other, or from int16 to another scale."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    source_type, target_type = state.tensor(in_name).dtype, state.tensor(out_name).dtype
    x, in_scale, in_zero = quantized(state, op, in_name, source_type)
    out, out_scale, out_zero = quantized(state, op, out_name, target_type)
    # Values keep their order and places; an int8 one is written where an int16 one before it was read.
    smaller = out.dtype.itemsize <= x.dtype.itemsize
    source = state.place(in_name)
    target = state.output(out_name, over=in_name if smaller else None)
    inputs, outputs = _CTYPES[source_type], _CTYPES[target_type]
    given, wanted = pointer(source.buffer, inputs), pointer(target.buffer, outputs)
    if in_scale == out_scale and (source_type, target_type) == (DType.INT8, DType.INT16) and not out_zero:
        state.use("widen16")
        body = f"tim_widen16({given}, {wanted}, {out.elements}, {in_zero});"
    else:
        multiplier, shift = arithmetic.quantize_multiplier(in_scale / out_scale)
        low, high = _LIMITS[source_type]
        if max(high - in_zero, in_zero - low) << max(shift, 0) >= 1 << 31:
            raise unsupported(op, "change to a scale that is too fine", str(source_type))
        values = (out.elements, in_zero, multiplier, shift, out_zero, *_LIMITS[target_type])
        body = _rescaling(state, inputs, outputs, values, given, wanted)
    state.step("quantize_int16", op, body, [in_name], [out_name])


def _rescaling(state: Lowering, inputs: str, outputs: str, values: tuple[int, ...], given: str, wanted: str) -> str:
    name = f"tim_rescale_{inputs}_{outputs}"
    state.define(name, c_simple.RESCALE.replace("@IN@", inputs).replace("@OUT@", outputs), "fixed_point")
    return f"static const {name}_desc d = {braces(values)};\n  {name}(&d, {given}, {wanted});"


def lower_relu(state: Lowering, op: Op) -> None:
    """RELU to any scale, and RELU6 that keeps it."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    (x, in_scale), (_, out_scale) = symmetric(state, op, in_name), symmetric(state, op, out_name)
    # The reference divides these two scales in float32.
    multiplier, shift = arithmetic.quantize_multiplier(float(np.float32(in_scale) / np.float32(out_scale)))
    _, high = reference.activation_range(Activation.RELU6 if op.kind is OpKind.RELU6 else Activation.RELU, out_scale)
    if shift > 15 or (op.kind is OpKind.RELU6 and in_scale != out_scale):
        raise unsupported(op, "change of scale", "int16")
    given = pointer(state.place(in_name).buffer, "int16_t")
    target = state.output(out_name, over=in_name)
    values = (x.elements, 0, multiplier, shift, 0, 0, high)
    body = _rescaling(state, "int16_t", "int16_t", values, given, pointer(target.buffer, "int16_t"))
    state.step(f"{op.kind.lower()}_int16", op, body, [in_name], [out_name])


def lower_mean(state: Lowering, op: Op) -> None:
    """MEAN over any axes."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    (x, in_scale), (_, out_scale) = symmetric(state, op, in_name), symmetric(state, op, out_name)
    axes = {int(axis) % len(x.shape) for axis in cast("tuple[int, ...]", op.attributes["axes"])}
    count = math.prod(x.shape[axis] for axis in axes)
    multiplier, shift = mean_multiplier(in_scale / out_scale, count)
    if count >= _MOST_VALUES or shift > 0:
        raise unsupported(op, "mean of 65536 values or more, or of a much finer scale", "int16")
    target = state.output(out_name)
    steps, source, to, at, inner = row_major(x.shape), pointer(state.place(in_name).buffer, "int16_t"), "", "", ""
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    # The kept axes' places in the output do not depend on whether it has the others as ones.
    out_steps = dict(zip(kept, row_major(tuple(x.shape[axis] for axis in kept)), strict=True))
    lines = []
    for axis in kept:
        lines.append(f"for (int32_t i{axis} = 0; i{axis} < {x.shape[axis]}; ++i{axis})")
        at += f" + i{axis} * {steps[axis]}"
        to += f" + i{axis} * {out_steps[axis]}"
    lines += ["{", "  int32_t acc = 0;"]
    for axis in sorted(axes):
        lines.append(f"  for (int32_t i{axis} = 0; i{axis} < {x.shape[axis]}; ++i{axis})")
        inner += f" + i{axis} * {steps[axis]}"
    low, high = _LIMITS[DType.INT16]
    lines += [
        f"  acc += *({source}{at}{inner});",
        f"  acc = tim_mbqm(acc, {multiplier}, {shift});",
        f"  *({pointer(target.buffer, 'int16_t')}{to}) = (int16_t)(acc < {low} ? {low} : acc > {high} ? {high} : acc);",
        "}",
    ]
    state.use("fixed_point")
    state.step("mean_int16", op, "\n  ".join(lines), [in_name], [out_name])


def lower_softmax(state: Lowering, op: Op) -> None:
    """SOFTMAX over the last dimension; the output has scale 1/32768."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    (x, scale), (_, out_scale) = symmetric(state, op, in_name), symmetric(state, op, out_name)
    beta = float(cast("float", op.attributes.get("beta", 1.0)))
    multiplier, shift = arithmetic.quantize_multiplier(scale * beta / (10.0 / 65535.0))
    last = x.shape[-1]
    if out_scale != 1 / 32768 or shift > 14 or last >= _MOST_VALUES:
        raise unsupported(op, "output scale other than 1/32768, or a coarse input scale", "int16")
    data = np.concatenate(reference.softmax_tables()).astype(np.int16).tobytes()
    offset = state.constant(data)
    target = state.output(out_name)
    state.use("softmax16")
    body = (
        f"static const tim_softmax16_desc d = {braces((x.elements // last, last, multiplier, shift))};\n"
        f"  tim_softmax16(&d, (const int16_t *)W({offset}), {pointer(state.place(in_name).buffer, 'int16_t')}, "
        f"{pointer(target.buffer, 'int16_t')});"
    )
    state.step("softmax_int16", op, body, [in_name], [out_name], constant_bytes=len(data))
