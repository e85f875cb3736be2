"""Checks of ONNX tensors: types, shapes, stored values, all without allocating by what a file claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from ._limits import Limits
from ._rejection import ModelRejected, Problem

# Types that a microcontroller back end can hold, by numpy's names.
DTYPES: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
# Weights may also be packed, two to a byte, low half first (onnx.proto); numpy's name comes with the onnx package.
PACKED: Final[Mapping[int, str]] = {TensorProto.INT4: "int4"}
# Where each type's values lie when they are not in raw_data (onnx.proto, TensorProto).
_TYPED: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.INT64: "int64_data",
    TensorProto.INT8: "int32_data",
    TensorProto.UINT8: "int32_data",
    TensorProto.INT16: "int32_data",
    TensorProto.INT32: "int32_data",
    TensorProto.BOOL: "int32_data",
}
_STORES: Final = ("raw_data", "float_data", "int32_data", "int64_data", "string_data", "double_data", "uint64_data")
_LARGEST_DIM: Final = (1 << 31) - 1


def type_name(data_type: int) -> str:
    """ONNX's name of an element type, or its number if it has none."""
    try:
        return str(TensorProto.DataType.Name(data_type))
    except ValueError:
        return str(data_type)


def check_dtype(data_type: int, where: str) -> str:
    """numpy's name of the element type; MALFORMED if there is no such type, DTYPE_UNSUPPORTED if no device holds it."""
    if data_type == TensorProto.UNDEFINED or data_type not in TensorProto.DataType.values():
        raise ModelRejected(Problem.MALFORMED, where, f"element type {data_type}")
    if data_type not in DTYPES:
        name = type_name(data_type)
        raise ModelRejected(Problem.DTYPE_UNSUPPORTED, where, f"element type {name}", dtype=name)
    return DTYPES[data_type]


def check_dims(dims: Sequence[int], itemsize: int, where: str, limits: Limits, *, empty: bool = False) -> int:
    """Number of elements of a static shape; BAD_SHAPE or TENSOR_TOO_LARGE. `empty` allows dimensions of 0."""
    shown = "x".join(str(dim) for dim in dims[: limits.rank + 1])
    if len(dims) > limits.rank:
        raise ModelRejected(Problem.BAD_SHAPE, where, f"{len(dims)} dimensions, at most {limits.rank} are supported")
    if any(dim < 0 or (dim == 0 and not empty) for dim in dims):
        raise ModelRejected(Problem.BAD_SHAPE, where, f"shape {shown}")
    elements = prod(dims)
    if elements * itemsize > limits.tensor_bytes or any(dim > _LARGEST_DIM for dim in dims):
        detail = f"shape {shown} takes {elements * itemsize} bytes, the limit is {limits.tensor_bytes}"
        raise ModelRejected(
            Problem.TENSOR_TOO_LARGE, where, detail, limit=str(limits.tensor_bytes), value=str(elements * itemsize)
        )
    return elements


def check_tensor(tensor: TensorProto, where: str, limits: Limits) -> npt.NDArray[np.generic]:
    """The values of a constant, in C order and of its shape, after every check.

    EXTERNAL_DATA, DTYPE_UNSUPPORTED, BAD_SHAPE, DATA_SIZE_MISMATCH, TENSOR_TOO_LARGE, BAD_VALUE (NaN, or outside of the
    type's range) or MALFORMED. Infinities pass: whether they may stand there depends on who reads them.
    """
    if tensor.data_location != TensorProto.DEFAULT or len(tensor.external_data):
        raise ModelRejected(Problem.EXTERNAL_DATA, where, "its values are said to lie in another file")
    if tensor.data_type in PACKED:
        return _check_packed(tensor, where, limits)
    dtype = np.dtype(check_dtype(tensor.data_type, where))
    if tensor.HasField("segment"):
        raise ModelRejected(Problem.MALFORMED, where, "the tensor is only a segment")
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims) or len(dims) > limits.rank:
        raise ModelRejected(Problem.BAD_SHAPE, where, f"{len(dims)} dimensions, the least {min(dims)}")
    elements = prod(dims)
    typed = _TYPED[tensor.data_type]
    used = [store for store in _STORES if len(getattr(tensor, store))]
    if any(store not in ("raw_data", typed) for store in used) or len(used) > 1:
        raise ModelRejected(Problem.MALFORMED, where, f"values lie in {', '.join(used)}")
    raw = not used or used[0] == "raw_data"
    stored = len(tensor.raw_data) if raw else len(getattr(tensor, typed))
    need = elements * dtype.itemsize if raw else elements
    if stored != need:
        unit = "bytes" if raw else "values"
        raise ModelRejected(Problem.DATA_SIZE_MISMATCH, where, f"its shape needs {need} {unit}, the file has {stored}")
    check_dims(dims, dtype.itemsize, where, limits, empty=True)
    if raw:
        if dtype == np.bool_ and np.any(np.frombuffer(tensor.raw_data, np.uint8) > 1):
            raise ModelRejected(Problem.BAD_VALUE, where, "a bool is neither 0 nor 1")
        values = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    else:
        values = _typed_values(tensor, typed, dtype, where)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ModelRejected(Problem.BAD_VALUE, where, "holds NaN")
    return values.reshape(dims)


