"""Claims against what was seen, and the comparison of outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.type.v1 import measurement_pb2 as m
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_gateway.core import claims, samples
from tinymlaas_gateway.core.objections import error_info

N = tensor_pb2.Numerics
INT8 = tensor_pb2.TensorSpec(name="o", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[1, 4], scale=0.5, zero_point=3)
FLOAT = tensor_pb2.TensorSpec(name="o", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 4])


def numerics(kind: N.Class.ValueType, **fields: Any) -> N:
    return N(**{"class": kind, "reference": tensor_pb2.REFERENCE_ONNX, **fields})


def values(array: Any, dtype: str) -> profiler_pb2.InputSet:
    return profiler_pb2.InputSet(samples=[tensor_pb2.TensorValues(tensors=[np.asarray(array, dtype=dtype).tobytes()])])


def parts(**fields: Any) -> compiler_pb2.CompileResult:
    defaults: dict[str, Any] = {
        "payload_kind": target_pb2.PAYLOAD_KIND_TFLITE,
        "arena_bytes": 1000,
        "stack_bytes": 100,
        "payload_bytes": 500,
    }
    return compiler_pb2.CompileResult(**{**defaults, **fields})


def seen(metric: m.Metric.ValueType, value: float, method: m.Method.ValueType = m.METHOD_SIMULATED) -> m.Measurement:
    return m.Measurement(metric=metric, value=value, unit="B", method=method, tool="t", tool_version="1")


@pytest.mark.parametrize(
    ("claimed", "payload", "measurements", "claim"),
    [
        (parts(), 500, [seen(m.METRIC_ARENA_BYTES, 1000), seen(m.METRIC_STACK_BYTES, 100)], None),
        (parts(), 500, [seen(m.METRIC_ARENA_BYTES, 1001)], "arena_bytes"),
        (parts(), 500, [seen(m.METRIC_STACK_BYTES, 101)], "stack_bytes"),
        (parts(), 501, [], "payload_bytes"),
        (parts(), 500, [seen(m.METRIC_ARENA_BYTES, math.nan)], "arena_bytes"),
        (parts(), 500, [seen(m.METRIC_ARENA_BYTES, 9999, m.METHOD_ESTIMATED)], None),
        (parts(measurements=[seen(m.METRIC_FLASH_BYTES, 499)]), 500, [], "flash_bytes"),
        (parts(measurements=[seen(m.METRIC_FLASH_BYTES, math.nan)]), 500, [], "flash_bytes"),
        (parts(measurements=[seen(m.METRIC_FLASH_BYTES, 500)]), 500, [], None),
    ],
)
def test_a_memory_claim_is_refuted_exactly_when_more_was_seen(
    claimed: compiler_pb2.CompileResult, payload: int, measurements: list[m.Measurement], claim: str | None
) -> None:
    found = claims.refute(claimed, payload, measurements)
    assert (found.claim if found else None) == claim


def test_a_refutation_says_claim_claimed_and_measured() -> None:
    found = claims.refute(parts(), 500, [seen(m.METRIC_ARENA_BYTES, 12345)])
    assert found is not None
    info = error_info(found.status())
    assert info is not None
    assert info.reason == "CLAIM_REFUTED"
    assert dict(info.metadata) == {"claim": "arena_bytes", "claimed": "1,000 B", "measured": "12,345 B"}


def test_an_interpreted_payloads_arena_needs_a_witness_and_a_native_one_a_certificate() -> None:
    native = target_pb2.PAYLOAD_KIND_NATIVE
    assert claims.unverified(parts(), []) == "arena_bytes"
    assert claims.unverified(parts(), [seen(m.METRIC_ARENA_BYTES, 10)]) is None
    assert claims.unverified(parts(payload_kind=native), []) == "certificate"
    with_certificate = parts(payload_kind=native)
    with_certificate.certificate.arena_bytes = 1
    assert claims.unverified(with_certificate, []) is None


@pytest.mark.parametrize(
    ("declared", "spec", "ours", "theirs", "holds"),
    [
        (numerics(N.CLASS_BIT_EXACT), INT8, [1, 2, 3, 4], [1, 2, 3, 4], True),
        (numerics(N.CLASS_BIT_EXACT), INT8, [1, 2, 3, 4], [1, 2, 3, 5], False),
        (numerics(N.CLASS_WITHIN_LSB, lsb=2), INT8, [1, 2, 3, 4], [1, 2, 3, 6], True),
        (numerics(N.CLASS_WITHIN_LSB, lsb=2), INT8, [1, 2, 3, 4], [1, 2, 3, 7], False),
        (numerics(N.CLASS_WITHIN_LSB, lsb=255), INT8, [-128, 0, 0, 0], [127, 0, 0, 0], True),
        (numerics(N.CLASS_WITHIN_LSB, lsb=9), FLOAT, [1, 2, 3, 4], [1, 2, 3, 4], False),
        (numerics(N.CLASS_WITHIN_TOLERANCE, atol=0.5), INT8, [1, 2, 3, 4], [1, 2, 3, 5], True),
        (numerics(N.CLASS_WITHIN_TOLERANCE, atol=0.4), INT8, [1, 2, 3, 4], [1, 2, 3, 5], False),
        (numerics(N.CLASS_WITHIN_TOLERANCE, rtol=0.1), FLOAT, [1, 2, 3, 4], [1, 2, 3, 4.4], True),
        (numerics(N.CLASS_WITHIN_TOLERANCE, rtol=0.1), FLOAT, [1, 2, 3, 4], [1, 2, 3, 4.5], False),
        (numerics(N.CLASS_WITHIN_TOLERANCE, atol=1e9), FLOAT, [math.nan, 2, 3, 4], [1, 2, 3, 4], False),
        (numerics(N.CLASS_WITHIN_TOLERANCE, atol=0.1), FLOAT, [math.inf, 2, 3, 4], [math.inf, 2, 3, 4], True),
        (numerics(N.CLASS_BIT_EXACT), FLOAT, [math.nan, 2, 3, 4], [math.nan, 2, 3, 4], True),
        (numerics(N.CLASS_UNSPECIFIED), INT8, [1, 2, 3, 4], [1, 2, 3, 4], False),
    ],
)
def test_a_numerics_class_holds_exactly_as_the_standard_says(
    declared: N, spec: tensor_pb2.TensorSpec, ours: list[float], theirs: list[float], holds: bool
) -> None:
    dtype = "i1" if spec is INT8 else "<f4"
    assert claims.fidelity(declared, [spec], values(ours, dtype), values(theirs, dtype)).holds is holds


def test_the_comparison_counts_equal_elements_steps_and_real_distance() -> None:
    result = claims.fidelity(
        numerics(N.CLASS_WITHIN_LSB, lsb=9), [INT8], values([1, 2, 3, 4], "i1"), values([1, 2, 3, 10], "i1")
    )
    assert (result.equal, result.max_lsb, result.max_abs) == (0.75, 6, 3.0)


@given(st.binary(max_size=40), st.lists(st.binary(max_size=8), max_size=3))
def test_hostile_outputs_are_an_error_or_a_verdict_never_a_crash(data: bytes, tensors: list[bytes]) -> None:
    for outputs in (
        profiler_pb2.InputSet(samples=[tensor_pb2.TensorValues(tensors=[data])]),
        profiler_pb2.InputSet(samples=[tensor_pb2.TensorValues(tensors=tensors)]),
        profiler_pb2.InputSet(),
    ):
        try:
            result = claims.fidelity(numerics(N.CLASS_BIT_EXACT), [FLOAT], outputs, values([1, 2, 3, 4], "<f4"))
        except samples.SampleError:
            continue
        assert 0.0 <= result.equal <= 1.0


def a_tensor(*shape: int) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(name="t", dtype=tensor_pb2.DATA_TYPE_INT8, shape=shape)


def scores(*samples: list[int]) -> profiler_pb2.InputSet:
    tensors = [tensor_pb2.TensorValues(tensors=[bytes(value & 0xFF for value in sample)]) for sample in samples]
    return profiler_pb2.InputSet(samples=tensors)


def test_accuracy_counts_labelled_samples_whose_largest_output_is_their_class() -> None:
    found = claims.accuracy([a_tensor(1, 9)], [a_tensor(1, 3)], scores([-5, 1, 0], [7, 7, 1], [0, 0, 9]), [1, 1, -1])
    assert found == claims.Accuracy(0.5, 2)
    message = claims.accuracy_measurement(found, "t", "1")
    assert (message.value, message.conditions["labelled_samples"]) == (0.5, "2")


@pytest.mark.parametrize(
    ("inputs", "outputs", "labels"),
    [
        ([a_tensor(1, 9)], [a_tensor(1, 3)], [3, 0]),
        ([a_tensor(1, 9)], [a_tensor(1, 3)], [-1, -1]),
        ([a_tensor(1, 9)], [a_tensor(1, 3)], []),
        ([a_tensor(1, 9)], [a_tensor(1, 1)], [0, 0]),
        ([a_tensor(1, 3)], [a_tensor(1, 3)], [0, 1]),
        ([a_tensor(1, 9)], [a_tensor(1, 3), a_tensor(1, 3)], [0, 1]),
    ],
    ids=["label beyond", "none labelled", "no labels", "one element", "reconstruction", "two outputs"],
)
def test_there_is_no_accuracy_where_outputs_are_no_classes(
    inputs: list[tensor_pb2.TensorSpec], outputs: list[tensor_pb2.TensorSpec], labels: list[int]
) -> None:
    assert claims.accuracy(inputs, outputs, scores([1, 2, 3], [3, 2, 1]), labels) is None
