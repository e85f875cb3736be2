"""What devices count held against the self-test baseline: tables and properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

import tinymlaas_module as tim
from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import rollouts_pb2
from tinymlaas.module.v1 import manifest_pb2
from tinymlaas.registry.v1 import modules_pb2
from tinymlaas.type.v1 import measurement_pb2
from tinymlaas_gateway.core import feedback
from tinymlaas_gateway.core.feedback import Baseline
from tinymlaas_gateway.core.policy import Feedback

Seen = bridge_pb2.ObserveResponse
BASELINE = Baseline({"instructions": 1000}, 0.95)
STRICT = Feedback(10, 5, 20, 15)


def taken(*seen: bridge_pb2.ObserveResponse, baseline: Baseline = BASELINE) -> rollouts_pb2.DeviceFeedback:
    result = rollouts_pb2.DeviceFeedback()
    for index, one in enumerate(seen):
        feedback.take(result, one, baseline, 1000.0 + index)
    return result


def sure(tenth: int, runs: int) -> list[int]:
    return [runs if index == tenth else 0 for index in range(10)]


def told(**fields: object) -> bridge_pb2.ObserveResponse:
    values = {"invocations": 100, "last_latency": 1000, "latency_unit": "instructions", "confidence": sure(9, 100)}
    return Seen(**(values | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "seen", "reason"),
    [
        (STRICT, told(), None),
        (STRICT, told(errors=6), None),  # these it had counted before
        (STRICT, told(invocations=9, last_latency=9000), None),  # too few runs
        (STRICT, told(last_latency=1200), None),
        (STRICT, told(last_latency=1201), "LATENCY_ABOVE_BASELINE"),
        (STRICT, told(last_latency=9000, latency_unit="us"), None),  # the units differ
        (STRICT, told(confidence=sure(8, 100)), None),
        (STRICT, told(confidence=sure(7, 100)), "CONFIDENCE_BELOW_BASELINE"),
        (STRICT, told(confidence=[]), None),  # none is told
        (STRICT, told(confidence=[1, 2, 3]), None),
        (Feedback(10), told(last_latency=10**9, confidence=sure(0, 100)), None),  # nothing is judged
    ],
)
def test_what_is_known_and_limited_is_judged(
    policy: Feedback, seen: bridge_pb2.ObserveResponse, reason: str | None
) -> None:
    """DO-ROLL-015."""
    found = feedback.objection(policy, taken(seen))
    if reason is None:
        assert found is None
    else:
        info = error_details_pb2.ErrorInfo()
        assert found is not None
        assert found.details[0].Unpack(info)
        assert info.reason == reason


def test_errors_count_from_the_first_look_on_and_anew_after_a_reboot() -> None:
    """DO-ROLL-015."""
    seen = taken(told(errors=7), told(errors=13))
    assert (seen.errors_before, seen.errors) == (7, 6)
    assert feedback.objection(STRICT, seen) is not None
    rebooted = taken(told(errors=7), told(errors=2))
    assert (rebooted.errors_before, rebooted.errors) == (0, 2)


def test_without_a_baseline_only_errors_are_judged() -> None:
    nothing = Baseline({}, None)
    seen = taken(told(last_latency=10**9, confidence=sure(0, 100)), baseline=nothing)
    assert feedback.objection(STRICT, seen) is None
    assert feedback.objection(STRICT, taken(told(), told(errors=50), baseline=nothing)) is not None


def test_the_baseline_is_what_was_measured_with_the_golden_vectors() -> None:
    measured = measurement_pb2.Measurement(metric=measurement_pb2.METRIC_INSTRUCTIONS, value=1234.0)
    known = modules_pb2.Module(manifest=manifest_pb2.Manifest(measurements=[measured]))
    scores = tim.Tensor(tim.TensorKind.OUTPUT, tim.DType.INT8, (1, 4), 1 / 256, -128)
    given = tim.Tensor(tim.TensorKind.INPUT, tim.DType.INT8, (1, 1))
    vectors = tuple(tim.GoldenVector((b"\0",), (bytes([0x80, 0x80, top, 0x80]),)) for top in (127, 0))
    contents = tim.ModuleContents(
        name="m",
        version="1",
        kind=tim.PayloadKind.TFLITE,
        payload=b"payload",
        tensors=(given, scores),
        arena_bytes=64,
        golden=tim.Golden(tim.Numerics(tim.NumericsClass.BIT_EXACT, tim.Executor.TFLITE), vectors),
    )
    baseline = feedback.baseline_of(known, tim.parse(tim.pack(contents)))
    assert baseline.latency == {"instructions": 1234}
    assert baseline.confidence == pytest.approx((0.95 + 0.55) / 2)
    bare = feedback.baseline_of(modules_pb2.Module(), tim.parse(tim.pack(replace(contents, golden=None))))
    assert bare == Baseline({}, None)


counts = st.integers(0, (1 << 64) - 1)


@given(
    st.lists(
        st.builds(
            Seen,
            invocations=counts,
            errors=counts,
            last_latency=counts,
            latency_unit=st.text(max_size=40),
            confidence=st.lists(counts, max_size=12),
        ),
        max_size=4,
    )
)
def test_whatever_a_device_tells_is_taken_without_harm(seen: list[bridge_pb2.ObserveResponse]) -> None:
    result = taken(*seen)
    feedback.objection(STRICT, result)
    assert len(result.confidence) in (0, 10)
