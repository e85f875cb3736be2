"""A TFLite file taken apart: tensors with constants and quantization, operators with their option tables.

The file should have passed the check first; here every index is looked at again, as a wrong one must not end in a
crash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymlaas_modelkit.errors import MalformedModel, UnsupportedOperator
from tinymlaas_modelkit.errors import OffendingOperator as Offence
from tinymlaas_modelkit.graph import DType, Quantization, Tensor
from tinymlaas_modelkit.tflite_schema import DTYPES, IDENTIFIER, SCHEMA_VERSION, builtin_code, builtin_name, schema


@dataclass(frozen=True)
class RawOp:
    """One operator of the file: builtin name, tensor indices (-1: absent), option table, position."""

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    index: int


@dataclass(frozen=True)
class RawModel:
    """Tensors by index, with unique names, the buffer of each (0: none), and operators of the only subgraph."""

    tensors: tuple[Tensor, ...]
    buffers: tuple[int, ...]
    ops: tuple[RawOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _indices(array: Any) -> tuple[int, ...]:
    """A vector of int32 as a tuple; the accessors give 0 for a vector that is absent."""
    return () if isinstance(array, int) else tuple(int(i) for i in array)


def parse(data: bytes) -> RawModel:
    """Parse TFLite bytes. Errors: MalformedModel; UnsupportedOperator for control flow and element types."""
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise MalformedModel("NOT_A_MODEL", "the file identifier is not TFL3")
    try:
        return _parse(data)
    except (MalformedModel, UnsupportedOperator):
        raise
    except Exception as error:
        raise MalformedModel(
            "MALFORMED", f"the flatbuffer cannot be followed: {type(error).__name__}: {error}"
        ) from error


def _parse(data: bytes) -> RawModel:
    model = schema.Model.GetRootAs(data, 0)
    if model.Version() != SCHEMA_VERSION:
        raise MalformedModel("OPSET_UNSUPPORTED", f"schema version {model.Version()}")
    if model.SubgraphsLength() < 1:
        raise MalformedModel("NOT_A_MODEL", "the file holds no subgraph")
    if model.SubgraphsLength() > 1:
        raise UnsupportedOperator(
            [Offence("subgraphs", "", "unknown", f"{model.SubgraphsLength()} subgraphs (control flow)")]
        )
    graph = model.Subgraphs(0)
    names: set[str] = set()
    tensors = tuple(_tensor(model, graph.Tensors(i), i, names) for i in range(graph.TensorsLength()))

    def checked(indices: tuple[int, ...], where: str, optional: bool = False) -> tuple[int, ...]:
        for i in indices:
            if not (0 <= i < len(tensors) or (optional and i == -1)):
                raise MalformedModel("UNDEFINED_TENSOR", f"tensor {i} of {len(tensors)}", where)
        return indices

    ops = []
    for index in range(graph.OperatorsLength()):
        op = graph.Operators(index)
        if not 0 <= op.OpcodeIndex() < model.OperatorCodesLength():
            raise MalformedModel("MALFORMED", f"operator code {op.OpcodeIndex()}", f"operator {index}")
        code = model.OperatorCodes(op.OpcodeIndex())
        name = builtin_name(builtin_code(code))
        if name == "CUSTOM":
            name = f"CUSTOM:{(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        where = f"operator {index} ({name})"
        inputs = checked(_indices(op.InputsAsNumpy()), where, optional=True)
        outputs = checked(_indices(op.OutputsAsNumpy()), where)
        ops.append(RawOp(name, int(code.Version()), inputs, outputs, op.BuiltinOptions(), index))
    return RawModel(
        tensors,
        tuple(int(graph.Tensors(i).Buffer()) for i in range(graph.TensorsLength())),
        tuple(ops),
        checked(_indices(graph.InputsAsNumpy()), "inputs"),
        checked(_indices(graph.OutputsAsNumpy()), "outputs"),
    )


def _tensor(model: Any, raw: Any, index: int, names: set[str]) -> Tensor:
    name = (raw.Name() or b"").decode("utf-8", "replace") or f"tensor_{index}"
    unique, number = name, 0
    while unique in names:
        number += 1
        unique = f"{name}_{number}"
    names.add(unique)
    dtype = DTYPES.get(raw.Type())
    if dtype is None:
        raise UnsupportedOperator([Offence("tensor", unique, f"type {raw.Type()}", "element type is not supported")])
    shape = _indices(raw.ShapeAsNumpy())
    if any(d < 1 for d in shape):
        raise MalformedModel("BAD_SHAPE", f"shape {list(shape)}", unique)
    return Tensor(unique, shape, dtype, _quantization(raw, shape, unique), _constant(model, raw, shape, dtype, unique))


def _quantization(raw: Any, shape: tuple[int, ...], name: str) -> Quantization | None:
    table = raw.Quantization()
    if table is None or table.ScaleLength() == 0:
        return None
    scales = np.asarray(table.ScaleAsNumpy(), dtype=np.float32).copy()
    zeros = np.zeros(scales.shape, np.int32)
    if table.ZeroPointLength() == scales.size:
        zeros = np.asarray(table.ZeroPointAsNumpy()).astype(np.int32)
    elif table.ZeroPointLength() not in (0, 1):
        raise MalformedModel("SHAPE_MISMATCH", "scales and zero points differ in number", name)
    elif table.ZeroPointLength() == 1:
        zeros = np.full(scales.shape, int(table.ZeroPoint(0)), np.int32)
    if not np.all(np.isfinite(scales)) or np.any(scales <= 0):
        raise MalformedModel("BAD_VALUE", "a scale is not a positive finite number", name)
    axis = int(table.QuantizedDimension()) if scales.size > 1 else None
    if axis is not None and not (0 <= axis < len(shape) and shape[axis] == scales.size):
        raise MalformedModel("SHAPE_MISMATCH", f"{scales.size} scales along axis {axis} of {list(shape)}", name)
    return Quantization(scales, zeros, axis)


def _constant(model: Any, raw: Any, shape: tuple[int, ...], dtype: DType, name: str) -> np.ndarray[Any, Any] | None:
    index = raw.Buffer()
    if index == 0:
        return None
    if index >= model.BuffersLength():
        raise MalformedModel("MALFORMED", f"buffer {index} of {model.BuffersLength()}", name)
    buffer = model.Buffers(index)
    if buffer.DataLength() == 0:
        return None
    content = np.asarray(buffer.DataAsNumpy(), dtype=np.uint8)
    elements = math.prod(shape)
    if content.size != elements * dtype.itemsize:
        raise MalformedModel("DATA_SIZE_MISMATCH", f"{content.size} bytes for shape {list(shape)} of {dtype}", name)
    return content.copy().view(np.dtype(dtype.value).newbyteorder("<")).astype(dtype.value, copy=False).reshape(shape)
