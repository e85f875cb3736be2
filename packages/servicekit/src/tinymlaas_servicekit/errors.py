"""Errors of services: one base with {code, reason, message, metadata, help}, and its form on the wire.

ServiceError
├── InvalidArgument      INVALID_ARGUMENT     the caller's request is wrong, whatever the state
├── NotFound             NOT_FOUND
├── AlreadyExists        ALREADY_EXISTS
├── FailedPrecondition   FAILED_PRECONDITION  right request, wrong state or no back end for it
├── ResourceExhausted    RESOURCE_EXHAUSTED   over a stated limit
├── DataLoss             DATA_LOSS            bytes are not what their digest says
├── Aborted              ABORTED              collides with another call
├── Unauthenticated      UNAUTHENTICATED
├── PermissionDenied     PERMISSION_DENIED
├── Unavailable          UNAVAILABLE          try again later
├── DeadlineExceeded     DEADLINE_EXCEEDED
├── Cancelled            CANCELLED
├── Unimplemented        UNIMPLEMENTED
└── Internal             INTERNAL             a fault of ours or of a plugin

The wire form is `google.rpc.Status` with `ErrorInfo`, `Help` and, where they fit, `BadRequest` or `PreconditionFailure`
(google/rpc/error_details.proto, AIP-193).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "tinymlaas.io"
# A status travels in HTTP/2 trailers, of which gRPC accepts 8 KiB by default; base64 takes a third of it.
MAX_MESSAGE = 1024
MAX_VALUE = 1024
MAX_METADATA_TOTAL = 3072
MAX_VIOLATIONS = 8
MAX_FIELD = 256

CUT_OFF = "Internal error from Core"
"""What grpc.aio's client says where the server ended a stream that is being written; the true status is lost then."""

_CODES = frozenset(code_pb2.Code.keys())
_REASON = re.compile(r"^[A-Z][A-Z0-9_]{0,62}$")


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field of a request: its path and what is wrong with it."""

    field: str
    description: str


class ServiceError(Exception):
    """An error with a gRPC status name, a stable reason (UPPER_SNAKE), metadata for programs and help for people."""

    code = "UNKNOWN"
    default_reason = "UNKNOWN"
    default_help = "Look at the message; report it with its metadata when it is not clear."

    def __init__(
        self,
        message: str,
        reason: str | None = None,
        metadata: Mapping[str, object] | None = None,
        help: str | None = None,
        *,
        violations: Iterable[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = {key: str(value) for key, value in (metadata or {}).items()}
        self.help = self.default_help if help is None else help
        self.violations: tuple[FieldViolation, ...] = tuple(violations)

    def __str__(self) -> str:
        return f"{self.code}/{self.reason}: {self.message}"

    def to_status(self) -> status_pb2.Status:
        """The wire form; message, values and violations are cut so that the whole fits HTTP/2 trailers."""
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code), message=_cut(self.message, MAX_MESSAGE))
        _pack(status, error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=_bounded(self.metadata)))
        if self.help:
            links = [error_details_pb2.Help.Link(description=_cut(self.help, MAX_MESSAGE))]
            _pack(status, error_details_pb2.Help(links=links))
        if self.code == "INVALID_ARGUMENT" and self.violations:
            shown = self.violations[:MAX_VIOLATIONS]
            fields = [
                error_details_pb2.BadRequest.FieldViolation(
                    field=_cut(v.field, MAX_FIELD), description=_cut(v.description, MAX_FIELD)
                )
                for v in shown
            ]
            _pack(status, error_details_pb2.BadRequest(field_violations=fields))
        if self.code == "FAILED_PRECONDITION":
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=self.reason,
                subject=_cut(self.metadata.get("subject", ""), MAX_FIELD),
                description=_cut(self.message, MAX_FIELD),
            )
            _pack(status, error_details_pb2.PreconditionFailure(violations=[violation]))
        return status


class InvalidArgument(ServiceError):
    """The request is wrong whatever the state of the system; the caller changes it."""

    code = "INVALID_ARGUMENT"
    default_reason = "FIELD_INVALID"
    default_help = "Correct the named field and call again."


class NotFound(ServiceError):
    """What was named does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"
    default_help = "Check the name; list the collection to see what there is."


class AlreadyExists(ServiceError):
    """What was to be made exists with other content."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"
    default_help = "Choose another id, or use the one that exists."


class FailedPrecondition(ServiceError):
    """The request is right, but the state of the system or the named target does not allow it."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"
    default_help = "Change what the message names, then call again."


class ResourceExhausted(ServiceError):
    """Over a stated limit."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "LIMIT_EXCEEDED"
    default_help = "Send less, or call again later."


class DataLoss(ServiceError):
    """Bytes that arrived are not those that their digest names."""

    code = "DATA_LOSS"
    default_reason = "DIGEST_MISMATCH"
    default_help = "Repeat the call; if it happens again, the sender computes the digest of other bytes."


class Aborted(ServiceError):
    """Collides with another call that is under way."""

    code = "ABORTED"
    default_reason = "ABORTED"
    default_help = "Wait for the other call to end, then repeat."


class Unauthenticated(ServiceError):
    """The caller did not prove who it is."""

    code = "UNAUTHENTICATED"
    default_reason = "TOKEN_INVALID"
    default_help = "Send the metadata `authorization: Bearer <token>` with the token of this installation."


class PermissionDenied(ServiceError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"
    default_help = "Ask an administrator of the project for access."


class Unavailable(ServiceError):
    """Cannot answer now; the same call may succeed later."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"
    default_help = "Check that the service runs at that address, and call again."


