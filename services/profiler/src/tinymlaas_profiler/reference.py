"""Run models and TFLite payloads with the named reference executors, in child processes."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_profiler.errors import ProfilerError
from tinymlaas_profiler.measurements import measure, sha256
from tinymlaas_profiler.native import MAX_SAMPLES, Profile
from tinymlaas_profiler.tensors import Sample, grouped, spec_from_json
from tinymlaas_profiler.worker import JobResult, Limits, run_job


@dataclass(frozen=True)
class ReferenceRun:
    """Outputs of a reference executor, with the tensor specs that it sees and its name and version."""

    inputs: tuple[tensor_pb2.TensorSpec, ...]
    outputs: tuple[tensor_pb2.TensorSpec, ...]
    values: tuple[tuple[bytes, ...], ...]
    executor: str


def reference(
    model: bytes,
    model_format: "tensor_pb2.ModelFormat.ValueType",
    executor: "tensor_pb2.Reference.ValueType",
    samples: Sequence[Sample],
    *,
    limits: Limits | None = None,
) -> ReferenceRun:
    """Run a model with a reference executor: `onnx` is ONNX Runtime, `tflite` the TFLite Micro interpreter.

    An ONNX model is converted for the `tflite` executor (quantization kept exactly); a TFLite model cannot be run by
    `onnx`. Raises ProfilerError: REFERENCE_UNAVAILABLE, MODEL_INVALID, OP_UNSUPPORTED, INPUT_INVALID, LIMIT_EXCEEDED,
    DEADLINE_EXCEEDED, WORKER_CRASH.
    """
    _check_count(samples)
    limits = limits or Limits()
    tensors = [tensor for sample in samples for tensor in sample]
    if executor == tensor_pb2.REFERENCE_ONNX:
        if model_format != tensor_pb2.MODEL_FORMAT_ONNX:
            raise ProfilerError("REFERENCE_UNAVAILABLE", "the executor onnx runs ONNX models only")
        result = run_job("onnx", {}, [model, *tensors], limits=limits)
        return _run(result, len(samples), "onnxruntime " + importlib.metadata.version("onnxruntime"))
    if executor != tensor_pb2.REFERENCE_TFLITE:
        raise ProfilerError("REFERENCE_UNAVAILABLE", f"no executor has the number {executor}")
    if model_format == tensor_pb2.MODEL_FORMAT_ONNX:
        model = run_job("convert", {}, [model], limits=limits).blobs[0]
    elif model_format != tensor_pb2.MODEL_FORMAT_TFLITE:
        raise ProfilerError("REFERENCE_UNAVAILABLE", "the executor tflite runs TFLite and ONNX models")
    result = run_job("tflite", {"arena_bytes": 0}, [model, *tensors], limits=limits)
    return _run(result, len(samples), _interpreter())


def profile_tflite(
    payload: bytes, samples: Sequence[Sample], arena_bytes: int = 0, *, limits: Limits | None = None
) -> Profile:
    """Run a TFLite payload with the TFLite Micro interpreter in a child process.

    `arena_bytes` (bytes of a 64-bit host) bounds the arena, 0 lets it grow. Raises ProfilerError: OP_UNSUPPORTED,
    DOES_NOT_FIT (region arena), PAYLOAD_INVALID, PAYLOAD_CRASH, INPUT_INVALID, LIMIT_EXCEEDED, DEADLINE_EXCEEDED.
    """
    _check_count(samples)
    tensors = [tensor for sample in samples for tensor in sample]
    result = run_job(
        "tflite",
        {"arena_bytes": arena_bytes},
        [payload, *tensors],
        limits=limits or Limits(),
        crash_reason="PAYLOAD_CRASH",
    )
    run = _run(result, len(samples), _interpreter())
    subjects = [sha256(payload), sha256(b"".join(tensors))]
    conditions = {
        "runtime": run.executor,
        "pointer_bytes": str(result.report["pointer_bytes"]),
        "head_bytes": str(result.report["arena_head"]),
        "tail_bytes": str(result.report["arena_tail"]),
        "meaning": "arena of the interpreter on this host; the tail is smaller with 32-bit pointers",
    }
    measurements = (
        measure(
            measurement_pb2.METRIC_ARENA_BYTES,
            int(result.report["arena_total"]),
            measurement_pb2.METHOD_SIMULATED,
            subjects=subjects,
            conditions=conditions,
        ),
        measure(
            measurement_pb2.METRIC_FLASH_BYTES,
            len(payload),
            measurement_pb2.METHOD_LINKED,
            subjects=subjects[:1],
            conditions={"part": "payload", "runtime": "not included"},
        ),
    )
    return Profile(measurements, (), run.values)


def _interpreter() -> str:
    return "tflite-micro " + importlib.metadata.version("tflite-micro")


def _check_count(samples: Sequence[Sample]) -> None:
    if not 1 <= len(samples) <= MAX_SAMPLES:
        raise ProfilerError(
            "LIMIT_EXCEEDED",
            f"{len(samples)} samples; 1 to {MAX_SAMPLES} are served",
            metadata={"limit": "samples", "value": str(MAX_SAMPLES)},
        )


def _run(result: JobResult, samples: int, executor: str) -> ReferenceRun:
    outputs = tuple(spec_from_json(value) for value in result.report["outputs"])
    values = grouped(result.blobs, len(outputs)) if outputs else []
    if len(values) != samples:
        raise ProfilerError("WORKER_CRASH", f"{len(values)} results for {samples} samples")
    return ReferenceRun(
        inputs=tuple(spec_from_json(value) for value in result.report["inputs"]),
        outputs=outputs,
        values=tuple(tuple(sample) for sample in values),
        executor=executor,
    )
