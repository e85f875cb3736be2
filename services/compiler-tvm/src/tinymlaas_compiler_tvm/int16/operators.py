"""The operators that have int16 kernels."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.lowering import Lower, Lowering
from tinymlaas_compiler_tvm.int8.movement import (
    lower_concatenation,
    lower_pad,
    lower_slice,
    lower_split,
    lower_transpose,
)
from tinymlaas_compiler_tvm.int16.conv import lower_conv, lower_dense, lower_depthwise
from tinymlaas_compiler_tvm.int16.simple import (
    lower_binary,
    lower_mean,
    lower_pool,
    lower_quantize,
    lower_relu,
    lower_reshape,
    lower_softmax,
)
from tinymlaas_compiler_tvm.islands import is_wide
from tinymlaas_modelkit.graph import Op, OpKind

INT16_OPERATORS: dict[OpKind, Lower] = {
    OpKind.ADD: lower_binary,
    OpKind.AVERAGE_POOL_2D: lower_pool,
    OpKind.CONCATENATION: lower_concatenation,
    OpKind.CONV_2D: lower_conv,
    OpKind.DEPTHWISE_CONV_2D: lower_depthwise,
    OpKind.FULLY_CONNECTED: lower_dense,
    OpKind.MAX_POOL_2D: lower_pool,
    OpKind.MEAN: lower_mean,
    OpKind.MUL: lower_binary,
    OpKind.PAD: lower_pad,
    OpKind.QUANTIZE: lower_quantize,
    OpKind.RELU: lower_relu,
    OpKind.RELU6: lower_relu,
    OpKind.RESHAPE: lower_reshape,
    OpKind.SLICE: lower_slice,
    OpKind.SOFTMAX: lower_softmax,
    OpKind.SPLIT: lower_split,
    OpKind.STRIDED_SLICE: lower_slice,
    OpKind.SUB: lower_binary,
    OpKind.TRANSPOSE: lower_transpose,
}


def by_width(narrow: Lower, wide: Lower) -> Lower:
    """`wide` for an operator that reads or writes int16, `narrow` for others."""

    def lower(state: Lowering, op: Op) -> None:
        tensors = [state.graph.tensor(name) for name in (*op.inputs, *op.outputs) if name is not None]
        (wide if any(is_wide(tensor) for tensor in tensors) else narrow)(state, op)

    return lower