class DeadlineExceeded(ServiceError):
    """The call took longer than its deadline."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"
    default_help = "Give the call more time, or make it smaller."


class Cancelled(ServiceError):
    """The call was cancelled."""

    code = "CANCELLED"
    default_reason = "CANCELLED"
    default_help = "Call again if that was not wanted."


class Unimplemented(ServiceError):
    """The service does not offer this call."""

    code = "UNIMPLEMENTED"
    default_reason = "UNIMPLEMENTED"
    default_help = "Check that client and service have the same version of the contract."


class Internal(ServiceError):
    """A fault of a service or plugin, not of the caller."""

    code = "INTERNAL"
    default_reason = "INTERNAL_ERROR"
    default_help = "Report it with the correlation id; the service's log has the details under it."


def _tree(base: type[ServiceError]) -> list[type[ServiceError]]:
    found = [base]
    for child in base.__subclasses__():
        found.extend(_tree(child))
    return found


_BY_CODE: dict[str, type[ServiceError]] = {cls.code: cls for cls in _tree(ServiceError)}


def error_for(
    code: str,
    message: str,
    reason: str | None = None,
    metadata: Mapping[str, object] | None = None,
    help: str | None = None,
    violations: Iterable[FieldViolation] = (),
) -> ServiceError:
    """The error whose class stands for a gRPC status name; a code without a class of its own keeps its name."""
    cls = _BY_CODE.get(code)
    error = (cls or ServiceError)(message, reason or (None if cls else code), metadata, help, violations=violations)
    if cls is None and code in _CODES:
        error.code = code
    return error


_translators: list[Callable[[BaseException], ServiceError | None]] = []


def translate(translator: Callable[[BaseException], ServiceError | None]) -> None:
    """Have `adapt` also know the exceptions of a library: a translator answers None for all others."""
    _translators.append(translator)


def adapt(error: BaseException) -> ServiceError | None:
    """The ServiceError that an exception stands for, or None when it is no error with a code and a reason.

    Packages below the services (modelkit, module, compilers) have exception trees of their own with the attributes
    `code`, `reason`, `metadata` and `help`; they are recognised by these, so that they need not import this package.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    for translator in _translators:
        if (told := translator(error)) is not None:
            return told
    code, reason = getattr(error, "code", None), getattr(error, "reason", None)
    if not isinstance(code, str) or code == "OK" or code not in _CODES:
        return None
    if not isinstance(reason, str) or not _REASON.match(reason):
        return None
    metadata = getattr(error, "metadata", None)
    text, help_text = getattr(error, "message", None), getattr(error, "help", None)
    return error_for(
        code,
        text if isinstance(text, str) else str(error),
        reason,
        metadata if isinstance(metadata, Mapping) else {},
        help_text if isinstance(help_text, str) else None,
    )


def from_status(status: status_pb2.Status) -> ServiceError:
    """The error that a wire status stands for; without ErrorInfo the reason is the code's name."""
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    info, help_text = error_details_pb2.ErrorInfo(), None
    violations: list[FieldViolation] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            _unpack(detail, info)
        elif detail.Is(error_details_pb2.Help.DESCRIPTOR):
            links = error_details_pb2.Help()
            _unpack(detail, links)
            help_text = links.links[0].description if links.links else None
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            _unpack(detail, bad)
            violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
    return error_for(code, status.message, info.reason or code, dict(info.metadata), help_text, violations)


def from_rpc_error(error: grpc.RpcError) -> ServiceError:
    """The error that a failed call of a gRPC client stands for, details included when the server sent them.

    A call that was cut off while it was sent is Unavailable: the server is about to stop, or had refused it.
    """
    code = error.code()
    text = error.details() or ""
    if error.trailing_metadata() is not None:
        try:
            status = rpc_status.from_call(error)
        except ValueError:  # the details contradict the call's own code or text: only the latter is believed
            status = None
        if status is not None:
            return from_status(status)
    if code is grpc.StatusCode.INTERNAL and text == CUT_OFF:
        return Unavailable("the server ended the call while it was being sent to")
    return error_for(code.name, text, code.name)


def _pack(status: status_pb2.Status, detail: message.Message) -> None:
    status.details.add().Pack(detail)


def _unpack(detail: any_pb2.Any, into: message.Message) -> None:
    try:
        detail.Unpack(into)
    except message.DecodeError:  # a hostile peer; the rest of the status still counts
        into.Clear()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    left, bounded = MAX_METADATA_TOTAL, {}
    for key, value in metadata.items():
        shown = _cut(value, max(1, min(MAX_VALUE, left - len(key))))
        left -= len(key) + len(shown)
        if left < 0:
            break
        bounded[key[:64]] = shown
    return bounded
