"""The audit log as the gateway writes it: an entry for each call that changes something, before its answer (spec/access.md)."""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from opentelemetry import trace

from tinymlaas.registry.v1 import access_pb2, access_pb2_grpc
from tinymlaas_servicekit import Attempt, ServiceError, adapt, redacted
from tinymlaas_servicekit.messages import named_in, project_of
from tinymlaas_servicekit.resource_names import SEGMENT

from .endpoints import AWAY, Endpoint, unless_closed

log = structlog.get_logger("tinymlaas.gateway")

MAX_WAITING = 10_000
MAX_BATCH = 256
MAX_NAMES = 16
# A registry that is slow or away delays an answer for so long at most; the entry is written when it is back.
WAIT_SECONDS = 2.0
CALL_SECONDS = 10.0
PAUSE_SECONDS = 1.0
CLOSE_SECONDS = 5.0


def entry_of(attempt: Attempt) -> access_pb2.AuditEntry:
    """What is written of a call: who, what, when, outcome; nothing secret."""
    names = [] if attempt.message is None else list(dict.fromkeys(named_in(attempt.message)))
    code, reason = _outcome(attempt)
    span = trace.get_current_span().get_span_context()
    entry = access_pb2.AuditEntry(
        name=f"auditEntries/{uuid.uuid4().hex}",
        subject=attempt.principal.subject,
        proof=attempt.principal.how,
        method=attempt.call.method.lstrip("/"),
        resources=[name[:512] for name in names[:MAX_NAMES]],
        request="" if attempt.message is None else redacted(attempt.message),
        code=code,
        reason=reason,
        peer=str(attempt.call.context.peer())[:256],
        trace_id=trace.format_trace_id(span.trace_id) if span.is_valid else "",
        project=_project(names),
    )
    entry.time.GetCurrentTime()
    return entry


_PROJECT = re.compile(SEGMENT)


def _project(names: list[str]) -> str:
    """The project of the first name that is one; a refused request may name anything."""
    for name in names:
        project = project_of(name)
        if _PROJECT.fullmatch(project):
            return f"projects/{project}"
    return ""


def _outcome(attempt: Attempt) -> tuple[str, str]:
    error = attempt.error
    if error is None:
        return "OK", ""
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED", "CANCELLED"
    if isinstance(error, grpc.aio.AbortError):  # a forwarded call that ended with the other service's status
        return attempt.call.context.code().name, _forwarded_reason(attempt)
    adapted = adapt(error) if isinstance(error, Exception) else None
    return ("INTERNAL", "INTERNAL_ERROR") if adapted is None else (adapted.code, adapted.reason)


def _forwarded_reason(attempt: Attempt) -> str:
    trailers = dict(attempt.call.context.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin", b"")
    with suppress(DecodeError):
        for detail in status_pb2.Status.FromString(details).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                return str(info.reason)
    return ""


class AuditWriter:
    """Implements servicekit's Auditor: entries go to the registry in the order of their calls, several at a time."""

    def __init__(self, registry: Endpoint) -> None:
        self._registry = registry
        self._waiting: asyncio.Queue[tuple[access_pb2.AuditEntry, asyncio.Future[None]]] = asyncio.Queue(MAX_WAITING)
        self._writer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to write."""
        self._writer = asyncio.create_task(self._write(), name="audit log")

    async def close(self) -> None:
        """Writes what is left, for some seconds; then the rest goes to the log."""
        if self._writer is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._waiting.join()
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        while not self._waiting.empty():
            self._lose(self._waiting.get_nowait()[0], "the gateway stops")

    async def record(self, attempt: Attempt) -> None:
        """Writes the entry of a call that has ended; returns when it is written, or will be."""
        entry = entry_of(attempt)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((entry, written))
        except asyncio.QueueFull:
            self._lose(entry, "too many wait")
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await written

    async def _write(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                await self._append([entry for entry, _ in batch])
            except asyncio.CancelledError:
                for entry, _ in batch:
                    self._lose(entry, "the gateway stops")
                raise
            for _, written in batch:
                if not written.done():
                    written.set_result(None)
                self._waiting.task_done()

    async def _append(self, entries: list[access_pb2.AuditEntry]) -> None:
        request = access_pb2.AppendAuditEntriesRequest(entries=entries)
        while True:
            try:
                stub = access_pb2_grpc.AuditLogStub(self._registry.channel())
                with unless_closed("the registry"):
                    await stub.AppendAuditEntries(request, timeout=CALL_SECONDS)
                return
            except (ServiceError, grpc.RpcError) as error:
                adapted = adapt(error)
                if not isinstance(adapted, AWAY):  # an entry has a name, so one that was written is not written twice
                    for entry in entries:
                        self._lose(entry, str(error)[:500])
                    return
                log.warning("the audit log cannot be written now", waiting=self._waiting.qsize(), error=str(adapted))
            await asyncio.sleep(PAUSE_SECONDS)

    def _lose(self, entry: access_pb2.AuditEntry, why: str) -> None:
        log.error("an audit entry stands only here", why=why, entry=redacted(entry))
