"""The compiler and importer as a plugin (spec/compiler-plugin.md): maps messages, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from google.rpc import status_pb2

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_compiler_tflm import compile as core
from tinymlaas_compiler_tflm.errors import FormatUnsupported
from tinymlaas_compiler_tflm.importer import ResultFormat, SourceFormat, conversions, import_model
from tinymlaas_compiler_tflm.options import OPTION_SCHEMA
from tinymlaas_compiler_tflm.parts import Figure, Numerics, PayloadKind
from tinymlaas_compiler_tflm.target import RUNTIME, TargetSpec
from tinymlaas_modelkit.summary import ModelFormat, TensorSpec
from tinymlaas_pluginkit import (
    CompileJob,
    CompileOutput,
    Compiler,
    Importer,
    ImportJob,
    ImportOutput,
    Limits,
    Plugin,
    Reporter,
)
from tinymlaas_servicekit.errors import adapt

NAME = "io.tinymlaas.compiler-tflm"
FORMATS: Mapping[tensor_pb2.ModelFormat.ValueType, str] = {
    tensor_pb2.MODEL_FORMAT_ONNX: "onnx",
    tensor_pb2.MODEL_FORMAT_TFLITE: "tflite",
    tensor_pb2.MODEL_FORMAT_KERAS: "keras",
    tensor_pb2.MODEL_FORMAT_SAVED_MODEL: "saved-model",
}
CODES = {name: code for code, name in FORMATS.items()}
KINDS = {
    target_pb2.PAYLOAD_KIND_UNSPECIFIED: PayloadKind.TFLITE,
    target_pb2.PAYLOAD_KIND_TFLITE: PayloadKind.TFLITE,
    target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE: PayloadKind.SOURCE_PACKAGE,
}


def compile_job(job: CompileJob, report: Reporter) -> CompileOutput:
    """Compile one model for one target."""
    report.progress("reading the model and measuring its arena", 0.1)
    parts = core.compile_model(
        job.model, _model_format(job.model_format), _target(job.target), job.options, _kind(job.payload_kind)
    )
    for line in parts.log:
        report.log(line)
    result = compiler_pb2.CompileResult(
        payload_kind=getattr(target_pb2, f"PAYLOAD_KIND_{parts.kind}"),
        arena_bytes=parts.arena_bytes,
        arena_alignment=parts.arena_alignment,
        inputs=_specs(parts.inputs),
        outputs=_specs(parts.outputs),
        numerics=_numerics(parts.numerics),
        operators=sorted({operator.name for operator in parts.operators}),
        measurements=_measurements(parts.figures),
    )
    return CompileOutput(result, parts.payload)


def check_job(job: CompileJob, report: Reporter) -> compiler_pb2.CheckModelResult:
    """Tell whether the model would compile."""
    report.progress("opening the model", 0.1)
    check = core.check_model(job.model, _model_format(job.model_format), _target(job.target))
    operators = [
        compiler_pb2.OperatorSupport(
            operator=o.operator, nodes=o.nodes, count=o.count, supported=o.supported, detail=o.detail, dtype=o.dtype
        )
        for o in check.operators
    ]
    status: status_pb2.Status | None = None
    if check.error is not None:
        known = adapt(check.error)
        if known is None:
            raise check.error
        status = known.to_status()
    return compiler_pb2.CheckModelResult(
        supported=check.supported, operators=operators, estimates=_measurements(check.figures), error=status
    )


def import_job(job: ImportJob, report: Reporter) -> ImportOutput:
    """Convert one model."""
    report.progress("converting", 0.1)
    return ImportOutput(import_model(job.model, SourceFormat(FORMATS[job.source]), ResultFormat(FORMATS[job.to])))


def _model_format(code: tensor_pb2.ModelFormat.ValueType) -> ModelFormat:
    name = FORMATS.get(code, str(code))
    if name not in (ModelFormat.ONNX, ModelFormat.TFLITE):
        raise FormatUnsupported(f"{name} is not compiled", format=name)
    return ModelFormat(name)


def _kind(code: target_pb2.PayloadKind.ValueType) -> PayloadKind:
    if code not in KINDS:
        raise FormatUnsupported("this compiler makes no such payload", format=target_pb2.PayloadKind.Name(code))
    return KINDS[code]


def _target(target: target_pb2.Target) -> TargetSpec:
    return TargetSpec(
        target.cpu,
        target.isa,
        tuple(target.features),
        _free(target, target_pb2.MemoryRegion.KIND_RAM),
        _free(target, target_pb2.MemoryRegion.KIND_FLASH),
        tuple((runtime.name, tuple(runtime.operators)) for runtime in target.runtimes),
    )


def _free(target: target_pb2.Target, kind: target_pb2.MemoryRegion.Kind.ValueType) -> int:
    """Bytes of the largest region of a kind: an arena and a payload each lie in one piece."""
    regions = [r for r in target.memory_regions if r.kind == kind]
    return max((r.free_bytes if r.HasField("free_bytes") else r.total_bytes for r in regions), default=0)


def _specs(specs: Sequence[TensorSpec]) -> list[tensor_pb2.TensorSpec]:
    return [
        tensor_pb2.TensorSpec(
            name=spec.name,
            dtype=getattr(tensor_pb2, f"DATA_TYPE_{spec.dtype.upper()}"),
            shape=spec.shape,
            scale=spec.scale or 0.0,
            zero_point=spec.zero_point or 0,
        )
        for spec in specs
    ]


def _numerics(numerics: Numerics) -> tensor_pb2.Numerics:
    message = tensor_pb2.Numerics(
        reference=tensor_pb2.REFERENCE_TFLITE, rtol=numerics.relative, atol=numerics.absolute, lsb=numerics.lsb
    )
    setattr(message, "class", getattr(tensor_pb2.Numerics, f"CLASS_{numerics.kind}"))
    return message


def _measurements(figures: Sequence[Figure]) -> list[measurement_pb2.Measurement]:
    return [
        measurement_pb2.Measurement(
            metric=getattr(measurement_pb2, f"METRIC_{figure.metric}"),
            value=figure.value,
            unit=figure.unit,
            method=getattr(measurement_pb2, f"METHOD_{figure.method}"),
            tool="tinymlaas-compiler-tflm",
            tool_version=version("tinymlaas-compiler-tflm"),
            conditions=dict(figure.conditions),
        )
        for figure in figures
    ]


def plugin() -> Plugin:
    """The plugin with its identity, roles and limits."""
    interpreted = target_pb2.TargetConstraint(payload_kind=target_pb2.PAYLOAD_KIND_TFLITE, runtime=RUNTIME)
    source = target_pb2.TargetConstraint(payload_kind=target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE)
    return Plugin(
        NAME,
        version("tinymlaas-compiler-tflm"),
        display_name="TensorFlow Lite Micro",
        licence="Apache-2.0",
        compiler=Compiler(
            compile="tinymlaas_compiler_tflm.plugin:compile_job",
            check="tinymlaas_compiler_tflm.plugin:check_job",
            targets=[interpreted, source],
            model_formats=[tensor_pb2.MODEL_FORMAT_ONNX, tensor_pb2.MODEL_FORMAT_TFLITE],
            option_schema=OPTION_SCHEMA,
        ),
        importer=Importer(
            convert="tinymlaas_compiler_tflm.plugin:import_job",
            conversions=[(CODES[source], CODES[result]) for source, result in conversions()],
        ),
        limits=Limits(max_model_bytes=64 << 20, max_concurrency=2, max_seconds=300, memory_bytes=12 << 30),
    )
