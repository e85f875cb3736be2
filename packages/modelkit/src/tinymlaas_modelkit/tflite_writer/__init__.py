"""Write the graph as a TFLite file."""

from __future__ import annotations

from tinymlaas_modelkit.graph import Graph
from tinymlaas_modelkit.tflite_writer._biases import with_wide_biases
from tinymlaas_modelkit.tflite_writer._builder import FileBuilder
from tinymlaas_modelkit.tflite_writer._legalize import legalize
from tinymlaas_modelkit.tflite_writer._ops import add_operator

__all__ = ["legalize", "write_tflite"]


def write_tflite(graph: Graph) -> bytes:
    """The TFLite file (schema version 3) of a graph; equal graphs give equal bytes.

    Quantization goes out as it stands. Where TFLite's kernels fix or share scales a QUANTIZE is added, and a PAD where
    padding is neither SAME nor VALID. An operator between int8 and int16 computes on int16 (TFLite's 16x8 mode: int8 weights,
    int64 biases), with a QUANTIZE at its int8 sides. Errors: UnsupportedOperator that lists what TFLite cannot say.
    """
    legal = with_wide_biases(legalize(graph))
    builder = FileBuilder()
    order = [*legal.inputs]
    for op in legal.ops:
        order += [n for n in (*op.inputs, *op.outputs) if n is not None]
    for name in dict.fromkeys([*order, *legal.outputs]):
        builder.tensors[name] = legal.tensors[name]
    for op in legal.ops:
        add_operator(builder, op, legal)
    return builder.file(legal.inputs, legal.outputs)
