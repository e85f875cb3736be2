"""Checks of a TFLite file, all of them safe in this process; no library parses the file before they have passed.

Source: TFLite schema version 3 (tensorflow/lite/schema/schema.fbs), TFLite 8-bit quantization specification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from ._dataflow import Step, check_dataflow
from ._flatbuffer import Flatbuffer, Table
from ._limits import Limits
from ._onnx_tensors import check_dims
from ._rejection import ModelRejected, Problem
from ._report import ModelReport, Precision, TensorReport
from ._tflite_ops import ARITHMETIC, FORMS, operator_name
from ._tflite_shapes import check_tflite_shapes

IDENTIFIER: Final = b"TFL3"
_SCHEMA_VERSION: Final = 3
_OPTIONAL: Final = -1
# TensorType of the schema; the types without a numpy name here can be on no device that is served.
_DTYPES: Final = {0: "float32", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
_OTHER_DTYPES: Final = {
    1: "float16", 5: "string", 8: "complex64", 10: "float64", 11: "complex128", 12: "uint64", 13: "resource",
    14: "variant", 15: "uint32", 16: "uint16", 17: "int4", 18: "bfloat16", 19: "int2", 20: "uint4",
    21: "float8_e4m3fn", 22: "float8_e5m2",
}  # fmt: skip


@dataclass(frozen=True)
class TfliteTensor:
    """A tensor: static shape, scales and zero points (empty if not quantized), and its bytes if it is a constant."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    data: memoryview | None
    buffer: int
    variable: bool

    def values(self) -> npt.NDArray[np.generic] | None:
        """The values of a constant, little endian as in the file."""
        return (
            None
            if self.data is None
            else np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)
        )


@dataclass(frozen=True)
class TfliteOp:
    """An operator: name, tensor indexes (-1: optional and left out) and its checked options by slot."""

    name: str
    label: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[int, float | tuple[int, ...]]


def check_tflite_structure(data: bytes, limits: Limits) -> ModelReport:
    """Walk the file and check all of it; ModelRejected with the first problem."""
    root = Flatbuffer(data, limits.fields).root()
    version = root.integer(0, "u32")
    if version != _SCHEMA_VERSION:
        raise ModelRejected(
            Problem.OPSET_UNSUPPORTED, "version", f"schema version {version}, supported is {_SCHEMA_VERSION}"
        )
    root.text(3)
    if root.count(8) or root.count(9):
        raise ModelRejected(Problem.EXTERNAL_DATA, "external_buffers", "buffers are said to lie in another file")
    buffers = _buffers(root, limits)
    _check_metadata(root, len(buffers), limits)
    count = root.count(2)
    if count == 0:
        raise ModelRejected(Problem.MALFORMED, "subgraphs", "the file holds no graph")
    if count > 1:
        raise ModelRejected(Problem.OP_UNSUPPORTED, "subgraphs", f"{count} graphs: only one is supported", op="CALL")
    graph = next(root.tables(2))
    graph.text(4)
    tensors = _tensors(graph, buffers, limits)
    ops = _operators(root, graph, limits)
    inputs, outputs = graph.integers(1), graph.integers(2)
    _check_graph(tensors, ops, inputs, outputs, limits)
    for op in ops:
        _check_scales(op, tensors)
        check_tflite_shapes(op, tensors)
    return _report(version, tensors, ops, inputs, outputs)


def _buffers(root: Table, limits: Limits) -> list[memoryview]:
    if root.count(4) > 2 * limits.tensors:
        raise ModelRejected(Problem.TOO_MANY_TENSORS, "buffers", f"{root.count(4)} buffers")
    out = []
    for index, table in enumerate(root.tables(4)):
        if table.integer(1, "u64") or table.integer(2, "u64"):
            raise ModelRejected(Problem.EXTERNAL_DATA, f"buffer {index}", "its data lies outside of the flatbuffer")
        out.append(table.raw(0))
    return out


