"""The graph between formats: what ONNX, TFLite and the integer kernels have in common.

A `Graph` holds operators with TFLite semantics (NHWC activations, OHWI filters, quantized tensors with real scales),
because
that is the form whose integer arithmetic is defined (TFLite 8-bit quantization specification). ONNX files, float or
QDQ, and
TFLite files are read into it and written from it without loss of scales, zero points or weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt


class DType(StrEnum):
    """Element type of a tensor; the values are numpy's names."""

    FLOAT32 = "float32"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(np.dtype(self.value).itemsize)


class OpKind(StrEnum):
    """Operators by their TFLite builtin names; attributes of each are listed in `ATTRIBUTES`."""

    ADD = "ADD"
    AVERAGE_POOL_2D = "AVERAGE_POOL_2D"
    BATCH_MATMUL = "BATCH_MATMUL"
    CONCATENATION = "CONCATENATION"
    CONV_2D = "CONV_2D"
    DEPTHWISE_CONV_2D = "DEPTHWISE_CONV_2D"
    DEQUANTIZE = "DEQUANTIZE"
    DIV = "DIV"
    FULLY_CONNECTED = "FULLY_CONNECTED"
    GATHER = "GATHER"
    HARD_SWISH = "HARD_SWISH"
    LEAKY_RELU = "LEAKY_RELU"
    LOGISTIC = "LOGISTIC"
    MAXIMUM = "MAXIMUM"
    MAX_POOL_2D = "MAX_POOL_2D"
    MEAN = "MEAN"
    MINIMUM = "MINIMUM"
    MUL = "MUL"
    PAD = "PAD"
    PRELU = "PRELU"
    QUANTIZE = "QUANTIZE"
    REDUCE_MAX = "REDUCE_MAX"
    REDUCE_MIN = "REDUCE_MIN"
    RELU = "RELU"
    RELU6 = "RELU6"
    RESHAPE = "RESHAPE"
    RESIZE_BILINEAR = "RESIZE_BILINEAR"
    RESIZE_NEAREST_NEIGHBOR = "RESIZE_NEAREST_NEIGHBOR"
    SLICE = "SLICE"
    SOFTMAX = "SOFTMAX"
    SPLIT = "SPLIT"
    STRIDED_SLICE = "STRIDED_SLICE"
    SUB = "SUB"
    TANH = "TANH"
    TRANSPOSE = "TRANSPOSE"
    TRANSPOSE_CONV = "TRANSPOSE_CONV"

    # Not of TFLite: a function of one int8 tensor as a table, and an ONNX node that nothing above can express.
    TABLE = "TABLE"
    FOREIGN = "FOREIGN"


class Activation(StrEnum):
    """Activation fused into an operator (attribute `activation`); the clamp follows TFLite's
    CalculateActivationRange."""

    NONE = "NONE"
    RELU = "RELU"
    RELU6 = "RELU6"
    RELU_N1_TO_1 = "RELU_N1_TO_1"


