"""The caller's side of the contract: a plugin is hostile until each of its answers has been checked.

Bytes, log lines, messages, silence and time are bounded; a breach ends the call at once, with the clause that was broken.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from tinymlaas.plugin.v1 import (
    compiler_pb2,
    compiler_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    importer_pb2,
    importer_pb2_grpc,
    optimizer_pb2,
    optimizer_pb2_grpc,
    profiler_pb2,
    profiler_pb2_grpc,
    stream_pb2,
)
from tinymlaas_servicekit import TlsFiles, connect

from . import _checks
from ._rpcs import RPCS, Rpc
from ._text import clean
from ._uploads import MAX_CHUNK
from .errors import DigestMismatch, PluginProtocol, PluginTimeout
from .options import parse_schema

R = TypeVar("R", bound=Message)
Request = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True)
class ClientLimits:
    """How much of a plugin's answer is taken, and how long it is waited for. Sizes in bytes, times in seconds."""

    identity_seconds: float = 5.0
    silence_seconds: float = 30.0
    call_seconds: float = 1800.0
    max_output_bytes: int = 256 * 1024 * 1024
    max_messages: int = 100_000
    max_log_lines: int = 10_000
    max_log_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True)
class ProgressEvent:
    """A step in words and the share done; `fraction` None: unknown."""

    step: str
    fraction: float | None


@dataclass(frozen=True)
class LogEvent:
    """One line of the tool's log, made safe to show; level is info, warning or error."""

    level: str
    text: str


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """The checked result of a call and its blobs by name."""

    result: R
    blobs: Mapping[str, bytes] = field(default_factory=dict)


class PluginCall(Generic[R]):
    """One role call. Iterate over its events, then take `outcome`; or `await finish(...)`. Closing the iterator cancels."""

    def __init__(
        self,
        rpc: Rpc,
        start: Callable[[float], Any],
        limits: ClientLimits,
        seconds: float,
        check: Callable[[Any, Mapping[str, bytes]], None],
    ) -> None:
        self._rpc, self._start, self._limits, self._seconds, self._check = rpc, start, limits, seconds, check
        self._outcome: Outcome[R] | None = None

    @property
    def outcome(self) -> Outcome[R]:
        """The outcome, once all events have been taken."""
        if self._outcome is None:
            raise RuntimeError("the call has not ended")
        return self._outcome

    async def finish(self, on_event: Callable[[ProgressEvent | LogEvent], None] | None = None) -> Outcome[R]:
        """Runs the call to its end, showing each event to `on_event`."""
        async for event in self:
            if on_event is not None:
                on_event(event)
        return self.outcome

    async def __aiter__(self) -> AsyncIterator[ProgressEvent | LogEvent]:
        call = self._start(self._seconds + 5.0)
        answer = _Answer(self._rpc, self._limits)
        try:
            async with asyncio.timeout(self._seconds):
                async for message in self._messages(call):
                    event = answer.take(message)
                    if event is not None:
                        yield event
        except TimeoutError as error:
            raise PluginTimeout("CP-LIMIT-004", f"no result after {self._seconds:g} s", self._seconds) from error
        except grpc.RpcError as error:
            raise _checks.plugin_error(error) from error
        finally:
            call.cancel()
        result, blobs = answer.finish()
        self._check(result, blobs)
        self._outcome = Outcome(result, blobs)

    async def _messages(self, call: Any) -> AsyncIterator[Any]:
        silence = self._limits.silence_seconds
        while True:
            try:
                async with asyncio.timeout(silence):
                    message = await call.read()
            except TimeoutError as error:
                raise PluginTimeout("CP-STREAM-008", f"no sign of life for {silence:g} s", silence) from error
            if message is grpc.aio.EOF:
                # A call that ended badly says so only when asked.
                if await call.code() is not grpc.StatusCode.OK:
                    raise await _ended(call)
                return
            yield message


async def _ended(call: Any) -> grpc.aio.AioRpcError:
    """The error with which a call ended."""
    return _checks.call_error(await call.code(), await call.details(), await call.trailing_metadata())