def _check_metadata(root: Table, buffers: int, limits: Limits) -> None:
    indexes = list(root.integers(5))
    for table in root.tables(6):
        table.text(0)
        indexes.append(table.integer(1, "u32"))
    if any(not 0 <= index < buffers for index in indexes):
        raise ModelRejected(Problem.MALFORMED, "metadata", "refers to a buffer that is not there")
    for signature in root.tables(7):
        signature.text(2)
        for slot in (0, 1):
            for entry in signature.tables(slot):
                entry.text(0)
                entry.integer(1, "u32")


def _tensors(graph: Table, buffers: Sequence[memoryview], limits: Limits) -> list[TfliteTensor]:
    if graph.count(0) > limits.tensors:
        raise ModelRejected(Problem.TOO_MANY_TENSORS, "tensors", f"{graph.count(0)}, the limit is {limits.tensors}")
    return [_tensor(table, index, buffers, limits) for index, table in enumerate(graph.tables(0))]


def _tensor(table: Table, index: int, buffers: Sequence[memoryview], limits: Limits) -> TfliteTensor:
    name = table.text(3)
    where = f"tensor {index} ({name})"
    if len(name.encode()) > limits.name_bytes:
        raise ModelRejected(Problem.MODEL_TOO_LARGE, where, f"names have at most {limits.name_bytes} bytes")
    code = table.integer(1, "i8")
    if code not in _DTYPES:
        if code not in _OTHER_DTYPES:
            raise ModelRejected(Problem.MALFORMED, where, f"element type {code}")
        raise ModelRejected(
            Problem.DTYPE_UNSUPPORTED, where, f"element type {_OTHER_DTYPES[code]}", dtype=_OTHER_DTYPES[code]
        )
    dtype = np.dtype(_DTYPES[code])
    buffer = table.integer(2, "u32")
    if buffer >= len(buffers):
        raise ModelRejected(Problem.MALFORMED, where, f"lies in buffer {buffer} of {len(buffers)}")
    if table.integer(10, "u32"):
        raise ModelRejected(Problem.EXTERNAL_DATA, where, "its values are said to lie in another file")
    if table.has(6):
        raise ModelRejected(Problem.OP_UNSUPPORTED, where, "sparse tensors")
    table.integers(7)
    shape = table.integers(0)
    if -1 in shape:
        raise ModelRejected(Problem.SHAPE_NOT_STATIC, where, f"shape {list(shape)}")
    data = buffers[buffer] if len(buffers[buffer]) else None
    if any(dim < 0 for dim in shape):
        raise ModelRejected(Problem.BAD_SHAPE, where, f"shape {list(shape[: limits.rank])}")
    if data is not None and len(data) != prod(shape) * dtype.itemsize:
        detail = f"its shape needs {prod(shape) * dtype.itemsize} bytes, the file has {len(data)}"
        raise ModelRejected(Problem.DATA_SIZE_MISMATCH, where, detail)
    # An empty constant has no bytes to tell it from an activation; `_check_graph` refuses it where it is none.
    check_dims(shape, dtype.itemsize, where, limits, empty=True)
    scales, zero_points = _quantization(table, shape, dtype, where)
    tensor = TfliteTensor(name, str(dtype), shape, scales, zero_points, data, buffer, bool(table.integer(5, "bool")))
    if dtype == np.bool_ and data is not None and np.any(np.frombuffer(data, np.uint8) > 1):
        raise ModelRejected(Problem.BAD_VALUE, where, "a bool is neither 0 nor 1")
    values = tensor.values()
    if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ModelRejected(Problem.BAD_VALUE, where, "holds NaN or infinity")
    return tensor


