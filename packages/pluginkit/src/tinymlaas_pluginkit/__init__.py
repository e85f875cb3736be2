"""Write a compiler plugin in about 50 lines of Python, and call plugins without trusting them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import ClientLimits, LogEvent, Outcome, PluginCall, PluginClient, ProgressEvent, outputs_of
    from .digests import CONTRACT_VERSION, canonical_target, request_digest
    from .errors import (
        CompilerCrash,
        DigestMismatch,
        DoesNotFit,
        FormatUnsupported,
        LimitExceeded,
        ModelInvalid,
        NotReady,
        OptionInvalid,
        OptionUnknown,
        OpUnsupported,
        PluginProtocol,
        PluginTimeout,
        PluginUnavailable,
        StreamInvalid,
        TargetUnsupported,
    )
    from .jobs import (
        CompileJob,
        CompileOutput,
        Compiler,
        Importer,
        ImportJob,
        ImportOutput,
        Limits,
        OptimizeJob,
        OptimizeOutput,
        Optimizer,
        ProfileJob,
        ProfileOutput,
        Profiler,
        ReferenceJob,
        ReferenceOutput,
        Reporter,
    )
    from .options import check_options, options_to_struct, parse_schema, struct_to_options
    from .plugin import Plugin
    from .reasons import Reason
    from .server import PluginServer

# Loaded when first asked for: a worker needs the jobs and errors, not client and server.
_MODULES = {
    "client": (
        "ClientLimits",
        "LogEvent",
        "Outcome",
        "PluginCall",
        "PluginClient",
        "ProgressEvent",
        "outputs_of",
    ),
    "digests": (
        "CONTRACT_VERSION",
        "canonical_target",
        "request_digest",
    ),
    "errors": (
        "CompilerCrash",
        "DigestMismatch",
        "DoesNotFit",
        "FormatUnsupported",
        "LimitExceeded",
        "ModelInvalid",
        "NotReady",
        "OptionInvalid",
        "OptionUnknown",
        "OpUnsupported",
        "PluginProtocol",
        "PluginTimeout",
        "PluginUnavailable",
        "StreamInvalid",
        "TargetUnsupported",
    ),
    "jobs": (
        "CompileJob",
        "CompileOutput",
        "Compiler",
        "Importer",
        "ImportJob",
        "ImportOutput",
        "Limits",
        "OptimizeJob",
        "OptimizeOutput",
        "Optimizer",
        "ProfileJob",
        "ProfileOutput",
        "Profiler",
        "ReferenceJob",
        "ReferenceOutput",
        "Reporter",
    ),
    "options": (
        "check_options",
        "options_to_struct",
        "parse_schema",
        "struct_to_options",
    ),
    "plugin": ("Plugin",),
    "reasons": ("Reason",),
    "server": ("PluginServer",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})


__all__ = [
    "CONTRACT_VERSION",
    "ClientLimits",
    "CompileJob",
    "CompileOutput",
    "Compiler",
    "CompilerCrash",
    "DigestMismatch",
    "DoesNotFit",
    "FormatUnsupported",
    "ImportJob",
    "ImportOutput",
    "Importer",
    "LimitExceeded",
    "Limits",
    "LogEvent",
    "ModelInvalid",
    "NotReady",
    "OpUnsupported",
    "OptimizeJob",
    "OptimizeOutput",
    "Optimizer",
    "OptionInvalid",
    "OptionUnknown",
    "Outcome",
    "Plugin",
    "PluginCall",
    "PluginClient",
    "PluginProtocol",
    "PluginServer",
    "PluginTimeout",
    "PluginUnavailable",
    "ProfileJob",
    "ProfileOutput",
    "Profiler",
    "ProgressEvent",
    "Reason",
    "ReferenceJob",
    "ReferenceOutput",
    "Reporter",
    "StreamInvalid",
    "TargetUnsupported",
    "canonical_target",
    "check_options",
    "options_to_struct",
    "outputs_of",
    "parse_schema",
    "request_digest",
    "struct_to_options",
]
