"""A program: steps in order over buffers of one arena, constants, and the kernels that the steps call."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum


class BufferKind(StrEnum):
    """What a buffer holds."""

    TENSOR = "tensor"
    WORKSPACE = "workspace"


@dataclass
class Buffer:
    """Bytes of the arena that live from the first to the last step that touches them.

    `tensors` names the model's tensors that lie in it, in the order in which they are written (more than one where an
    operator works in place). `first` and `last` are filled in by `Program.lifetimes`.
    """

    index: int
    size: int
    kind: BufferKind
    tensors: list[str] = field(default_factory=list)
    first: int = -1
    last: int = -1

    @property
    def macro(self) -> str:
        """The C name of the buffer's address."""
        return f"B{self.index}"


@dataclass(frozen=True)
class Access:
    """A range of a buffer that a step reads or writes."""

    buffer: Buffer
    offset: int
    size: int


@dataclass
class Step:
    """One call in the main function: an operator (or a fused group) of the model.

    `body` is C that addresses buffers by macros and constants by `W(offset)`. `origins` are node names of the model.
    """

    index: int
    kind: str
    origins: tuple[str, ...]
    body: str
    reads: list[Access]
    writes: list[Access]
    constant_bytes: int = 0
    macs: int = 0
    note: str = ""

    @property
    def symbol(self) -> str:
        """The C function of the step; generated, never a name of the model."""
        return f"tim_step_{self.index:03d}"


@dataclass(frozen=True)
class AsmKernel:
    """An assembly function: its text from label to return, and the stack that it takes."""

    name: str
    text: str
    stack_bytes: int


@dataclass(frozen=True)
class CKernel:
    """A C function or type definition, and the kernels that must stand before it."""

    name: str
    text: str
    needs: tuple[str, ...] = ()


class ConstantPool:
    """Constants of a program in one block; equal constants are stored once."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._known: dict[bytes, int] = {}

    def add(self, data: bytes, alignment: int = 4) -> int:
        """The offset of `data` in the block."""
        key = hashlib.sha256(data).digest()
        known = self._known.get(key)
        if known is not None and known % alignment == 0:
            return known
        self._bytes.extend(b"\0" * (-len(self._bytes) % alignment))
        offset = len(self._bytes)
        self._bytes.extend(data)
        self._known[key] = offset
        return offset

    @property
    def data(self) -> bytes:
        """The block."""
        return bytes(self._bytes)


@dataclass
class Program:
    """Everything that code generation and the arena plan need."""

    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    constants: ConstantPool = field(default_factory=ConstantPool)
    asm_kernels: dict[str, AsmKernel] = field(default_factory=dict)
    c_kernels: dict[str, CKernel] = field(default_factory=dict)
    inputs: list[Buffer] = field(default_factory=list)
    outputs: list[Buffer] = field(default_factory=list)
    objects: list[bytes] = field(default_factory=list)
    object_frames: dict[str, int] = field(default_factory=dict)
    uses_float: bool = False
    origin_of_kernels: str = "generated integer kernels"
    log: list[str] = field(default_factory=list)

    def buffer(self, size: int, kind: BufferKind, *tensors: str) -> Buffer:
        """A new buffer; its size is rounded up to 4 bytes, so that word stores of the last elements stay inside."""
        made = Buffer(len(self.buffers), max(4, -(-size // 4) * 4), kind, list(tensors))
        self.buffers.append(made)
        return made

    def workspace(self, size: int) -> Buffer:
        """Scratch memory of one step."""
        return self.buffer(size, BufferKind.WORKSPACE)

    def lifetimes(self) -> None:
        """Fill in each buffer's first and last step; inputs live from step 0, outputs to the last step."""
        last_step = max(len(self.steps) - 1, 0)
        for buffer in self.buffers:
            buffer.first, buffer.last = -1, -1
        for step in self.steps:
            for access in (*step.reads, *step.writes):
                buffer = access.buffer
                buffer.first = step.index if buffer.first < 0 else min(buffer.first, step.index)
                buffer.last = max(buffer.last, step.index)
        for buffer in self.inputs:
            buffer.first, buffer.last = 0, max(buffer.last, 0)
        for buffer in self.outputs:
            buffer.first, buffer.last = max(buffer.first, 0), last_step
