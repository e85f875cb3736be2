"""Flatbuffer plumbing of the TFLite writer: vectors, tensors, buffers aligned to 16 bytes, in an order that never
varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np

from tinymlaas_modelkit.graph import Quantization, Tensor
from tinymlaas_modelkit.tflite_schema import IDENTIFIER, SCHEMA_VERSION, TYPE_CODES, schema

BUFFER_ALIGNMENT = 16
DESCRIPTION = "TinyMLaaS"


@dataclass(frozen=True)
class Encoded:
    """One operator ready for the file: builtin code, version, tensor names, option table type and its writer."""

    code: int
    version: int
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    options_type: int
    write_options: Callable[[Any], int] | None


@dataclass
class FileBuilder:
    """Collects tensors and operators and writes the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Encoded] = field(default_factory=list)

    def file(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """The finished file."""
        b = flatbuffers.Builder(sum(t.nbytes for t in self.tensors.values() if t.is_constant) + 65536)
        b.ForceDefaults(False)
        constants = [t for t in self.tensors.values() if t.is_constant]
        buffer_index = {t.name: i + 1 for i, t in enumerate(constants)}
        buffers = [self._buffer(b, None), *(self._buffer(b, t) for t in constants)]
        index = {name: i for i, name in enumerate(self.tensors)}
        tensor_offsets = [self._tensor(b, t, buffer_index.get(t.name, 0)) for t in self.tensors.values()]
        codes = list(dict.fromkeys((op.code, op.version) for op in self.ops))
        op_offsets = [self._operator(b, op, codes.index((op.code, op.version)), index) for op in self.ops]
        subgraph = self._subgraph(
            b, tensor_offsets, op_offsets, [index[n] for n in inputs], [index[n] for n in outputs]
        )
        code_offsets = [self._code(b, code, version) for code, version in codes]
        description = b.CreateString(DESCRIPTION)
        buffer_vector = offsets(b, buffers)
        subgraph_vector = offsets(b, [subgraph])
        code_vector = offsets(b, code_offsets)
        schema.ModelStart(b)
        schema.ModelAddVersion(b, SCHEMA_VERSION)
        schema.ModelAddOperatorCodes(b, code_vector)
        schema.ModelAddSubgraphs(b, subgraph_vector)
        schema.ModelAddDescription(b, description)
        schema.ModelAddBuffers(b, buffer_vector)
        b.Finish(schema.ModelEnd(b), file_identifier=IDENTIFIER)
        return bytes(b.Output())

    @staticmethod
    def _buffer(b: Any, tensor: Tensor | None) -> int:
        data = None
        if tensor is not None and tensor.data is not None:
            array = np.asarray(tensor.data)
            content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            b.StartVector(1, len(content), BUFFER_ALIGNMENT)
            b.head = b.head - len(content)
            b.Bytes[b.head : b.head + len(content)] = content
            data = b.EndVector()
        schema.BufferStart(b)
        if data is not None:
            schema.BufferAddData(b, data)
        return int(schema.BufferEnd(b))

    @staticmethod
    def _quantization(b: Any, q: Quantization) -> int:
        scales = b.CreateNumpyVector(np.ascontiguousarray(q.scales.reshape(-1), "<f4"))
        zeros = b.CreateNumpyVector(np.ascontiguousarray(q.zero_points.reshape(-1), "<i8"))
        schema.QuantizationParametersStart(b)
        schema.QuantizationParametersAddScale(b, scales)
        schema.QuantizationParametersAddZeroPoint(b, zeros)
        schema.QuantizationParametersAddQuantizedDimension(b, q.axis or 0)
        return int(schema.QuantizationParametersEnd(b))

    def _tensor(self, b: Any, tensor: Tensor, buffer: int) -> int:
        name = b.CreateString(tensor.name)
        shape = int32s(b, tensor.shape)
        q = None if tensor.quantization is None else self._quantization(b, tensor.quantization)
        schema.TensorStart(b)
        schema.TensorAddShape(b, shape)
        schema.TensorAddType(b, TYPE_CODES[tensor.dtype])
        schema.TensorAddBuffer(b, buffer)
        schema.TensorAddName(b, name)
        if q is not None:
            schema.TensorAddQuantization(b, q)
        return int(schema.TensorEnd(b))

    @staticmethod
    def _operator(b: Any, op: Encoded, code_index: int, index: dict[str, int]) -> int:
        inputs = int32s(b, [-1 if n is None else index[n] for n in op.inputs])
        outputs = int32s(b, [index[n] for n in op.outputs])
        options = None if op.write_options is None else op.write_options(b)
        schema.OperatorStart(b)
        schema.OperatorAddOpcodeIndex(b, code_index)
        schema.OperatorAddInputs(b, inputs)
        schema.OperatorAddOutputs(b, outputs)
        if options is not None:
            schema.OperatorAddBuiltinOptionsType(b, op.options_type)
            schema.OperatorAddBuiltinOptions(b, options)
        return int(schema.OperatorEnd(b))

    @staticmethod
    def _code(b: Any, code: int, version: int) -> int:
        schema.OperatorCodeStart(b)
        schema.OperatorCodeAddDeprecatedBuiltinCode(
            b, min(code, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
        )
        schema.OperatorCodeAddVersion(b, version)
        schema.OperatorCodeAddBuiltinCode(b, code)
        return int(schema.OperatorCodeEnd(b))

    @staticmethod
    def _subgraph(b: Any, tensors: list[int], ops: list[int], inputs: list[int], outputs: list[int]) -> int:
        name = b.CreateString("main")
        input_vector, output_vector = int32s(b, inputs), int32s(b, outputs)
        tensor_vector, op_vector = offsets(b, tensors), offsets(b, ops)
        schema.SubGraphStart(b)
        schema.SubGraphAddTensors(b, tensor_vector)
        schema.SubGraphAddInputs(b, input_vector)
        schema.SubGraphAddOutputs(b, output_vector)
        schema.SubGraphAddOperators(b, op_vector)
        schema.SubGraphAddName(b, name)
        return int(schema.SubGraphEnd(b))


def int32s(b: Any, values: Sequence[int]) -> int:
    """A vector of int32; empty ones too."""
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependInt32(int(value))
    return int(b.EndVector())


def offsets(b: Any, values: Sequence[int]) -> int:
    """A vector of tables."""
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependUOffsetTRelative(value)
    return int(b.EndVector())
