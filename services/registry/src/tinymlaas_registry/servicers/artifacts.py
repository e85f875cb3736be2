"""The Artifacts service."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc
from tinymlaas_servicekit import DataLoss, DeadlineExceeded, InvalidArgument, NotFound
from tinymlaas_servicekit.resource_names import PROJECT, parse_name

from ..core.ports import ArtifactStore, Records
from ..core.storing import Storing
from ..core.uploads import MAX_CHUNK, Upload

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactsServicer(artifacts_pb2_grpc.ArtifactsServicer):
    """See protos/tinymlaas/registry/v1/artifacts.proto."""

    def __init__(
        self, records: Records, store: ArtifactStore, storing: Storing, max_bytes: int, stall_seconds: float
    ) -> None:
        self._records, self._store, self._storing = records, store, storing
        self._max_bytes, self._stall_seconds = max_bytes, stall_seconds

    async def ReadArtifact(
        self, request: artifacts_pb2.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.ReadArtifactResponse]:
        """See the proto. A whole artifact is compared with its digest on the way out."""
        sha256 = _digest(request.sha256)
        project = parse_name(PROJECT, request.parent)["project"]
        owned = await asyncio.to_thread(self._records.owns, project, sha256)
        total = await self._storing.run(self._store.size, sha256) if owned else None
        if total is None:  # whether another project has it is nobody's business
            raise NotFound(f"{request.parent} has no artifact {sha256}", "NOT_FOUND", {"name": sha256})
        if request.offset > total:
            raise InvalidArgument(
                f"offset {request.offset} is behind the end at {total}",
                "FIELD_INVALID",
                {"field": "offset", "size_bytes": total},
            )
        end = min(total, request.offset + request.limit) if request.limit else total
        whole, seen, position = request.offset == 0 and end == total, hashlib.sha256(), request.offset
        with await self._storing.run(self._store.open, sha256) as file:
            file.seek(position)
            first = True
            while first or position < end:
                data = await self._storing.run(file.read, min(MAX_CHUNK, end - position))
                position += len(data)
                if whole:
                    seen.update(data)
                if (position < end and not data) or (whole and position == end and seen.hexdigest() != sha256):
                    raise DataLoss(
                        f"the stored bytes of {sha256} are damaged",
                        "DIGEST_MISMATCH",
                        {"expected": sha256, "got": seen.hexdigest()},
                        "Write the artifact again; then look after the disk.",
                    )
                yield artifacts_pb2.ReadArtifactResponse(data=data, total_bytes=total if first else 0)
                first = False

    async def WriteArtifact(
        self, request_iterator: AsyncIterator[artifacts_pb2.WriteArtifactRequest], context: Any
    ) -> artifacts_pb2.WriteArtifactResponse:
        """See the proto."""
        first = await self._next(request_iterator)
        if first is None:
            raise InvalidArgument("the stream is empty", "UPLOAD_INVALID", help="Send sha256 and parent first.")
        sha256 = _digest(first.sha256)
        project = parse_name(PROJECT, first.parent)["project"]
        await asyncio.to_thread(self._records.check_room, project, sha256, len(first.data))
        incoming = await asyncio.to_thread(self._store.begin)
        try:
            upload = Upload(incoming, sha256, self._max_bytes)
            message: artifacts_pb2.WriteArtifactRequest | None = first
            while message is not None:
                upload.add(message.data)
                message = await self._next(request_iterator)
            upload.finish()
            async with self._storing.turn:
                await asyncio.to_thread(self._records.check_room, project, sha256, upload.size)
                await self._storing.run(incoming.commit, sha256)
                await asyncio.to_thread(self._records.add_reference, project, sha256, upload.size)
        finally:
            await asyncio.to_thread(incoming.abort)
        return artifacts_pb2.WriteArtifactResponse(sha256=sha256, size_bytes=upload.size)

    async def _next(
        self, requests: AsyncIterator[artifacts_pb2.WriteArtifactRequest]
    ) -> artifacts_pb2.WriteArtifactRequest | None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await anext(requests, None)
        except TimeoutError as error:
            raise DeadlineExceeded(f"nothing came for {self._stall_seconds:g} s", "UPLOAD_STALLED") from error


def _digest(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise InvalidArgument("sha256 is not 64 lower-case hex digits", "FIELD_INVALID", {"field": "sha256"})
    return text
