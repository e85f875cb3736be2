"""compiler-tvm as a plugin: role Compiler of the plugin contract (spec/compiler-plugin.md)."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

from tinymlaas.module.v1 import certificate_pb2
from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_compiler_tvm import OPTION_SCHEMA, DoesNotFit, TargetSpec, check_model, compile_model
from tinymlaas_compiler_tvm.parts import (
    CompiledParts,
    MemoryCertificate,
    ModelCheck,
    Numerics,
    Range,
    TensorDescription,
)
from tinymlaas_compiler_tvm.tune import Progress
from tinymlaas_pluginkit import CompileJob, CompileOutput, Compiler, Limits, Plugin, Reporter

NAME = "io.tinymlaas.compiler-tvm"
LOADER_ABI = 1
MAX_NODE_NAMES = 16
# Of an inference module beside payload, certificate and golden vector: header, section table, tensors, signature, padding.
MODULE_BYTES = 640
ISAS = ("armv6-m", "armv7-m", "armv7e-m", "armv8-m.main", "armv8.1-m.main", "rv32imc")
_CLASSES = {
    Numerics.BIT_EXACT: tensor_pb2.Numerics.CLASS_BIT_EXACT,
    Numerics.WITHIN_LSB: tensor_pb2.Numerics.CLASS_WITHIN_LSB,
    Numerics.WITHIN_TOLERANCE: tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE,
}
_REFERENCES = {"tflite": tensor_pb2.REFERENCE_TFLITE, "onnx": tensor_pb2.REFERENCE_ONNX}


def compile(job: CompileJob, report: Reporter) -> CompileOutput:
    """Compile a model for a target."""
    report.progress("compiling", 0.0)
    parts = compile_to_fit(job, report.progress)
    for line in parts.log:
        report.log(line)
    report.progress("done", 1.0)
    return CompileOutput(_result(parts, job.target), parts.payload)


def compile_to_fit(job: CompileJob, progress: Progress | None = None) -> CompiledParts:
    """The module by the objective of the options; where that is `balanced` and flash is short, by the objective `flash`."""
    target = target_spec(job.target)
    balanced = job.options.get("objective", "balanced") == "balanced"
    try:
        parts = compile_model(job.model, target, job.options, progress=progress)
    except DoesNotFit as error:
        if not balanced or error.metadata.get("region") != "flash":
            raise
        need = error.metadata["need"]
    else:
        need = str(_image_bytes(parts))
        # For a float model the objective changes nothing.
        fits = not target.flash_bytes or int(need) <= target.flash_bytes
        if fits or not balanced or parts.numerics.kind is Numerics.WITHIN_TOLERANCE:
            return parts
    smaller = compile_model(job.model, target, {**job.options, "objective": "flash"}, progress=progress)
    line = f"objective flash, since {need} B by objective balanced are too many for {target.flash_bytes} B of flash"
    return dataclasses.replace(smaller, log=(line, *smaller.log))


def _image_bytes(parts: CompiledParts) -> int:
    """About what a module of these parts takes on a device: payload, certificate, a golden vector, and the format's tables."""
    golden = sum(tensor.bytes for tensor in (*parts.inputs, *parts.outputs))
    certificate: int = certificate_message(parts).ByteSize()
    return len(parts.payload) + certificate + golden + MODULE_BYTES


def check(job: CompileJob, report: Reporter) -> compiler_pb2.CheckModelResult:
    """Tell per operator whether the model would compile, and what it would need.

    An integer model is compiled in less than a second, so its figures are those of the linked image; for a float model they
    are estimates.
    """
    spec = target_spec(job.target)
    verdict = check_model(job.model, spec)
    result = compiler_pb2.CheckModelResult(supported=verdict.supported, operators=_operators(verdict))
    if verdict.supported and any(node.dtype == "int8" for node in verdict.nodes):
        result.estimates.extend(_figures(compile_to_fit(job)))
    elif verdict.estimates is not None:
        estimated = measurement_pb2.METHOD_ESTIMATED
        figures = verdict.estimates
        result.estimates.extend(
            [
                _measurement(measurement_pb2.METRIC_FLASH_BYTES, figures.flash_bytes, estimated),
                _measurement(measurement_pb2.METRIC_ARENA_BYTES, figures.arena_bytes, estimated),
                _measurement(measurement_pb2.METRIC_STACK_BYTES, figures.stack_bytes, estimated),
            ]
        )
    return result


