"""What the TFLite schema says, in one place: operator names, element types, activations, operator versions.

Source: the generated schema code of the `tflite` package (TensorFlow's schema.fbs); versions as TensorFlow's
op_version.cc.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import tflite as schema

from tinymlaas_modelkit.graph import Activation, DType

__all__ = [
    "ACTIVATIONS",
    "BUILTINS",
    "CODES",
    "DTYPES",
    "IDENTIFIER",
    "SCHEMA_VERSION",
    "TYPE_CODES",
    "builtin_name",
    "operator_version",
    "schema",
]

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3

CODES: Mapping[str, int] = {
    name: value
    for name, value in vars(schema.BuiltinOperator).items()
    if isinstance(value, int) and not name.startswith("_")
}
"""Builtin operator names to codes."""

BUILTINS: Mapping[int, str] = {value: name for name, value in CODES.items()}
"""Builtin operator codes to names."""

DTYPES: Mapping[int, DType] = {
    schema.TensorType.FLOAT32: DType.FLOAT32,
    schema.TensorType.INT8: DType.INT8,
    schema.TensorType.UINT8: DType.UINT8,
    schema.TensorType.INT16: DType.INT16,
    schema.TensorType.INT32: DType.INT32,
    schema.TensorType.INT64: DType.INT64,
    schema.TensorType.BOOL: DType.BOOL,
}
TYPE_CODES: Mapping[DType, int] = {dtype: code for code, dtype in DTYPES.items()}

ACTIVATIONS: Mapping[int, Activation] = {
    schema.ActivationFunctionType.NONE: Activation.NONE,
    schema.ActivationFunctionType.RELU: Activation.RELU,
    schema.ActivationFunctionType.RELU_N1_TO_1: Activation.RELU_N1_TO_1,
    schema.ActivationFunctionType.RELU6: Activation.RELU6,
}
ACTIVATION_CODES: Mapping[Activation, int] = {activation: code for code, activation in ACTIVATIONS.items()}


def builtin_name(code: int) -> str:
    """The name of a builtin operator, or BUILTIN_<code> for one that the schema does not know."""
    return BUILTINS.get(code, f"BUILTIN_{code}")


def builtin_code(operator_code: object) -> int:
    """The builtin code of an OperatorCode table: old files fill only the deprecated 8-bit field."""
    return max(int(operator_code.BuiltinCode()), int(operator_code.DeprecatedBuiltinCode()))  # type: ignore[attr-defined]


_INT8_VERSIONS: Mapping[str, int] = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "LEAKY_RELU": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "RELU": 2,
    "RELU6": 2,
    "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPLIT": 2,
    "SPLIT_V": 2,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
}


_INT16_VERSIONS: Mapping[str, int] = {
    "ADD": 3,
    "AVERAGE_POOL_2D": 3,
    "CONCATENATION": 3,
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5,
    "DEQUANTIZE": 3,
    "FULLY_CONNECTED": 7,
    "LEAKY_RELU": 2,
    "LOGISTIC": 3,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MUL": 4,
    "PAD": 3,
    "PADV2": 3,
    "QUANTIZE": 2,
    "RELU": 3,
    "RELU6": 3,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "SLICE": 4,
    "SOFTMAX": 3,
    "SPLIT": 4,
    "SPLIT_V": 2,
    "SUB": 5,
    "TANH": 3,
    "TRANSPOSE": 5,
}


def operator_version(
    name: str,
    *,
    dtypes: Collection[DType] = (),
    keep_num_dims: bool = False,
    dilated: bool = False,
    half_pixel: bool = False,
) -> int:
    """The version of a builtin operator that the element types of its activations and its options ask for."""
    version = 1
    for dtype, versions in ((DType.INT8, _INT8_VERSIONS), (DType.INT16, _INT16_VERSIONS)):
        if dtype in dtypes:
            version = max(version, versions.get(name, 1))
    if name == "FULLY_CONNECTED" and keep_num_dims:
        version = max(version, 5)
    if name == "DEPTHWISE_CONV_2D" and dilated:
        version = max(version, 2)
    if name in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR") and half_pixel:
        version = max(version, 3)
    return version
