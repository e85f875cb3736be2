"""Reference executors give the golden outputs of the zoo; comparing outputs tells how far they are apart."""

from pathlib import Path

import numpy as np
import pytest

from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_profiler import ProfilerError, check_numerics, compare, profile_tflite, reference

ZOO = Path(__file__).parents[3] / "zoo"
ONNX, TFLITE = tensor_pb2.MODEL_FORMAT_ONNX, tensor_pb2.MODEL_FORMAT_TFLITE
BY_ONNX, BY_TFLITE = tensor_pb2.REFERENCE_ONNX, tensor_pb2.REFERENCE_TFLITE


def samples_of(name: str, count: int) -> tuple[list[list[bytes]], list[list[bytes]]]:
    with np.load(ZOO / name / "samples.npz") as data:
        return (
            [[value.tobytes()] for value in data["input_int8"][:count]],
            [[value.tobytes()] for value in data["output_int8"][:count]],
        )


@pytest.mark.parametrize("name", ["kws", "ad", "ic"])
def test_the_tflite_executor_gives_the_golden_outputs(name: str) -> None:
    inputs, golden = samples_of(name, 3)
    run = reference((ZOO / name / f"{name}_int8.tflite").read_bytes(), TFLITE, BY_TFLITE, inputs)
    assert [list(sample) for sample in run.values] == golden
    assert run.outputs[0].scale > 0
    assert run.executor.startswith("tflite-micro ")


def test_the_onnx_executor_keeps_the_class_and_tells_the_distance() -> None:
    inputs, golden = samples_of("kws", 8)
    run = reference((ZOO / "kws/kws_int8_qdq.onnx").read_bytes(), ONNX, BY_ONNX, inputs)
    assert run.outputs[0].scale == pytest.approx(1 / 256)
    assert run.outputs[0].zero_point == -128
    fidelity = compare(run.values, golden, run.outputs)
    assert fidelity.same_class == 1.0
    assert not fidelity.bit_exact
    assert fidelity.max_lsb is not None
    assert 0 < fidelity.max_lsb <= 5
    assert 0.5 < fidelity.equal < 1.0
    named = {m.metric: m for m in fidelity.measurements(reference="tflite", subjects=["aa"])}
    assert named[measurement_pb2.METRIC_MAX_LSB].conditions["reference"] == "tflite"


def test_an_onnx_model_is_converted_for_the_tflite_executor() -> None:
    inputs, golden = samples_of("ad", 3)
    run = reference((ZOO / "ad/ad_int8_qdq.onnx").read_bytes(), ONNX, BY_TFLITE, inputs)
    assert compare(run.values, golden, run.outputs).bit_exact


def test_a_tflite_model_has_no_onnx_reference() -> None:
    with pytest.raises(ProfilerError) as caught:
        reference((ZOO / "ad/ad_int8.tflite").read_bytes(), TFLITE, BY_ONNX, samples_of("ad", 1)[0])
    assert caught.value.reason == "REFERENCE_UNAVAILABLE"


def test_a_tflite_payload_is_measured_and_bounded_by_its_arena() -> None:
    inputs, golden = samples_of("kws", 2)
    payload = (ZOO / "kws/kws_int8.tflite").read_bytes()
    profile = profile_tflite(payload, inputs)
    assert [list(sample) for sample in profile.outputs] == golden
    arena = next(m for m in profile.measurements if m.metric == measurement_pb2.METRIC_ARENA_BYTES)
    assert arena.method == measurement_pb2.METHOD_SIMULATED
    assert arena.value == 24272
    assert (arena.conditions["head_bytes"], arena.conditions["pointer_bytes"]) == ("16000", "8")
    with pytest.raises(ProfilerError) as caught:
        profile_tflite(payload, inputs, 20_000)
    assert caught.value.reason == "DOES_NOT_FIT"
    assert caught.value.metadata == {"region": "arena", "need": "24272", "have": "20000"}


def test_bad_files_are_refused_and_do_not_take_the_caller_down() -> None:
    inputs, _ = samples_of("kws", 1)
    whole = (ZOO / "kws/kws_int8.tflite").read_bytes()
    for damaged in (whole[:2000], b"", bytes(64), whole[:4] + b"XXXX" + bytes(3000)):
        with pytest.raises(ProfilerError) as caught:
            profile_tflite(damaged, inputs)
        assert caught.value.reason in ("PAYLOAD_INVALID", "PAYLOAD_CRASH", "INPUT_INVALID", "OP_UNSUPPORTED")
    with pytest.raises(ProfilerError) as hybrid:
        profile_tflite((ZOO / "kws/kws_hybrid.tflite").read_bytes(), inputs)
    assert hybrid.value.reason == "PAYLOAD_INVALID"
    assert "Hybrid" in hybrid.value.metadata["log"]
    with pytest.raises(ProfilerError) as model:
        reference(b"no model", ONNX, BY_ONNX, inputs)
    assert model.value.reason == "MODEL_INVALID"
    with pytest.raises(ProfilerError) as short:
        reference((ZOO / "kws/kws_int8_qdq.onnx").read_bytes(), ONNX, BY_ONNX, [[b"short"]])
    assert short.value.reason == "INPUT_INVALID"


def int8_spec() -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(name="y", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[4], scale=0.5, zero_point=1)


def test_comparison_counts_steps_and_classes() -> None:
    got, want = [[bytes([1, 2, 3, 250])]], [[bytes([1, 2, 5, 250])]]
    fidelity = compare(got, want, [int8_spec()])
    assert (fidelity.equal, fidelity.max_lsb, fidelity.max_abs_error) == (0.75, 2, 1.0)
    assert fidelity.same_class == 1.0
    assert compare(want, want, [int8_spec()]).bit_exact


def test_a_numerics_claim_is_refuted_with_what_was_measured() -> None:
    got, want = [[bytes([1, 2, 3, 250])]], [[bytes([1, 2, 5, 250])]]
    numerics = tensor_pb2.Numerics(reference=BY_TFLITE, lsb=2, **{"class": tensor_pb2.Numerics.CLASS_WITHIN_LSB})
    assert check_numerics(numerics, got, want, [int8_spec()]).max_lsb == 2
    numerics.lsb = 1
    with pytest.raises(ProfilerError) as caught:
        check_numerics(numerics, got, want, [int8_spec()])
    assert caught.value.reason == "CLAIM_REFUTED"
    assert caught.value.metadata["claimed"] == "WITHIN_LSB(1)"
    exact = tensor_pb2.Numerics(reference=BY_TFLITE, **{"class": tensor_pb2.Numerics.CLASS_BIT_EXACT})
    with pytest.raises(ProfilerError):
        check_numerics(exact, got, want, [int8_spec()])
    with pytest.raises(ProfilerError):
        check_numerics(tensor_pb2.Numerics(), got, want, [int8_spec()])


def test_tolerance_is_absolute_plus_relative_and_nan_is_no_number() -> None:
    spec = tensor_pb2.TensorSpec(name="y", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2])
    numerics = tensor_pb2.Numerics(
        reference=BY_ONNX, rtol=0.01, atol=0.001, **{"class": tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE}
    )

    def values(*numbers: float) -> list[list[bytes]]:
        return [[np.array(numbers, dtype=np.float32).tobytes()]]

    check_numerics(numerics, values(100.9, 0.0), values(100.0, 0.0), [spec])
    for wrong in (values(101.5, 0.0), values(100.0, 0.01), values(float("nan"), 0.0)):
        with pytest.raises(ProfilerError):
            check_numerics(numerics, wrong, values(100.0, 0.0), [spec])
