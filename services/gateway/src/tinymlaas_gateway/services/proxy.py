"""Calls forwarded as bytes: the catalogue's to the registry, those of device keys to a bridge; nothing parsed or translated.

Who is called validates and answers; its status travels back unchanged. Authentication happens before, in the interceptor.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tinymlaas.bridge.v1 import security_pb2
from tinymlaas.registry.v1 import access_pb2, artifacts_pb2, devices_pb2, models_pb2, modules_pb2, plugins_pb2
from tinymlaas_servicekit import ServiceError, Unavailable, current_principal
from tinymlaas_servicekit.identity import SUBJECT_HEADER

from .types import RpcMethodHandler, ServicerContext

CATALOGUE: tuple[ServiceDescriptor, ...] = tuple(
    service
    for file in (models_pb2, artifacts_pb2, modules_pb2, devices_pb2, plugins_pb2, access_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
DEVICE_KEYS: tuple[ServiceDescriptor, ...] = (security_pb2.DESCRIPTOR.services_by_name["DeviceKeys"],)
UNARY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Opaque:
    """A serialized message on its way; it has the descriptor of the empty message, so interceptors find nothing to check.

    Who must look into it all the same (servicekit's Forwarded) parses it as `kind`.
    """

    data: bytes
    kind: type[Message] = empty_pb2.Empty
    DESCRIPTOR: ClassVar[Any] = empty_pb2.Empty.DESCRIPTOR

    def ByteSize(self) -> int:
        """Its length; what is left of a refused upload is read on within bounds."""
        return len(self.data)

    def parsed(self) -> Message:
        """See servicekit.messages.Forwarded."""
        return self.kind.FromString(self.data)


def _answer(data: bytes) -> Opaque:
    return Opaque(data)


def _unwrap(message: Opaque) -> bytes:
    return message.data


class Proxy(grpc.GenericRpcHandler):
    """Handles every method of some services by forwarding it; `channel` gives the channel to `peer` ("registry") now."""

    def __init__(
        self, channel: Callable[[], grpc.aio.Channel], services: tuple[ServiceDescriptor, ...], peer: str
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._handlers = {
            f"/{service.full_name}/{method.name}": self._handler(
                f"/{service.full_name}/{method.name}",
                method.client_streaming,
                method.server_streaming,
                GetMessageClass(method.input_type),
            )
            for service in services
            for method in service.methods
        }

    @property
    def services(self) -> list[str]:
        """Full names of the forwarded services."""
        return sorted({method.split("/")[1] for method in self._handlers})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcMethodHandler | None:
        """The handler of a forwarded method, None for others."""
        return self._handlers.get(handler_call_details.method)

    def _handler(self, method: str, streams_in: bool, streams_out: bool, request: type[Message]) -> RpcMethodHandler:
        name = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
        handler = getattr(self, f"_{name}")(method)
        factory = getattr(grpc, f"{name}_rpc_method_handler")
        made: RpcMethodHandler = factory(
            handler, request_deserializer=lambda data: Opaque(data, request), response_serializer=_unwrap
        )
        return made

    def _call(self, name: str, method: str) -> Any:
        call = getattr(self._channel(), name)(method, request_serializer=_unwrap, response_deserializer=_answer)
        return functools.partial(call, metadata=((SUBJECT_HEADER, current_principal().subject),))

    def _unary_unary(self, method: str) -> Callable[[Opaque, ServicerContext], Any]:
        async def forward(request: Opaque, context: ServicerContext) -> Opaque:
            try:
                answer: Opaque = await self._call("unary_unary", method)(request, timeout=_seconds(context))
                return answer
            except grpc.aio.AioRpcError as error:
                await self._pass_on(context, error)
                raise

        return forward

    def _unary_stream(self, method: str) -> Callable[[Opaque, ServicerContext], AsyncIterator[Opaque]]:
        async def forward(request: Opaque, context: ServicerContext) -> AsyncIterator[Opaque]:
            call = self._call("unary_stream", method)(request, timeout=_remaining(context))
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError as error:
                await self._pass_on(context, error)
            finally:
                call.cancel()

        return forward

    def _stream_unary(self, method: str) -> Callable[[AsyncIterator[Opaque], ServicerContext], Any]:
        async def forward(requests: AsyncIterator[Opaque], context: ServicerContext) -> Opaque:
            admitted = _Admitted(requests)
            call = self._call("stream_unary", method)(admitted.messages(), timeout=_remaining(context))
            try:
                answer: Opaque = await call
                return answer
            except asyncio.CancelledError:
                if admitted.error is not None:
                    raise admitted.error from None
                raise
            except grpc.aio.AioRpcError as error:
                await self._pass_on(context, error)
                raise

        return forward

    def _stream_stream(self, method: str) -> Callable[[AsyncIterator[Opaque], ServicerContext], AsyncIterator[Opaque]]:
        async def forward(requests: AsyncIterator[Opaque], context: ServicerContext) -> AsyncIterator[Opaque]:
            admitted = _Admitted(requests)
            call = self._call("stream_stream", method)(admitted.messages(), timeout=_remaining(context))
            try:
                async for answer in call:
                    yield answer
            except asyncio.CancelledError:
                if admitted.error is not None:
                    raise admitted.error from None
                raise
            except grpc.aio.AioRpcError as error:
                await self._pass_on(context, error)
            finally:
                call.cancel()

        return forward

    async def _pass_on(self, context: ServicerContext, error: grpc.aio.AioRpcError) -> None:
        """End the call with the peer's own status, details included; one that never reached it is ..._UNAVAILABLE."""
        trailers = tuple(error.trailing_metadata() or ())
        details = any(key == "grpc-status-details-bin" for key, _ in trailers)
        if error.code() is grpc.StatusCode.UNAVAILABLE and not details:
            raise Unavailable(
                f"the {self._peer} cannot be reached",
                f"{self._peer.upper()}_UNAVAILABLE",
                help=f"Check that the {self._peer} runs, then call again.",
            ) from error
        kept = tuple(pair for pair in trailers if pair[0] == "grpc-status-details-bin")
        await context.abort(error.code(), error.details() or "", kept)


class _Admitted:
    """A caller's messages on their way; `error` is why one of them was refused.

    The client that sends them on shows an error of its source as a cancelled call only.
    """

    def __init__(self, requests: AsyncIterator[Opaque]) -> None:
        self._requests = requests
        self.error: ServiceError | None = None

    async def messages(self) -> AsyncIterator[Opaque]:
        """Every message, until one is refused."""
        try:
            async for request in self._requests:
                yield request
        except ServiceError as error:
            self.error = error
            raise


def _remaining(context: ServicerContext) -> float | None:
    seconds = context.time_remaining()
    return seconds if seconds is not None and seconds < 10**8 else None


def _seconds(context: ServicerContext) -> float:
    return min(_remaining(context) or UNARY_SECONDS, UNARY_SECONDS)
