"""Errors of the profiler.

ProfilerError             {code, reason, metadata, help}; the reasons are rows of the plugin contract's error table
"""

from collections.abc import Mapping

_CODES = {
    "MODEL_INVALID": "INVALID_ARGUMENT",
    "PAYLOAD_INVALID": "INVALID_ARGUMENT",
    "INPUT_INVALID": "INVALID_ARGUMENT",
    "REFERENCE_UNAVAILABLE": "FAILED_PRECONDITION",
    "OP_UNSUPPORTED": "FAILED_PRECONDITION",
    "TARGET_UNSUPPORTED": "FAILED_PRECONDITION",
    "DOES_NOT_FIT": "FAILED_PRECONDITION",
    "CLAIM_REFUTED": "FAILED_PRECONDITION",
    "PAYLOAD_FAULT": "FAILED_PRECONDITION",
    "PAYLOAD_CRASH": "FAILED_PRECONDITION",
    "LIMIT_EXCEEDED": "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "WORKER_CRASH": "INTERNAL",
}

_HELP = {
    "MODEL_INVALID": "fix the model file",
    "PAYLOAD_INVALID": "the compiler's payload or description is wrong: report it to its vendor",
    "INPUT_INVALID": "give each input tensor with exactly the bytes that its shape and dtype ask",
    "REFERENCE_UNAVAILABLE": "give the model in the form that this executor runs",
    "OP_UNSUPPORTED": "the interpreter lacks this operator: another compiler, or change the model",
    "TARGET_UNSUPPORTED": "this target cannot be simulated: see ListTargets",
    "DOES_NOT_FIT": "a smaller model or a bigger device",
    "CLAIM_REFUTED": "the compiler claimed less than was measured: report it to its vendor",
    "PAYLOAD_FAULT": "the payload does what the hardware or its ABI forbids: report it to the compiler's vendor",
    "PAYLOAD_CRASH": "the payload crashed the interpreter: report it to the compiler's vendor",
    "LIMIT_EXCEEDED": "ask less at once",
    "DEADLINE_EXCEEDED": "the run took longer than it may: use fewer samples or a smaller model",
    "WORKER_CRASH": "repeat; if it happens again, report the log",
}


class ProfilerError(Exception):
    """A profile or reference run ended without a result: {code, reason, metadata, help}."""

    def __init__(self, reason: str, message: str, *, metadata: Mapping[str, str] | None = None, help: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = _CODES.get(reason, "INTERNAL")
        self.metadata = dict(metadata or {})
        self.help = help or _HELP.get(reason, "")
