"""`compile_model` and `check_model`: the two calls of the compiler role, as functions of values."""

from __future__ import annotations

from collections.abc import Mapping

from tinymlaas_compiler_tflm import interpreter
from tinymlaas_compiler_tflm.arena import ALIGNMENT, estimate_32_bit
from tinymlaas_compiler_tflm.errors import FormatUnsupported
from tinymlaas_compiler_tflm.interpreter import ArenaReport, Limits
from tinymlaas_compiler_tflm.operators import REGISTERED
from tinymlaas_compiler_tflm.options import Options
from tinymlaas_compiler_tflm.parts import (
    CompiledParts,
    Figure,
    Method,
    ModelCheck,
    Numerics,
    NumericsKind,
    Operator,
    OperatorCheck,
    PayloadKind,
)
from tinymlaas_compiler_tflm.source_package import source_package
from tinymlaas_compiler_tflm.target import TargetSpec, require_fit, require_runtime
from tinymlaas_modelkit import check as checks
from tinymlaas_modelkit.errors import ModelKitError, OffendingOperator, UnsupportedOperator
from tinymlaas_modelkit.float_bound import FLOAT_TOLERANCE, output_scale
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.summary import ModelFormat, ModelSummary, Precision, summarize
from tinymlaas_modelkit.tflite_writer import write_tflite

_QUANTIZED = ("int8", "uint8", "int16")
_TIPPED_STEPS = 2


