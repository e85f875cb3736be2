"""What the TFLite schema says about operators.

Names, option tables, numbers of inputs (tensorflow/lite/schema/schema.fbs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Builtin operators by code, up to the last one that is not StableHLO.
_BUILTIN_NAMES: Final = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM
MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS
SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN
EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2
GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG
SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT
UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU
SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE
MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5
SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO
RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL
CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE
RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX
UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT
"""
_NAMES: Final = tuple(_BUILTIN_NAMES.split())

# Operators that run other graphs, hold state outside of the graph, or are no operator at all.
_NEVER: Final = frozenset(
    {
        "CALL", "CUSTOM", "DELEGATE", "IF", "WHILE", "CALL_ONCE", "PLACEHOLDER_FOR_GREATER_OP_CODES",
        "HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE", "HASHTABLE_LOOKUP",
    }
)  # fmt: skip


def operator_name(code: int) -> str | None:
    """The name of a builtin operator that a device could run; None if there is none with this code."""
    if not 0 <= code < len(_NAMES) or _NAMES[code] in _NEVER:
        return None
    return _NAMES[code]


@dataclass(frozen=True)
class OperatorForm:
    """How an operator is written: its option table's type and fields by slot, and how many tensors it reads and writes.

    `fields` gives each slot's kind: a scalar of the flatbuffer reader, or `[i32]` for a vector of integers.
    """

    option_type: int
    fields: tuple[str, ...]
    inputs: tuple[int, int]
    outputs: int = 1


_MANY: Final = 4096
_NO_OPTIONS: Final = 0
FORMS: Final[Mapping[str, OperatorForm]] = {
    "CONV_2D": OperatorForm(1, ("i8", "i32", "i32", "i8", "i32", "i32", "i8"), (2, 3)),
    "DEPTHWISE_CONV_2D": OperatorForm(2, ("i8", "i32", "i32", "i32", "i8", "i32", "i32"), (2, 3)),
    "AVERAGE_POOL_2D": OperatorForm(5, ("i8", "i32", "i32", "i32", "i32", "i8"), (1, 1)),
    "MAX_POOL_2D": OperatorForm(5, ("i8", "i32", "i32", "i32", "i32", "i8"), (1, 1)),
    "FULLY_CONNECTED": OperatorForm(8, ("i8", "i8", "bool", "bool", "i8"), (2, 3)),
    "SOFTMAX": OperatorForm(9, ("f32",), (1, 1)),
    "CONCATENATION": OperatorForm(10, ("i32", "i8"), (1, _MANY)),
    "ADD": OperatorForm(11, ("i8", "bool"), (2, 2)),
    "SUB": OperatorForm(28, ("i8", "bool"), (2, 2)),
    "MUL": OperatorForm(21, ("i8",), (2, 2)),
    "RESHAPE": OperatorForm(17, ("[i32]",), (1, 2)),
    "TRANSPOSE": OperatorForm(26, (), (2, 2)),
    "MEAN": OperatorForm(27, ("bool",), (2, 2)),
    "PAD": OperatorForm(22, (), (2, 2)),
    "LEAKY_RELU": OperatorForm(75, ("f32",), (1, 1)),
    "SLICE": OperatorForm(48, (), (3, 3)),
    "STRIDED_SLICE": OperatorForm(32, ("i32", "i32", "i32", "i32", "i32", "bool"), (4, 4)),
    "SPLIT": OperatorForm(35, ("i32",), (2, 2), _MANY),
    "RESIZE_BILINEAR": OperatorForm(15, ("i32", "i32", "bool", "bool"), (2, 2)),
    "RESIZE_NEAREST_NEIGHBOR": OperatorForm(74, ("bool", "bool"), (2, 2)),
    "SQUEEZE": OperatorForm(30, ("[i32]",), (1, 1)),
    "PACK": OperatorForm(59, ("i32", "i32"), (1, _MANY)),
    "UNPACK": OperatorForm(64, ("i32", "i32"), (1, 1), _MANY),
    "GATHER": OperatorForm(23, ("i32", "i32"), (2, 2)),
    "TRANSPOSE_CONV": OperatorForm(49, ("i8", "i32", "i32", "i8", "i8"), (3, 4)),
    "QUANTIZE": OperatorForm(89, (), (1, 1)),
    "DEQUANTIZE": OperatorForm(38, (), (1, 1)),
    "HARD_SWISH": OperatorForm(91, (), (1, 1)),
    "LOGISTIC": OperatorForm(_NO_OPTIONS, (), (1, 1)),
    "RELU": OperatorForm(_NO_OPTIONS, (), (1, 1)),
    "RELU6": OperatorForm(_NO_OPTIONS, (), (1, 1)),
    "RELU_N1_TO_1": OperatorForm(_NO_OPTIONS, (), (1, 1)),
    "TANH": OperatorForm(_NO_OPTIONS, (), (1, 1)),
}
# Operators whose int8 kernels read the scales of their tensors without looking whether there are any.
ARITHMETIC: Final = frozenset(
    {
        "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "SOFTMAX", "AVERAGE_POOL_2D",
        "LOGISTIC", "TANH", "HARD_SWISH", "LEAKY_RELU", "MEAN", "DEQUANTIZE", "TRANSPOSE_CONV",
    }
)  # fmt: skip
