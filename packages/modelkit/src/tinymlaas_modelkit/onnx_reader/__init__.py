"""Read ONNX files, float or QDQ int8 and int16, into the graph."""

from __future__ import annotations

from tinymlaas_modelkit.graph import Graph
from tinymlaas_modelkit.onnx_reader._foreign import ELEMENTWISE
from tinymlaas_modelkit.onnx_reader._source import parse
from tinymlaas_modelkit.onnx_reader._translate import HANDLERS, translate

SUPPORTED_OPERATORS: tuple[str, ...] = tuple(sorted(HANDLERS))
"""ONNX operators that can be read, by name; each within limits that the error for it names."""

__all__ = ["ELEMENTWISE", "SUPPORTED_OPERATORS", "read_onnx"]


def read_onnx(data: bytes, *, batch: int | None = None, foreign: bool = False, wide: bool | None = None) -> Graph:
    """The graph of an ONNX file (opset 7 or later, static shapes, weights inside the file), float or QDQ int8
    and int16.

    Activations come out in NHWC; inputs and outputs of the model keep the layout, type and names of the file. Scales,
    zero
    points and weights are those of the file, bit for bit. `batch` stands in for an open first dimension of the inputs.
    With `foreign`, nodes that the graph has no operator for become FOREIGN operators as far as that is possible.
    `wide`: whether int16 activations are read as such (None: unless `foreign`); else nodes on them cannot be expressed.
    Errors: MalformedModel; UnsupportedOperator that lists every node that cannot be expressed.
    """
    return translate(parse(data, batch), foreign, not foreign if wide is None else wide)
