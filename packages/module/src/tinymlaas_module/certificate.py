"""The memory certificate: what a compiler states about the memory its payload needs (spec section 10).

Plain values; the protobuf form is ``tinymlaas.module.v1.MemoryCertificate`` (mapped in ``wire``). Offsets and sizes are
in bytes, steps count from 0 in the order of execution.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class BufferKind(IntEnum):
    """Role of a range of the arena."""

    TENSOR = 1
    WORKSPACE = 2
    INPUT = 3
    OUTPUT = 4


@dataclass(frozen=True, slots=True)
class CodeSection:
    """A section of the linked payload."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """A range of the arena that is live from ``first_step`` to ``last_step``, both included.

    ``in_place_of`` names the buffer whose bytes this one takes over in the step that still reads it; empty for none.
    """

    name: str
    offset: int
    size: int
    first_step: int
    last_step: int
    kind: BufferKind
    in_place_of: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes of a buffer that a step reads or writes; ``offset`` counts from the buffer's start."""

    buffer: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Step:
    """One operator as executed."""

    name: str
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """A function of the payload: bytes of its stack frame, and whom it calls."""

    function: str
    size: int
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryCertificate:
    """Sections from the linker, the arena plan with every access, and a bounded stack."""

    sections: tuple[CodeSection, ...]
    arena_bytes: int
    arena_alignment: int
    stack_bytes: int
    stack_method: str
    buffers: tuple[Buffer, ...] = ()
    steps: tuple[Step, ...] = ()
    frames: tuple[Frame, ...] = ()
    entry_function: str = ""
