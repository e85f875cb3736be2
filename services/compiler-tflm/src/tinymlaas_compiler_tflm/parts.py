"""What a compilation gives: a payload, what it needs, what it claims, and how each figure was obtained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tinymlaas_modelkit.summary import TensorSpec


class PayloadKind(StrEnum):
    """Payloads that this compiler makes (names of the contract)."""

    TFLITE = "TFLITE"
    SOURCE_PACKAGE = "SOURCE_PACKAGE"


class Method(StrEnum):
    """How a figure was obtained (names of the contract)."""

    ESTIMATED = "ESTIMATED"
    LINKED = "LINKED"
    SIMULATED = "SIMULATED"


@dataclass(frozen=True)
class Figure:
    """A measurement: metric and method by their names in the contract, conditions as text."""

    metric: str
    value: float
    unit: str
    method: Method
    conditions: Mapping[str, str] = field(default_factory=dict)


class NumericsKind(StrEnum):
    """Classes of agreement with the reference executor."""

    BIT_EXACT = "BIT_EXACT"
    WITHIN_LSB = "WITHIN_LSB"
    WITHIN_TOLERANCE = "WITHIN_TOLERANCE"


@dataclass(frozen=True)
class Numerics:
    """How outputs relate to the reference executor `tflite`."""

    kind: NumericsKind
    relative: float = 0.0
    absolute: float = 0.0
    lsb: int = 0
    reference: str = "tflite"


@dataclass(frozen=True)
class Operator:
    """An operator that the runtime must contain, the version that the file asks for, and how often it occurs."""

    name: str
    version: int
    count: int


@dataclass(frozen=True)
class CompiledParts:
    """The parts of a module; the platform seals them.

    `arena_bytes` is the smallest arena with which the interpreter of a 64-bit host allocates and runs the model, so
    an upper
    bound for 32-bit targets with the same (reference) kernels; `figures` has that and the estimate for 32 bits.
    """

    kind: PayloadKind
    payload: bytes
    arena_bytes: int
    arena_alignment: int
    operators: tuple[Operator, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    numerics: Numerics
    figures: tuple[Figure, ...]
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class OperatorCheck:
    """Verdict on one kind of operator of the model, with at most 16 of its nodes."""

    operator: str
    nodes: tuple[str, ...]
    count: int
    supported: bool
    dtype: str = ""
    detail: str = ""


@dataclass(frozen=True)
class ModelCheck:
    """The answer of `check_model`: per operator, estimates, and the error with which compiling would end, if any."""

    supported: bool
    operators: tuple[OperatorCheck, ...]
    figures: tuple[Figure, ...]
    error: Exception | None = None
