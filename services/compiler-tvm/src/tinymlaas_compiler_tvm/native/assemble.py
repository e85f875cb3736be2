"""From a program to the parts of a module: plan, generate, compile, link, measure."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tinymlaas_compiler_tvm.errors import DoesNotFit
from tinymlaas_compiler_tvm.native import codegen, toolchain
from tinymlaas_compiler_tvm.native.image import Image, StackBound, read_image, stack_bound
from tinymlaas_compiler_tvm.native.planner import ALIGNMENT, Plan, Request, lower_bound, plan_arena
from tinymlaas_compiler_tvm.native.program import Access, Buffer, BufferKind, Program
from tinymlaas_compiler_tvm.parts import (
    ArenaBuffer,
    CompiledParts,
    MemoryCertificate,
    NumericsClass,
    OperatorReport,
    Range,
    StepRecord,
    SymbolRange,
    TensorDescription,
)
from tinymlaas_compiler_tvm.target import Machine, TargetSpec


@dataclass(frozen=True)
class Interface:
    """An input or output of the model: description without its place, and the buffer that holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    bytes: int
    buffer: Buffer


def assemble(
    program: Program,
    machine: Machine,
    target: TargetSpec,
    inputs: list[Interface],
    outputs: list[Interface],
    numerics: NumericsClass,
    optimize: str,
) -> CompiledParts:
    """Plan, compile and link a program; DoesNotFit if the target has too little RAM or flash."""
    program.lifetimes()
    used = [buffer for buffer in program.buffers if buffer.first >= 0]
    plan = plan_arena([Request(buffer.size, buffer.first, buffer.last) for buffer in used])
    offsets = [0] * len(program.buffers)
    for buffer, offset in zip(used, plan.offsets, strict=True):
        offsets[buffer.index] = offset
    arena_bytes = -(-plan.size // ALIGNMENT) * ALIGNMENT
    with tempfile.TemporaryDirectory(prefix="tim-") as folder:
        linked = toolchain.build(
            machine,
            Path(folder),
            codegen.c_source(program, offsets, machine),
            codegen.asm_source(program, machine.arm),
            program.constants.data,
            program.objects,
            optimize,
            codegen.ENTRY,
        )
    image = read_image(linked.elf)
    frames = {name: kernel.stack_bytes for name, kernel in program.asm_kernels.items()}
    frames.update(linked.stack_usage)
    frames.update(program.object_frames)
    stack = stack_bound(linked.objects, frames, codegen.ENTRY)
    _check_fit(target, len(image.payload), arena_bytes, stack.bytes)
    certificate = _certificate(program, used, offsets, arena_bytes, plan, image, stack)
    return CompiledParts(
        payload=image.payload,
        entry_offset=image.symbol(codegen.ENTRY).offset,
        arena_bytes=arena_bytes,
        arena_alignment=ALIGNMENT,
        stack_bytes=stack.bytes,
        inputs=tuple(_describe(each, offsets) for each in inputs),
        outputs=tuple(_describe(each, offsets) for each in outputs),
        certificate=certificate,
        symbols=_symbols(program, image),
        operators=_operators(program),
        numerics=numerics,
        log=(
            *program.log,
            f"{len(program.steps)} steps, {len(image.payload)} B payload ({image.code_bytes} B code), "
            f"{stack.bytes} B stack",
            _arena_line(plan, used),
        ),
    )


def _arena_line(plan: Plan, used: list[Buffer]) -> str:
    """The arena beside the bounds that no plan of these buffers, and none of the tensors alone, can beat."""
    tensors = [Request(b.size, b.first, b.last) for b in used if b.kind is BufferKind.TENSOR]
    proven = (
        "no plan is smaller" if plan.size == plan.lower_bound else f"{plan.size - plan.lower_bound} B above the bound"
    )
    return (
        f"arena {plan.size} B, lower bound {plan.lower_bound} B ({proven}); "
        f"tensors alone need {lower_bound(tensors)} B at once"
    )


def _check_fit(target: TargetSpec, flash: int, arena: int, stack: int) -> None:
    if target.flash_bytes and flash > target.flash_bytes:
        raise DoesNotFit("payload is larger than the flash", region="flash", need=flash, have=target.flash_bytes)
    if target.ram_bytes and arena + stack > target.ram_bytes:
        raise DoesNotFit(
            "arena and stack are larger than the RAM", region="ram", need=arena + stack, have=target.ram_bytes
        )


def _describe(each: Interface, offsets: list[int]) -> TensorDescription:
    return TensorDescription(
        each.name, each.dtype, each.shape, each.scale, each.zero_point, offsets[each.buffer.index], each.bytes
    )


def _ranges(accesses: list[Access], offsets: list[int]) -> tuple[Range, ...]:
    return tuple(
        Range(offsets[a.buffer.index] + a.offset, a.size)
        for a in sorted(accesses, key=lambda a: (a.buffer.index, a.offset))
    )


def _certificate(
    program: Program,
    used: list[Buffer],
    offsets: list[int],
    arena_bytes: int,
    plan: Plan,
    image: Image,
    stack: StackBound,
) -> MemoryCertificate:
    buffers = tuple(
        ArenaBuffer(
            "+".join(buffer.tensors) if buffer.kind is BufferKind.TENSOR else f"workspace {buffer.index}",
            str(buffer.kind),
            offsets[buffer.index],
            buffer.size,
            buffer.first,
            buffer.last,
        )
        for buffer in used
    )
    steps = tuple(
        StepRecord(
            step.index, step.symbol, step.kind, step.origins,
            _ranges(step.reads, offsets), _ranges(step.writes, offsets), step.macs,
        )
        for step in program.steps
    )  # fmt: skip
    return MemoryCertificate(
        image.code_bytes,
        image.constant_bytes,
        len(image.payload),
        arena_bytes,
        plan.lower_bound,
        buffers,
        steps,
        stack.bytes,
        stack.chain,
        stack.frames,
        stack.calls,
    )


def _symbols(program: Program, image: Image) -> tuple[SymbolRange, ...]:
    nodes = {step.symbol: step.origins for step in program.steps}
    return tuple(
        SymbolRange(
            symbol.name,
            symbol.offset,
            symbol.size,
            "step" if symbol.name in nodes else "kernel" if symbol.is_function else "constant",
            nodes.get(symbol.name, ()),
        )
        for symbol in image.symbols
    )


def _operators(program: Program) -> tuple[OperatorReport, ...]:
    counts = Counter(step.kind for step in program.steps)
    return tuple(OperatorReport(kind, count, program.origin_of_kernels) for kind, count in sorted(counts.items()))