def _check_packed(tensor: TensorProto, where: str, limits: Limits) -> npt.NDArray[np.generic]:
    """The values of a constant of 4-bit integers, two to a byte of raw_data or to a value of int32_data."""
    used = [store for store in _STORES if len(getattr(tensor, store))]
    if tensor.HasField("segment") or len(used) > 1 or not {"raw_data", "int32_data"}.issuperset(used):
        raise ModelRejected(Problem.MALFORMED, where, f"values lie in {', '.join(used) or 'a segment'}")
    elements = check_dims(list(tensor.dims), 1, where, limits, empty=True)
    if used == ["int32_data"]:
        halves = _typed_values(tensor, "int32_data", np.dtype(np.uint8), where).astype(np.uint8)
    else:
        halves = np.frombuffer(tensor.raw_data, np.uint8)
    if halves.size != (elements + 1) // 2:
        detail = f"its shape needs {(elements + 1) // 2} bytes, the file has {halves.size}"
        raise ModelRejected(Problem.DATA_SIZE_MISMATCH, where, detail)
    values = np.stack([halves & 15, halves >> 4], axis=-1).reshape(-1)[:elements].astype(np.int8)
    return (
        np.where(values > 7, values - 16, values).astype(np.dtype(PACKED[tensor.data_type])).reshape(list(tensor.dims))
    )


def _typed_values(tensor: TensorProto, store: str, dtype: np.dtype[np.generic], where: str) -> npt.NDArray[np.generic]:
    """The values of a typed field; BAD_VALUE if one does not fit the type."""
    values = getattr(tensor, store)
    # Not through a list: a Python number takes up to 32 bytes.
    wide = np.fromiter(values, np.float32 if dtype.kind == "f" else np.int64, len(values))
    if dtype.kind != "f":
        lowest, highest = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))  # type: ignore[type-var]
        if wide.size and (int(wide.min()) < lowest or int(wide.max()) > highest):
            raise ModelRejected(Problem.BAD_VALUE, where, f"a value is outside of {lowest} to {highest}")
    return wide.astype(dtype)


def static_shape(value: onnx.ValueInfoProto, where: str, limits: Limits) -> tuple[str, tuple[int, ...]]:
    """Type and shape that a tensor declares.

    DTYPE_UNSUPPORTED, SHAPE_NOT_STATIC, BAD_SHAPE, TENSOR_TOO_LARGE, MALFORMED.
    """
    kind = value.type.WhichOneof("value")
    if kind is None:
        raise ModelRejected(Problem.MALFORMED, where, "no type is declared")
    if kind != "tensor_type":
        raise ModelRejected(Problem.DTYPE_UNSUPPORTED, where, f"it is no tensor but {kind}", dtype=kind)
    dtype = check_dtype(value.type.tensor_type.elem_type, where)
    if not value.type.tensor_type.HasField("shape"):
        raise ModelRejected(Problem.SHAPE_NOT_STATIC, where, "no shape is declared")
    dims = []
    for index, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.WhichOneof("value") != "dim_value":
            shown = f"named {dim.dim_param}" if dim.dim_param else "open"
            raise ModelRejected(Problem.SHAPE_NOT_STATIC, where, f"dimension {index} is {shown}")
        dims.append(int(dim.dim_value))
    check_dims(dims, np.dtype(dtype).itemsize, where, limits)
    return dtype, tuple(dims)