ATTRIBUTES: Mapping[OpKind, tuple[str, ...]] = {
    OpKind.ADD: ("activation",),
    OpKind.SUB: ("activation",),
    OpKind.MUL: ("activation",),
    # strides, dilations: (h, w); pads: (top, left, bottom, right), explicit always, also where TFLite says SAME or
    # VALID.
    OpKind.CONV_2D: ("strides", "dilations", "pads", "activation"),
    OpKind.DEPTHWISE_CONV_2D: ("strides", "dilations", "pads", "activation", "depth_multiplier"),
    OpKind.FULLY_CONNECTED: ("activation", "keep_num_dims"),
    # kernel: (h, w). Average excludes padding from the count (TFLite). Of averages and of MEAN the optional attribute
    # `order` says in which order ONNX Runtime adds: "sequence", "columns" (each column first), "lanes" (every fourth first).
    OpKind.AVERAGE_POOL_2D: ("kernel", "strides", "pads", "activation"),
    OpKind.MAX_POOL_2D: ("kernel", "strides", "pads", "activation"),
    OpKind.CONCATENATION: ("axis", "activation"),
    OpKind.SOFTMAX: ("beta",),
    OpKind.RESHAPE: ("shape",),
    OpKind.TRANSPOSE: ("permutation",),
    OpKind.MEAN: ("axes", "keep_dims"),
    # paddings: ((before, after), ...) one pair a dimension; pads with the zero point (real 0) unless the optional
    # attribute
    # `value` gives another real number.
    OpKind.PAD: ("paddings",),
    OpKind.LEAKY_RELU: ("alpha",),
    OpKind.SLICE: ("begin", "size"),
    OpKind.STRIDED_SLICE: ("begin", "end", "strides"),
    OpKind.SPLIT: ("axis", "sizes"),
    OpKind.DIV: ("activation",),
    # adj_x, adj_y: whether the last two axes of an operand are read transposed.
    OpKind.BATCH_MATMUL: ("adj_x", "adj_y"),
    # indices: a tuple of positions along `axis`, of the shape `indices_shape`, which stands for that axis in the result.
    OpKind.GATHER: ("axis", "indices", "indices_shape"),
    OpKind.REDUCE_MAX: ("axes", "keep_dims"),
    OpKind.REDUCE_MIN: ("axes", "keep_dims"),
    # (activation, filter [O, kh, kw, I], bias or None); pads as for CONV_2D, cut off the full result; output_padding (h, w):
    # rows and columns added at its end.
    OpKind.TRANSPOSE_CONV: ("strides", "pads", "output_padding", "activation"),
    # table: bytes, the int8 results of -128 to 127.
    OpKind.TABLE: ("table",),
    # node: the NodeProto, serialized, without names of values; opset: the version that it is of. Reads and gives values in
    # ONNX's layout and element types.
    OpKind.FOREIGN: ("node", "opset"),
    OpKind.RESIZE_BILINEAR: ("size", "align_corners", "half_pixel_centers"),
    OpKind.RESIZE_NEAREST_NEIGHBOR: ("size", "align_corners", "half_pixel_centers"),
}


@dataclass(frozen=True)
class Quantization:
    """Affine quantization, real = scale * (q - zero_point); per tensor (length 1) or per channel along `axis`.

    `scales` is float32 exactly as in the file, never recomputed; `zero_points` is int32.
    """

    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int32]
    axis: int | None = None

    @property
    def scale(self) -> float:
        """The scale of a per-tensor quantization."""
        if self.scales.size != 1:
            raise ValueError("per-channel quantization has no single scale")
        return float(self.scales.reshape(-1)[0])

    @property
    def zero_point(self) -> int:
        """The zero point of a per-tensor quantization."""
        if self.zero_points.size != 1:
            raise ValueError("per-channel quantization has no single zero point")
        return int(self.zero_points.reshape(-1)[0])


@dataclass(frozen=True)
class Tensor:
    """A tensor of static shape; `data` is set for constants (C order, dtype as `dtype`)."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    quantization: Quantization | None = None
    data: npt.NDArray[np.generic] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the values are in the file."""
        return self.data is not None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor on a device."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Op:
    """One operator: names of tensors in and out, attributes as `ATTRIBUTES` lists them, `origin` = node name in the
    file.

    Inputs follow TFLite's order: CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED take (activation, filter, bias or None).
    Filters: CONV_2D [O, kh, kw, I], or [O, kh, kw, I / groups] for a grouped convolution, where group g of the
    outputs reads
    group g of the input channels; DEPTHWISE_CONV_2D [1, kh, kw, O]; FULLY_CONNECTED [O, I].
    Biases are int32 with scale input_scale * filter_scale when quantized, float32 otherwise.
    """

    kind: OpKind
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True)
class Graph:
    """A model: tensors by name and operators in an order in which each runs after those that it reads from."""

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name; KeyError if there is none."""
        return self.tensors[name]
