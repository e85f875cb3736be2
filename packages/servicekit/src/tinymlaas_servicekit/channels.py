"""Client channels to our services: sizes, keepalive, retries of repeatable calls, token and trace context."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio

from .telemetry import context_headers
from .tls import TlsFiles, secure_channel
from .validation import contract_modules

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Methods that change nothing, or the same thing however often they are called; see the comments in the protos.
REPEATABLE_PREFIXES = ("Get", "List", "Probe", "Upsert", "Read", "Resolve", "Explain")


@lru_cache(maxsize=2)
def service_config(request_ids: bool = False) -> str:
    """gRPC service config (JSON): up to 4 tries on UNAVAILABLE and CANCELLED, only for repeatable calls with a single request.

    CANCELLED is how a call ends that reaches a server while it stops; one that is cancelled here is not repeated.
    `request_ids`: also for those that are repeatable by the `request_id` in their request, which the caller always sets.
    """
    names = [
        {"service": service.full_name, "method": method.name}
        for module in contract_modules()
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming and not method.server_streaming
        if method.name.startswith(REPEATABLE_PREFIXES)
        or (request_ids and "request_id" in method.input_type.fields_by_name)
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def connect(
    address: str,
    token: str | None = None,
    *,
    tls: TlsFiles | None = None,
    peer: str = "",
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    retry: bool = True,
    request_ids: bool = False,
) -> grpc.aio.Channel:
    """A channel to `host:port`, `unix:/path` or the first of `ipv4:host:port,host:port` that answers.

    Without `tls` it is for loopback and for meshes that bring their own.
    Every call carries the token, when given, and the current trace context. With `tls` only a server that proves to be the
    service `peer` is spoken to, or with an empty `peer` one that proves the address's host name; where the files have a
    certificate of our own, it stands in the token's place. `request_ids`: the caller sets one in every request that
    has the field, so that such calls are repeated too. The channel connects lazily; close it.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # The time that an attempt to connect may take, on a machine that may be busy; a refused one is repeated sooner.
        ("grpc.min_reconnect_backoff_ms", 3_000 if tls is None else 10_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        # Loopback channels of one process must not share a connection, or closing one would disturb another.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if retry:
        options.append(("grpc.service_config", service_config(request_ids)))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=_metadata_interceptors(token))
    sent = None if tls.certificate is not None else token
    return secure_channel(address, tls, peer, options, lambda: _metadata_interceptors(sent))


class _Metadata:
    """Adds authorization and trace context to a call's metadata."""

    def __init__(self, token: str | None) -> None:
        self._authorization = None if token is None else f"Bearer {token}"

    def extend(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        pairs = list(details.metadata or ())
        if self._authorization is not None and not any(key == "authorization" for key, _ in pairs):
            pairs.append(("authorization", self._authorization))
        pairs.extend(context_headers())
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, grpc.aio.Metadata(*pairs), details.credentials, details.wait_for_ready
        )


class _UnaryUnary(_Metadata, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self.extend(client_call_details), request)


class _UnaryStream(_Metadata, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self.extend(client_call_details), request)


class _StreamUnary(_Metadata, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self.extend(client_call_details), request_iterator)


class _StreamStream(_Metadata, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self.extend(client_call_details), request_iterator)


def _metadata_interceptors(token: str | None) -> Sequence[grpc.aio.ClientInterceptor]:
    return [_UnaryUnary(token), _UnaryStream(token), _StreamUnary(token), _StreamStream(token)]
