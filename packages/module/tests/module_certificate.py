"""A true certificate and the module that it belongs to, for the tests of the checker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinymlaas_module import (
    Access,
    Buffer,
    BufferKind,
    CodeSection,
    DType,
    Frame,
    Isa,
    MemoryCertificate,
    Module,
    ModuleContents,
    PayloadKind,
    Step,
    Tensor,
    TensorKind,
    pack,
    parse,
)

CERTIFICATE = MemoryCertificate(
    sections=(CodeSection(".text", 0, 400), CodeSection(".rodata", 400, 112)),
    arena_bytes=256,
    arena_alignment=16,
    stack_bytes=120,
    stack_method="stack-usage",
    buffers=(
        Buffer("input", 0, 64, 0, 0, BufferKind.INPUT),
        Buffer("conv", 64, 128, 0, 1, BufferKind.TENSOR),
        Buffer("im2col", 192, 64, 0, 0, BufferKind.WORKSPACE),
        Buffer("relu", 64, 128, 1, 2, BufferKind.TENSOR, in_place_of="conv"),
        Buffer("output", 0, 16, 2, 2, BufferKind.OUTPUT),
    ),
    steps=(
        Step(
            "conv", (Access("input", 0, 64), Access("im2col", 0, 64)), (Access("im2col", 0, 64), Access("conv", 0, 128))
        ),
        Step("relu", (Access("conv", 0, 128),), (Access("relu", 0, 128),)),
        Step("dense", (Access("relu", 0, 128),), (Access("output", 0, 16),)),
    ),
    frames=(
        Frame("entry", 24, ("conv", "dense")),
        Frame("conv", 64, ("memcpy",)),
        Frame("dense", 80, ("memcpy",)),
        Frame("memcpy", 16),
    ),
    entry_function="entry",
)


def module(**changes: Any) -> Module:
    tensors = (
        Tensor(TensorKind.INPUT, DType.INT8, (64,), arena_offset=0),
        Tensor(TensorKind.OUTPUT, DType.INT8, (16,), arena_offset=0),
    )
    contents = ModuleContents(
        name="m", version="1", kind=PayloadKind.NATIVE, payload=bytes(512), tensors=tensors, arena_bytes=256,
        isa=Isa.ARMV7E_M, stack_bytes=120,
    )  # fmt: skip
    return parse(pack(replace(contents, **changes)))
