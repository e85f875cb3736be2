"""Affine quantization of arrays: the arithmetic that readers, writers and checks share.

Source: TFLite 8-bit quantization specification; ONNX QuantizeLinear rounds half to even and saturates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.graph import Quantization

Array = npt.NDArray[Any]


def per_tensor(scale: float | np.floating[Any], zero_point: int) -> Quantization:
    """A per-tensor quantization."""
    return Quantization(np.asarray([scale], dtype=np.float32), np.asarray([zero_point], dtype=np.int32))


def same_quantization(a: Quantization | None, b: Quantization | None) -> bool:
    """Whether two quantizations map integers to the same reals, bit for bit."""
    if a is None or b is None:
        return a is b
    if a.scales.size != b.scales.size or (a.scales.size > 1 and a.axis != b.axis):
        return False
    return bool(
        np.array_equal(a.scales.ravel(), b.scales.ravel())
        and np.array_equal(a.zero_points.ravel(), b.zero_points.ravel())
    )


def along(parameter: Array, axis: int | None, rank: int) -> Array:
    """A per-tensor or per-channel parameter shaped to broadcast over an array of that rank."""
    flat = np.asarray(parameter).reshape(-1)
    if flat.size == 1:
        return flat.reshape((1,) * rank)
    if axis is None:
        raise ValueError("per-channel quantization without an axis")
    shape = [1] * rank
    shape[axis] = flat.size
    return flat.reshape(shape)


def dequantize(array: Array, quantization: Quantization) -> npt.NDArray[np.float32]:
    """Integers to reals: scale * (q - zero_point), in float32 as ONNX DequantizeLinear does."""
    zero = along(quantization.zero_points, quantization.axis, array.ndim).astype(np.int64)
    scale = along(quantization.scales, quantization.axis, array.ndim)
    return np.asarray((array.astype(np.int64) - zero).astype(np.float32) * scale, dtype=np.float32)


def quantize(array: Array, quantization: Quantization, dtype: npt.DTypeLike = np.int8) -> Array:
    """Reals to integers: round half to even, add the zero point, saturate (ONNX QuantizeLinear)."""
    info = np.iinfo(np.dtype(dtype))
    zero = along(quantization.zero_points, quantization.axis, array.ndim).astype(np.float64)
    scale = along(quantization.scales, quantization.axis, array.ndim)
    steps = np.rint(np.asarray(array, dtype=np.float32) / scale).astype(np.float64)
    return np.clip(steps + zero, info.min, info.max).astype(dtype)
