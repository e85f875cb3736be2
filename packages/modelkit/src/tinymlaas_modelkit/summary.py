"""What a model file holds: operators, multiply-accumulates, parameter bytes, inputs and outputs; for ONNX and TFLite.

A summary needs no supported operators: it counts what is in the file, also when no compiler here could take it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from tinymlaas_modelkit.errors import MalformedModel
from tinymlaas_modelkit.graph import Quantization
from tinymlaas_modelkit.onnx_reader._qdq import find_quantizations
from tinymlaas_modelkit.onnx_reader._source import Node, Source
from tinymlaas_modelkit.onnx_reader._source import parse as parse_onnx
from tinymlaas_modelkit.tflite_reader._file import RawModel, RawOp
from tinymlaas_modelkit.tflite_reader._file import parse as parse_tflite
from tinymlaas_modelkit.tflite_schema import IDENTIFIER


class ModelFormat(StrEnum):
    """File formats that are read."""

    ONNX = "onnx"
    TFLITE = "tflite"


class Precision(StrEnum):
    """Element types that a model computes in."""

    FLOAT32 = "float32"
    INT8 = "int8"
    MIXED = "mixed"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: shape in elements, element type (numpy name), affine quantization when integer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class OperatorCount:
    """An operator, how often it occurs, and (TFLite) the version that the file asks for, 0 in ONNX."""

    name: str
    count: int
    version: int = 0


@dataclass(frozen=True)
class ModelSummary:
    """A model in figures.

    `macs` are multiply-accumulates of convolutions and matrix products, one inference; `parameter_bytes` the
    constants that
    operators read, without scales, zero points and names.
    """

    format: ModelFormat
    precision: Precision
    operators: tuple[OperatorCount, ...]
    macs: int
    parameter_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int = 0

    @property
    def node_count(self) -> int:
        """Number of operators in all."""
        return sum(o.count for o in self.operators)


def detect_format(data: bytes) -> ModelFormat:
    """The format of a file by its first bytes; ONNX has no magic, so what is not TFLite is taken for ONNX."""
    return ModelFormat.TFLITE if data[4:8] == IDENTIFIER else ModelFormat.ONNX


def summarize(data: bytes, format: ModelFormat | None = None) -> ModelSummary:
    """Summarize a model file that passed the check. Errors: MalformedModel."""
    if not data:
        raise MalformedModel("EMPTY_FILE", "the file is empty")
    chosen = format or detect_format(data)
    return _tflite(parse_tflite(data)) if chosen is ModelFormat.TFLITE else _onnx(parse_onnx(data, None))


def _spec(name: str, dtype: str, shape: tuple[int, ...], q: Quantization | None) -> TensorSpec:
    if q is None or q.scales.size != 1:
        return TensorSpec(name, dtype, shape)
    return TensorSpec(name, dtype, shape, q.scale, q.zero_point)


def _precision(integer: bool, real: bool) -> Precision:
    if integer and real:
        return Precision.MIXED
    return Precision.INT8 if integer else Precision.FLOAT32


# TFLite


def _tflite(raw: RawModel) -> ModelSummary:
    counts = Counter((op.name, op.version) for op in raw.ops)
    read = [i for op in raw.ops for i in op.inputs if i >= 0]
    # Two tensors may share one buffer; its bytes count once.
    constants = {raw.buffers[i]: raw.tensors[i] for i in read if raw.tensors[i].is_constant}
    computed = [raw.tensors[i] for op in raw.ops for i in (*op.inputs, *op.outputs) if i >= 0]
    dtypes = {t.dtype.value for t in computed if not t.is_constant} | {t.dtype.value for t in constants.values()}
    return ModelSummary(
        ModelFormat.TFLITE,
        _precision(bool(dtypes & {"int8", "uint8", "int16"}), "float32" in dtypes),
        tuple(OperatorCount(name, count, version) for (name, version), count in sorted(counts.items())),
        sum(_tflite_macs(raw, op) for op in raw.ops),
        sum(t.nbytes for t in constants.values()),
        tuple(_spec(t.name, t.dtype.value, t.shape, t.quantization) for t in (raw.tensors[i] for i in raw.inputs)),
        tuple(_spec(t.name, t.dtype.value, t.shape, t.quantization) for t in (raw.tensors[i] for i in raw.outputs)),
    )


def _tflite_macs(raw: RawModel, op: RawOp) -> int:
    if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") or len(op.inputs) < 2 or not op.outputs:
        return 0
    weights, out = raw.tensors[op.inputs[1]].shape, raw.tensors[op.outputs[0]].elements
    if op.name == "DEPTHWISE_CONV_2D":
        return out * int(np.prod(weights[1:3], dtype=np.int64))
    return out * int(np.prod(weights[1:], dtype=np.int64))


# ONNX


def _onnx(source: Source) -> ModelSummary:
    quantizations = find_quantizations(source)
    counts = Counter(node.op for node in source.nodes)
    parameters = {n for node in source.nodes for n in _data_inputs(node) if n in source.constants}
    integer = any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in source.nodes)
    compute = [node for node in source.nodes if node.op in ("Conv", "MatMul", "Gemm", "Add")]
    makers = {o: node for node in source.nodes for o in node.outputs}
    real = any(_is_real(source, makers, node) for node in compute) if integer else True
    return ModelSummary(
        ModelFormat.ONNX,
        _precision(integer, real),
        tuple(OperatorCount(name, count) for name, count in sorted(counts.items())),
        sum(_onnx_macs(source, node) for node in source.nodes),
        sum(int(source.constants[n].nbytes) for n in sorted(parameters)),
        tuple(_io(source, quantizations, n) for n in source.inputs),
        tuple(_io(source, quantizations, n) for n in source.outputs),
        source.opset,
    )


def _io(source: Source, quantizations: dict[str, Quantization], name: str) -> TensorSpec:
    dtype, q = source.dtypes.get(name, "unknown"), quantizations.get(name)
    if q is not None and dtype == "uint8":
        # Inside, uint8 is kept as int8; the file's zero point is 128 more.
        q = Quantization(q.scales, q.zero_points + 128, q.axis)
    return _spec(name, dtype, source.shape(name), q if dtype in ("int8", "uint8", "int16") else None)


def _data_inputs(node: Node) -> tuple[str, ...]:
    return node.inputs[:1] if node.op in ("QuantizeLinear", "DequantizeLinear") else node.inputs


def _is_real(source: Source, makers: dict[str, Node], node: Node) -> bool:
    """Whether a node computes on reals that no DequantizeLinear, bare or behind a bias product, gave it."""
    maker: Any = makers.get(node.inputs[0])
    return maker is None or maker.op not in ("DequantizeLinear", "MatMul")


def _onnx_macs(source: Source, node: Node) -> int:
    if node.op not in ("Conv", "MatMul", "Gemm") or len(node.inputs) < 2:
        return 0
    out = source.shapes.get(node.outputs[0])
    weights = source.shapes.get(node.inputs[1])
    if out is None or weights is None:
        return 0
    elements = int(np.prod(out, dtype=np.int64))
    if node.op == "Conv":
        return elements * int(np.prod(weights[1:], dtype=np.int64))
    if node.op == "Gemm":
        return elements * weights[1 if node.attributes.get("transB", 0) else 0]
    return elements * weights[-2 if len(weights) > 1 else 0]
