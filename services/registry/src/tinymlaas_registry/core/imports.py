"""The import of a model: upload, check, record; nothing is kept unless it passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tinymlaas.registry.v1 import models_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_modelkit.check import CheckerUnavailable, Limits, ModelReport, check_model_isolated_async
from tinymlaas_servicekit.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

from .archives import check_keras, check_saved_model
from .models import FORMAT_NAMES, ImportRequest, check_header, describe, redescribe, updated_model
from .ports import ArtifactStore, Records
from .storing import Storing
from .uploads import Upload

CheckModel = Callable[[bytes, str, Limits], Awaitable[ModelReport]]


@dataclass(frozen=True)
class ImportLimits:
    """Bounds of imports; sizes in bytes, times in seconds."""

    max_model_bytes: int
    max_uploads: int
    max_checks: int
    stall_seconds: float


class Imports:
    """Runs imports against records and a store; several at once, but one per request id and project."""

    def __init__(
        self,
        records: Records,
        store: ArtifactStore,
        limits: ImportLimits,
        storing: Storing,
        check: CheckModel | None = None,
    ) -> None:
        self._records, self._store, self._limits, self._storing = records, store, limits, storing
        self._check: CheckModel = check or _check_isolated
        self._checks = asyncio.Semaphore(limits.max_checks)
        self._running: set[tuple[str, str]] = set()
        self._uploads = 0

    async def run(self, requests: AsyncIterator[models_pb2.ImportModelRequest]) -> models_pb2.ModelVersion:
        """The version that the streamed file became (or would become, with `validate_only`)."""
        first = await self._next(requests)
        if first is None or first.WhichOneof("part") != "header":
            raise _stream("the first message must be the header")
        request = check_header(first.header)
        with self._slot(request):
            stored = not request.header.validate_only
            if stored:  # refused before its bytes come, where the header says how many
                size = request.header.size_bytes
                await asyncio.to_thread(self._records.check_room, request.project, request.sha256, size)
            incoming = await asyncio.to_thread(self._store.begin)
            try:
                limit = self._limits.max_model_bytes
                upload = Upload(incoming, request.sha256, limit, request.header.size_bytes)
                while (message := await self._next(requests)) is not None:
                    if message.WhichOneof("part") != "chunk":
                        raise _stream("only chunks may follow the header")
                    chunk = message.chunk
                    crc32c = chunk.crc32c if chunk.HasField("crc32c") else None
                    upload.add(chunk.data, chunk.offset, crc32c)
                upload.finish()
                version = await self._checked(request, upload.size, incoming.read)
                if not stored:
                    return version
                async with self._storing.turn:
                    await asyncio.to_thread(self._records.check_room, request.project, request.sha256, upload.size)
                    await self._storing.run(incoming.commit, request.sha256)
                    return await asyncio.to_thread(self._record, request, version)
            finally:
                await asyncio.to_thread(incoming.abort)

    def _record(self, request: ImportRequest, version: models_pb2.ModelVersion) -> models_pb2.ModelVersion:
        derived_from = request.header.derived_from
        if derived_from and self._records.get_version(derived_from) is None:
            raise FailedPrecondition(
                f"{derived_from} does not exist",
                "DERIVED_FROM_MISSING",
                {"subject": derived_from},
                "Import the version that this one was derived from first.",
            )
        model = updated_model(self._records.get_model(request.model), request)
        version.licence = model.licence
        return self._records.add_version(model, version)

    async def _checked(self, request: ImportRequest, size: int, read: Callable[[], bytes]) -> models_pb2.ModelVersion:
        known = await asyncio.to_thread(self._records.find_checked, request.sha256, request.header.format)
        if known is not None:
            return redescribe(request, known)
        async with self._checks:
            data = await asyncio.to_thread(read)
            name = FORMAT_NAMES.get(request.header.format)
            if name is None:
                archive = request.header.format == tensor_pb2.MODEL_FORMAT_KERAS
                await asyncio.to_thread(check_keras if archive else check_saved_model, data)
                return describe(request, size, None)
            try:
                report = await self._check(data, name, Limits(model_bytes=self._limits.max_model_bytes))
            except CheckerUnavailable as error:
                raise Unavailable(
                    str(error), "CHECKER_UNAVAILABLE", help="Call again; the file was not judged."
                ) from error
        return describe(request, size, report)

    @contextmanager
    def _slot(self, request: ImportRequest) -> Iterator[None]:
        """Bounds uploads at once, and admits one upload per request id."""
        key = (request.project, request.header.request_id)
        if request.header.request_id and key in self._running:
            raise Aborted(
                f"an upload with request_id {request.header.request_id[:64]!r} is under way",
                "UPLOAD_IN_PROGRESS",
                {"request_id": request.header.request_id[:64]},
            )
        if self._uploads >= self._limits.max_uploads:
            raise ResourceExhausted(
                f"{self._uploads} uploads are under way",
                "LIMIT_EXCEEDED",
                {"limit": "uploads", "bound": self._limits.max_uploads, "value": self._uploads + 1},
                "Call again in a moment.",
            )
        self._uploads += 1
        self._running.add(key)
        try:
            yield
        finally:
            self._uploads -= 1
            self._running.discard(key)

    async def _next(
        self, requests: AsyncIterator[models_pb2.ImportModelRequest]
    ) -> models_pb2.ImportModelRequest | None:
        try:
            async with asyncio.timeout(self._limits.stall_seconds):
                return await anext(requests, None)
        except TimeoutError as error:
            seconds = f"{self._limits.stall_seconds:g}"
            raise DeadlineExceeded(f"nothing came for {seconds} s", "UPLOAD_STALLED", {"seconds": seconds}) from error


async def _check_isolated(data: bytes, name: str, limits: Limits) -> ModelReport:
    return await check_model_isolated_async(data, name, limits)  # type: ignore[arg-type]


def _stream(detail: str) -> InvalidArgument:
    return InvalidArgument(detail, "UPLOAD_INVALID", {"detail": detail}, "Send the header first, then chunks in order.")
