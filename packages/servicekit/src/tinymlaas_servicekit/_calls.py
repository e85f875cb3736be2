"""The shape that all our server interceptors share: something around each call, and a look at each message in."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

# Called by probes and tools before they can know a token; they reveal nothing of a tenant.
OPEN_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
)


@dataclass(frozen=True)
class Call:
    """One incoming call: full method name ("/package.Service/Method"), gRPC's context, whether requests are streamed."""

    method: str
    context: Any
    streams_in: bool = False

    @property
    def service(self) -> str:
        """Full name of the service."""
        return self.method.split("/")[1] if self.method.count("/") >= 2 else ""

    @property
    def metadata(self) -> dict[str, str]:
        """Text metadata of the caller; of a repeated key the last value."""
        pairs = self.context.invocation_metadata() or ()
        return {key: value for key, value in pairs if isinstance(value, str)}

    @property
    def peer_names(self) -> tuple[str, ...]:
        """Names (SAN) in the certificate that the caller connected with; empty without mTLS."""
        found: dict[str, list[bytes]] = self.context.auth_context() or {}
        return tuple(name.decode(errors="replace") for name in found.get("x509_subject_alternative_name", ()))


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every call of every kind in `around`, and shows every incoming message to `check`.

    Handlers are coroutines or async generators. A handler that streams out is always run as a coroutine that writes, so
    that a cancelled call ends the handler's generator at once instead of when it is garbage-collected.
    """

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """What is done before and after the call; the default does nothing."""
        return nullcontext()

    def checker(self, call: Call) -> Callable[[Any], None] | None:
        """A function that raises for an unacceptable message of this call; None when messages are not looked at."""
        return None

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], handler_call_details: Any) -> Any:
        """The handler of the call, wrapped; None for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        return self._wrap(handler, handler_call_details.method)

    def _wrap(self, handler: Any, method: str) -> Any:
        request_streaming, response_streaming = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
        behaviour = getattr(handler, kind)

        def checked(call: Call, request: Any) -> Any:
            check = self.checker(call)
            if check is None:
                return request
            if request_streaming:
                return _checked_stream(request, check)
            check(request)
            return request

        async def unary(request: Any, context: Any) -> Any:
            call = Call(method, context, request_streaming)
            async with self.around(call):
                return await behaviour(checked(call, request), context)

        async def stream(request: Any, context: Any) -> None:
            call = Call(method, context, request_streaming)
            async with self.around(call):
                result = behaviour(checked(call, request), context)
                if inspect.isawaitable(result):
                    await result
                    return
                async with aclosing(result) as responses:
                    async for response in responses:
                        await context.write(response)

        factory = getattr(grpc, f"{kind}_rpc_method_handler")
        return factory(
            stream if response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _checked_stream(requests: AsyncIterator[Any], check: Callable[[Any], None]) -> AsyncIterator[Any]:
    async for request in requests:
        check(request)
        yield request
