"""The C kernels that lowering finds by name."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8 import c_depthwise, c_elementwise, c_long, c_matrix, c_small, c_text
from tinymlaas_compiler_tvm.int8.c_text import COPY_BYTES, COPY_FAST
from tinymlaas_compiler_tvm.native.program import CKernel

__all__ = ["COPY_BYTES", "COPY_FAST", "KERNELS"]

KERNELS: dict[str, CKernel] = {
    made.name: made
    for module in (c_text, c_matrix, c_long, c_small, c_depthwise, c_elementwise)
    for made in vars(module).values()
    if isinstance(made, CKernel) and made.name != "copy"
}