def _operators(verdict: ModelCheck) -> list[compiler_pb2.OperatorSupport]:
    found: dict[tuple[str, bool, str], compiler_pb2.OperatorSupport] = {}
    for node in verdict.nodes:
        support = found.setdefault(
            (node.operator, node.supported, node.detail),
            compiler_pb2.OperatorSupport(
                operator=node.operator, supported=node.supported, detail=node.detail, dtype=node.dtype
            ),
        )
        support.count += 1
        if len(support.nodes) < MAX_NODE_NAMES:
            support.nodes.append(node.node)
    return list(found.values())


def target_spec(target: target_pb2.Target) -> TargetSpec:
    """The contract's target as this compiler sees it: the largest RAM and flash region, free where that is known."""

    def largest(kind: target_pb2.MemoryRegion.Kind.ValueType) -> int:
        regions = [region for region in target.memory_regions if region.kind == kind]
        sizes = [region.free_bytes if region.HasField("free_bytes") else region.total_bytes for region in regions]
        return max(sizes, default=0)

    return TargetSpec(
        cpu=target.cpu,
        isa=target.isa,
        features=tuple(target.features),
        ram_bytes=largest(target_pb2.MemoryRegion.KIND_RAM),
        flash_bytes=largest(target_pb2.MemoryRegion.KIND_FLASH),
    )


def plugin() -> Plugin:
    """The plugin with its identity, role and limits."""
    return Plugin(
        NAME,
        f"{version('tinymlaas-compiler-tvm')}+tvm{version('apache-tvm')}.zig{version('ziglang')}",
        display_name="Native code by Apache TVM, LLVM and generated integer kernels",
        licence="Apache-2.0",
        compiler=Compiler(
            compile="tinymlaas_compiler_tvm.plugin:compile",
            check="tinymlaas_compiler_tvm.plugin:check",
            targets=[
                target_pb2.TargetConstraint(
                    isas=[isa], payload_kind=target_pb2.PAYLOAD_KIND_NATIVE, loader_abi=LOADER_ABI
                )
                for isa in ISAS
            ],
            model_formats=(tensor_pb2.MODEL_FORMAT_ONNX,),
            option_schema=OPTION_SCHEMA,
        ),
        limits=Limits(max_model_bytes=32 * 1024 * 1024, max_concurrency=2, max_seconds=600),
    )


def _result(parts: CompiledParts, target: target_pb2.Target) -> compiler_pb2.CompileResult:
    operators = {step.symbol: step.operator for step in parts.certificate.steps}
    return compiler_pb2.CompileResult(
        payload_kind=target_pb2.PAYLOAD_KIND_NATIVE,
        isa=target.isa,
        required_features=target.features,
        loader_abi=LOADER_ABI,
        entry_offset=parts.entry_offset,
        arena_bytes=parts.arena_bytes,
        arena_alignment=parts.arena_alignment,
        stack_bytes=parts.stack_bytes,
        inputs=[_tensor(tensor) for tensor in parts.inputs],
        outputs=[_tensor(tensor) for tensor in parts.outputs],
        numerics=tensor_pb2.Numerics(
            reference=_REFERENCES[parts.numerics.reference],
            lsb=parts.numerics.lsb,
            rtol=parts.numerics.relative,
            atol=parts.numerics.absolute,
            **{"class": _CLASSES[parts.numerics.kind]},
        ),
        operators=[operator.operator for operator in parts.operators],
        certificate=certificate_message(parts),
        symbols=[
            compiler_pb2.SymbolRange(
                symbol=symbol.symbol,
                offset=symbol.offset,
                bytes=symbol.bytes,
                node="+".join(node for node in symbol.nodes if node),
                operator=operators.get(symbol.symbol, symbol.kind),
            )
            for symbol in parts.symbols
        ],
        measurements=_figures(parts),
    )


