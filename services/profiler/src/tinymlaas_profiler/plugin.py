"""The profiler as a plugin: role Profiler of the plugin contract (spec/compiler-plugin.md)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from tinymlaas.plugin.v1 import profiler_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_pluginkit import (
    Limits,
    Plugin,
    ProfileJob,
    ProfileOutput,
    Profiler,
    ReferenceJob,
    ReferenceOutput,
    Reporter,
)
from tinymlaas_profiler.native import Profile, profile_native, simulated_cpus
from tinymlaas_profiler.reference import profile_tflite, reference
from tinymlaas_profiler.tensors import Sample


def profile(job: ProfileJob, report: Reporter) -> ProfileOutput:
    """Run a payload on its simulated CPU, or with the TFLite Micro interpreter, for every input."""
    samples = _samples(job.inputs)
    report.progress(f"running {len(samples)} inputs", 0.0)
    seen: Profile
    if job.parts.payload_kind == target_pb2.PAYLOAD_KIND_TFLITE:
        seen = profile_tflite(job.payload, samples)
    else:
        seen = profile_native(job.parts, job.payload, job.target, samples)
    report.progress("done", 1.0)
    return ProfileOutput(_input_set(seen.outputs), seen.measurements, seen.operators)


def run_reference(job: ReferenceJob, report: Reporter) -> ReferenceOutput:
    """Run a model with a reference executor for every input."""
    samples = _samples(job.inputs)
    report.progress(f"running {len(samples)} inputs", 0.0)
    run = reference(job.model, job.model_format, job.reference, samples)
    report.progress("done", 1.0)
    return ReferenceOutput(_input_set(run.values), _named(run.inputs, "input"), _named(run.outputs, "output"))


def targets() -> list[target_pb2.TargetConstraint]:
    """What can be run: native payloads for each simulated instruction set, and TFLite payloads for any target."""
    isas = sorted({cpu.isa for cpu in simulated_cpus().values()})
    native = [
        target_pb2.TargetConstraint(isas=[isa], payload_kind=target_pb2.PAYLOAD_KIND_NATIVE, loader_abi=1)
        for isa in isas
    ]
    interpreted = target_pb2.TargetConstraint(payload_kind=target_pb2.PAYLOAD_KIND_TFLITE, runtime="tflite-micro")
    return [*native, interpreted]


def plugin() -> Plugin:
    """The plugin with its identity, role and limits."""
    return Plugin(
        "io.tinymlaas.profiler",
        version("tinymlaas-profiler"),
        display_name="Simulated microcontrollers and reference executors",
        licence="Apache-2.0",
        profiler=Profiler(
            profile="tinymlaas_profiler.plugin:profile",
            targets=targets(),
            reference="tinymlaas_profiler.plugin:run_reference",
            references=(tensor_pb2.REFERENCE_ONNX, tensor_pb2.REFERENCE_TFLITE),
        ),
        limits=Limits(max_model_bytes=64 * 1024 * 1024, max_concurrency=4, max_seconds=300),
    )


def _samples(inputs: profiler_pb2.InputSet) -> list[Sample]:
    return [list(sample.tensors) for sample in inputs.samples]


def _named(specs: Sequence[tensor_pb2.TensorSpec], kind: str) -> list[tensor_pb2.TensorSpec]:
    """Specs with names where the executor has none: TFLite Micro's interpreter knows tensors by position only."""
    named = []
    for index, spec in enumerate(specs):
        copy = tensor_pb2.TensorSpec()
        copy.CopyFrom(spec)
        copy.name = spec.name or f"{kind}_{index}"
        named.append(copy)
    return named


def _input_set(values: tuple[tuple[bytes, ...], ...]) -> profiler_pb2.InputSet:
    return profiler_pb2.InputSet(samples=[tensor_pb2.TensorValues(tensors=sample) for sample in values])
