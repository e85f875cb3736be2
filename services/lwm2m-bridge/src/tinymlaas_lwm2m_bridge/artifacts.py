"""Artifacts from the registry, over gRPC."""

from __future__ import annotations

import grpc.aio

from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc
from tinymlaas_servicekit import from_rpc_error

from .core.errors import BridgeError, Reason


class RegistryArtifacts:
    """Implements `ArtifactSource` on the registry's Artifacts service, on behalf of one project."""

    def __init__(self, channel: grpc.aio.Channel, project: str, *, max_bytes: int, timeout_s: float = 60.0) -> None:
        self._stub = artifacts_pb2_grpc.ArtifactsStub(channel)
        self._parent = f"projects/{project}"
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def read(self, digest: str) -> bytes:
        """All bytes of an artifact; ARTIFACT_NOT_FOUND, LIMIT_EXCEEDED, or the registry's own error."""
        request = artifacts_pb2.ReadArtifactRequest(sha256=digest, parent=self._parent)
        body = bytearray()
        try:
            async for part in self._stub.ReadArtifact(request, timeout=self._timeout_s):
                body += part.data
                if max(part.total_bytes, len(body)) > self._max_bytes:
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
            raise from_rpc_error(error) from error
        return bytes(body)
