"""The operators that have integer kernels."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.conv import lower_conv
from tinymlaas_compiler_tvm.int8.dense import lower_dense
from tinymlaas_compiler_tvm.int8.depthwise import lower_depthwise
from tinymlaas_compiler_tvm.int8.elementwise import lower_binary, lower_table
from tinymlaas_compiler_tvm.int8.general import lower_batch_matmul, lower_general_conv, or_general
from tinymlaas_compiler_tvm.int8.lowering import Lower
from tinymlaas_compiler_tvm.int8.movement import (
    lower_concatenation,
    lower_pad,
    lower_slice,
    lower_split,
    lower_transpose,
)
from tinymlaas_compiler_tvm.int8.mve import MVE_OPERATORS, before
from tinymlaas_compiler_tvm.int8.reduction import lower_gather, lower_reduce, lower_resize
from tinymlaas_compiler_tvm.int8.simple import (
    lower_pool,
    lower_reshape,
    lower_softmax,
)
from tinymlaas_compiler_tvm.int16.operators import INT16_OPERATORS, by_width
from tinymlaas_modelkit.graph import OpKind

_OPERATORS: dict[OpKind, Lower] = {
    OpKind.ADD: lower_binary,
    OpKind.AVERAGE_POOL_2D: lower_pool,
    OpKind.CONCATENATION: lower_concatenation,
    OpKind.BATCH_MATMUL: lower_batch_matmul,
    OpKind.CONV_2D: or_general(lower_conv),
    OpKind.DEPTHWISE_CONV_2D: or_general(lower_depthwise),
    OpKind.DIV: lower_binary,
    OpKind.FULLY_CONNECTED: lower_dense,
    OpKind.GATHER: lower_gather,
    OpKind.HARD_SWISH: lower_table,
    OpKind.LEAKY_RELU: lower_table,
    OpKind.LOGISTIC: lower_table,
    OpKind.MAXIMUM: lower_binary,
    OpKind.MAX_POOL_2D: lower_pool,
    OpKind.MEAN: lower_reduce,
    OpKind.MINIMUM: lower_binary,
    OpKind.MUL: lower_binary,
    OpKind.PAD: lower_pad,
    OpKind.PRELU: lower_binary,
    OpKind.QUANTIZE: lower_table,
    OpKind.REDUCE_MAX: lower_reduce,
    OpKind.REDUCE_MIN: lower_reduce,
    OpKind.RELU: lower_table,
    OpKind.RELU6: lower_table,
    OpKind.RESHAPE: lower_reshape,
    OpKind.RESIZE_BILINEAR: lower_resize,
    OpKind.RESIZE_NEAREST_NEIGHBOR: lower_resize,
    OpKind.SLICE: lower_slice,
    OpKind.SOFTMAX: lower_softmax,
    OpKind.SPLIT: lower_split,
    OpKind.STRIDED_SLICE: lower_slice,
    OpKind.SUB: lower_binary,
    OpKind.TABLE: lower_table,
    OpKind.TANH: lower_table,
    OpKind.TRANSPOSE: lower_transpose,
    OpKind.TRANSPOSE_CONV: lower_general_conv,
}
INT8_OPERATORS: dict[OpKind, Lower] = _OPERATORS | {
    kind: before(lower, _OPERATORS[kind]) for kind, lower in MVE_OPERATORS.items()
}
INT8_OPERATORS |= {kind: by_width(INT8_OPERATORS[kind], wide) for kind, wide in INT16_OPERATORS.items()}
