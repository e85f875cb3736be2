"""What devices count while they run a rollout's module, held against its self-test baseline. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.rpc import code_pb2, status_pb2

import tinymlaas_module as tim
from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import rollouts_pb2
from tinymlaas.registry.v1 import modules_pb2
from tinymlaas.type.v1 import measurement_pb2

from .objections import clean, status
from .policy import Feedback
from .rollout_view import stamp

DeviceFeedback = rollouts_pb2.DeviceFeedback
_UNITS = {measurement_pb2.METRIC_INSTRUCTIONS: "instructions", measurement_pb2.METRIC_CYCLES: "cycles"}
MAX_COUNT = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a module did with its golden vectors when it was verified; None is not known.

    ``latency`` by unit as devices name them; ``confidence`` as the mean of tenths, 0 to 1.
    """

    latency: dict[str, int]
    confidence: float | None = None


def baseline_of(module: modules_pb2.Module, sealed: tim.Module) -> Baseline:
    """Return a module's baseline, from its verified measurements and its golden vectors."""
    latency = {_UNITS[item.metric]: round(item.value) for item in module.manifest.measurements if item.metric in _UNITS}
    histogram = [0] * tim.TENTHS
    for vector in sealed.golden.vectors if sealed.golden is not None else ():
        value = tim.confidence(sealed.outputs, b"".join(vector.outputs))
        if value is not None:
            histogram[tim.tenth(value)] += 1
    return Baseline(latency, mean_confidence(histogram))


def mean_confidence(histogram: Sequence[int]) -> float | None:
    """Return the mean of a histogram over the tenths of 0 to 1, each counted at its middle; None of an empty one."""
    total = sum(histogram)
    if not total:
        return None
    return sum(count * (index + 0.5) / len(histogram) for index, count in enumerate(histogram)) / total


def take(
    feedback: rollouts_pb2.DeviceFeedback, seen: bridge_pb2.ObserveResponse, baseline: Baseline, at: float
) -> None:
    """Write what a device counts now into its feedback.

    Errors that it had counted before the first look are not the module's. A device that was switched off begins anew.
    """
    if not feedback.HasField("time") or seen.errors < feedback.errors_before:
        feedback.errors_before = min(seen.errors, MAX_COUNT) if not feedback.HasField("time") else 0
    feedback.time.CopyFrom(stamp(at))
    feedback.invocations = min(seen.invocations, MAX_COUNT)
    feedback.errors = min(seen.errors, MAX_COUNT) - feedback.errors_before
    feedback.last_latency = min(seen.last_latency, MAX_COUNT)
    feedback.latency_unit = clean(seen.latency_unit, 32)
    del feedback.confidence[:]
    if len(seen.confidence) == tim.TENTHS:
        feedback.confidence.extend(min(count, MAX_COUNT) for count in seen.confidence)
    if feedback.latency_unit in baseline.latency:
        feedback.baseline_latency = baseline.latency[feedback.latency_unit]
    else:
        feedback.ClearField("baseline_latency")
    if baseline.confidence is not None:
        feedback.baseline_confidence_percent = 100 * baseline.confidence


def objection(policy: Feedback, feedback: rollouts_pb2.DeviceFeedback) -> status_pb2.Status | None:
    """Return why a device counts as failed, None while nothing speaks against it or it has run too rarely to be judged."""
    runs = feedback.invocations + feedback.errors
    if runs < policy.min_invocations:
        return None
    if policy.max_error_percent is not None and 100 * feedback.errors > policy.max_error_percent * runs:
        return _objection("ERRORS_ABOVE_LIMIT", f"{feedback.errors} of {runs} runs failed", policy.max_error_percent)
    if policy.max_latency_increase_percent is not None and feedback.HasField("baseline_latency"):
        base = feedback.baseline_latency
        if feedback.last_latency * 100 > base * (100 + policy.max_latency_increase_percent):
            text = f"a run took {feedback.last_latency} {feedback.latency_unit}, {base} when it was verified"
            return _objection("LATENCY_ABOVE_BASELINE", text, policy.max_latency_increase_percent)
    mean = mean_confidence(feedback.confidence)
    known = mean is not None and feedback.HasField("baseline_confidence_percent")
    if policy.max_confidence_drop_percent is not None and known:
        assert mean is not None
        drop = feedback.baseline_confidence_percent - 100 * mean
        if drop > policy.max_confidence_drop_percent + 1e-9:
            base_text = f"{feedback.baseline_confidence_percent:.0f} % with the golden vectors"
            text = f"mean confidence is {100 * mean:.0f} %, {base_text}"
            return _objection("CONFIDENCE_BELOW_BASELINE", text, policy.max_confidence_drop_percent)
    return None


def _objection(reason: str, text: str, limit: int) -> status_pb2.Status:
    return status(code_pb2.FAILED_PRECONDITION, reason, f"{text}; the limit is {limit} %", limit=limit)
