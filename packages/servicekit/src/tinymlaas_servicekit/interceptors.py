"""Interceptors of every server: errors to the wire, authentication, request validation."""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from grpc_status import rpc_status

from ._calls import OPEN_SERVICES, Call, CallInterceptor
from .errors import Internal, InvalidArgument, ServiceError, Unauthenticated, adapt
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


@dataclass(frozen=True)
class Principal:
    """Who calls: `subject` names the caller, `how` the way it was proven ("token", "none", ...)."""

    subject: str
    how: str


_principal: ContextVar[Principal | None] = ContextVar("tinymlaas_principal", default=None)


def current_principal() -> Principal:
    """The caller of the call that is being served; Unauthenticated outside of an authenticated call."""
    principal = _principal.get()
    if principal is None:
        raise Unauthenticated("there is no authenticated caller")
    return principal


class Authenticator(Protocol):
    """Decides who calls, from the call's text metadata; raises Unauthenticated."""

    def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """The caller."""


class TokenAuthenticator:
    """One bearer token for the whole installation, compared in constant time (RFC 6750 syntax). None admits everybody."""

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """The holder of the token; TOKEN_MISSING or TOKEN_INVALID otherwise."""
        if self._token is None:
            return Principal("anonymous", "none")
        scheme, _, credential = metadata.get("authorization", "").partition(" ")
        if not credential or scheme.lower() != "bearer":
            raise Unauthenticated("no bearer token", "TOKEN_MISSING", {"scheme": "Bearer"})
        if not hmac.compare_digest(credential.strip().encode(), self._token):
            raise Unauthenticated("wrong token", "TOKEN_INVALID", {"scheme": "Bearer"})
        return Principal("token", "token")


class AuthInterceptor(CallInterceptor):
    """Lets only authenticated callers in, except to health and reflection, and tells handlers who it is."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Authenticates before the handler sees anything."""
        return self._authenticated(call)

    @asynccontextmanager
    async def _authenticated(self, call: Call) -> AsyncIterator[None]:
        if call.service in OPEN_SERVICES:
            yield
            return
        token = _principal.set(self._authenticator.authenticate(call.metadata))
        try:
            yield
        finally:
            _principal.reset(token)


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
