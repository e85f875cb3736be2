"""An ONNX file taken apart: nodes, constants, static shapes, element types, and who reads what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from tinymlaas_modelkit.errors import MalformedModel

Array = npt.NDArray[Any]
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


@dataclass(frozen=True)
class Node:
    """One ONNX node; absent optional inputs are empty names."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    index: int

    def has_input(self, position: int) -> bool:
        """Whether the optional input at that position is given."""
        return position < len(self.inputs) and self.inputs[position] != ""


@dataclass
class Source:
    """The parsed model; `shapes` and `dtypes` (numpy names) are known for every value that inference reaches."""

    nodes: list[Node]
    constants: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    consumers: dict[str, list[Node]] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a value; SHAPE_NOT_STATIC if inference did not find it."""
        if name in self.shapes:
            return self.shapes[name]
        raise MalformedModel("SHAPE_NOT_STATIC", "no static shape is known for this tensor", name)

    def sole_consumer(self, name: str) -> Node | None:
        """The only node that reads the value, if there is exactly one and it is no output of the graph."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def _dtype_name(elem_type: int) -> str:
    try:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)).name)
    except (KeyError, TypeError):
        return f"type{elem_type}"


def _static_shape(value: onnx.ValueInfoProto, batch: int | None) -> tuple[int, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims: list[int] = []
    for position, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        elif position == 0 and batch is not None and not dim.HasField("dim_value"):
            dims.append(batch)
        else:
            return None
    return tuple(dims)


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    for value in list(model.graph.output) + list(model.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and not dims[0].HasField("dim_value"):
            value.type.tensor_type.ClearField("shape")


def _constant_of(node: onnx.NodeProto) -> Array | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return np.asarray(numpy_helper.to_array(attribute.t))
        if attribute.name == "value_float":
            return np.asarray(attribute.f, dtype=np.float32)
        if attribute.name == "value_int":
            return np.asarray(attribute.i, dtype=np.int64)
        if attribute.name == "value_floats":
            return np.asarray(list(attribute.floats), dtype=np.float32)
        if attribute.name == "value_ints":
            return np.asarray(list(attribute.ints), dtype=np.int64)
    return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        values[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return values


def parse(data: bytes, batch: int | None) -> Source:
    """Parse ONNX bytes; the file should have passed the check first, as this trusts its sizes.

    Errors: MalformedModel for what is no ONNX file or has open shapes (`batch` replaces an open first dimension).
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise MalformedModel("MALFORMED", f"not an ONNX file: {type(error).__name__}") from error
    if not model.graph.node and not model.graph.output:
        raise MalformedModel("NOT_A_MODEL", "the file holds no graph")
    if batch is not None:
        _fix_batch(model, batch)
    try:
        model = shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise MalformedModel("MALFORMED", f"shape inference failed: {type(error).__name__}: {error}") from error
    return _source(model, batch)


def _source(model: onnx.ModelProto, batch: int | None) -> Source:
    graph = model.graph
    constants: dict[str, Array] = {}
    for initializer in graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise MalformedModel("EXTERNAL_DATA", "weights outside the file are not read", initializer.name)
        try:
            stored = np.asarray(numpy_helper.to_array(initializer))
            # Packed 4-bit weights have the values of int8 ones; which type the graph has no need to know.
            constants[initializer.name] = stored.astype(np.int8) if stored.dtype.name == "int4" else stored
        except Exception as error:
            raise MalformedModel(
                "DATA_SIZE_MISMATCH", f"initializer cannot be read: {error}", initializer.name
            ) from error
    shapes: dict[str, tuple[int, ...]] = {name: tuple(a.shape) for name, a in constants.items()}
    dtypes: dict[str, str] = {name: str(a.dtype.name) for name, a in constants.items()}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if value.name in constants:
            continue
        dtypes[value.name] = _dtype_name(value.type.tensor_type.elem_type)
        shape = _static_shape(value, batch)
        if shape is not None:
            shapes[value.name] = shape
    inputs = tuple(v.name for v in graph.input if v.name not in constants)
    for name in inputs:
        if name not in shapes:
            raise MalformedModel("SHAPE_NOT_STATIC", "the input has an open dimension or no shape", name)
    nodes: list[Node] = []
    for index, proto in enumerate(graph.node):
        if proto.op_type == "Constant" and proto.domain in STANDARD_DOMAINS and len(proto.output) == 1:
            array = _constant_of(proto)
            if array is not None:
                constants[proto.output[0]] = array
                shapes[proto.output[0]] = tuple(array.shape)
                dtypes[proto.output[0]] = str(array.dtype.name)
                continue
        op = proto.op_type if proto.domain in STANDARD_DOMAINS else f"{proto.domain}.{proto.op_type}"
        name = proto.name or f"{proto.op_type}_{index}"
        nodes.append(Node(op, name, tuple(proto.input), tuple(proto.output), _attributes(proto), index))
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    source = Source(nodes, constants, shapes, dtypes, inputs, tuple(v.name for v in graph.output), int(opset))
    _check_names(source)
    for node in source.nodes:
        for input_name in dict.fromkeys(node.inputs):
            if input_name:
                source.consumers.setdefault(input_name, []).append(node)
    return source


def _check_names(source: Source) -> None:
    known = set(source.constants) | set(source.inputs)
    for node in source.nodes:
        for name in node.inputs:
            if name and name not in known:
                raise MalformedModel("UNDEFINED_TENSOR", f"{node.op} reads a tensor that nothing before it makes", name)
        known.update(o for o in node.outputs if o)
    for name in source.outputs:
        if name not in known:
            raise MalformedModel("UNDEFINED_TENSOR", "nothing makes this output", name)


def int_tuple(values: Sequence[int] | Array) -> tuple[int, ...]:
    """Any sequence of integers as a tuple of Python ints."""
    return tuple(int(v) for v in np.asarray(values).reshape(-1))
