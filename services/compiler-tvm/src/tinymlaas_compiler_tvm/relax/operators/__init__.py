"""Converters of ONNX operators, by name."""

from __future__ import annotations

from tinymlaas_compiler_tvm.relax.emit import Converter
from tinymlaas_compiler_tvm.relax.operators import (
    elementwise,
    indexing,
    linear,
    movement,
    quantization,
    recurrent,
    reduction,
    sampling,
    shapes,
    signal,
)

CONVERTERS: dict[str, Converter] = {
    **elementwise.CONVERTERS,
    **indexing.CONVERTERS,
    **linear.CONVERTERS,
    **movement.CONVERTERS,
    **quantization.CONVERTERS,
    **recurrent.CONVERTERS,
    **reduction.CONVERTERS,
    **sampling.CONVERTERS,
    **shapes.CONVERTERS,
    **signal.CONVERTERS,
}