def compile_model(
    model: bytes,
    model_format: ModelFormat,
    target: TargetSpec,
    options: Mapping[str, object] | None = None,
    kind: PayloadKind = PayloadKind.TFLITE,
    *,
    limits: Limits | None = None,
) -> CompiledParts:
    """A TFLite payload, or a source package for static firmware, with operators and memory needs.

    A TFLite model is its own payload, byte for byte; an ONNX model (float, QDQ int8 or int16) is written as TFLite with its
    quantization kept exactly. The file is checked first, as the caller may not have done so. Deterministic.
    Errors: ModelRejected, MalformedModel, UnsupportedOperator, DoesNotFit, TargetUnsupported, OptionUnknown,
    OptionInvalid,
    FormatUnsupported, LimitExceeded, ToolCrash.
    """
    checked = Options.of(options or {})
    checks.check_model(model, model_format.value)
    tflite = to_tflite(model, model_format)
    summary = summarize(tflite, ModelFormat.TFLITE)
    require_operators(summary)
    names = [o.name for o in summary.operators]
    if kind is PayloadKind.TFLITE:
        require_runtime(target, names)
    tensors = None if summary.precision is Precision.INT8 else (len(summary.inputs), len(summary.outputs))
    report = interpreter.inspect(tflite, limits=limits, float_tensors=tensors)
    arena_bytes = max(report.smallest, -(-report.total // ALIGNMENT) * ALIGNMENT)
    require_fit(target, arena_bytes, len(tflite))
    payload = tflite if kind is PayloadKind.TFLITE else source_package(tflite, summary, report, checked.symbol)
    return CompiledParts(
        kind,
        payload,
        arena_bytes,
        ALIGNMENT,
        tuple(Operator(o.name, o.version, o.count) for o in summary.operators),
        summary.inputs,
        summary.outputs,
        numerics_of(summary, report.largest_output),
        _figures(summary, report, arena_bytes, len(tflite)),
        _log(summary, report, target),
    )


def to_tflite(model: bytes, model_format: ModelFormat) -> bytes:
    """The model as TFLite."""
    if model_format is ModelFormat.TFLITE:
        return model
    if model_format is ModelFormat.ONNX:
        return write_tflite(read_onnx(model))
    raise FormatUnsupported(f"{model_format} is not compiled", format=str(model_format))


def require_operators(summary: ModelSummary) -> None:
    """Refuse operators that the interpreter does not have (UnsupportedOperator, with all of them)."""
    missing = [o for o in summary.operators if o.name not in REGISTERED]
    if missing:
        detail = "the interpreter has no such operator"
        raise UnsupportedOperator([OffendingOperator(o.name, "", summary.precision, detail, o.count) for o in missing])


def numerics_of(summary: ModelSummary, largest_output: float) -> Numerics:
    """Integer models are bit-exact to TFLite Micro's reference kernels; float ones within 1e-5 of them and of their scale.

    Float kernels may add in another order on another processor; the reference is what the interpreter gives on the host.
    Where float layers lie between integers, that tips a rounding now and then: two steps are claimed of quantized outputs.
    """
    outputs = {output.dtype for output in summary.outputs}
    if summary.precision is Precision.INT8 or not outputs & {"float32", *_QUANTIZED}:
        return Numerics(NumericsKind.BIT_EXACT)
    if "float32" not in outputs:
        return Numerics(NumericsKind.WITHIN_LSB, lsb=_TIPPED_STEPS)
    return Numerics(NumericsKind.WITHIN_TOLERANCE, FLOAT_TOLERANCE, FLOAT_TOLERANCE * output_scale(largest_output))


def _figures(summary: ModelSummary, report: ArenaReport, arena_bytes: int, payload_bytes: int) -> tuple[Figure, ...]:
    narrow = estimate_32_bit(report)
    runtime = f"{interpreter.TOOL} {interpreter.tool_version()}"
    host = {"pointer_bytes": "8", "kernels": "reference", "runtime": runtime, "bound": "upper for 32-bit pointers"}
    small = {
        "pointer_bytes": "4",
        "kernels": "reference",
        "bound": "upper",
        "lower_bytes": str(narrow.lower),
        "head_bytes": str(report.head),
    }
    return (
        Figure("ARENA_BYTES", arena_bytes, "B", Method.SIMULATED, host),
        Figure("ARENA_BYTES", narrow.upper, "B", Method.ESTIMATED, small),
        Figure("FLASH_BYTES", payload_bytes, "B", Method.LINKED, {"part": "payload", "runtime": "not included"}),
        Figure("WEIGHT_BYTES", summary.parameter_bytes, "B", Method.LINKED),
        Figure("MACS", summary.macs, "MAC", Method.ESTIMATED),
    )


def _log(summary: ModelSummary, report: ArenaReport, target: TargetSpec) -> tuple[str, ...]:
    lines = [
        f"{summary.node_count} operators of {len(summary.operators)} kinds, {summary.macs:,} multiply-accumulates",
        f"arena {report.smallest:,} B: activations {report.head:,} B, the rest with 64-bit pointers",
    ]
    if "mve" in target.features:
        lines.append("arena figures are those of the reference kernels; kernels for MVE ask for scratch on top")
    return tuple(lines)


def check_model(
    model: bytes, model_format: ModelFormat, target: TargetSpec, *, limits: Limits | None = None
) -> ModelCheck:
    """Whether `compile_model` would take the model, per operator, with estimates; it opens the model but never runs it.

    Errors: ModelRejected, MalformedModel, FormatUnsupported, ToolCrash, LimitExceeded; all else is a negative answer.
    """
    checks.check_model(model, model_format.value)
    own = summarize(model, model_format)
    try:
        tflite = to_tflite(model, model_format)
        summary = summarize(tflite, ModelFormat.TFLITE)
        require_operators(summary)
        require_runtime(target, [o.name for o in summary.operators])
        report = interpreter.inspect(tflite, measure=False, limits=limits)
        require_fit(target, report.total, len(tflite))
    except UnsupportedOperator as error:
        return ModelCheck(False, _verdicts(own, error), (), error)
    except ModelKitError as error:
        if error.code != "FAILED_PRECONDITION":
            raise
        return ModelCheck(False, _verdicts(own, None), (), error)
    narrow = estimate_32_bit(report)
    figures = (
        Figure(
            "ARENA_BYTES", narrow.upper, "B", Method.ESTIMATED, {"pointer_bytes": "4", "lower_bytes": str(narrow.lower)}
        ),
        Figure("FLASH_BYTES", len(tflite), "B", Method.ESTIMATED, {"part": "payload"}),
        Figure("MACS", summary.macs, "MAC", Method.ESTIMATED),
    )
    return ModelCheck(True, _verdicts(own, None), figures)


def _verdicts(summary: ModelSummary, error: UnsupportedOperator | None) -> tuple[OperatorCheck, ...]:
    """One verdict for each operator of the model, and for operators that only its TFLite form has."""
    refused = {} if error is None else {o.op: o for o in error.operators}
    found = []
    for operator in summary.operators:
        offence = refused.pop(operator.name, None)
        nodes = (offence.node,) if offence is not None and offence.node else ()
        detail, dtype = ("", "") if offence is None else (offence.detail, offence.dtype)
        found.append(OperatorCheck(operator.name, nodes, operator.count, offence is None, dtype, detail))
    for offence in refused.values():
        nodes = (offence.node,) if offence.node else ()
        found.append(OperatorCheck(offence.op, nodes, offence.count, False, offence.dtype, offence.detail))
    return tuple(found)
