"""Artifacts from the registry, over gRPC."""

from __future__ import annotations

import grpc.aio

from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc
from tinymlaas_servicekit import ServiceError, Unavailable, from_rpc_error

from .core.errors import BridgeError, Reason

_BROKEN_STREAM = ("RST_STREAM", "Stream removed")
"""What gRPC's client says where a stream ended without the server's own status."""


class RegistryArtifacts:
    """Implements `ArtifactSource` on the registry's Artifacts service, on behalf of one project."""

    def __init__(self, channel: grpc.aio.Channel, project: str, *, max_bytes: int, timeout_s: float = 60.0) -> None:
        self._stub = artifacts_pb2_grpc.ArtifactsStub(channel)
        self._parent = f"projects/{project}"
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def read(self, digest: str) -> bytes:
        """See `ArtifactSource`; LIMIT_EXCEEDED, or the registry's own error. An answer that breaks off is UNAVAILABLE."""
        request = artifacts_pb2.ReadArtifactRequest(sha256=digest, parent=self._parent)
        body, total = bytearray(), 0
        try:
            async for part in self._stub.ReadArtifact(request, timeout=self._timeout_s):
                body += part.data
                total = max(part.total_bytes, total)
                if max(total, len(body)) > self._max_bytes:
                    raise BridgeError(
                        Reason.LIMIT_EXCEEDED,
                        "the artifact is too long",
                        limit="max_image_bytes",
                        value=self._max_bytes,
                    )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise BridgeError(
                    Reason.ARTIFACT_NOT_FOUND, "the registry has no such artifact", digest=digest
                ) from error
            raise error_of(error) from error
        if len(body) < total:
            raise _broken_off()
        return bytes(body)


def error_of(error: grpc.aio.AioRpcError) -> ServiceError:
    """What a failed read stands for; a stream that broke off is Unavailable, whatever code gRPC gives it."""
    told = from_rpc_error(error)
    if told.code in ("INTERNAL", "UNKNOWN") and any(mark in told.message for mark in _BROKEN_STREAM):
        return _broken_off()
    return told


def _broken_off() -> Unavailable:
    return Unavailable("the registry's answer broke off")
