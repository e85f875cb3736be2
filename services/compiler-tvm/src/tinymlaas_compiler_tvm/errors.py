"""What a compilation can refuse: one base, one class a reason.

CompileError
├── ModelInvalid        MODEL_INVALID       where, detail
│   └── ModelRefused    as modelkit's check says: MODEL_INVALID, LIMIT_EXCEEDED
├── OpUnsupported       OP_UNSUPPORTED      op, node, dtype, count
├── DoesNotFit          DOES_NOT_FIT        region, need, have
├── TargetUnsupported   TARGET_UNSUPPORTED  constraint, value
├── OptionUnknown       OPTION_UNKNOWN      option, nearest
├── OptionInvalid       OPTION_INVALID      option, nearest
└── CompilerFault       COMPILER_CRASH      exit, detail
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tinymlaas_modelkit.check import ModelRejected


class CompileError(Exception):
    """A compilation that can't be done; `code` is the gRPC status name, `reason` and `metadata` are for machines."""

    code = "INTERNAL"
    reason = "COMPILER_CRASH"
    help = "Report this to the maintainers of compiler-tvm with the model's digest and the log."

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = {key: str(value)[:200] for key, value in metadata.items()}


class ModelInvalid(CompileError):
    """The model file is wrong, whatever the target."""

    code = "INVALID_ARGUMENT"
    reason = "MODEL_INVALID"
    help = "Fix the model: `where` names the place and `detail` says what is wrong there."


class ModelRefused(ModelInvalid):
    """The file was refused by the model check; code, reason, metadata and help are the check's."""

    def __init__(self, rejection: ModelRejected) -> None:
        super().__init__(str(rejection), **rejection.metadata)
        self.code = str(rejection.code)
        self.reason = rejection.reason
        self.help = rejection.help


class OpUnsupported(CompileError):
    """An operator has no kernel here in this form."""

    code = "FAILED_PRECONDITION"
    reason = "OP_UNSUPPORTED"
    help = "Change the operator that `node` names, or choose another compiler."


def refusal(rejection: ModelRejected) -> CompileError:
    """What the model check's answer means to a caller of this compiler: a type or a version that it lacks is an operator in a
    form that has no kernel (CP-ERROR-002); `problem` keeps the check's own word for it."""
    if rejection.reason not in ("DTYPE_UNSUPPORTED", "OPSET_UNSUPPORTED"):
        return ModelRefused(rejection)
    seen = rejection.metadata
    operator = re.search(r"\((\w+)\)$", seen["where"])
    return OpUnsupported(
        f"{seen['where']}: {seen['detail']}",
        op=seen.get("op") or (operator[1] if operator else "graph"),
        node=seen.get("node") or seen["where"],
        dtype=seen.get("dtype", ""),
        count=1,
        problem=seen["problem"],
    )


class DoesNotFit(CompileError):
    """The module needs more of a memory region than the target has."""

    code = "FAILED_PRECONDITION"
    reason = "DOES_NOT_FIT"
    help = "Use a smaller model, the objective `ram` or `flash`, or a device with more memory."


class TargetUnsupported(CompileError):
    """This compiler has no code generation for the target."""

    code = "FAILED_PRECONDITION"
    reason = "TARGET_UNSUPPORTED"
    help = "Ask ListTargets which targets this compiler serves."


class OptionUnknown(CompileError):
    """No option of that name."""

    code = "INVALID_ARGUMENT"
    reason = "OPTION_UNKNOWN"
    help = "Use an option that GetOptionSchema lists; `nearest` is the closest name."


class OptionInvalid(CompileError):
    """An option with a value out of its range."""

    code = "INVALID_ARGUMENT"
    reason = "OPTION_INVALID"
    help = "Give a value that GetOptionSchema allows; `nearest` is the closest one."


class CompilerFault(CompileError):
    """A tool underneath failed, or a self-check of the result did."""
