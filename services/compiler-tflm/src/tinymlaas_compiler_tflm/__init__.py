"""Compiles ONNX and TFLite models for the TensorFlow Lite Micro interpreter, and converts between model formats."""

from tinymlaas_compiler_tflm.compile import check_model, compile_model
from tinymlaas_compiler_tflm.errors import (
    CompileError,
    DoesNotFit,
    FormatUnsupported,
    LimitExceeded,
    OptionInvalid,
    OptionUnknown,
    TargetUnsupported,
    ToolCrash,
)
from tinymlaas_compiler_tflm.interpreter import ArenaReport, Limits, inspect
from tinymlaas_compiler_tflm.options import OPTION_SCHEMA
from tinymlaas_compiler_tflm.parts import CompiledParts, ModelCheck, PayloadKind
from tinymlaas_compiler_tflm.target import TargetSpec

__all__ = [
    "OPTION_SCHEMA",
    "ArenaReport",
    "CompileError",
    "CompiledParts",
    "DoesNotFit",
    "FormatUnsupported",
    "LimitExceeded",
    "Limits",
    "ModelCheck",
    "OptionInvalid",
    "OptionUnknown",
    "PayloadKind",
    "TargetSpec",
    "TargetUnsupported",
    "ToolCrash",
    "check_model",
    "compile_model",
    "inspect",
]