def _quantization(
    table: Table, shape: Sequence[int], dtype: np.dtype[np.generic], where: str
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    quantization = table.child(4)
    if quantization is None:
        return (), ()
    for slot in (0, 1):
        quantization.numbers(slot, "f32")
    scales = tuple(float(scale) for scale in quantization.numbers(2, "f32"))
    zeros = quantization.integers(3, "i64")
    if quantization.integer(4, "u8"):
        raise ModelRejected(Problem.OP_UNSUPPORTED, where, "custom quantization")
    axis = quantization.integer(6, "i32")
    if not scales:
        return (), ()
    if any(not np.isfinite(scale) or scale < float(np.finfo(np.float32).tiny) for scale in scales):
        raise ModelRejected(Problem.BAD_VALUE, where, "a scale is not finite, zero, negative or too small")
    zeros = zeros or (0,) * len(scales)
    if len(zeros) != len(scales):
        raise ModelRejected(Problem.MALFORMED, where, f"{len(scales)} scales, {len(zeros)} zero points")
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise ModelRejected(
            Problem.SHAPE_MISMATCH, where, f"{len(scales)} scales on axis {axis} of shape {list(shape)}"
        )
    if dtype.kind in "iu":
        lowest, highest = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)  # type: ignore[type-var]
        if any(not lowest <= zero <= highest for zero in zeros):
            raise ModelRejected(Problem.BAD_VALUE, where, f"a zero point is outside of {lowest} to {highest}")
    return scales, zeros


def _operators(root: Table, graph: Table, limits: Limits) -> list[TfliteOp]:
    if graph.count(3) > limits.nodes or root.count(1) > limits.nodes:
        raise ModelRejected(Problem.TOO_MANY_NODES, "operators", f"{graph.count(3)}, the limit is {limits.nodes}")
    codes = []
    for table in root.tables(1):
        # The old field is a byte and says 127 for operators past it; readers take the larger (schema.fbs).
        codes.append((max(table.integer(0, "i8"), table.integer(3, "i32")), table.text(1), table.integer(2, "i32", 1)))
    ops = []
    for index, table in enumerate(graph.tables(3)):
        opcode = table.integer(0, "u32")
        where = f"operator {index}"
        if opcode >= len(codes):
            raise ModelRejected(Problem.MALFORMED, where, f"operator code {opcode} of {len(codes)}")
        code, custom, _ = codes[opcode]
        name = operator_name(code)
        if name is None:
            shown = custom or f"builtin {code}"
            raise ModelRejected(Problem.OP_UNSUPPORTED, where, f"operator {shown}", op=shown, node=str(index))
        label = f"{where} ({name})"
        options = _options(table, name, label)
        table.raw(5)
        if table.has(7):
            table.raw(7)
        table.integers(8)
        if table.integer(9, "u64") or table.integer(10, "u64"):
            raise ModelRejected(Problem.EXTERNAL_DATA, label, "its options lie outside of the flatbuffer")
        ops.append(TfliteOp(name, label, table.integers(1), table.integers(2), options))
    return ops


def _options(table: Table, name: str, label: str) -> dict[int, float | tuple[int, ...]]:
    """The fields of an operator's options by slot; MALFORMED if they are another operator's."""
    option_type = table.integer(3, "u8")
    options = table.child(4)
    table.child(12)
    form = FORMS.get(name)
    if form is None or options is None or option_type == 0:
        return {}
    if option_type != form.option_type:
        raise ModelRejected(Problem.MALFORMED, label, f"options of type {option_type}, its own are {form.option_type}")
    out: dict[int, float | tuple[int, ...]] = {}
    for slot, kind in enumerate(form.fields):
        if not options.has(slot):
            continue
        if kind == "[i32]":
            out[slot] = options.integers(slot)
        elif kind == "f32":
            out[slot] = options.real(slot)
            if not np.isfinite(options.real(slot)):
                raise ModelRejected(Problem.BAD_VALUE, label, f"option {slot} is not finite")
        else:
            out[slot] = options.integer(slot, kind)
    return out


