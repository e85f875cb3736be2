"""The shape that all our server interceptors share: something around each call, and a look at each message in."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
import grpc.aio

# Called by probes and tools before they can know a token; they reveal nothing of a tenant.
OPEN_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
)

# What is behind a link: takes the call and its request, or stream of requests; returns the answer, None where it has written.
_Run = Callable[["Call", Any], Awaitable[Any]]


@dataclass(frozen=True)
class Call:
    """One incoming call: full method name ("/package.Service/Method"), gRPC's context, whether requests are streamed."""

    method: str
    context: Any
    streams_in: bool = False

    @cached_property
    def service(self) -> str:
        """Full name of the service."""
        return self.method.split("/")[1] if self.method.count("/") >= 2 else ""

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Text metadata of the caller; of a repeated key the last value."""
        pairs = self.context.invocation_metadata() or ()
        return {key: value for key, value in pairs if isinstance(value, str)}

    @property
    def peer_names(self) -> tuple[str, ...]:
        """Names (SAN) in the certificate that the caller connected with; empty without mTLS."""
        found: dict[str, list[bytes]] = self.context.auth_context() or {}
        return tuple(name.decode(errors="replace") for name in found.get("x509_subject_alternative_name", ()))


class CallInterceptor:
    """A link of a `Chain`: wraps every call of every kind in `around`, and shows every incoming message to `check`."""

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """What is done before and after the call; the default does nothing."""
        return nullcontext()

    def checker(self, call: Call) -> Callable[[Any], None] | None:
        """A function that raises for an unacceptable message of this call; None when messages are not looked at."""
        return None


class Chain(grpc.aio.ServerInterceptor):
    """Links around every handler of a server, from the outside in; each handler is wrapped once.

    Handlers are coroutines or async generators. A handler that streams out is always run as a coroutine that writes, so
    that a cancelled call ends the handler's generator at once instead of when it is garbage-collected.
    """

    def __init__(self, links: Sequence[CallInterceptor]) -> None:
        self._links = tuple(links)
        # By method: the handler as it was registered, and wrapped.
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], handler_call_details: Any) -> Any:
        """The handler of the call, wrapped; None for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        kept = self._wrapped.get(method)
        if kept is None or kept[0] is not handler:
            kept = self._wrapped[method] = handler, self._wrap(handler, method)
        return kept[1]

    def _wrap(self, handler: Any, method: str) -> Any:
        streams_in, streams_out = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
        behaviour = getattr(handler, kind)
        run = _writing(behaviour) if streams_out else _answering(behaviour)
        for link in reversed(self._links):
            run = _linked(link, run)

        async def serve(request: Any, context: Any) -> Any:
            return await run(Call(method, context, streams_in), request)

        factory = getattr(grpc, f"{kind}_rpc_method_handler")
        return factory(
            serve,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _answering(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> _Run:
    async def run(call: Call, request: Any) -> Any:
        return await behaviour(request, call.context)

    return run


def _writing(behaviour: Callable[[Any, Any], Any]) -> _Run:
    async def run(call: Call, request: Any) -> None:
        result = behaviour(request, call.context)
        if inspect.isawaitable(result):
            await result
            return
        async with aclosing(result) as responses:
            async for response in responses:
                await call.context.write(response)

    return run


def _linked(link: CallInterceptor, inner: _Run) -> _Run:
    def checked(call: Call, request: Any) -> Any:
        check = link.checker(call)
        if check is None:
            return request
        if call.streams_in:
            return _checked_stream(request, check)
        check(request)
        return request

    async def bare(call: Call, request: Any) -> Any:
        return await inner(call, checked(call, request))

    async def surrounded(call: Call, request: Any) -> Any:
        async with link.around(call):
            return await inner(call, checked(call, request))

    return bare if type(link).around is CallInterceptor.around else surrounded


async def _checked_stream(requests: AsyncIterator[Any], check: Callable[[Any], None]) -> AsyncIterator[Any]:
    async for request in requests:
        check(request)
        yield request
