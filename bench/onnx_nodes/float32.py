"""The cases of doubles, asked in float32: some operators have no others, and no microcontroller has doubles."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from bench.onnx_nodes.cases import Array, Case

# Attributes that name an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def float32_case(case: Case) -> Case | None:
    """The case with every double as a float32; None for one that neither takes nor gives doubles."""
    if not any(array.dtype == np.float64 for array in (*case.inputs, *case.outputs)):
        return None
    model = onnx.load_from_string(case.model)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in model.graph.initializer:
        _narrow(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
            _narrow(attribute.t)
    return dataclasses.replace(
        case,
        name=f"{case.name}_as_float32",
        model=model.SerializeToString(),
        inputs=tuple(map(_narrowed, case.inputs)),
        outputs=tuple(map(_narrowed, case.outputs)),
    )


def _narrow(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.DOUBLE:
        tensor.CopyFrom(numpy_helper.from_array(_narrowed(numpy_helper.to_array(tensor)), tensor.name))


def _narrowed(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float64 else array