class _Answer:
    """Takes the messages of a stream out one by one; raises at the first that breaks the contract."""

    def __init__(self, rpc: Rpc, limits: ClientLimits) -> None:
        self._rpc, self._limits = rpc, limits
        self._messages = self._lines = self._log_bytes = self._bytes = 0
        self._fraction = 0.0
        self._blobs: dict[str, bytes] = {}
        self._name: str | None = None
        self._data = bytearray()
        self._result: Message | None = None

    def take(self, message: Any) -> ProgressEvent | LogEvent | None:
        """The event that the message is, if it is one."""
        self._messages += 1
        if self._messages > self._limits.max_messages:
            raise PluginProtocol("CP-LIMIT-005", f"flood: more than {self._limits.max_messages} messages")
        if self._result is not None:
            raise PluginProtocol("CP-STREAM-010", "a message after the result")
        if message is None:  # grpc.aio's way to say that the bytes could not be parsed
            raise PluginProtocol("CP-STREAM-009", "bytes that are no message of this stream")
        part = message.WhichOneof("part")
        if part == "progress":
            return self._progress(message.progress)
        if part == "log":
            return self._log(message.log)
        if part == "chunk":
            self._chunk(message.chunk)
        elif part == "result":
            if self._name is not None:
                raise PluginProtocol("CP-STREAM-004", f"the result came inside of blob {self._name!r}")
            self._result = message.result
        else:
            raise PluginProtocol("CP-STREAM-009", "a message without a known part")
        return None

    def finish(self) -> tuple[Any, dict[str, bytes]]:
        """Result and blobs of a stream that ended well."""
        if self._result is None:
            raise PluginProtocol("CP-STREAM-010", "the stream ended without a result")
        return self._result, self._blobs

    def _progress(self, progress: stream_pb2.Progress) -> ProgressEvent:
        fraction = progress.fraction
        if not fraction <= 1.0:  # NaN included
            raise PluginProtocol("CP-STREAM-007", f"fraction {fraction} is over 1")
        if fraction < 0:
            return ProgressEvent(clean(progress.step, 200), None)
        if fraction < self._fraction:
            raise PluginProtocol("CP-STREAM-007", f"fraction went back from {self._fraction:g} to {fraction:g}")
        self._fraction = fraction
        return ProgressEvent(clean(progress.step, 200), fraction)

    def _log(self, line: stream_pb2.LogLine) -> LogEvent:
        size = len(line.text.encode())
        self._lines += 1
        self._log_bytes += size
        if size > 4096:
            raise PluginProtocol("CP-STREAM-006", f"a log line of {size} bytes")
        if self._lines > self._limits.max_log_lines or self._log_bytes > self._limits.max_log_bytes:
            raise PluginProtocol("CP-LIMIT-005", "flood: too many log lines")
        level = {stream_pb2.LogLine.LEVEL_WARNING: "warning", stream_pb2.LogLine.LEVEL_ERROR: "error"}.get(
            line.level, "info"
        )
        return LogEvent(level, clean(line.text, 4096))

    def _chunk(self, chunk: stream_pb2.Chunk) -> None:
        if self._name is None:
            if chunk.blob not in self._rpc.blobs_out or chunk.blob in self._blobs:
                raise PluginProtocol("CP-STREAM-003", f"blob {clean(chunk.blob, 32)!r} is not awaited")
            self._name = chunk.blob
        elif chunk.blob != self._name:
            raise PluginProtocol("CP-STREAM-003", f"a blob began inside of blob {self._name!r}")
        if len(chunk.data) > MAX_CHUNK:
            raise PluginProtocol("CP-STREAM-005", f"a chunk of {len(chunk.data)} bytes")
        self._bytes += len(chunk.data)
        if self._bytes > self._limits.max_output_bytes:
            raise PluginProtocol("CP-LIMIT-005", f"flood: more than {self._limits.max_output_bytes} bytes")
        self._data += chunk.data
        if chunk.sha256:
            data = bytes(self._data)
            got = hashlib.sha256(data).digest()
            if chunk.sha256 != got:
                raise DigestMismatch(f"sha256 of {self._name}", chunk.sha256[:32].hex(), got.hex())
            self._blobs[self._name] = data
            self._name, self._data = None, bytearray()


