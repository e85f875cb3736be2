"""Compare outputs with those of a reference executor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_profiler.errors import ProfilerError
from tinymlaas_profiler.measurements import measure
from tinymlaas_profiler.tensors import Sample, as_array, real_values


@dataclass(frozen=True)
class Fidelity:
    """How outputs relate to a reference over all samples.

    `equal` is the share of equal elements (bit patterns for integers, values for floats); `max_lsb` the largest
    difference in steps (None for float outputs); `max_abs_error` in real values; `same_class` the share of samples
    whose largest element is at the same place, over outputs with more than one element (None where there is none).
    """

    samples: int
    elements: int
    bit_exact: bool
    equal: float
    max_lsb: int | None
    max_abs_error: float
    same_class: float | None

    def measurements(self, *, reference: str, subjects: Sequence[str]) -> tuple[measurement_pb2.Measurement, ...]:
        """Give the figures as Measurements (SIMULATED) whose conditions name the reference executor."""
        conditions = {"reference": reference, "samples": str(self.samples), "elements": str(self.elements)}
        if self.same_class is not None:
            conditions["same_class"] = f"{self.same_class:.6g}"
        method = measurement_pb2.METHOD_SIMULATED
        made = [
            measure(measurement_pb2.METRIC_OUTPUTS_EQUAL, self.equal, method, subjects=subjects, conditions=conditions),
            measure(
                measurement_pb2.METRIC_MAX_ABS_ERROR,
                self.max_abs_error,
                method,
                subjects=subjects,
                conditions=conditions,
            ),
        ]
        if self.max_lsb is not None:
            made.append(
                measure(measurement_pb2.METRIC_MAX_LSB, self.max_lsb, method, subjects=subjects, conditions=conditions)
            )
        return tuple(made)


def compare(outputs: Sequence[Sample], reference: Sequence[Sample], specs: Sequence[tensor_pb2.TensorSpec]) -> Fidelity:
    """Compare the output tensors of each sample with the reference's; both follow `specs`.

    Raises ProfilerError (INPUT_INVALID) when counts or sizes differ. NaN equals NaN; NaN against a number is an
    infinite error.
    """
    if len(outputs) != len(reference) or not outputs:
        raise ProfilerError("INPUT_INVALID", f"{len(outputs)} samples against {len(reference)}")
    elements = same = 0
    largest_lsb: int | None = None
    largest_error = 0.0
    classes: list[bool] = []
    exact = True
    for got_sample, want_sample in zip(outputs, reference, strict=True):
        if len(got_sample) != len(specs) or len(want_sample) != len(specs):
            raise ProfilerError("INPUT_INVALID", "a sample lacks an output tensor")
        for got_bytes, want_bytes, spec in zip(got_sample, want_sample, specs, strict=True):
            got, want = as_array(got_bytes, spec), as_array(want_bytes, spec)
            exact = exact and got_bytes == want_bytes
            elements += got.size
            is_float = got.dtype.kind == "f"
            equal = (got == want) | (np.isnan(got) & np.isnan(want)) if is_float else got == want
            same += int(equal.sum())
            if not is_float and got.dtype.kind in "iu" and got.size:
                steps = int(np.abs(got.astype(np.int64) - want.astype(np.int64)).max())
                largest_lsb = max(largest_lsb or 0, steps)
            difference = np.abs(real_values(got_bytes, spec) - real_values(want_bytes, spec))[~equal]
            if difference.size:
                largest_error = max(largest_error, float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max()))
            if got.size > 1:
                classes.append(int(np.argmax(got)) == int(np.argmax(want)))
    return Fidelity(
        samples=len(outputs),
        elements=elements,
        bit_exact=exact,
        equal=same / elements if elements else 1.0,
        max_lsb=largest_lsb,
        max_abs_error=largest_error,
        same_class=sum(classes) / len(classes) if classes else None,
    )


def check_numerics(
    numerics: tensor_pb2.Numerics,
    outputs: Sequence[Sample],
    reference: Sequence[Sample],
    specs: Sequence[tensor_pb2.TensorSpec],
) -> Fidelity:
    """Compare and raise ProfilerError (CLAIM_REFUTED) when the outputs do not keep the claimed numerics class."""
    fidelity = compare(outputs, reference, specs)
    kind = getattr(numerics, "class")
    if kind == tensor_pb2.Numerics.CLASS_BIT_EXACT:
        kept, measured = fidelity.bit_exact, f"{fidelity.equal:.6%} of outputs equal"
    elif kind == tensor_pb2.Numerics.CLASS_WITHIN_LSB:
        kept = fidelity.max_lsb is not None and fidelity.max_lsb <= numerics.lsb
        measured = f"{fidelity.max_lsb} LSB"
    elif kind == tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE:
        excess = _largest_excess(numerics, outputs, reference, specs)
        kept, measured = excess <= 0, f"{excess:.6g} beyond rtol {numerics.rtol:g}, atol {numerics.atol:g}"
    else:
        raise ProfilerError("PAYLOAD_INVALID", "no numerics class was claimed", metadata={"where": "numerics"})
    if not kept:
        claimed = tensor_pb2.Numerics.Class.Name(kind).removeprefix("CLASS_")
        if kind == tensor_pb2.Numerics.CLASS_WITHIN_LSB:
            claimed += f"({numerics.lsb})"
        raise ProfilerError(
            "CLAIM_REFUTED",
            f"outputs are not {claimed}: {measured}",
            metadata={
                "claim": "numerics",
                "claimed": claimed,
                "measured": measured,
                "reference": tensor_pb2.Reference.Name(numerics.reference).removeprefix("REFERENCE_").lower(),
            },
        )
    return fidelity


def _largest_excess(
    numerics: tensor_pb2.Numerics,
    outputs: Sequence[Sample],
    reference: Sequence[Sample],
    specs: Sequence[tensor_pb2.TensorSpec],
) -> float:
    """The largest |got - want| - (atol + rtol * |want|); infinite where one side alone is NaN."""
    worst = -np.inf
    for got_sample, want_sample in zip(outputs, reference, strict=True):
        for got_bytes, want_bytes, spec in zip(got_sample, want_sample, specs, strict=True):
            got, want = real_values(got_bytes, spec), real_values(want_bytes, spec)
            both_nan = np.isnan(got) & np.isnan(want)
            excess = np.abs(got - want) - (numerics.atol + numerics.rtol * np.abs(want))
            excess = np.where(
                (got == want) | both_nan, -numerics.atol, np.nan_to_num(excess, nan=np.inf, posinf=np.inf)
            )
            if excess.size:
                worst = max(worst, float(excess.max()))
    return worst
