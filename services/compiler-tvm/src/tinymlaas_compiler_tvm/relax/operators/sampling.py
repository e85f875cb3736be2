"""Operators that read between elements: Resize, Upsample, GridSample, AffineGrid, RoiAlign.

Resizing is separable: along each axis every output place is a weighted sum of a few input places, and both places and weights are
known at compile time (ONNX operator documentation of Resize; weights are computed in double precision).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Array,
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
    known,
    literal,
    reduce_axis,
    reducer,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.elementwise import f, maximum, minimum
from tinymlaas_compiler_tvm.relax.operators.linear import matrix_product
from tinymlaas_compiler_tvm.relax.operators.movement import gather_constant


def _coordinates(mode: str, scale: float, out: int, extent: int, roi: tuple[float, float]) -> Array:
    """The place in the input of each place of the output (attribute coordinate_transformation_mode)."""
    x = np.arange(out, dtype=np.float64)
    length = scale * extent
    if mode == "align_corners":
        return np.zeros(out) if length == 1 or out == 1 else x * (extent - 1) / (length - 1)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        if out > 1:
            return start * (extent - 1) + x * (end - start) * (extent - 1) / (out - 1)
        return np.full(out, 0.5 * (start + end) * (extent - 1))
    if mode == "pytorch_half_pixel":
        return np.full(out, -0.5) if out == 1 else (x + 0.5) / scale - 0.5
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = out / length
        return extent / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    raise Refused(f"coordinate_transformation_mode {mode}")


def _nearest(places: Array, mode: str) -> Array:
    """The whole place that `nearest_mode` takes."""
    if mode == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(places + 0.5)
    if mode == "floor":
        return np.floor(places)
    if mode == "ceil":
        return np.ceil(places)
    raise Refused(f"nearest_mode {mode}")


def _weights(
    places: Array, extent: int, reach: float, kernel: Callable[[Array], Array], exclude: bool
) -> tuple[Array, Array]:
    """(places, weights), each (out, taps): the kernel around each place, edges repeated or (with `exclude`) left out."""
    first = np.floor(places - reach).astype(np.int64) + 1
    taps = int(np.ceil(2 * reach)) + 1
    index = first[:, None] + np.arange(taps)[None]
    weight = kernel(index - places[:, None])
    if exclude:
        weight = np.where((index < 0) | (index >= extent), 0.0, weight)
    weight = weight / weight.sum(1, keepdims=True)
    return np.clip(index, 0, extent - 1), weight


def _triangle(x: Array) -> Array:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(a: float) -> Callable[[Array], Array]:
    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


def _weighted(e: Emitter, x: Value, axis: int, places: Array, weights: Array) -> Value:
    """Sums along one axis: y[o] = sum over k of weights[o, k] * x[places[o, k]]."""
    own = shape_of(x)
    used = (weights != 0).any(0)
    places, weights = places[:, used], weights[:, used]
    out, taps = places.shape
    if taps == 1:
        y = gather_constant(e, x, places[:, 0], axis)
        if (weights == 1).all():
            return y
        shape = [out if each == axis else 1 for each in range(len(own))]
        return e.elementwise("scale", lambda a, b: a * b, y, weights[:, 0].astype(np.float32).reshape(shape))
    shape = [out if each == axis else extent for each, extent in enumerate(own)]

    def build(t: Any, p: Any, w: Any) -> Any:
        k = reduce_axis(taps)

        def at(*index: Any) -> Any:
            here = index[axis]
            item = t(*(p(here, k.var) if each == axis else given for each, given in enumerate(index)))
            return reducer("sum")(item * w(here, k.var), axis=k)

        return compute(shape, at, "resize")

    return e.kernel("resize", build, x, places.astype(np.int32), weights.astype(np.float32))


def resize(e: Emitter, node: Node) -> list[Value]:
    """Resize (operator sets 10 to 19) and Upsample."""
    x = node.inputs[0]
    own = shape_of(x)
    rank = len(own)
    old = node.op == "Upsample" or node.opset < 11
    roi_input, scales_input = (None, node.input(1)) if old else (node.input(1), node.input(2))
    sizes_input = None if old else node.input(3)
    axes = [axis_of(int(a), rank) for a in node.attribute("axes") or range(rank)]
    mode = str(node.attribute("mode", "nearest"))
    transform = "asymmetric" if old else str(node.attribute("coordinate_transformation_mode", "half_pixel"))
    nearest = "floor" if old else str(node.attribute("nearest_mode", "round_prefer_floor"))
    out, scale = list(own), [1.0] * rank
    if scales_input is not None and known(scales_input, "scales").size:
        for axis, each in zip(axes, known(scales_input, "scales").astype(np.float64), strict=True):
            scale[axis] = float(each)
            out[axis] = int(np.floor(own[axis] * each))
    elif sizes_input is not None:
        sizes = [int(each) for each in known(sizes_input, "sizes")]
        ratios = [size / own[axis] for axis, size in zip(axes, sizes, strict=True)]
        policy = str(node.attribute("keep_aspect_ratio_policy", "stretch"))
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            sizes = [int(np.floor(ratio * own[axis] + 0.5)) for axis in axes]
        for axis, size, each in zip(axes, sizes, ratios, strict=True):
            out[axis], scale[axis] = size, each
    else:
        attribute = node.attribute("scales")
        if attribute is None:
            raise Refused("neither scales nor sizes")
        for axis, each in enumerate(attribute):
            scale[axis], out[axis] = float(each), int(np.floor(own[axis] * float(each)))
    if any(extent <= 0 for extent in out):
        raise Refused("an empty result")
    bounds = [(0.0, 1.0)] * rank
    if transform == "tf_crop_and_resize":
        roi = known(roi_input, "roi")
        for number, axis in enumerate(axes):
            bounds[axis] = (float(roi[number]), float(roi[number + len(axes)]))
    outside = [np.zeros(extent, np.bool_) for extent in out]
    dtype = dtype_of(x)
    if dtype != "float32" and mode != "nearest":
        raise Refused(f"element type {dtype}")
    for axis in range(rank):
        if out[axis] == own[axis] and scale[axis] == 1.0 and bounds[axis] == (0.0, 1.0):
            continue
        places = _coordinates(transform, scale[axis], out[axis], own[axis], bounds[axis])
        if transform == "tf_crop_and_resize":
            outside[axis] = (places < 0) | (places > own[axis] - 1)
        if mode == "nearest":
            chosen = np.clip(_nearest(places, nearest), 0, own[axis] - 1).astype(np.int64)
            x = gather_constant(e, x, chosen, axis)
            continue
        # Shrinking with antialias widens the kernel by the scale.
        shrink = min(scale[axis], 1.0) if node.attribute("antialias", 0) else 1.0
        exclude = bool(node.attribute("exclude_outside", 0))
        kernel = _triangle if mode == "linear" else _cubic(float(node.attribute("cubic_coeff_a", -0.75)))
        reach = (1.0 if mode == "linear" else 2.0) / shrink

        def narrowed(d: Array, kernel: Callable[[Array], Array] = kernel, shrink: float = shrink) -> Array:
            return kernel(d * shrink)

        x = _weighted(e, x, axis, *_weights(places, own[axis], reach, narrowed, exclude))
    if any(each.any() for each in outside):
        mask = np.zeros(out, np.bool_)
        for axis, each in enumerate(outside):
            mask |= each.reshape([-1 if place == axis else 1 for place in range(rank)])
        fill = np.array([node.attribute("extrapolation_value", 0.0)], np.float32)
        x = e.elementwise("extrapolate", choose, mask, fill, x)
    return [x]


def affine_grid(e: Emitter, node: Node) -> list[Value]:
    """AffineGrid: theta times the homogeneous coordinates of the output, which are known."""
    theta = node.inputs[0]
    size = [int(each) for each in known(node.input(1), "size")]
    corners = bool(node.attribute("align_corners", 0))
    spatial = size[2:]
    lines = []
    for extent in spatial:
        if corners:
            lines.append(np.linspace(-1.0, 1.0, extent) if extent > 1 else np.array([-1.0]))
        else:
            lines.append((2.0 * np.arange(extent) + 1) / extent - 1)
    mesh = np.meshgrid(*lines, indexing="ij")
    base = np.stack([*reversed(mesh), np.ones(spatial)], -1).reshape(-1, len(spatial) + 1).astype(np.float32)
    grid = matrix_product(e, base, e.transpose(theta, (0, 2, 1)))
    return [e.reshape(grid, (size[0], *spatial, len(spatial)))]


def _floor_int(x: Any) -> Any:
    return external("tim_floorf", x).astype("int32")


def _reflected(x: Any, low: float, high: float) -> Any:
    """A coordinate mirrored at low and high until it is inside."""
    span = high - low
    if span <= 0:
        return f(0)
    away = external("tim_fabsf", x - f(low))
    turns = external("tim_floorf", away / f(span))
    rest = away - turns * f(span)
    odd = turns - f(2) * external("tim_floorf", turns * f(0.5))
    return choose(odd > f(0.5), f(high) - rest, rest + f(low))


def grid_sample(e: Emitter, node: Node) -> list[Value]:
    """GridSample: linear, nearest and (in two dimensions) cubic, with paddings zeros, border and reflection."""
    x, grid = node.inputs[0], node.inputs[1]
    own, places = shape_of(x), shape_of(grid)
    rank = len(own) - 2
    mode = str(node.attribute("mode", "linear"))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding = str(node.attribute("padding_mode", "zeros"))
    corners = bool(node.attribute("align_corners", 0))
    if mode == "cubic" and rank != 2:
        raise Refused("cubic in other than two dimensions")

    def read(t: Any, n: Any, c: Any, where: Sequence[Any]) -> Any:
        """The element at whole places, padded as the mode says."""
        from tvm import tirx

        inside, clamped = [], []
        for axis, each in enumerate(where):
            last = own[2 + axis] - 1
            if padding == "reflection":
                low, high = (0.0, float(last)) if corners else (-0.5, last + 0.5)
                mirrored = _reflected(each.astype("float32"), low, high)
                each = external("tim_rintf", mirrored).astype("int32")
            inside += [each >= 0, each <= last]
            clamped.append(tirx.max(tirx.min(each, literal(last, "int32")), literal(0, "int32")))
        item = t(n, c, *clamped)
        return choose(tirx.all(*inside), item, f(0)) if padding == "zeros" else item

    def coordinate(g: Any, axis: int, n: Any, rest: Sequence[Any]) -> Any:
        # The grid holds x first: the last axis of the image.
        value, extent = g(n, *rest, rank - 1 - axis), own[2 + axis]
        whole = (value + f(1)) * f((extent - 1) / 2) if corners else ((value + f(1)) * f(extent) - f(1)) * f(0.5)
        if mode == "cubic":
            return whole
        if padding == "border":
            return maximum(f(0), minimum(f(extent - 1), whole))
        if padding == "reflection":
            low, high = (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)
            return maximum(f(0), minimum(f(extent - 1), _reflected(whole, low, high)))
        return whole

    def build(t: Any, g: Any) -> Any:
        taps = {"nearest": 1, "linear": 2, "cubic": 4}[mode]
        rows = [reduce_axis(taps, f"k{axis}") for axis in range(rank)]

        def at(n: Any, c: Any, *rest: Any) -> Any:
            where, weight = [], f(1)
            for axis in range(rank):
                place = coordinate(g, axis, n, rest)
                tap = rows[axis].var
                if mode == "nearest":
                    where.append(external("tim_rintf", place).astype("int32") + tap.astype("int32"))
                    continue
                base = _floor_int(place)
                part = place - base.astype("float32")
                if mode == "linear":
                    where.append(base + tap.astype("int32"))
                    weight = weight * choose(tap == 0, f(1) - part, part)
                else:
                    where.append(base + tap.astype("int32") - 1)
                    weight = weight * _cubic_weight(external("tim_fabsf", part + f(1) - tap.astype("float32")))
            return reducer("sum")(read(t, n, c, where) * weight, axis=rows)

        return compute((own[0], own[1], *places[1:-1]), at, "grid_sample")

    return [e.kernel("grid_sample", build, x, grid)]


def _cubic_weight(d: Any, a: float = -0.75) -> Any:
    near = (f(a + 2) * d - f(a + 3)) * d * d + f(1)
    far = ((f(a) * d - f(5 * a)) * d + f(8 * a)) * d - f(4 * a)
    return choose(d <= f(1), near, choose(d < f(2), far, f(0)))


def roi_align(e: Emitter, node: Node) -> list[Value]:
    """RoiAlign with a fixed `sampling_ratio`: the mean (or maximum) of samples between elements in each bin."""
    from tvm import tirx

    x, rois, batch = node.inputs[:3]
    own, count = shape_of(x), shape_of(rois)[0]
    ratio = int(node.attribute("sampling_ratio", 0))
    height, width = int(node.attribute("output_height", 1)), int(node.attribute("output_width", 1))
    scale = float(node.attribute("spatial_scale", 1.0))
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    half = str(node.attribute("coordinate_transformation_mode", default)) == "half_pixel"
    largest = str(node.attribute("mode", "avg")) == "max"
    if ratio <= 0:
        raise Refused("sampling_ratio 0: the number of samples would depend on the boxes")
    indices = e.cast(batch, "int32")

    def build(t: Any, r: Any, b: Any) -> Any:
        ky, kx = reduce_axis(ratio, "ky"), reduce_axis(ratio, "kx")

        def at(n: Any, c: Any, oy: Any, ox: Any) -> Any:
            shift = f(0.5 if half else 0.0)
            start_x, start_y = r(n, 0) * f(scale) - shift, r(n, 1) * f(scale) - shift
            wide, high = r(n, 2) * f(scale) - shift - start_x, r(n, 3) * f(scale) - shift - start_y
            if not half:
                wide, high = maximum(wide, f(1)), maximum(high, f(1))
            bin_y, bin_x = high / f(height), wide / f(width)
            y = start_y + oy.astype("float32") * bin_y + (ky.var.astype("float32") + f(0.5)) * bin_y / f(ratio)
            x_ = start_x + ox.astype("float32") * bin_x + (kx.var.astype("float32") + f(0.5)) * bin_x / f(ratio)
            out = (y < f(-1)) | (y > f(own[2])) | (x_ < f(-1)) | (x_ > f(own[3]))
            y, x_ = maximum(f(0), minimum(y, f(own[2] - 1))), maximum(f(0), minimum(x_, f(own[3] - 1)))
            y0, x0 = y.astype("int32"), x_.astype("int32")
            y1, x1 = tirx.min(y0 + 1, own[2] - 1), tirx.min(x0 + 1, own[3] - 1)
            ly, lx = y - y0.astype("float32"), x_ - x0.astype("float32")
            which = tirx.max(tirx.min(b(n), own[0] - 1), 0)
            items = [
                t(which, c, a, d) * w
                for a, d, w in (
                    (y0, x0, (f(1) - ly) * (f(1) - lx)),
                    (y0, x1, (f(1) - ly) * lx),
                    (y1, x0, ly * (f(1) - lx)),
                    (y1, x1, ly * lx),
                )
            ]
            if largest:
                value = maximum(maximum(items[0], items[1]), maximum(items[2], items[3]))
                return reducer("max")(choose(out, f(0), value), axis=[ky, kx])
            value = items[0] + items[1] + items[2] + items[3]
            return reducer("sum")(choose(out, f(0), value), axis=[ky, kx])

        return compute((count, own[1], height, width), at, "roi_align")

    y = e.kernel("roi_align", build, x, rois, indices)
    if largest:
        return [y]
    return [e.elementwise("mean", lambda s: s * f(1 / ratio**2), y)]


CONVERTERS: dict[str, Converter] = {
    "AffineGrid": affine_grid,
    "GridSample": grid_sample,
    "Resize": resize,
    "RoiAlign": roi_align,
    "Upsample": resize,
}