class PluginClient:
    """A plugin at an address. Lazy: the first call connects. Close it, or use it as an async context manager."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        limits: ClientLimits | None = None,
        tls: TlsFiles | None = None,
        peer: str = "",
    ) -> None:
        self.address = address
        self.limits = limits or ClientLimits()
        self._channel = connect(address, token, tls=tls, peer=peer, retry=False)
        self._identity = identity_pb2_grpc.PluginIdentityStub(self._channel)
        self._compiler = compiler_pb2_grpc.CompilerStub(self._channel)
        self._importer = importer_pb2_grpc.ImporterStub(self._channel)
        self._optimizer = optimizer_pb2_grpc.OptimizerStub(self._channel)
        self._profiler = profiler_pb2_grpc.ProfilerStub(self._channel)

    async def __aenter__(self) -> PluginClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        await self._channel.close()

    async def info(self) -> identity_pb2.GetPluginInfoResponse:
        """Who the plugin is, checked: name, versions, contract version of our major."""
        answer = await self._ask(self._identity.GetPluginInfo, identity_pb2.GetPluginInfoRequest())
        _checks.check_info(answer)
        return answer  # type: ignore[no-any-return]

    async def capabilities(self) -> identity_pb2.GetPluginCapabilitiesResponse:
        """What it can do, checked."""
        request = identity_pb2.GetPluginCapabilitiesRequest()
        answer = await self._ask(self._identity.GetPluginCapabilities, request)
        _checks.check_capabilities(answer)
        return answer  # type: ignore[no-any-return]

    async def probe(self) -> bool:
        """Whether it is ready; an error means that it wants to be restarted."""
        answer = await self._ask(self._identity.Probe, identity_pb2.ProbeRequest())
        return bool(answer.ready)

    async def compiler_targets(self) -> compiler_pb2.ListTargetsResponse:
        """Targets and formats of the compiler role."""
        answer = await self._ask(self._compiler.ListTargets, compiler_pb2.ListTargetsRequest())
        _checks.check_message(answer, "CP-COMPILE-001")
        return answer  # type: ignore[no-any-return]

    async def compiler_option_schema(self) -> str:
        """JSON Schema text of Compile's options, checked to be one; empty: no options."""
        answer = await self._ask(self._compiler.GetOptionSchema, compiler_pb2.GetOptionSchemaRequest())
        parse_schema(answer.json_schema)
        return str(answer.json_schema)

    async def optimizer_option_schema(self) -> str:
        """JSON Schema text of Optimize's options, checked to be one; empty: no options."""
        answer = await self._ask(self._optimizer.GetOptionSchema, compiler_pb2.GetOptionSchemaRequest())
        parse_schema(answer.json_schema)
        return str(answer.json_schema)

    async def conversions(self) -> list[importer_pb2.Conversion]:
        """Pairs of formats of the importer role."""
        answer = await self._ask(self._importer.ListConversions, importer_pb2.ListConversionsRequest())
        _checks.check_message(answer, "CP-IMPORT-001")
        return list(answer.conversions)

    async def profiler_targets(self) -> profiler_pb2.ProfilerListTargetsResponse:
        """Targets and reference executors of the profiler role."""
        answer = await self._ask(self._profiler.ListTargets, profiler_pb2.ProfilerListTargetsRequest())
        _checks.check_message(answer, "CP-PROFILE-001")
        return answer  # type: ignore[no-any-return]

    def check_model(
        self, header: compiler_pb2.CompileHeader, model: bytes, *, seconds: float | None = None
    ) -> PluginCall[compiler_pb2.CheckModelResult]:
        """Asks whether Compile would take the model. Digest and size of the header are filled in here."""
        header = _with_model(header, model)
        return self._call("check", self._compiler.CheckModel, header, {"model": model}, seconds, _checks.check_verdict)

    def compile(
        self, header: compiler_pb2.CompileHeader, model: bytes, *, seconds: float | None = None
    ) -> PluginCall[compiler_pb2.CompileResult]:
        """Compiles; blobs out: "payload", perhaps "report"."""
        header = _with_model(header, model)
        return self._call("compile", self._compiler.Compile, header, {"model": model}, seconds, _checks.check_compiled)

    def import_model(
        self, header: importer_pb2.ImportHeader, model: bytes, *, seconds: float | None = None
    ) -> PluginCall[importer_pb2.ImportResult]:
        """Converts a model; blob out: "model"."""
        header = _with_model(header, model)
        return self._call("import", self._importer.Import, header, {"model": model}, seconds, _checks.check_model_out)

    def optimize(
        self,
        header: optimizer_pb2.OptimizeHeader,
        model: bytes,
        calibration: bytes | None = None,
        *,
        seconds: float | None = None,
    ) -> PluginCall[optimizer_pb2.OptimizeResult]:
        """Optimizes a model; `calibration` is an npz file; blobs out: "model", perhaps "recipe", "report", "picture"."""
        blobs = {"model": model} if calibration is None else {"model": model, "calibration": calibration}
        header = _with_model(header, model)
        return self._call("optimize", self._optimizer.Optimize, header, blobs, seconds, _checks.check_optimized)

    def profile(
        self,
        header: profiler_pb2.ProfileHeader,
        payload: bytes,
        inputs: profiler_pb2.InputSet,
        *,
        seconds: float | None = None,
    ) -> PluginCall[profiler_pb2.ProfileResult]:
        """Runs a payload on inputs; blob out: "outputs", a serialized InputSet (see `outputs_of`)."""
        blobs = {"payload": payload, "inputs": inputs.SerializeToString(deterministic=True)}
        check = _checks.outputs_checker(len(inputs.samples))
        return self._call("profile", self._profiler.Profile, header, blobs, seconds, check)

    def run_reference(
        self,
        header: profiler_pb2.RunReferenceHeader,
        model: bytes,
        inputs: profiler_pb2.InputSet,
        *,
        seconds: float | None = None,
    ) -> PluginCall[profiler_pb2.RunReferenceResult]:
        """Runs a model with a reference executor; blob out: "outputs"."""
        blobs = {"model": model, "inputs": inputs.SerializeToString(deterministic=True)}
        check = _checks.outputs_checker(len(inputs.samples))
        header = _with_model(header, model)
        return self._call("reference", self._profiler.RunReference, header, blobs, seconds, check)

    def _call(
        self,
        kind: str,
        method: Callable[..., Any],
        header: Message,
        blobs: Mapping[str, bytes],
        seconds: float | None,
        check: Callable[[Any, Mapping[str, bytes]], None],
    ) -> PluginCall[Any]:
        rpc = RPCS[kind]
        bound = min(seconds or self.limits.call_seconds, self.limits.call_seconds)
        return PluginCall(
            rpc, lambda deadline: method(_upload(rpc, header, blobs), timeout=deadline), self.limits, bound, check
        )

    async def _ask(self, method: Callable[..., Any], request: Message) -> Any:
        try:
            answer = await method(request, timeout=self.limits.identity_seconds)
        except grpc.RpcError as error:
            raise _checks.plugin_error(error, self.limits.identity_seconds) from error
        if answer is None:  # as in `_Answer.take`
            raise PluginProtocol("CP-STREAM-009", "bytes that are no message")
        return answer


def outputs_of(outcome: Outcome[Any]) -> profiler_pb2.InputSet:
    """The values in the blob "outputs" of a checked Profile or RunReference outcome."""
    return profiler_pb2.InputSet.FromString(outcome.blobs["outputs"])


def _with_model(header: Any, model: bytes) -> Any:
    filled = type(header)()
    filled.CopyFrom(header)
    filled.model_sha256, filled.model_bytes = hashlib.sha256(model).digest(), len(model)
    return filled


async def _upload(rpc: Rpc, header: Message, blobs: Mapping[str, bytes]) -> AsyncIterator[Message]:
    request: Any = rpc.request
    yield request(header=header)
    for name, data in blobs.items():
        for chunk in _chunks(name, data):
            yield request(chunk=chunk)


def _chunks(name: str, data: bytes) -> Iterable[stream_pb2.Chunk]:
    digest = hashlib.sha256(data).digest()
    view = memoryview(data)
    for start in range(0, max(len(data), 1), MAX_CHUNK):
        last = start + MAX_CHUNK >= len(data)
        yield stream_pb2.Chunk(blob=name, data=bytes(view[start : start + MAX_CHUNK]), sha256=digest if last else b"")
