"""compiler-tvm as a plugin: role Compiler of the plugin contract (spec/compiler-plugin.md)."""

from __future__ import annotations

from importlib.metadata import version

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_compiler_tvm import OPTION_SCHEMA, check_model
from tinymlaas_compiler_tvm.fitting import Fitted, compile_to_fit, target_spec
from tinymlaas_compiler_tvm.parts import (
    CompiledParts,
    ModelCheck,
    Numerics,
    TensorDescription,
)
from tinymlaas_pluginkit import CompileJob, CompileOutput, Compiler, Limits, Plugin, Reporter

NAME = "io.tinymlaas.compiler-tvm"
LOADER_ABI = 1
MAX_NODE_NAMES = 16
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
    made = compile_to_fit(job, report.progress)
    for line in made.parts.log:
        report.log(line)
    report.progress("done", 1.0)
    return CompileOutput(_result(made, job.target), made.parts.payload)


def check(job: CompileJob, report: Reporter) -> compiler_pb2.CheckModelResult:
    """Tell per operator whether the model would compile, and what it would need.

    An integer model is compiled in less than a second, so its figures are those of the linked image; for a float model they
    are estimates.
    """
    spec = target_spec(job.target)
    verdict = check_model(job.model, spec)
    result = compiler_pb2.CheckModelResult(supported=verdict.supported, operators=_operators(verdict))
    if verdict.supported and any(node.dtype in ("int8", "int16") for node in verdict.nodes):
        result.estimates.extend(_figures(compile_to_fit(job).parts))
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


def _result(made: Fitted, target: target_pb2.Target) -> compiler_pb2.CompileResult:
    parts = made.parts
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
        certificate=made.certificate,
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
