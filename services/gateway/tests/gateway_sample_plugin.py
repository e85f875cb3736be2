"""A plugin for the gateway's tests: every role for a toy runtime, with faults on request.

Run as a program; TINYMLAAS_SAMPLE_NAME, _ROLES ("compiler,profiler,importer,optimizer") and _MODE say who it is and how
it fails.
The toy runtime's only operation: each output element is an input element plus the model's first byte, modulo 256.
"""

from __future__ import annotations

import os
import time

import numpy as np

from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.type.v1 import measurement_pb2 as m
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_pluginkit import (
    CompileJob,
    CompileOutput,
    Compiler,
    Importer,
    ImportJob,
    ImportOutput,
    Limits,
    OptimizeJob,
    OptimizeOutput,
    Optimizer,
    OpUnsupported,
    Plugin,
    ProfileJob,
    ProfileOutput,
    Profiler,
    ReferenceJob,
    ReferenceOutput,
    Reporter,
)
from tinymlaas_servicekit import FailedPrecondition

MODE = os.environ.get("TINYMLAAS_SAMPLE_MODE", "honest")
NAME = os.environ.get("TINYMLAAS_SAMPLE_NAME", "io.example.sample")
ROLES = os.environ.get("TINYMLAAS_SAMPLE_ROLES", "compiler,profiler,importer").split(",")
ARENA = int(os.environ.get("TINYMLAAS_SAMPLE_ARENA", "4096"))
SECONDS = float(os.environ.get("TINYMLAAS_SAMPLE_SECONDS", "0"))
COUNTER = os.environ.get("TINYMLAAS_SAMPLE_COUNTER", "")
GATE = os.environ.get("TINYMLAAS_SAMPLE_GATE", "")
ELEMENTS = 16


def _spec(name: str) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(
        name=name, dtype=tensor_pb2.DATA_TYPE_INT8, shape=[1, ELEMENTS], scale=0.5, zero_point=0
    )


def _count(what: str) -> None:
    """Appends to the counter file, one line a call, so that tests see how often work was really done."""
    if COUNTER:
        with open(COUNTER, "a", encoding="utf-8") as file:
            file.write(f"{NAME} {what}\n")


def _run(first: int, inputs: profiler_pb2.InputSet, offset: int = 0) -> profiler_pb2.InputSet:
    outputs = profiler_pb2.InputSet()
    for sample in inputs.samples:
        values = np.frombuffer(sample.tensors[0], dtype=np.uint8).astype(np.int64)
        outputs.samples.add().tensors.append(((values + first + offset) % 256).astype(np.uint8).tobytes())
    return outputs


def _wait(reporter: Reporter, step: str) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        reporter.progress(step)
        time.sleep(0.05)


def check(job: CompileJob, reporter: Reporter) -> compiler_pb2.CheckModelResult:
    """CheckModel."""
    _count("check")
    if MODE == "rejects":
        unsupported = compiler_pb2.OperatorSupport(operator="GELU", nodes=["n1"], count=3, detail="no such kernel")
        result = compiler_pb2.CheckModelResult(supported=False, operators=[unsupported])
        result.error.CopyFrom(OpUnsupported("GELU", "n1", "int8", 3).to_status())
        return result
    estimate = m.Measurement(
        metric=m.METRIC_ARENA_BYTES,
        value=ARENA,
        unit="B",
        method=m.METHOD_ESTIMATED,
        tool="sample",
        tool_version="1",
    )
    return compiler_pb2.CheckModelResult(
        supported=True,
        operators=[compiler_pb2.OperatorSupport(operator="ADD", count=1, supported=True)],
        estimates=[estimate],
    )


