"""Errors that the author of a plugin raises, and those that the platform raises about a plugin.

ServiceError
├── InvalidArgument ── ModelInvalid, OptionUnknown, OptionInvalid, StreamInvalid
├── FailedPrecondition ── OpUnsupported, DoesNotFit, TargetUnsupported, FormatUnsupported
├── ResourceExhausted ── LimitExceeded
├── DataLoss ── DigestMismatch
├── Internal ── CompilerCrash, PluginProtocol
├── DeadlineExceeded ── PluginTimeout
└── Unavailable ── NotReady, PluginUnavailable
"""

from __future__ import annotations

from collections.abc import Mapping

from tinymlaas_servicekit.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)


class ModelInvalid(InvalidArgument):
    """The model is no valid file of its format: `where` in it and what is wrong."""

    default_reason = "MODEL_INVALID"
    default_help = "Check the model file with the tool that made it."

    def __init__(self, detail: str, where: str = "") -> None:
        super().__init__(detail + (f" (at {where})" if where else ""), metadata={"where": where, "detail": detail})


class OptionUnknown(InvalidArgument):
    """An option that the schema does not have; `nearest` is the most similar one that it has, or empty."""

    default_reason = "OPTION_UNKNOWN"

    def __init__(self, option: str, nearest: str) -> None:
        hint = f"; did you mean {nearest}?" if nearest else ""
        help_text = f"Use {nearest} instead of {option}." if nearest else "Leave the option out; see the option schema."
        super().__init__(f"unknown option {option}{hint}", None, {"option": option, "nearest": nearest}, help_text)


class OptionInvalid(InvalidArgument):
    """An option whose value breaks the schema; `pointer` is a JSON pointer to the part of it that does."""

    default_reason = "OPTION_INVALID"
    default_help = "Give the option a value that its schema allows."

    def __init__(self, option: str, detail: str, pointer: str = "") -> None:
        where = pointer or f"/{option}"
        at = f" at {where}" if where != f"/{option}" else ""
        metadata = {"option": option, "detail": detail, "pointer": where}
        super().__init__(f"option {option}{at}: {detail}", metadata=metadata)


class StreamInvalid(InvalidArgument):
    """The stream in breaks a clause of the contract."""

    default_reason = "STREAM_INVALID"
    default_help = "Send the header first, then each blob whole, in chunks of at most 1 MiB, its sha256 on the last."

    def __init__(self, clause: str, detail: str) -> None:
        super().__init__(f"{clause}: {detail}", metadata={"clause": clause})


class OpUnsupported(FailedPrecondition):
    """Operators that cannot be compiled: the first one's kind, node and element type, and how many nodes in all."""

    default_reason = "OP_UNSUPPORTED"
    default_help = "Change the model so that it does without these operators, or use another compiler."

    def __init__(self, op: str, node: str = "", dtype: str = "", count: int = 1, detail: str = "") -> None:
        metadata = {"op": op, "node": node, "dtype": dtype, "count": count}
        super().__init__(f"operator {op} is not supported{': ' + detail if detail else ''}", metadata=metadata)


class DoesNotFit(FailedPrecondition):
    """A memory region of the target is too small; sizes in bytes."""

    default_reason = "DOES_NOT_FIT"
    default_help = "Use a smaller model or a bigger device."

    def __init__(self, region: str, need: int, have: int) -> None:
        super().__init__(
            f"{region} needs {need:,} B, {have:,} B are there", metadata={"region": region, "need": need, "have": have}
        )


class TargetUnsupported(FailedPrecondition):
    """A property of the target that the plugin does not serve."""

    default_reason = "TARGET_UNSUPPORTED"
    default_help = "Choose a compiler whose ListTargets has this target."

    def __init__(self, constraint: str, value: str) -> None:
        super().__init__(
            f"{constraint} {value!r} is not supported", metadata={"constraint": constraint, "value": value}
        )


class FormatUnsupported(FailedPrecondition):
    """A model format (or conversion) that the plugin does not take."""

    default_reason = "FORMAT_UNSUPPORTED"
    default_help = "Convert the model to a format that the plugin advertises."

    def __init__(self, format: str) -> None:
        super().__init__(f"{format} is not supported", metadata={"format": format})


class LimitExceeded(ResourceExhausted):
    """Over a limit that was told: `limit` names it with its value, `value` is what was asked for."""

    def __init__(self, limit: str, bound: object, value: object) -> None:
        super().__init__(
            f"{value} is over {limit} = {bound}", metadata={"limit": limit, "bound": bound, "value": value}
        )


class DigestMismatch(DataLoss):
    """Bytes that are not those that were announced."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(
            f"{what}: expected {expected}, got {got}", metadata={"what": what, "expected": expected, "got": got}
        )


class CompilerCrash(Internal):
    """The tool behind the plugin died; `signal` or `exit` and the last log lines."""

    default_reason = "COMPILER_CRASH"
    default_help = "Report it to the vendor of the plugin, with the model and the last log lines."

    def __init__(self, message: str, metadata: Mapping[str, object]) -> None:
        super().__init__(message, metadata=metadata)


class NotReady(Unavailable):
    """The plugin's workers cannot be used: still loading, or failing to start."""

    default_reason = "NOT_READY"
    default_help = "Wait until Probe answers ready; when Probe answers an error, restart the plugin."


class PluginProtocol(Internal):
    """A plugin broke the contract; `clause` is the id of the MUST that it broke."""

    default_reason = "PLUGIN_PROTOCOL"
    default_help = "Report it to the vendor of the plugin: its answer breaks this clause of spec/compiler-plugin.md."

    def __init__(self, clause: str, detail: str) -> None:
        super().__init__(f"{clause}: {detail}", metadata={"clause": clause, "detail": detail})
        self.clause = clause


class PluginTimeout(DeadlineExceeded):
    """A plugin fell silent or took longer than its time."""

    default_reason = "PLUGIN_TIMEOUT"
    default_help = "Try again; when it happens again, the plugin hangs on this request: report it to its vendor."

    def __init__(self, clause: str, detail: str, seconds: float) -> None:
        super().__init__(f"{clause}: {detail}", metadata={"clause": clause, "seconds": f"{seconds:g}"})


class PluginUnavailable(Unavailable):
    """A plugin cannot be reached, or went away in the middle of a call."""

    default_reason = "PLUGIN_UNAVAILABLE"
    default_help = "Check that the plugin runs at its address; the call may be repeated."
