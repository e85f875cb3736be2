"""Operators without weights: reshape, relayout, pools, elementwise, tables, softmax."""

from __future__ import annotations

import dataclasses
from typing import cast

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
from tinymlaas_compiler_tvm.int8.values import Values, braces
from tinymlaas_compiler_tvm.native.program import BufferKind
from tinymlaas_modelkit.graph import Op, OpKind

ORDERS = {"sequence": 0, "columns": 1, "lanes": 2}
"""How ONNX Runtime adds the values of a window, as the kernels count the ways."""


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
        f"static const tim_relayout_desc d = {{{braces(values[:4])}, {braces(values[4:8])}, {braces(values[8:])}}};\n"
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
    """AVERAGE_POOL_2D and MAX_POOL_2D; only averages with ONNX's rounding may change the quantization."""
    in_name, out_name = str(op.inputs[0]), op.outputs[0]
    first, in_scale, in_zero = quantized(state, op, in_name)
    second, out_scale, out_zero = quantized(state, op, out_name)
    average = op.kind is OpKind.AVERAGE_POOL_2D
    on_reals = average and state.settings.rounding == "onnx"
    if not on_reals and (in_scale, in_zero) != (out_scale, out_zero):
        raise unsupported(op, "pool with another quantization at its output")
    low, high = state.activation_range(activation_of(op), out_scale, out_zero)
    images, ih, iw, channels = first.shape
    oh, ow = second.shape[1:3] if len(second.shape) == 4 else (1, 1)
    kernel = cast("tuple[int, int]", op.attributes["kernel"])
    strides = cast("tuple[int, int]", op.attributes["strides"])
    pads = cast("tuple[int, int, int, int]", op.attributes.get("pads", (0, 0, 0, 0)))
    source, target = state.place(in_name), state.output(out_name)
    ins, outs = ((channels, 1), (channels, 1)) if images > 1 else (state.strides(in_name), state.strides(out_name))
    values: Values = [ih, iw, channels, *ins, oh, ow, *outs, *kernel, *strides, pads[0], pads[1], low, high]
    name = "real_pool" if on_reals else "pool"
    if on_reals:
        order = ORDERS[str(op.attributes.get("order", "sequence"))]
        values += [in_zero, out_zero, order, in_scale, out_scale]
        state.program.uses_float = True
    state.use(name)
    lines = [f"static const tim_{name}_desc d = {braces(values)};"]
    steps = ("", "")
    if images > 1:
        lines.append(f"for (int32_t n = 0; n < {images}; ++n)")
        steps = (f" + n * {ih * iw * channels}", f" + n * {oh * ow * channels}")
    last = "" if on_reals else f", {int(average)}"
    lines.append(f"tim_{name}(&d, {pointer(source.buffer)}{steps[0]}, {pointer(target.buffer)}{steps[1]}{last});")
    body = "\n  ".join(lines)
    state.step("average_pool" if average else "max_pool", op, body, [in_name], [out_name])


def real_pool(state: Lowering, op: Op, window: tuple[int, int], order: str) -> None:
    """An operator on one image as an average on reals over that window, at most one window an output."""
    attributes = {"kernel": window, "strides": window, "pads": (0, 0, 0, 0), "order": order}
    lower_pool(state, dataclasses.replace(op, kind=OpKind.AVERAGE_POOL_2D, attributes=attributes))


def lower_softmax(state: Lowering, op: Op) -> None:
    """SOFTMAX over the last dimension; with TFLite's rounding the output has scale 1/256 and zero point -128."""
    in_name, out_name = as_planar(state, op, str(op.inputs[0]), planar=False), op.outputs[0]
    tensor, scale, _ = quantized(state, op, in_name)
    _, out_scale, out_zero = quantized(state, op, out_name)
    beta = float(cast("float", op.attributes.get("beta", 1.0)))
    last = tensor.shape[-1]
    values: Values = [tensor.elements // last, last]
    if state.settings.rounding == "onnx":
        data, kernel = tables.real_exps(scale, beta).tobytes(), "real_softmax"
        values += [out_zero, out_scale]
        state.program.uses_float = True
    else:
        if (out_scale, out_zero) != (1 / 256, -128):
            raise unsupported(op, "output scale other than 1/256 or zero point other than -128")
        exps = tables.softmax_exps(scale, beta)
        data, kernel = words([int(value) for value in exps]), "softmax"
        values.append(len(exps))
    ctype = "float" if state.settings.rounding == "onnx" else "int32_t"
    offset = state.constant(data)
    source = state.place(in_name)
    target = state.output(out_name)
    state.use(kernel)
    body = (
        f"static const tim_{kernel}_desc d = {braces(values)};\n"
        f"  tim_{kernel}(&d, (const {ctype} *)W({offset}), {pointer(source.buffer)}, {pointer(target.buffer)});"
    )
    state.step("softmax", op, body, [in_name], [out_name], constant_bytes=len(data))
