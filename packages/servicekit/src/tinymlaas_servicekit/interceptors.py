"""Interceptors of every server: errors to the wire, who may call what, request validation."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from tinymlaas.type.v1 import access_pb2

from ._calls import OPEN_SERVICES, Call, CallInterceptor
from .access import Access, access_table, roles_with
from .errors import Internal, InvalidArgument, PermissionDenied, ServiceError, adapt
from .identity import EVERYWHERE, Authenticator, Principal, _principal
from .messages import Forwarded, named_in, project_of
from .validation import validate

log = structlog.get_logger("tinymlaas.server")

DRAIN_BYTES = 128 * 1024 * 1024
DRAIN_SECONDS = 5.0


class ErrorInterceptor(CallInterceptor):
    """Maps every exception of a handler to a status with details; an unforeseen one to INTERNAL with a correlation id.

    A traceback goes to the log under that id, never onto the wire.
    """

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Ends the call with the status of the exception that left the handler."""
        return _mapped(call)


@asynccontextmanager
async def _mapped(call: Call) -> AsyncIterator[None]:
    try:
        yield
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as exception:
        error = adapt(exception)
        if error is None:
            error = _unforeseen(call, exception)
        else:
            log.info("call refused", method=call.method, code=error.code, reason=error.reason, message=error.message)
        if call.streams_in:
            await _drain(call.context)
        if not call.context.done():
            await call.context.abort_with_status(rpc_status.to_status(error.to_status()))


async def _drain(context: Any) -> None:
    """Reads on what a refused caller still sends, within bounds.

    A stream that is ended while grpc.aio's client writes shows that client an internal error instead of our status.
    """
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0 and not context.done() and (message := await context.read()) is not grpc.aio.EOF:
                left -= message.ByteSize()
    except TimeoutError:
        return
    except grpc.aio.UsageError:  # the caller is gone
        return


def _unforeseen(call: Call, exception: Exception) -> ServiceError:
    correlation_id = uuid.uuid4().hex
    log.error("unforeseen error", method=call.method, correlation_id=correlation_id, exc_info=exception)
    return Internal(f"internal error {correlation_id}", "INTERNAL_ERROR", {"correlation_id": correlation_id})


class AccessInterceptor(CallInterceptor):
    """Lets callers do what the RPC's option `access` admits them to, tells handlers who it is, and reports changes.

    An RPC that declares nothing is refused to everybody. Health and reflection are open.
    """

    def __init__(self, authenticator: Authenticator, auditor: Auditor | None = None) -> None:
        self._authenticator, self._auditor = authenticator, auditor

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Authenticates before the handler sees anything; refuses at once whom no request could help."""
        return self._admitted(call)

    @asynccontextmanager
    async def _admitted(self, call: Call) -> AsyncIterator[None]:
        if call.service in OPEN_SERVICES:
            yield
            return
        principal = await self._authenticator.authenticate(call)
        token = _principal.set(principal)
        attempt = Attempt(call, principal)
        attempts = _attempt.set(attempt)
        try:
            # A single request is looked at before its handler runs; of a stream a handler may do much before it reads any.
            if call.streams_in or attempt.access is None or attempt.access.scope != access_pb2.SCOPE_UNSPECIFIED:
                _admit(attempt)
            yield
        except BaseException as error:
            attempt.error = error
            raise
        finally:
            _attempt.reset(attempts)
            _principal.reset(token)
            if self._auditor is not None and (attempt.access is None or attempt.access.changes):
                await self._auditor.record(attempt)

    def checker(self, call: Call) -> Callable[[Any], None] | None:
        """Looks which projects a message names, where that decides; keeps the first message for the auditor."""
        return None if call.service in OPEN_SERVICES else _admit_message


@dataclass
class Attempt:
    """A call of an authenticated caller on its way: what it needs, its first message, and how it ended."""

    call: Call
    principal: Principal
    message: Message | None = None
    error: BaseException | None = None

    @property
    def access(self) -> Access | None:
        """What the RPC declares."""
        return access_table().get(self.call.method)


class Auditor(Protocol):
    """Is told of every call that changes something, or would have, when it has ended."""

    async def record(self, attempt: Attempt) -> None:
        """Takes note; must not raise."""


_attempt: ContextVar[Attempt | None] = ContextVar("tinymlaas_attempt", default=None)


def _admit(attempt: Attempt) -> None:
    access, principal = attempt.access, attempt.principal
    if access is None:
        raise PermissionDenied(
            f"{attempt.call.method} does not declare who may call it",
            "ACCESS_UNDECLARED",
            {"method": attempt.call.method},
        )
    everywhere = access.scope == access_pb2.SCOPE_INSTALLATION
    if not (principal.may(access, EVERYWHERE) if everywhere else principal.may_somewhere(access)):
        raise _denied(attempt, access, EVERYWHERE if everywhere else "")


def _admit_message(message: Any) -> None:
    attempt = _attempt.get()
    access = None if attempt is None else attempt.access
    if attempt is None or access is None:
        raise Internal("a message came outside of an admitted call")
    first = attempt.message is None
    decided = access.scope != access_pb2.SCOPE_UNSPECIFIED or attempt.principal.may(access, EVERYWHERE)
    if decided and not (first and access.changes):
        return
    if isinstance(message, Forwarded):
        try:
            message = message.parsed()
        except DecodeError as error:
            raise InvalidArgument("the request cannot be decoded", "REQUEST_MALFORMED") from error
    if first:
        attempt.message = message
    if decided:
        return
    if not attempt.principal.may_somewhere(access):
        raise _denied(attempt, access, "")
    projects = {project_of(name) for name in named_in(message)}
    if first and not projects:
        raise InvalidArgument(
            "the request names no project", "PROJECT_MISSING", help="Name resources as projects/{project}/..."
        )
    for project in sorted(projects):
        if not attempt.principal.may(access, project):
            raise _denied(attempt, access, project)


def _denied(attempt: Attempt, access: Access, project: str) -> PermissionDenied:
    method = attempt.call.method.lstrip("/")
    if access.permission == access_pb2.PERMISSION_SERVICE:
        return PermissionDenied(
            f"{method} is called by the suite's own services only",
            "INTERNAL_CALL",
            {"method": method},
            "Modules are made by builds, devices by bridges, plugins by the plugins manifest.",
        )
    if attempt.principal.service:
        return PermissionDenied(
            f"{attempt.principal.service} is not among the callers of {method}", "CALLER_UNEXPECTED", {"method": method}
        )
    permission = access_pb2.Permission.Name(access.permission).removeprefix("PERMISSION_")
    place = f"projects/{project}" if project else "any project"
    return PermissionDenied(
        f"{attempt.principal.subject} lacks {permission} in {place}",
        "PERMISSION_DENIED",
        {"method": method, "permission": permission, "project": project, "subject": attempt.principal.subject},
        f"Ask an administrator for a role that has it: {', '.join(roles_with(access.permission))}.",
    )


class ValidationInterceptor(CallInterceptor):
    """Refuses messages that break what their proto declares: INVALID_ARGUMENT / FIELD_INVALID with every violation."""

    def checker(self, call: Call) -> Callable[[Any], None] | None:
        """Validates every message of the call but those of health and reflection."""
        return None if call.service in OPEN_SERVICES else _refuse_invalid


def _refuse_invalid(message: Any) -> None:
    violations = validate(message)
    if violations:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise InvalidArgument(
            f"{first.field}: {first.description}{more}", "FIELD_INVALID", {"field": first.field}, violations=violations
        )
