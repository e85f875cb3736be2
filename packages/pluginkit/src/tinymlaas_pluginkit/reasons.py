"""The error table of the plugin contract (spec/compiler-plugin.md, section Errors): one row per reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Row:
    """When it happens, its gRPC code, the metadata keys that go with it, and who does what next."""

    condition: str
    code: str
    metadata: tuple[str, ...]
    recovery: str


class Reason(Enum):
    """Every reason with which a plugin may end a call; the name is `ErrorInfo.reason`."""

    MODEL_INVALID = Row(
        "the model is no valid file of its format", "INVALID_ARGUMENT", ("where", "detail"), "caller: fix the model"
    )
    OP_UNSUPPORTED = Row(
        "an operator of the model cannot be compiled",
        "FAILED_PRECONDITION",
        ("op", "node", "dtype", "count"),
        "caller: change the model, or take another compiler",
    )
    DOES_NOT_FIT = Row(
        "the result needs more memory than the target has",
        "FAILED_PRECONDITION",
        ("region", "need", "have"),
        "caller: smaller model or bigger device",
    )
    TARGET_UNSUPPORTED = Row(
        "the target is outside the advertised constraints",
        "FAILED_PRECONDITION",
        ("constraint", "value"),
        "router: do not send this target",
    )
    FORMAT_UNSUPPORTED = Row(
        "the model format or conversion was not advertised",
        "FAILED_PRECONDITION",
        ("format",),
        "router: convert the model first",
    )
    OPTION_UNKNOWN = Row(
        "an option is not in the schema", "INVALID_ARGUMENT", ("option", "nearest"), "caller: use the nearest option"
    )
    OPTION_INVALID = Row(
        "an option's value breaks the schema",
        "INVALID_ARGUMENT",
        ("option", "detail", "pointer"),
        "caller: correct the value",
    )
    FIELD_INVALID = Row(
        "a required field is missing or a field breaks its declared form",
        "INVALID_ARGUMENT",
        ("field",),
        "caller: correct the field",
    )
    STREAM_INVALID = Row(
        "the stream in breaks its order: header first, then whole blobs",
        "INVALID_ARGUMENT",
        ("clause",),
        "caller: fix the client",
    )
    LIMIT_EXCEEDED = Row(
        "over a limit that was told", "RESOURCE_EXHAUSTED", ("limit", "value"), "caller: back off or shrink"
    )
    DIGEST_MISMATCH = Row(
        "bytes that arrived are not those that were announced", "DATA_LOSS", ("expected", "got"), "caller: repeat"
    )
    COMPILER_CRASH = Row(
        "the tool behind the plugin died or failed without an error of its own",
        "INTERNAL",
        ("signal", "exit", "log"),
        "vendor: fix the tool",
    )
    INTERNAL_ERROR = Row("a fault of the plugin itself", "INTERNAL", ("correlation_id",), "vendor: look into the log")
    NOT_READY = Row("the plugin is still loading", "UNAVAILABLE", (), "caller: wait until Probe says ready")

    @property
    def code(self) -> str:
        """The gRPC code that goes with the reason."""
        return self.value.code


# Raised by the platform about a plugin; a plugin never sends them.
PLATFORM_REASONS = {
    "CLAIM_REFUTED": "FAILED_PRECONDITION",
    "PLUGIN_PROTOCOL": "INTERNAL",
    "PLUGIN_TIMEOUT": "DEADLINE_EXCEEDED",
    "PLUGIN_UNAVAILABLE": "UNAVAILABLE",
}
