"""What a compilation gives: a payload, what it needs, what it claims, and the data that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class TensorDescription:
    """An input or output: where it lies in the arena and how its numbers are to be read.

    `scale` 0.0 means that the tensor is not quantized.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class ArenaBuffer:
    """A range of the arena that holds tensors or workspace from step `first` to step `last`, both included."""

    name: str
    kind: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Range:
    """Bytes [offset, offset + bytes) of the arena."""

    offset: int
    bytes: int


@dataclass(frozen=True)
class StepRecord:
    """A step of the main function: its symbol, the model's nodes that it computes, and the ranges it touches."""

    index: int
    symbol: str
    operator: str
    nodes: tuple[str, ...]
    reads: tuple[Range, ...]
    writes: tuple[Range, ...]
    macs: int


@dataclass(frozen=True)
class MemoryCertificate:
    """Everything an independent checker needs to prove that the module stays inside its memory."""

    code_bytes: int
    constant_bytes: int
    payload_bytes: int
    arena_bytes: int
    arena_lower_bound: int
    buffers: tuple[ArenaBuffer, ...]
    steps: tuple[StepRecord, ...]
    stack_bytes: int
    stack_chain: tuple[str, ...]
    stack_frames: Mapping[str, int]
    stack_calls: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class SymbolRange:
    """A function or the constants: a range of the payload; `nodes` is empty for kernels that several steps share."""

    symbol: str
    offset: int
    bytes: int
    kind: str
    nodes: tuple[str, ...]


class Numerics(StrEnum):
    """Classes of agreement with a named reference executor."""

    BIT_EXACT = "BIT_EXACT"
    WITHIN_LSB = "WITHIN_LSB"
    WITHIN_TOLERANCE = "WITHIN_TOLERANCE"


@dataclass(frozen=True)
class NumericsClass:
    """How outputs relate to the reference executor `tflite` or `onnx`."""

    kind: Numerics
    reference: str
    lsb: int = 0
    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class OperatorReport:
    """An operator of the model: how often it occurs and how it is computed."""

    operator: str
    count: int
    kernel: str


@dataclass(frozen=True)
class CompiledParts:
    """The parts of a native module; the platform seals them."""

    payload: bytes
    entry_offset: int
    arena_bytes: int
    arena_alignment: int
    stack_bytes: int
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    certificate: MemoryCertificate
    symbols: tuple[SymbolRange, ...]
    operators: tuple[OperatorReport, ...]
    numerics: NumericsClass
    log: tuple[str, ...]


@dataclass(frozen=True)
class NodeCheck:
    """Whether one operator can be compiled, and why not."""

    node: str
    operator: str
    dtype: str
    supported: bool
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Estimates:
    """Figures before compiling, by method ESTIMATED: from layer shapes and kernel costs, never measured."""

    flash_bytes: int
    arena_bytes: int
    stack_bytes: int
    instructions: int
    macs: int
    method: str = "ESTIMATED"


@dataclass(frozen=True)
class ModelCheck:
    """The answer of `check_model`."""

    supported: bool
    nodes: tuple[NodeCheck, ...]
    estimates: Estimates | None
