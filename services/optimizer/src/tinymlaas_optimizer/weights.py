"""Weight-only quantization: weights as int4 or int8 with scales, behind a DequantizeLinear; arithmetic stays float."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper, numpy_helper

from tinymlaas_optimizer.layers import Layer, constant, own_constants
from tinymlaas_optimizer.quantize import WIDE_OPSET
from tinymlaas_optimizer.simplify import at_opset

# A channel whose weights are all zero gets this scale.
_SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny) * 2**20
_TYPES: Final[dict[int, Any]] = {4: ml_dtypes.int4, 8: np.int8}


def quantize_weights(model: ModelProto, layers: Iterable[Layer], *, bits: int, per_channel: bool) -> ModelProto:
    """A model whose layers read symmetric integers of `bits` (4: opset 21), one scale an output channel or a tensor."""
    copy = at_opset(model, WIDE_OPSET if bits < 8 else 0)
    own_constants(copy)
    nodes = {node.name: node for node in copy.graph.node}
    for layer in layers:
        node = nodes[layer.name]
        name = node.input[1]
        values = constant(copy, name)
        # In a grouped ConvTranspose the axis counts the outputs of one group only.
        axis = layer.output_axis if per_channel and not (layer.op == "ConvTranspose" and layer.group > 1) else None
        integers, scales = rounded(values, bits, axis)
        stored = {
            f"{name}_quantized": integers.astype(_TYPES[bits]),
            f"{name}_scale": scales.astype(np.float32),
            f"{name}_zero_point": np.zeros(scales.shape, _TYPES[bits]),
        }
        copy.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in stored.items())
        unpack = helper.make_node("DequantizeLinear", list(stored), [f"{name}_real"], f"{name}_unpack")
        if axis is not None:
            unpack.attribute.append(helper.make_attribute("axis", axis))
        copy.graph.node.insert(0, unpack)
        node.input[1] = f"{name}_real"
    return copy


def rounded(values: npt.NDArray[Any], bits: int, axis: int | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Integers within +-(2^(bits-1) - 1), half to even, and float32 scales: one along `axis`, or a scalar for None."""
    highest = 2 ** (bits - 1) - 1
    others = tuple(place for place in range(values.ndim) if place != axis) if axis is not None else None
    most = np.abs(values).max(axis=others, keepdims=axis is not None)
    scales = np.maximum(most / highest, _SMALLEST_SCALE).astype(np.float32)
    integers = np.clip(np.rint(values / scales), -highest, highest)
    return integers, scales.reshape(-1) if axis is not None else np.asarray(scales, np.float32).reshape(())