def _check_graph(
    tensors: Sequence[TfliteTensor],
    ops: Sequence[TfliteOp],
    inputs: Sequence[int],
    outputs: Sequence[int],
    limits: Limits,
) -> None:
    """Indexes, numbers of inputs and outputs, dataflow."""

    def need(index: int, where: str) -> None:
        if not 0 <= index < len(tensors):
            raise ModelRejected(Problem.UNDEFINED_TENSOR, where, f"tensor {index} of {len(tensors)}")

    for side, indexes, problem in (("inputs", inputs, Problem.NO_INPUT), ("outputs", outputs, Problem.NO_OUTPUT)):
        if not indexes:
            raise ModelRejected(problem, "graph", f"the graph has no {side}")
        if len(indexes) > limits.inputs_outputs:
            raise ModelRejected(Problem.TOO_MANY_TENSORS, side, f"{len(indexes)}, the limit is {limits.inputs_outputs}")
        if len(set(indexes)) != len(indexes):
            raise ModelRejected(Problem.DUPLICATE_NAME, side, "one tensor twice")
        for index in indexes:
            need(index, side)
    for op in ops:
        for index in (*op.inputs, *op.outputs):
            if index != _OPTIONAL or index in op.outputs:
                need(index, op.label)
        form = FORMS.get(op.name)
        least, most = form.inputs if form else (0, len(tensors))
        if not least <= len(op.inputs) <= most or (form and not 1 <= len(op.outputs) <= form.outputs):
            raise ModelRejected(Problem.MALFORMED, op.label, f"{len(op.inputs)} inputs and {len(op.outputs)} outputs")
        if form and _OPTIONAL in op.inputs[:least]:
            raise ModelRejected(Problem.UNDEFINED_TENSOR, op.label, "an input that it needs is left out")
    steps = [Step(op.label, [i for i in op.inputs if i != _OPTIONAL], op.outputs) for op in ops]
    written = {index for op in ops for index in op.outputs}
    constants = [i for i, t in enumerate(tensors) if t.data is not None or (prod(t.shape) == 0 and i not in written)]
    variables = [i for i, t in enumerate(tensors) if t.variable and t.data is None]
    if any(tensors[index].data is not None for index in inputs):
        raise ModelRejected(Problem.MALFORMED, "inputs", "an input is a constant")
    for index in (*inputs, *outputs, *written):
        if prod(tensors[index].shape) == 0:
            raise ModelRejected(Problem.BAD_SHAPE, f"tensor {index}", f"shape {list(tensors[index].shape)}")
    check_dataflow(steps, {*inputs, *constants, *variables}, outputs)


def _check_scales(op: TfliteOp, tensors: Sequence[TfliteTensor]) -> None:
    """BAD_VALUE if an integer kernel would read scales that are not there."""
    if op.name not in ARITHMETIC:
        return
    for index in (*op.inputs[:2], *op.outputs):
        tensor = tensors[index]
        shape_input = op.name == "MEAN" and index == op.inputs[1]
        if tensor.dtype in ("int8", "uint8", "int16") and not tensor.scales and not shape_input:
            raise ModelRejected(Problem.BAD_VALUE, op.label, f"tensor {index} is {tensor.dtype} without a scale")


def _report(
    version: int,
    tensors: Sequence[TfliteTensor],
    ops: Sequence[TfliteOp],
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> ModelReport:
    def border(index: int) -> TensorReport:
        tensor = tensors[index]
        if len(tensor.scales) != 1 or tensor.dtype not in ("int8", "uint8", "int16"):
            return TensorReport(tensor.name, tensor.dtype, tensor.shape)
        return TensorReport(tensor.name, tensor.dtype, tensor.shape, tensor.scales[0], tensor.zero_points[0])

    small = ("int8", "uint8", "int16")
    used = {index for op in ops for index in op.inputs if index != _OPTIONAL}
    weights = any(tensors[i].dtype in small and tensors[i].scales and tensors[i].data is not None for i in used)
    activations = any(tensors[i].dtype in small and tensors[i].scales for op in ops for i in op.outputs)
    precision = Precision.QUANTIZED if activations else Precision.HYBRID if weights else Precision.FLOAT
    # Tensors may share a buffer; it is in the file once.
    parameters = {tensors[index].buffer: len(data) for index in used if (data := tensors[index].data) is not None}
    return ModelReport(
        format="tflite",
        version=version,
        ir_version=version,
        inputs=tuple(border(index) for index in inputs),
        outputs=tuple(border(index) for index in outputs),
        operators=dict(sorted(Counter(op.name for op in ops).items())),
        nodes=len(ops),
        parameter_bytes=sum(parameters.values()),
        precision=precision,
    )
