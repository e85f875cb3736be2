"""What a compiler claims against what an independent profiler saw. Pure; every input is untrusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import code_pb2, status_pb2

from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2

from .objections import status
from .samples import Array, SampleError, decode, dtype_of

_CLASS_TEXT = {
    tensor_pb2.Numerics.CLASS_BIT_EXACT: "BIT_EXACT",
    tensor_pb2.Numerics.CLASS_WITHIN_LSB: "WITHIN_LSB",
    tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE: "WITHIN_TOLERANCE",
}


@dataclass(frozen=True, slots=True)
class Refutation:
    """A claim that does not hold: its name, what was claimed and what was measured, as text for people."""

    claim: str
    claimed: str
    measured: str

    def status(self) -> status_pb2.Status:
        """Return CLAIM_REFUTED as google.rpc.Status."""
        return status(
            code_pb2.FAILED_PRECONDITION,
            "CLAIM_REFUTED",
            f"claim {self.claim} refuted: claimed {self.claimed}, measured {self.measured}",
            claim=self.claim,
            claimed=self.claimed,
            measured=self.measured,
        )


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How outputs relate to the reference's: share of equal elements 0..1, largest step and absolute difference.

    ``max_lsb`` is None when an output is not an integer tensor. ``holds`` is whether the declared class holds.
    """

    equal: float
    max_lsb: int | None
    max_abs: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of labelled samples whose largest output is their class, 0..1, and how many they were."""

    share: float
    labelled: int


def accuracy(
    inputs: Sequence[tensor_pb2.TensorSpec],
    specs: Sequence[tensor_pb2.TensorSpec],
    outputs: profiler_pb2.InputSet,
    labels: Sequence[int],
) -> Accuracy | None:
    """Classify by the largest output, the first of equal ones; labels below zero are none.

    None where outputs are no classes: several outputs, one element, as many elements as the input (a reconstruction), a
    label beyond the outputs, or no labelled sample at all.
    """
    pairs = [(sample, label) for sample, label in zip(outputs.samples, labels, strict=False) if label >= 0]
    if len(specs) != 1 or not pairs:
        return None
    classes = math.prod(specs[0].shape)
    if classes < 2 or max(label for _, label in pairs) >= classes or [math.prod(i.shape) for i in inputs] == [classes]:
        return None
    right = sum(int(np.argmax(decode(sample.tensors[0], specs[0]))) == label for sample, label in pairs)
    return Accuracy(right / len(pairs), len(pairs))


def accuracy_measurement(found: Accuracy, tool: str, version: str) -> measurement_pb2.Measurement:
    """Write an accuracy as a measurement whose conditions tell how many samples had a label."""
    return measurement_pb2.Measurement(
        metric=measurement_pb2.METRIC_ACCURACY,
        value=found.share,
        unit="1",
        method=measurement_pb2.METHOD_SIMULATED,
        tool=tool,
        tool_version=version,
        conditions={"labelled_samples": str(found.labelled), "class": "largest output"},
    )


def numerics_text(numerics: tensor_pb2.Numerics) -> str:
    """Write a numerics class for people: ``WITHIN_LSB(5)``."""
    kind = getattr(numerics, "class")
    name = _CLASS_TEXT.get(kind, f"class {int(kind)}")
    if kind == tensor_pb2.Numerics.CLASS_WITHIN_LSB:
        return f"{name}({numerics.lsb})"
    if kind == tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE:
        return f"{name}({numerics.rtol:g}, {numerics.atol:g})"
    return name


def fidelity(
    numerics: tensor_pb2.Numerics,
    specs: Sequence[tensor_pb2.TensorSpec],
    outputs: profiler_pb2.InputSet,
    reference: profiler_pb2.InputSet,
) -> Fidelity:
    """Compare outputs with the reference's, in the payload's own dtypes; raises SampleError when shapes differ.

    Real values are ``scale * (q - zero_point)`` for quantized tensors. NaN equals only NaN.
    """
    if len(outputs.samples) != len(reference.samples) or not outputs.samples:
        raise SampleError(f"{len(outputs.samples)} samples of outputs, {len(reference.samples)} of the reference")
    total = 0
    equal = 0
    max_lsb: int | None = 0
    max_abs = 0.0
    holds = True
    for got, want in zip(outputs.samples, reference.samples, strict=True):
        if len(got.tensors) != len(specs) or len(want.tensors) != len(specs):
            raise SampleError("the number of outputs is not that of the output specs")
        for spec, got_bytes, want_bytes in zip(specs, got.tensors, want.tensors, strict=True):
            ours, theirs = decode(got_bytes, spec), decode(want_bytes, spec)
            same = _same(ours, theirs)
            total += same.size
            equal += int(same.sum())
            integer = dtype_of(spec).kind in "iub"
            steps = _steps(ours, theirs) if integer else None
            scale = spec.scale if integer and spec.scale > 0 else 1.0
            difference = steps * scale if steps is not None else _largest(ours, theirs)
            max_abs = max(max_abs, difference) if not math.isnan(difference) else math.inf
            max_lsb = None if max_lsb is None or steps is None else max(max_lsb, steps)
            holds = holds and _holds(numerics, spec, ours, theirs, bool(same.all()), steps)
    return Fidelity(equal / total, max_lsb, max_abs, holds)


def _same(ours: Array, theirs: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    same = ours == theirs
    if ours.dtype.kind == "f":
        same = same | (np.isnan(ours.astype(np.float64)) & np.isnan(theirs.astype(np.float64)))
    return np.asarray(same, dtype=np.bool_)


def _steps(ours: Array, theirs: Array) -> int:
    return int(np.max(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)), initial=0))


def _largest(ours: Array, theirs: Array) -> float:
    with np.errstate(invalid="ignore"):
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return float(np.max(np.where(_same(ours, theirs), 0.0, difference), initial=0.0))


def _holds(
    numerics: tensor_pb2.Numerics,
    spec: tensor_pb2.TensorSpec,
    ours: Array,
    theirs: Array,
    same: bool,
    steps: int | None,
) -> bool:
    kind = getattr(numerics, "class")
    if kind == tensor_pb2.Numerics.CLASS_BIT_EXACT:
        return same
    if kind == tensor_pb2.Numerics.CLASS_WITHIN_LSB:
        return steps is not None and steps <= numerics.lsb
    if kind == tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE:
        scale = spec.scale if spec.scale > 0 else 1.0
        got = (ours.astype(np.float64) - spec.zero_point) * scale
        want = (theirs.astype(np.float64) - spec.zero_point) * scale
        with np.errstate(invalid="ignore"):
            near = np.abs(got - want) <= numerics.atol + numerics.rtol * np.abs(want)
        return bool(np.all(near | _same(ours, theirs)))
    return False


def measured(metric: int, measurements: Iterable[measurement_pb2.Measurement]) -> float | None:
    """Return the largest figure of a metric that was observed (simulated or on hardware), None when there is none.

    An instruction or byte count that is no number at all counts as infinite, so that it can refute but never confirm.
    """
    values = [
        item.value if math.isfinite(item.value) and item.value >= 0 else math.inf
        for item in measurements
        if item.metric == metric and item.method in (measurement_pb2.METHOD_SIMULATED, measurement_pb2.METHOD_HARDWARE)
    ]
    return max(values, default=None)


def refute(
    parts: compiler_pb2.CompileResult, payload_bytes: int, measurements: Sequence[measurement_pb2.Measurement]
) -> Refutation | None:
    """Return the first memory claim that does not hold, None when all do.

    Claims are upper bounds: arena, stack and payload bytes, and any flash figure of the compiler, which may not be
    below the payload's own bytes.
    """
    for claim, claimed, seen in (
        ("arena_bytes", parts.arena_bytes, measured(measurement_pb2.METRIC_ARENA_BYTES, measurements)),
        ("stack_bytes", parts.stack_bytes, measured(measurement_pb2.METRIC_STACK_BYTES, measurements)),
        ("payload_bytes", parts.payload_bytes, float(payload_bytes)),
    ):
        if seen is not None and seen > claimed:
            return Refutation(claim, f"{claimed:,} B", f"{seen:,.0f} B" if math.isfinite(seen) else "no number")
    for item in parts.measurements:
        if item.metric == measurement_pb2.METRIC_FLASH_BYTES and not item.value >= payload_bytes:
            return Refutation("flash_bytes", f"{item.value:,.0f} B", f"{payload_bytes:,} B")
    return None


def unverified(parts: compiler_pb2.CompileResult, measurements: Sequence[measurement_pb2.Measurement]) -> str | None:
    """Return the name of a claim that nothing verified, None when each has a witness.

    The arena of a native payload is witnessed by its certificate, of other kinds it must have been measured.
    """
    native = parts.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE
    if native and not parts.HasField("certificate"):
        return "certificate"
    if not native and measured(measurement_pb2.METRIC_ARENA_BYTES, measurements) is None:
        return "arena_bytes"
    return None


def fidelity_measurements(
    result: Fidelity, samples: int, reference: str, tool: str, version: str
) -> list[measurement_pb2.Measurement]:
    """Write a comparison as measurements whose conditions name the reference and the number of samples."""
    figures: list[tuple[measurement_pb2.Metric.ValueType, float, str]] = [
        (measurement_pb2.METRIC_OUTPUTS_EQUAL, result.equal, "1"),
        (measurement_pb2.METRIC_MAX_ABS_ERROR, result.max_abs, "1"),
    ]
    if result.max_lsb is not None:
        figures.append((measurement_pb2.METRIC_MAX_LSB, float(result.max_lsb), "LSB"))
    return [
        measurement_pb2.Measurement(
            metric=metric,
            value=value,
            unit=unit,
            method=measurement_pb2.METHOD_SIMULATED,
            tool=tool,
            tool_version=version,
            conditions={"reference": reference, "samples": str(samples)},
        )
        for metric, value, unit in figures
    ]
