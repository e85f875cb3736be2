"""What every TinyMLaaS service shares: server, errors, auth, validation, telemetry, settings, channels."""

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
from .interceptors import Authenticator, Principal, TokenAuthenticator, current_principal
from .paging import decode_page_token, encode_page_token, page_size
from .resource_names import format_name, parse_name
from .server import GrpcServer, run_server, serve_until_signal
from .settings import ServiceSettings
from .telemetry import configure_logging, configure_tracing
from .validation import validate

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Authenticator",
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
    "run_server",
    "serve_until_signal",
    "validate",
]
