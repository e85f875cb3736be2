"""What the author of a plugin writes against: roles, the jobs that their functions get, what these return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2

# A function of the author: the function itself, or "package.module:name", which only the worker imports.
Function = Callable[..., Any] | str


class Reporter(Protocol):
    """How a running job speaks to the caller; may be used from any thread."""

    def progress(self, step: str, fraction: float = -1.0) -> None:
        """Tells the step in words and the share done, 0..1; negative: unknown."""

    def log(self, text: str, level: str = "info") -> None:
        """Sends lines to the caller's log; level is info, warning or error."""


@dataclass(frozen=True)
class Limits:
    """What one plugin takes. The first three are advertised; the others bound a worker process.

    `memory_bytes` bounds what a worker's address space may grow by after loading (RLIMIT_AS), 0: unbounded.
    `max_output_bytes` bounds each blob out. `jobs_per_worker` is how many jobs a worker does before a fresh one takes
    over.
    """

    max_model_bytes: int = 64 * 1024 * 1024
    max_concurrency: int = 1
    max_seconds: int = 600
    memory_bytes: int = 4 * 1024 * 1024 * 1024
    max_output_bytes: int = 256 * 1024 * 1024
    jobs_per_worker: int = 100


@dataclass(frozen=True)
class CompileJob:
    """One Compile or CheckModel call. `options` are checked and complete; `scratch` is an empty folder of this job."""

    model: bytes
    model_format: tensor_pb2.ModelFormat.ValueType
    target: target_pb2.Target
    options: dict[str, Any]
    payload_kind: target_pb2.PayloadKind.ValueType
    scratch: Path


@dataclass(frozen=True)
class CompileOutput:
    """A payload and what is said of it; `result` without digest and size, which the kit fills in."""

    result: compiler_pb2.CompileResult
    payload: bytes
    report: bytes | None = None


@dataclass(frozen=True)
class ImportJob:
    """One Import call."""

    model: bytes
    source: tensor_pb2.ModelFormat.ValueType
    to: tensor_pb2.ModelFormat.ValueType
    scratch: Path


@dataclass(frozen=True)
class ImportOutput:
    """The converted model."""

    model: bytes


@dataclass(frozen=True)
class OptimizeJob:
    """One Optimize call; `calibration` is an npz file or None."""

    model: bytes
    model_format: tensor_pb2.ModelFormat.ValueType
    options: dict[str, Any]
    calibration: bytes | None
    scratch: Path


@dataclass(frozen=True)
class OptimizeOutput:
    """The optimized model with the same metrics before and after.

    Kept with it as its lineage, if given: `recipe` (JSON of what was done), `report` (JSON of what came of it), `picture`
    (SVG of the report).
    """

    model: bytes
    model_format: tensor_pb2.ModelFormat.ValueType
    before: Sequence[measurement_pb2.Measurement] = ()
    after: Sequence[measurement_pb2.Measurement] = ()
    recipe: bytes | None = None
    report: bytes | None = None
    picture: bytes | None = None


@dataclass(frozen=True)
class ProfileJob:
    """One Profile call: what a compiler answered, its payload, and inputs to run it on."""

    target: target_pb2.Target
    parts: compiler_pb2.CompileResult
    payload: bytes
    inputs: profiler_pb2.InputSet
    scratch: Path


@dataclass(frozen=True)
class ProfileOutput:
    """What was seen while the payload ran."""

    outputs: profiler_pb2.InputSet
    measurements: Sequence[measurement_pb2.Measurement] = ()
    operators: Sequence[measurement_pb2.OperatorProfile] = ()


@dataclass(frozen=True)
class ReferenceJob:
    """One RunReference call."""

    model: bytes
    model_format: tensor_pb2.ModelFormat.ValueType
    reference: tensor_pb2.Reference.ValueType
    inputs: profiler_pb2.InputSet
    scratch: Path


@dataclass(frozen=True)
class ReferenceOutput:
    """What a reference executor answered, with the specs of its tensors."""

    outputs: profiler_pb2.InputSet
    input_specs: Sequence[tensor_pb2.TensorSpec] = ()
    output_specs: Sequence[tensor_pb2.TensorSpec] = ()


@dataclass(frozen=True)
class Compiler:
    """The compiler role.

    `compile(job, report) -> CompileOutput`; `check(job, report) -> CheckModelResult` says in seconds whether compile
    would take the model; an error that `check` raises with code FAILED_PRECONDITION becomes its negative answer.
    """

    compile: Function
    check: Function
    targets: Sequence[target_pb2.TargetConstraint]
    model_formats: Sequence[tensor_pb2.ModelFormat.ValueType]
    option_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Importer:
    """The importer role: `convert(job, report) -> ImportOutput` for the listed (from, to) pairs."""

    convert: Function
    conversions: Sequence[tuple[tensor_pb2.ModelFormat.ValueType, tensor_pb2.ModelFormat.ValueType]]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer role: `optimize(job, report) -> OptimizeOutput`."""

    optimize: Function
    option_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Profiler:
    """The profiler role: `profile(job, report) -> ProfileOutput`, `reference(job, report) -> ReferenceOutput`."""

    profile: Function
    targets: Sequence[target_pb2.TargetConstraint]
    reference: Function | None = None
    references: Sequence[tensor_pb2.Reference.ValueType] = field(default=())
