"""A small plugin of all roles whose faults the options choose. Started by the tests as a program of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tinymlaas.module.v1 import certificate_pb2
from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_pluginkit import (
    CompileJob,
    CompileOutput,
    Compiler,
    Importer,
    ImportJob,
    ImportOutput,
    Limits,
    ModelInvalid,
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

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "level": {"type": "integer", "minimum": 0, "maximum": 3, "default": 1},
        "fault": {"type": "string", "default": ""},
        "marker": {"type": "string", "default": ""},
    },
}


def _fault(name: str, report: Reporter, marker: str) -> None:
    match name:
        case "crash":
            print("about to fall", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "tell-pid":
            Path(marker).write_text(str(os.getpid()))
        case "exit":
            os._exit(7)
        case "exception":
            raise RuntimeError("secret place /etc/x")
        case "hang":
            report.progress("hang", 0.5)
            Path(marker).write_text(str(os.getpid()))
            while True:
                time.sleep(0.05)
        case "child":
            if os.fork() == 0:
                Path(marker).write_text(str(os.getpid()))
                while True:
                    time.sleep(0.05)
            while True:
                time.sleep(0.05)
        case "chatter":
            for index in range(7000):
                print(f"line {index}")
        case "memory":
            bytearray(8 << 30)
        case "garbage":
            # Whatever descriptor is the socket to the server.
            for descriptor in range(3, 256):
                try:
                    os.write(descriptor, b"\xff" * 64)
                except OSError:
                    continue
        case "quiet":
            time.sleep(0.4)
        case "wrong-type":
            pass


def compile_model(job: CompileJob, report: Reporter) -> CompileOutput:
    """A payload that says what it was made from."""
    if job.model.startswith(b"BAD"):
        raise ModelInvalid("starts with BAD", "byte 0")
    report.progress("think", 0.25)
    report.log("one\x1b[31m\ntwo", "warning")
    _fault(job.options["fault"], report, job.options["marker"])
    if job.options["fault"] == "wrong-type":
        return "nonsense"  # type: ignore[return-value]
    payload = b"%d:" % job.options["level"] + job.model
    tensor = tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[1, 4])
    result = compiler_pb2.CompileResult(
        payload_kind=target_pb2.PAYLOAD_KIND_NATIVE,
        isa=job.target.isa,
        loader_abi=1,
        arena_bytes=64,
        arena_alignment=16,
        stack_bytes=32,
        inputs=[tensor],
        outputs=[tensor],
        certificate=certificate_pb2.MemoryCertificate(arena_bytes=64, stack_bytes=32),
    )
    result.numerics.CopyFrom(
        tensor_pb2.Numerics(**{"class": tensor_pb2.Numerics.CLASS_BIT_EXACT, "reference": tensor_pb2.REFERENCE_ONNX})
    )
    return CompileOutput(result, payload, report=b"a report")


def check_model(job: CompileJob, report: Reporter) -> compiler_pb2.CheckModelResult:
    """Everything is supported but models that begin with GELU."""
    if job.model.startswith(b"GELU"):
        raise OpUnsupported("Gelu", "n0", "float32", 2)
    return compiler_pb2.CheckModelResult(supported=True)


def convert(job: ImportJob, report: Reporter) -> ImportOutput:
    """Turns the model around."""
    return ImportOutput(job.model[::-1])


def optimize(job: OptimizeJob, report: Reporter) -> OptimizeOutput:
    """Appends the calibration data."""
    return OptimizeOutput(job.model + (job.calibration or b""), job.model_format)


def profile(job: ProfileJob, report: Reporter) -> ProfileOutput:
    """Answers the inputs."""
    return ProfileOutput(outputs=job.inputs)


def reference(job: ReferenceJob, report: Reporter) -> ReferenceOutput:
    """Answers the inputs."""
    return ReferenceOutput(outputs=job.inputs)


def slow_start() -> None:
    """Loads until the file that the environment names is there."""
    gate = os.environ.get("SAMPLE_GATE")
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    if os.environ.get("SAMPLE_BROKEN"):
        raise ImportError("no such framework")


TARGET = target_pb2.TargetConstraint(isas=["armv7e-m"], payload_kind=target_pb2.PAYLOAD_KIND_NATIVE, loader_abi=1)

plugin = Plugin(
    "io.example.sample",
    "1.2.3",
    compiler=Compiler(compile_model, check_model, [TARGET], [tensor_pb2.MODEL_FORMAT_ONNX], SCHEMA),
    importer=Importer(convert, [(tensor_pb2.MODEL_FORMAT_TFLITE, tensor_pb2.MODEL_FORMAT_ONNX)]),
    optimizer=Optimizer(optimize),
    profiler=Profiler(profile, [TARGET], reference, [tensor_pb2.REFERENCE_ONNX]),
    limits=Limits(
        max_model_bytes=4 << 20,
        max_concurrency=int(os.environ.get("SAMPLE_CONCURRENCY", "1")),
        max_seconds=int(os.environ.get("SAMPLE_SECONDS", "600")),
    ),
    warm=[slow_start],
    capabilities=["x.some.hint"],
)

if __name__ == "__main__":
    sys.exit(plugin.main())
