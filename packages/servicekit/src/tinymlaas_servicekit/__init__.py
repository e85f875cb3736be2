"""What every TinyMLaaS service shares: server, errors, auth, validation, telemetry, settings, channels."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._calls import Call
    from .channels import connect
    from .errors import (
        Aborted,
        AlreadyExists,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        FieldViolation,
        Internal,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        ServiceError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
        adapt,
        error_for,
        from_rpc_error,
        from_status,
    )
    from .identity import Authenticator, Principal, TokenAuthenticator, current_principal
    from .interceptors import Attempt, Auditor
    from .messages import redacted
    from .paging import decode_page_token, encode_page_token, page_size
    from .resource_names import format_name, parse_name
    from .server import GrpcServer, run_server, serve_until_signal
    from .settings import ServiceSettings
    from .telemetry import configure_logging, configure_tracing
    from .tls import TlsFiles
    from .validation import validate

# Loaded when first asked for: a worker or a tool that needs the errors should not wait for server, settings and telemetry.
_MODULES = {
    "_calls": ("Call",),
    "channels": ("connect",),
    "errors": (
        "Aborted",
        "AlreadyExists",
        "Cancelled",
        "DataLoss",
        "DeadlineExceeded",
        "FailedPrecondition",
        "FieldViolation",
        "Internal",
        "InvalidArgument",
        "NotFound",
        "PermissionDenied",
        "ResourceExhausted",
        "ServiceError",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "adapt",
        "error_for",
        "from_rpc_error",
        "from_status",
    ),
    "identity": (
        "Authenticator",
        "Principal",
        "TokenAuthenticator",
        "current_principal",
    ),
    "interceptors": (
        "Attempt",
        "Auditor",
    ),
    "messages": ("redacted",),
    "paging": (
        "decode_page_token",
        "encode_page_token",
        "page_size",
    ),
    "resource_names": (
        "format_name",
        "parse_name",
    ),
    "server": (
        "GrpcServer",
        "run_server",
        "serve_until_signal",
    ),
    "settings": ("ServiceSettings",),
    "telemetry": (
        "configure_logging",
        "configure_tracing",
    ),
    "tls": ("TlsFiles",),
    "validation": ("validate",),
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
    "Aborted",
    "AlreadyExists",
    "Attempt",
    "Auditor",
    "Authenticator",
    "Call",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "GrpcServer",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Principal",
    "ResourceExhausted",
    "ServiceError",
    "ServiceSettings",
    "TlsFiles",
    "TokenAuthenticator",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "adapt",
    "configure_logging",
    "configure_tracing",
    "connect",
    "current_principal",
    "decode_page_token",
    "encode_page_token",
    "error_for",
    "format_name",
    "from_rpc_error",
    "from_status",
    "page_size",
    "parse_name",
    "redacted",
    "run_server",
    "serve_until_signal",
    "validate",
]
