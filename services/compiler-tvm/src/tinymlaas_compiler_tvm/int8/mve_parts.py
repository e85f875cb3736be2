"""What the lowerings for cores with MVE share: kernels with their prototypes, epilogues and their parameters."""

from __future__ import annotations

import numpy as np

from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering
from tinymlaas_compiler_tvm.int8.mve_asm import MveEpilogue
from tinymlaas_compiler_tvm.native.program import AsmKernel
from tinymlaas_compiler_tvm.requant import PRE_SHIFT


def declare(state: Lowering, kernel: AsmKernel, prototype: str) -> str:
    """Take an assembly kernel and its C prototype into the program; gives its name."""
    state.program.asm_kernels[kernel.name] = kernel
    state.define(f"{kernel.name}_prototype", prototype.format(kernel.name))
    return kernel.name


def epilogue_of(layer: Layer) -> MveEpilogue:
    """The epilogue of a layer's kernels."""
    return MveEpilogue(layer.fitted.shift, layer.signed, bool(np.any(layer.biases)), layer.low, layer.high)


def parameters(layer: Layer, epilogue: MveEpilogue, first: int, count: int) -> list[list[int]]:
    """Per kind of parameter, the values of channels `first` to `first + count`; zeros for channels that are none."""
    fitted = layer.fitted
    kinds = [layer.biases << PRE_SHIFT] if epilogue.biased else []
    kinds += [fitted.multipliers, fitted.offsets]
    if fitted.negatives is not None:
        kinds.append(fitted.negatives)
    if epilogue.shift < 0:
        kinds.append(-fitted.shifts)
    total = layer.weights.shape[0]
    return [[int(kind[c]) if c < total else 0 for c in range(first, first + count)] for kind in kinds]
