"""Read TFLite files, float, int8 or int16, into the graph."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from tinymlaas_modelkit.errors import MalformedModel, OffendingOperator, UnsupportedOperator
from tinymlaas_modelkit.graph import Graph
from tinymlaas_modelkit.passes import tidy
from tinymlaas_modelkit.tflite_reader import _ops_other, _ops_shape, _ops_weighted
from tinymlaas_modelkit.tflite_reader._context import Context, NotExpressible
from tinymlaas_modelkit.tflite_reader._file import RawOp, parse

__all__ = ["SUPPORTED_OPERATORS", "read_tflite"]

_HANDLERS: Mapping[str, Callable[[Context, RawOp], None]] = {
    "ADD": _ops_other.binary,
    "SUB": _ops_other.binary,
    "MUL": _ops_other.binary,
    "AVERAGE_POOL_2D": _ops_other.pool_2d,
    "MAX_POOL_2D": _ops_other.pool_2d,
    "CONV_2D": _ops_weighted.conv_2d,
    "DEPTHWISE_CONV_2D": _ops_weighted.conv_2d,
    "FULLY_CONNECTED": _ops_weighted.fully_connected,
    "RELU": _ops_other.unary,
    "RELU6": _ops_other.unary,
    "LOGISTIC": _ops_other.unary,
    "TANH": _ops_other.unary,
    "HARD_SWISH": _ops_other.unary,
    "LEAKY_RELU": _ops_other.unary,
    "SOFTMAX": _ops_other.unary,
    "QUANTIZE": _ops_other.quantize,
    "DEQUANTIZE": _ops_other.quantize,
    "MEAN": _ops_other.mean,
    "RESIZE_BILINEAR": _ops_other.resize,
    "RESIZE_NEAREST_NEIGHBOR": _ops_other.resize,
    "RESHAPE": _ops_shape.reshape,
    "SQUEEZE": _ops_shape.reshape,
    "EXPAND_DIMS": _ops_shape.reshape,
    "TRANSPOSE": _ops_shape.transpose,
    "CONCATENATION": _ops_shape.concatenation,
    "PAD": _ops_shape.pad,
    "PADV2": _ops_shape.pad,
    "SLICE": _ops_shape.slice_,
    "STRIDED_SLICE": _ops_shape.strided_slice,
    "SPLIT": _ops_shape.split,
    "SPLIT_V": _ops_shape.split,
}

SUPPORTED_OPERATORS: tuple[str, ...] = tuple(sorted(_HANDLERS))
"""TFLite builtin operators that can be read, each within limits that the error for it names."""


def read_tflite(data: bytes) -> Graph:
    """The graph of a TFLite file (one subgraph, static shapes), float32, int8 or int16, with its scales and weights bit for
    bit.

    Errors: MalformedModel; UnsupportedOperator that lists every operator that cannot be expressed.
    """
    raw = parse(data)
    context = Context(raw, {t.name: t for t in raw.tensors})
    offending: list[OffendingOperator] = []
    for op in raw.ops:
        handler = _HANDLERS.get(op.name)
        try:
            if handler is None:
                raise NotExpressible("no such operator in the graph")
            handler(context, op)
        except NotExpressible as reason:
            dtype = next((str(raw.tensors[i].dtype) for i in (*op.inputs, *op.outputs) if i >= 0), "unknown")
            offending.append(OffendingOperator(op.name, f"{op.name}_{op.index}", dtype, str(reason)))
        except (struct.error, IndexError, ValueError, TypeError, UnicodeDecodeError) as error:
            # The options of an operator are read where they lie; in a damaged file that is anywhere.
            raise MalformedModel("MALFORMED", f"{op.name}_{op.index} cannot be read: {error}") from error
    if offending:
        raise UnsupportedOperator(offending)
    names = [t.name for t in raw.tensors]
    return tidy(
        Graph(
            context.tensors,
            tuple(context.ops),
            tuple(names[i] for i in raw.inputs),
            tuple(names[o] for o in raw.outputs),
        )
    )