def compile_model(job: CompileJob, reporter: Reporter) -> CompileOutput:
    """Compile."""
    _count("compile")
    reporter.progress("translate", 0.5)
    _wait(reporter, "translate")
    if GATE:
        _count(f"compiles {job.model[1:].decode()}")
        while not os.path.exists(GATE):
            reporter.progress("waits for the gate")
            time.sleep(0.05)
    if MODE == "crashes":
        os._exit(11)
    if MODE == "hangs":
        time.sleep(3600)
    if MODE == "floods":
        for index in range(1_000_000):
            reporter.log(f"line {index} " + "x" * 4000)
    payload = b"TOY1" + job.model[:1] * (1024 if MODE != "small" else 512)
    result = compiler_pb2.CompileResult(
        payload_kind=target_pb2.PAYLOAD_KIND_TFLITE,
        arena_bytes=ARENA if MODE != "lies-arena" else 16,
        arena_alignment=16,
        stack_bytes=256,
        inputs=[_spec("input")],
        outputs=[_spec("output")],
        operators=["ADD"],
    )
    setattr(result.numerics, "class", tensor_pb2.Numerics.CLASS_BIT_EXACT)
    result.numerics.reference = tensor_pb2.REFERENCE_TFLITE
    if MODE == "lies-numerics":
        payload = b"TOY1" + bytes([(job.model[0] + 7) % 256]) * 1024
    if MODE == "lies-certificate":
        result.certificate.sections.add(name="payload", offset=0, bytes=len(payload) // 2)
        result.certificate.arena_bytes, result.certificate.arena_alignment = ARENA, 16
        result.certificate.stack_bytes, result.certificate.stack_method = 256, "runtime"
    if MODE == "garbage":
        result.ClearField("outputs")
    return CompileOutput(result, payload)


def convert(job: ImportJob, reporter: Reporter) -> ImportOutput:
    """Import."""
    _count("import")
    return ImportOutput(job.model[:1] + b"converted" + job.model)


def optimize(job: OptimizeJob, reporter: Reporter) -> OptimizeOutput:
    """Optimize: a marker behind the model's first byte; a model that has one is refused."""
    _count("optimize")
    _wait(reporter, "calibrate")
    if job.model[1:2] == b"q":
        raise FailedPrecondition(
            "the model is quantized already", "MODEL_NOT_FLOAT", help="Send the float model that it was made of."
        )
    assert job.calibration, "the gateway sends the samples"
    sizes = [_measurement(m.METRIC_WEIGHT_BYTES, value, "B") for value in (len(job.model), len(job.model) + 1)]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    if MODE == "script":
        svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    return OptimizeOutput(
        job.model[:1] + b"q" + job.model[1:],
        job.model_format,
        sizes[:1],
        sizes[1:],
        recipe=b'{"version": 1}',
        report=b'{"results": []}',
        picture=svg,
    )


def _measurement(metric: m.Metric.ValueType, value: float, unit: str) -> m.Measurement:
    return m.Measurement(
        metric=metric, value=value, unit=unit, method=m.METHOD_SIMULATED, tool="sample-profiler", tool_version="1"
    )


def profile(job: ProfileJob, reporter: Reporter) -> ProfileOutput:
    """Profile."""
    _count("profile")
    _wait(reporter, "run")
    return ProfileOutput(
        measurements=[
            _measurement(m.METRIC_ARENA_BYTES, min(ARENA, 4000), "B"),
            _measurement(m.METRIC_STACK_BYTES, 128, "B"),
            _measurement(m.METRIC_INSTRUCTIONS, 1000 + len(job.payload), "instructions"),
        ],
        operators=[m.OperatorProfile(node="n0", operator="ADD", instructions=1000)],
        outputs=_run(job.payload[4], job.inputs),
    )


def reference(job: ReferenceJob, reporter: Reporter) -> ReferenceOutput:
    """RunReference."""
    _count("reference")
    return ReferenceOutput(
        outputs=_run(job.model[0], job.inputs), input_specs=[_spec("input")], output_specs=[_spec("output")]
    )


CONSTRAINT = target_pb2.TargetConstraint(
    payload_kind=target_pb2.PAYLOAD_KIND_TFLITE, runtime="tflite-micro", min_ram_bytes=1024
)


OPTIMIZER_SCHEMA = {"type": "object", "additionalProperties": False, "properties": {"per_channel": {"type": "boolean"}}}


def plugin() -> Plugin:
    """The plugin as its environment says."""
    conversion = (tensor_pb2.MODEL_FORMAT_ONNX, tensor_pb2.MODEL_FORMAT_TFLITE)
    return Plugin(
        NAME,
        os.environ.get("TINYMLAAS_SAMPLE_VERSION", "1.0"),
        compiler=Compiler(
            targets=[CONSTRAINT], model_formats=[tensor_pb2.MODEL_FORMAT_TFLITE], check=check, compile=compile_model
        )
        if "compiler" in ROLES
        else None,
        importer=Importer(conversions=[conversion], convert=convert) if "importer" in ROLES else None,
        optimizer=Optimizer(optimize=optimize, option_schema=OPTIMIZER_SCHEMA) if "optimizer" in ROLES else None,
        profiler=Profiler(
            targets=[CONSTRAINT], references=[tensor_pb2.REFERENCE_TFLITE], profile=profile, reference=reference
        )
        if "profiler" in ROLES
        else None,
        limits=Limits(max_model_bytes=1 << 20, max_concurrency=2, max_seconds=120, memory_bytes=0),
    )


if __name__ == "__main__":
    plugin().main()
