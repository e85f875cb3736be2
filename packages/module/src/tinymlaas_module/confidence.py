"""How sure a classifier was of a run: told by devices, and measured from golden vectors, in the same way (DO-OBS-003)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from .contents import Tensor
from .layout import DType

TENTHS = 10
_INTEGERS = {DType.INT8: ("b", -128, 127), DType.UINT8: ("B", 0, 255), DType.INT16: ("h", -32768, 32767)}
_SLACK = 0.01


def confidence(outputs: Sequence[Tensor], data: bytes) -> float | None:
    """Return the largest value of the first output, 0 to 1; None where that output holds no scores.

    ``data`` begins with that output's elements, little-endian. Scores are two values or more that are quantized so that they
    can only lie in 0 to 1 (as softmax and sigmoid are), or floats that do.
    """
    if not outputs or len(data) < outputs[0].size:
        return None
    tensor = outputs[0]
    count = tensor.size // tensor.dtype.size
    if count < 2:
        return None
    if tensor.dtype is DType.FLOAT32:
        values = struct.unpack_from(f"<{count}f", data)
        return max(values) if all(-_SLACK <= value <= 1 + _SLACK for value in values) else None
    if tensor.dtype not in _INTEGERS or not tensor.scale:
        return None
    code, lowest, highest = _INTEGERS[tensor.dtype]
    least, most = ((limit - tensor.zero_point) * tensor.scale for limit in (lowest, highest))
    if least < -_SLACK or not 0.5 <= most <= 1 + _SLACK:
        return None
    top: int = max(struct.unpack_from(f"<{count}{code}", data))
    return (top - tensor.zero_point) * tensor.scale


def tenth(value: float) -> int:
    """Return the tenth of 0 to 1 that a confidence lies in, 0 to 9."""
    return min(max(int(value * TENTHS), 0), TENTHS - 1)
