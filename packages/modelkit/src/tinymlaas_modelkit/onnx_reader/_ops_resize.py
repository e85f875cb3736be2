"""Resize: nearest and linear, where TFLite's sampling points are the same as those of the file."""

from __future__ import annotations

import math

import numpy as np

from tinymlaas_modelkit.graph import OpKind
from tinymlaas_modelkit.onnx_reader._context import NCHW, Act, Context, NotExpressible
from tinymlaas_modelkit.onnx_reader._source import Node


def _coordinate(mode: str, x: int, size_in: int, size_out: int, scale: float) -> float:
    """Where output position x looks in the input (ONNX operator Resize)."""
    if mode == "asymmetric":
        return x / scale
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and size_out > 1):
        return (x + 0.5) / scale - 0.5
    if mode == "align_corners":
        return 0.0 if size_out == 1 else x * (size_in - 1) / (size_out - 1)
    raise NotExpressible(f"coordinate mode {mode}")


def _nearest(mode: str, at: float, size_in: int) -> int:
    rounded = {
        "floor": math.floor(at),
        "ceil": math.ceil(at),
        "round_prefer_floor": math.ceil(at - 0.5),
        "round_prefer_ceil": math.floor(at + 0.5),
    }
    if mode not in rounded:
        raise NotExpressible(f"nearest mode {mode}")
    return min(max(rounded[mode], 0), size_in - 1)


def _tflite_nearest(x: int, size_in: int, size_out: int, align_corners: bool, half_pixel: bool) -> int:
    """TFLite's GetNearestNeighbor, in float32 as there."""
    if align_corners and size_out > 1:
        scale = np.float32(size_in - 1) / np.float32(size_out - 1)
    else:
        scale = np.float32(size_in) / np.float32(size_out)
    at = np.float32(x + (0.5 if half_pixel else 0.0)) * scale
    chosen = math.floor(float(at) + 0.5) if align_corners else math.floor(float(at))
    return min(chosen, size_in - 1)


def _scales(context: Context, node: Node, image: tuple[int, ...], size: tuple[int, ...]) -> tuple[float, float]:
    if node.has_input(2):
        given = context.const(node, 2).real.reshape(-1)
        if given.size == 4:
            return float(given[2]), float(given[3])
    return size[0] / image[0], size[1] / image[1]


def resize(context: Context, node: Node) -> None:
    """Resize of height and width to RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR."""
    x = context.act(node)
    if len(x.perm) != 4:
        raise NotExpressible("only images (rank 4) are supported")
    out = context.source.shape(node.outputs[0])
    image = context.layout(x, NCHW)
    stored = context.tensors[image.tensor]
    n, h, w, c = stored.shape
    if (out[0], out[1]) != (n, c):
        raise NotExpressible("resize along batch or channels")
    size, sizes_in = (out[2], out[3]), (h, w)
    scales = _scales(context, node, sizes_in, size)
    mode = str(node.attributes.get("coordinate_transformation_mode", "half_pixel"))
    kind = str(node.attributes.get("mode", "nearest"))
    if kind == "nearest":
        flags = _nearest_flags(node, mode, sizes_in, size, scales)
        op = OpKind.RESIZE_NEAREST_NEIGHBOR
    elif kind == "linear":
        if node.attributes.get("antialias", 0) and min(scales) < 1:
            raise NotExpressible("linear sampling with a filter against aliasing")
        flags = _linear_flags(mode, sizes_in, size, scales)
        op = OpKind.RESIZE_BILINEAR
    else:
        raise NotExpressible(f"mode {kind}")
    attributes: dict[str, object] = {"size": size, "align_corners": flags[0], "half_pixel_centers": flags[1]}
    name, shape = node.outputs[0], (n, *size, c)
    if op is OpKind.RESIZE_NEAREST_NEIGHBOR:
        # No value changes, so integers stay a view.
        tensor = context.emit(
            op, (image.tensor,), name, shape, stored.quantization, attributes, node.name, stored.dtype
        )
        context.values[name] = Act(tensor, NCHW, image.view)
        return
    target = context.target(node, image.view, fuse=False)
    if not target.integer:
        image = context.real(image)
    tensor = context.emit(
        op, (image.tensor,), target.name, shape, target.quantization, attributes, node.name, target.dtype
    )
    context.finish(target, tensor, NCHW)


def _nearest_flags(
    node: Node, mode: str, sizes_in: tuple[int, int], size: tuple[int, int], scales: tuple[float, float]
) -> tuple[bool, bool]:
    """(align_corners, half_pixel_centers) with which TFLite picks the same elements."""
    rounding = str(node.attributes.get("nearest_mode", "round_prefer_floor"))
    wanted = [
        [_nearest(rounding, _coordinate(mode, x, i, o, s), i) for x in range(o)]
        for i, o, s in zip(sizes_in, size, scales, strict=True)
    ]
    for flags in ((False, False), (False, True), (True, False)):
        got = [[_tflite_nearest(x, i, o, *flags) for x in range(o)] for i, o in zip(sizes_in, size, strict=True)]
        if got == wanted:
            return flags
    raise NotExpressible(f"nearest sampling {mode}, {rounding} from {list(sizes_in)} to {list(size)}")


def _linear_flags(
    mode: str, sizes_in: tuple[int, int], size: tuple[int, int], scales: tuple[float, float]
) -> tuple[bool, bool]:
    """(align_corners, half_pixel_centers) with which TFLite interpolates at the same points."""
    # With aligned corners too: ONNX's distance between samples is that of the size before it is rounded down.
    if any(abs(s * i - o) > 1e-4 for i, o, s in zip(sizes_in, size, scales, strict=True)):
        raise NotExpressible("linear sampling with a scale that is not output size over input size")
    if mode == "align_corners":
        return True, False
    if mode == "asymmetric":
        return False, False
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and min(size) > 1):
        return False, True
    raise NotExpressible(f"linear sampling {mode}")
