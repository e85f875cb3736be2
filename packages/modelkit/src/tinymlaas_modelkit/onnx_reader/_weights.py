"""Filters and biases of convolutions and matrix products, as integers or as reals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.graph import Quantization
from tinymlaas_modelkit.onnx_reader._context import Const, Context, NotExpressible

Array = npt.NDArray[Any]
BIAS_SCALE_TOLERANCE = 1e-5
"""A bias scale this close (relative) to input scale * filter scale is taken as that product, as TFLite's kernels do."""


def can_be_integer(weights: Const) -> bool:
    """Whether a constant can be the filter of an integer operator."""
    return weights.quantization is not None and weights.array.dtype == np.int8


def permuted_filter(weights: Const, move: tuple[int, ...], integer: bool) -> tuple[Array, Quantization | None]:
    """The filter with its axes moved, integers with their quantization or reals; filters must be symmetric (zero
    point 0)."""
    if not integer:
        return np.ascontiguousarray(weights.real.transpose(move), dtype=np.float32), None
    q = weights.quantization
    assert q is not None
    if np.any(q.zero_points != 0):
        raise NotExpressible("integer filters need zero point 0 (symmetric weights)")
    axis = None if q.axis is None else move.index(q.axis)
    return np.ascontiguousarray(weights.array.transpose(move)), Quantization(q.scales, q.zero_points, axis)


def integer_bias(bias: Const, input_scale: float, filter_q: Quantization, channels: int) -> tuple[Array, Quantization]:
    """The int32 bias at scale input_scale * filter_scale (float32, per channel where the filter is).

    A bias that the file holds at this scale is kept bit for bit; any other is rounded to it, half to even, saturated.
    """
    scales = np.asarray(np.float32(input_scale) * filter_q.scales, dtype=np.float32).reshape(-1)
    if scales.size not in (1, channels):
        raise NotExpressible(f"{scales.size} filter scales for {channels} output channels")
    own = Quantization(scales, np.zeros(scales.shape, np.int32), 0 if scales.size > 1 else None)
    q = bias.quantization
    if q is not None and bias.array.dtype == np.int32 and not np.any(q.zero_points) and bias.array.size == channels:
        given = q.scales.reshape(-1)
        if given.size in (1, scales.size) and np.allclose(given, scales, rtol=BIAS_SCALE_TOLERANCE, atol=0):
            kept = np.array(np.broadcast_to(given, scales.shape))
            return bias.array.reshape(channels), Quantization(kept, own.zero_points, own.axis)
    real = np.broadcast_to(np.asarray(bias.real, dtype=np.float64).reshape(-1), (channels,))
    steps = np.rint(real / np.broadcast_to(scales.astype(np.float64), (channels,)))
    limits = np.iinfo(np.int32)
    return np.clip(steps, limits.min, limits.max).astype(np.int32), own


def add_weights(
    context: Context,
    weights: Const,
    move: tuple[int, ...],
    shape: tuple[int, ...],
    bias: Const | None,
    input_scale: float | None,
    channels: int,
) -> tuple[str, str | None]:
    """Add filter (axes moved, then reshaped to `shape`) and bias to the graph and return their names; `input_scale`
    None: float."""
    array, q = permuted_filter(weights, move, input_scale is not None)
    if q is not None and q.axis is not None:
        # The channel axis is the first or the last one, and stays so under the new shape.
        q = Quantization(q.scales, q.zero_points, 0 if q.axis == 0 else len(shape) - 1)
    name = context.constant(weights.name, array.reshape(shape), q)
    if bias is None:
        return name, None
    if input_scale is not None and q is not None:
        return name, context.constant(bias.name, *integer_bias(bias, input_scale, q, channels))
    real = np.ascontiguousarray(np.broadcast_to(np.asarray(bias.real, np.float32).reshape(-1), (channels,)))
    return name, context.constant(bias.name, real)
