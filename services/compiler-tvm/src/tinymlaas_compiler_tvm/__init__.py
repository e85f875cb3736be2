"""Compiles ONNX models to native position-independent modules for microcontrollers."""

from tinymlaas_compiler_tvm.check import check_model
from tinymlaas_compiler_tvm.compile import compile_model
from tinymlaas_compiler_tvm.errors import (
    CompileError,
    CompilerFault,
    DoesNotFit,
    ModelInvalid,
    OptionInvalid,
    OptionUnknown,
    OpUnsupported,
    TargetUnsupported,
)
from tinymlaas_compiler_tvm.options import OPTION_SCHEMA
from tinymlaas_compiler_tvm.parts import CompiledParts, ModelCheck
from tinymlaas_compiler_tvm.target import TargetSpec

__all__ = [
    "OPTION_SCHEMA",
    "CompileError",
    "CompiledParts",
    "CompilerFault",
    "DoesNotFit",
    "ModelCheck",
    "ModelInvalid",
    "OpUnsupported",
    "OptionInvalid",
    "OptionUnknown",
    "TargetSpec",
    "TargetUnsupported",
    "check_model",
    "compile_model",
]
