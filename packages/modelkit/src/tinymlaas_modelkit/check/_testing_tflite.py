"""Write small TFLite files, right or wrong in one place: a fully connected int8 model by default."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import flatbuffers
import numpy as np

from ._rejection import Problem

FULLY_CONNECTED, CUSTOM = 9, 32
_FLOAT32, _INT32, _INT8 = 0, 2, 9


@dataclass(frozen=True)
class FileTensor:
    """A tensor as the file says it; `code` is the schema's TensorType."""

    name: str
    shape: tuple[int, ...]
    code: int = _INT8
    buffer: int = 0
    scale: tuple[float, ...] = (0.5,)
    zero_point: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class FileOp:
    """An operator as the file says it."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    code: int = 0
    options_type: int = 8


@dataclass(frozen=True)
class TinyFile:
    """All that is in the file; the defaults make a valid model y[1, 4] = W[4, 3] x[1, 3] + b, int8."""

    version: int = 3
    codes: tuple[tuple[int, int, str], ...] = ((FULLY_CONNECTED, FULLY_CONNECTED, ""),)
    buffers: tuple[bytes, ...] = (b"", bytes(range(12)), np.arange(4, dtype="<i4").tobytes())
    tensors: tuple[FileTensor, ...] = (
        FileTensor("x", (1, 3)),
        FileTensor("w", (4, 3), buffer=1),
        FileTensor("b", (4,), code=_INT32, buffer=2, scale=(0.25,)),
        FileTensor("y", (1, 4)),
    )
    ops: tuple[FileOp, ...] = (FileOp((0, 1, 2), (3,)),)
    inputs: tuple[int, ...] = (0,)
    outputs: tuple[int, ...] = (3,)
    subgraphs: int = 1
    identifier: bytes = field(default=b"TFL3")

    def tensor(self, index: int, **changes: Any) -> TinyFile:
        """The file with one tensor changed."""
        tensors = list(self.tensors)
        tensors[index] = replace(tensors[index], **changes)
        return replace(self, tensors=tuple(tensors))

    def op(self, index: int, **changes: Any) -> TinyFile:
        """The file with one operator changed."""
        ops = list(self.ops)
        ops[index] = replace(ops[index], **changes)
        return replace(self, ops=tuple(ops))

    def write(self) -> bytes:
        """The bytes of the file."""
        b = flatbuffers.Builder(1024)
        buffers = _vector(
            b, [_table(b, [("offset", b.CreateByteVector(data) if data else None)]) for data in self.buffers]
        )
        codes = []
        for old, new, custom in self.codes:
            text = b.CreateString(custom) if custom else None
            codes.append(_table(b, [("Int8", old), ("offset", text), ("Int32", 1), ("Int32", new)]))
        code_vector = _vector(b, codes)
        graphs = _vector(b, [self._graph(b) for _ in range(self.subgraphs)])
        text = b.CreateString("a model for tests")
        fields = [
            ("Uint32", self.version),
            ("offset", code_vector),
            ("offset", graphs),
            ("offset", text),
            ("offset", buffers),
        ]
        b.Finish(_table(b, fields), self.identifier)
        return bytes(b.Output())

    def _graph(self, b: Any) -> int:
        tensors = _vector(b, [_tensor(b, tensor) for tensor in self.tensors])
        ops = []
        for op in self.ops:
            inputs, outputs = _numbers(b, op.inputs), _numbers(b, op.outputs)
            options = _table(b, [("Int8", 0)]) if op.options_type else None
            fields = [("Uint32", op.code), ("offset", inputs), ("offset", outputs), ("Uint8", op.options_type)]
            ops.append(_table(b, [*fields, ("offset", options)]))
        inputs, outputs = _numbers(b, self.inputs), _numbers(b, self.outputs)
        return _table(b, [("offset", tensors), ("offset", inputs), ("offset", outputs), ("offset", _vector(b, ops))])


def _tensor(b: Any, tensor: FileTensor) -> int:
    name, shape = b.CreateString(tensor.name), _numbers(b, tensor.shape)
    scale = b.CreateNumpyVector(np.array(tensor.scale, np.float32))
    zero = b.CreateNumpyVector(np.array(tensor.zero_point, np.int64))
    quantization = _table(b, [(None, None), (None, None), ("offset", scale), ("offset", zero)])
    fields = [("offset", shape), ("Int8", tensor.code), ("Uint32", tensor.buffer), ("offset", name)]
    return _table(b, [*fields, ("offset", quantization if tensor.scale else None)])


def _table(b: Any, fields: Sequence[tuple[str | None, int | None]]) -> int:
    """A table with the given fields in order of their slots; None leaves a field out."""
    b.StartObject(len(fields))
    for slot, (kind, value) in enumerate(fields):
        if value is None:
            continue
        if kind == "offset":
            b.PrependUOffsetTRelativeSlot(slot, value, 0)
        else:
            prepend: Callable[[int, int, int | None], None] = getattr(b, f"Prepend{kind}Slot")
            prepend(slot, value, None)
    return int(b.EndObject())


def _vector(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _numbers(b: Any, values: Sequence[int]) -> int:
    return int(b.CreateNumpyVector(np.array(values, np.int32)))


_TINY: Final = TinyFile()

BAD_TFLITE: Final[tuple[tuple[str, Problem, Callable[[], bytes]], ...]] = (
    ("empty.tflite", Problem.EMPTY_FILE, lambda: b""),
    ("wrong_identifier.tflite", Problem.NOT_A_MODEL, replace(_TINY, identifier=b"TFL9").write),
    ("onnx_inside.tflite", Problem.FORMAT_MISMATCH, lambda: b"\x08\x08" + bytes([0x12, 4]) + b"test" + bytes(16)),
    ("truncated.tflite", Problem.MALFORMED, lambda: _TINY.write()[: len(_TINY.write()) // 2]),
    ("root_outside.tflite", Problem.MALFORMED, lambda: struct.pack("<I", 0x7FFFFFF0) + _TINY.write()[4:]),
    (
        "custom_op.tflite",
        Problem.OP_UNSUPPORTED,
        replace(_TINY, codes=((CUSTOM, CUSTOM, "Evil"),)).op(0, options_type=0).write,
    ),
    (
        "no_such_builtin.tflite",
        Problem.OP_UNSUPPORTED,
        replace(_TINY, codes=((127, 8888, ""),)).op(0, options_type=0).write,
    ),
    ("while.tflite", Problem.OP_UNSUPPORTED, replace(_TINY, codes=((119, 119, ""),)).op(0, options_type=0).write),
    ("two_graphs.tflite", Problem.OP_UNSUPPORTED, replace(_TINY, subgraphs=2).write),
    ("tensor_index.tflite", Problem.UNDEFINED_TENSOR, _TINY.op(0, inputs=(9999, 1, 2)).write),
    ("output_index.tflite", Problem.UNDEFINED_TENSOR, _TINY.op(0, outputs=(-1,)).write),
    ("graph_output_index.tflite", Problem.UNDEFINED_TENSOR, replace(_TINY, outputs=(77,)).write),
    ("buffer_index.tflite", Problem.MALFORMED, _TINY.tensor(1, buffer=9999).write),
    ("opcode_index.tflite", Problem.MALFORMED, _TINY.op(0, code=5).write),
    ("foreign_options.tflite", Problem.MALFORMED, _TINY.op(0, options_type=17).write),
    ("too_few_inputs.tflite", Problem.MALFORMED, _TINY.op(0, inputs=(0,)).write),
    ("no_weights.tflite", Problem.UNDEFINED_TENSOR, _TINY.tensor(1, buffer=0).write),
    (
        "short_weights.tflite",
        Problem.DATA_SIZE_MISMATCH,
        replace(_TINY, buffers=(b"", b"\x01", _TINY.buffers[2])).write,
    ),
    ("zero_scale.tflite", Problem.BAD_VALUE, _TINY.tensor(0, scale=(0.0,)).write),
    ("nan_scale.tflite", Problem.BAD_VALUE, _TINY.tensor(0, scale=(float("nan"),)).write),
    ("no_scale.tflite", Problem.BAD_VALUE, _TINY.tensor(0, scale=()).write),
    ("zero_point_range.tflite", Problem.BAD_VALUE, _TINY.tensor(0, zero_point=(200,)).write),
    ("scales_per_channel.tflite", Problem.SHAPE_MISMATCH, _TINY.tensor(1, scale=(0.5, 0.5), zero_point=(0, 0)).write),
    ("huge_tensor.tflite", Problem.TENSOR_TOO_LARGE, _TINY.tensor(0, shape=(1 << 30, 3)).write),
    ("open_batch.tflite", Problem.SHAPE_NOT_STATIC, _TINY.tensor(0, shape=(-1, 3)).write),
    ("negative_dim.tflite", Problem.BAD_SHAPE, _TINY.tensor(0, shape=(1, -3)).write),
    ("string_tensor.tflite", Problem.DTYPE_UNSUPPORTED, _TINY.tensor(0, code=5).write),
    ("no_such_type.tflite", Problem.MALFORMED, _TINY.tensor(0, code=99).write),
    ("weights_do_not_fit.tflite", Problem.SHAPE_MISMATCH, _TINY.tensor(0, shape=(1, 5)).write),
    ("output_too_large.tflite", Problem.SHAPE_MISMATCH, _TINY.tensor(3, shape=(1, 400)).write),
    ("schema_version.tflite", Problem.OPSET_UNSUPPORTED, replace(_TINY, version=9).write),
    ("no_output.tflite", Problem.NO_OUTPUT, replace(_TINY, outputs=()).write),
    (
        "cycle.tflite",
        Problem.CYCLE,
        replace(
            _TINY,
            tensors=(*_TINY.tensors, FileTensor("t", (1, 3))),
            ops=(FileOp((4, 1, 2), (3,)), FileOp((3, 1, 2), (4,))),
        ).write,
    ),
    ("duplicate_output.tflite", Problem.DUPLICATE_NAME, replace(_TINY, ops=(*_TINY.ops, *_TINY.ops)).write),
)