def _figures(parts: CompiledParts) -> list[measurement_pb2.Measurement]:
    linked = measurement_pb2.METHOD_LINKED
    return [
        _measurement(measurement_pb2.METRIC_FLASH_BYTES, len(parts.payload), linked),
        _measurement(measurement_pb2.METRIC_ARENA_BYTES, parts.arena_bytes, linked),
        _measurement(measurement_pb2.METRIC_STACK_BYTES, parts.stack_bytes, linked, bound="upper"),
    ]


def certificate_message(parts: CompiledParts) -> certificate_pb2.MemoryCertificate:
    """The memory certificate in the contract's form: buffers by name, accesses relative to them.

    Names are short (`t`ensor, `w`orkspace, and a number), since devices keep the certificate in flash, and each access repeats
    one; the model's own names can be some hundred bytes long.
    """
    evidence = parts.certificate
    names = [f"{buffer.kind[0]}{index}" for index, buffer in enumerate(evidence.buffers)]
    inputs = {tensor.offset for tensor in parts.inputs}
    outputs = {tensor.offset for tensor in parts.outputs}
    last = len(evidence.steps) - 1
    message = certificate_pb2.MemoryCertificate(
        sections=[
            certificate_pb2.MemoryCertificate.Section(name=".text", offset=0, bytes=evidence.code_bytes),
            certificate_pb2.MemoryCertificate.Section(
                name=".rodata", offset=evidence.code_bytes, bytes=evidence.payload_bytes - evidence.code_bytes
            ),
        ],
        arena_bytes=evidence.arena_bytes,
        arena_alignment=parts.arena_alignment,
        stack_bytes=evidence.stack_bytes,
        stack_method="stack-usage, deepest path of the call graph",
        frames=[
            certificate_pb2.MemoryCertificate.Frame(function=name, bytes=size, calls=evidence.stack_calls.get(name, ()))
            for name, size in evidence.stack_frames.items()
        ],
        entry_function=evidence.stack_chain[0],
    )
    kinds = certificate_pb2.MemoryCertificate.Buffer
    for name, buffer in zip(names, evidence.buffers, strict=True):
        kind = kinds.KIND_WORKSPACE if buffer.kind == "workspace" else kinds.KIND_TENSOR
        if kind == kinds.KIND_TENSOR and buffer.first == 0 and buffer.offset in inputs:
            kind = kinds.KIND_INPUT
        elif kind == kinds.KIND_TENSOR and buffer.last == last and buffer.offset in outputs:
            kind = kinds.KIND_OUTPUT
        message.buffers.add(
            name=name,
            offset=buffer.offset,
            bytes=buffer.bytes,
            first_step=buffer.first,
            last_step=buffer.last,
            kind=kind,
        )
    for step in evidence.steps:
        message.steps.add(
            name=step.symbol,
            reads=[_access(evidence, names, step.index, touched) for touched in step.reads],
            writes=[_access(evidence, names, step.index, touched) for touched in step.writes],
        )
    return message


def _access(
    evidence: MemoryCertificate, names: list[str], step: int, touched: Range
) -> certificate_pb2.MemoryCertificate.Access:
    for name, buffer in zip(names, evidence.buffers, strict=True):
        inside = buffer.offset <= touched.offset and touched.offset + touched.bytes <= buffer.offset + buffer.bytes
        if inside and buffer.first <= step <= buffer.last:
            offset = touched.offset - buffer.offset
            return certificate_pb2.MemoryCertificate.Access(buffer=name, offset=offset, bytes=touched.bytes)
    raise AssertionError(f"step {step} touches {touched}, which no live buffer holds")


def _tensor(tensor: TensorDescription) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(
        name=tensor.name,
        dtype=tensor_pb2.DataType.Value(f"DATA_TYPE_{tensor.dtype.upper()}"),
        shape=tensor.shape,
        scale=tensor.scale,
        zero_point=tensor.zero_point,
        arena_offset=tensor.offset,
    )


def _measurement(
    metric: measurement_pb2.Metric.ValueType, value: float, method: measurement_pb2.Method.ValueType, **conditions: str
) -> measurement_pb2.Measurement:
    return measurement_pb2.Measurement(
        metric=metric,
        value=value,
        unit="B",
        method=method,
        tool=NAME,
        tool_version=version("tinymlaas-compiler-tvm"),
        conditions=conditions,
    )
