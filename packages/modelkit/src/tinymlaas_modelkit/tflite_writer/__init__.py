"""Write the graph as a TFLite file."""

from __future__ import annotations

from tinymlaas_modelkit.graph import Graph
from tinymlaas_modelkit.tflite_writer._builder import FileBuilder
from tinymlaas_modelkit.tflite_writer._legalize import legalize
from tinymlaas_modelkit.tflite_writer._ops import add_operator

__all__ = ["legalize", "write_tflite"]


def write_tflite(graph: Graph) -> bytes:
    """The TFLite file (schema version 3) of a graph; equal graphs give equal bytes.

    Quantization goes out as it stands. Where TFLite's kernels fix or share scales a QUANTIZE is added, and a PAD where
    padding is neither SAME nor VALID. Errors: UnsupportedOperator that lists what TFLite cannot say.
    """
    legal = legalize(graph)
    builder = FileBuilder()
    order = [*legal.inputs]
    for op in legal.ops:
        order += [n for n in (*op.inputs, *op.outputs) if n is not None]
    for name in dict.fromkeys([*order, *legal.outputs]):
        builder.tensors[name] = legal.tensors[name]
    for op in legal.ops:
        add_operator(builder, op, legal)
    return builder.file(legal.inputs, legal.outputs)
