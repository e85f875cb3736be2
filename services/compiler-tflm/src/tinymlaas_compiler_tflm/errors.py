"""What this service can refuse: one base (that of the model kit), one class a reason.

ModelRejected             MODEL_INVALID, ... (model kit's check of the file, before anything else)
ModelKitError
├── MalformedModel        MODEL_INVALID       problem, where, detail      (model kit)
├── UnsupportedOperator   OP_UNSUPPORTED      op, node, dtype, count      (model kit)
└── CompileError
    ├── DoesNotFit        DOES_NOT_FIT        region, need, have
    ├── TargetUnsupported TARGET_UNSUPPORTED  constraint, value
    ├── OptionUnknown     OPTION_UNKNOWN      option, nearest
    ├── OptionInvalid     OPTION_INVALID      option, nearest
    ├── FormatUnsupported FORMAT_UNSUPPORTED  format
    ├── LimitExceeded     LIMIT_EXCEEDED      limit, value
    └── ToolCrash         COMPILER_CRASH      signal or exit, log
"""

from __future__ import annotations

from tinymlaas_modelkit.errors import ModelKitError, printable


class CompileError(ModelKitError):
    """A compilation or import that can't be done."""

    def __init__(self, message: str, help: str | None = None, /, **metadata: object) -> None:
        super().__init__(message, {key: printable(str(value), 2000) for key, value in metadata.items()}, help)


class DoesNotFit(CompileError):
    """The payload needs more of a memory region than the target has."""

    code = "FAILED_PRECONDITION"
    reason = "DOES_NOT_FIT"
    help = "Use a smaller model, or a device with more memory."


class TargetUnsupported(CompileError):
    """The target has no TFLite Micro interpreter, or takes no such payload."""

    code = "FAILED_PRECONDITION"
    reason = "TARGET_UNSUPPORTED"
    help = "Choose a target whose firmware contains tflite-micro, or a compiler that makes native payloads."


class OptionUnknown(CompileError):
    """No option of that name."""

    code = "INVALID_ARGUMENT"
    reason = "OPTION_UNKNOWN"
    help = "Use an option of the option schema; `nearest` is the closest name."


class OptionInvalid(CompileError):
    """An option with a value out of its range."""

    code = "INVALID_ARGUMENT"
    reason = "OPTION_INVALID"
    help = "Give a value that the option schema allows."


class FormatUnsupported(CompileError):
    """A model format or conversion that is not served, or not installed."""

    code = "FAILED_PRECONDITION"
    reason = "FORMAT_UNSUPPORTED"
    help = "Convert the model to ONNX or TFLite first."


class LimitExceeded(CompileError):
    """Over a limit that was told."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_EXCEEDED"
    help = "Use a smaller model."


class ToolCrash(CompileError):
    """The interpreter or the converter underneath died on this model."""

    code = "INTERNAL"
    reason = "COMPILER_CRASH"
    help = "Report this to the maintainers of compiler-tflm with the model's digest and the log."
