"""The operators that have integer kernels."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.conv import lower_conv
from tinymlaas_compiler_tvm.int8.dense import lower_dense
from tinymlaas_compiler_tvm.int8.depthwise import lower_depthwise
from tinymlaas_compiler_tvm.int8.lowering import Lower
from tinymlaas_compiler_tvm.int8.movement import (
    lower_concatenation,
    lower_pad,
    lower_slice,
    lower_split,
    lower_transpose,
)
from tinymlaas_compiler_tvm.int8.simple import (
    lower_add,
    lower_mul,
    lower_pool,
    lower_reshape,
    lower_softmax,
    lower_table,
)
from tinymlaas_modelkit.graph import OpKind

INT8_OPERATORS: dict[OpKind, Lower] = {
    OpKind.ADD: lower_add,
    OpKind.AVERAGE_POOL_2D: lower_pool,
    OpKind.CONCATENATION: lower_concatenation,
    OpKind.CONV_2D: lower_conv,
    OpKind.DEPTHWISE_CONV_2D: lower_depthwise,
    OpKind.FULLY_CONNECTED: lower_dense,
    OpKind.LEAKY_RELU: lower_table,
    OpKind.MAX_POOL_2D: lower_pool,
    OpKind.MUL: lower_mul,
    OpKind.PAD: lower_pad,
    OpKind.QUANTIZE: lower_table,
    OpKind.RELU: lower_table,
    OpKind.RELU6: lower_table,
    OpKind.RESHAPE: lower_reshape,
    OpKind.SLICE: lower_slice,
    OpKind.SOFTMAX: lower_softmax,
    OpKind.SPLIT: lower_split,
    OpKind.STRIDED_SLICE: lower_slice,
    OpKind.SUB: lower_add,
    OpKind.TRANSPOSE: lower_transpose,
}
