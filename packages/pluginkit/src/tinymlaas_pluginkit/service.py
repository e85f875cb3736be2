"""The servicers of a plugin: identity at once, role calls through the worker pool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from tinymlaas.plugin.v1 import (
    compiler_pb2,
    compiler_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    importer_pb2,
    importer_pb2_grpc,
    optimizer_pb2_grpc,
    profiler_pb2,
    profiler_pb2_grpc,
)
from tinymlaas.type.v1 import tensor_pb2

from ._pool import WorkerPool
from ._rpcs import Rpc
from ._serving import RoleCalls
from .errors import FormatUnsupported, NotReady
from .jobs import Compiler, Importer, Optimizer, Profiler
from .options import check_options, struct_to_options

Context = Any


def schema_text(schema: Mapping[str, Any] | None) -> str:
    """The canonical text of an option schema; empty for none."""
    return "" if schema is None else json.dumps(schema, sort_keys=True, separators=(",", ":"))


class IdentityServicer(identity_pb2_grpc.PluginIdentityServicer):
    """Answers from memory, whatever the workers do."""

    def __init__(
        self,
        info: identity_pb2.GetPluginInfoResponse,
        capabilities: identity_pb2.GetPluginCapabilitiesResponse,
        pool: WorkerPool,
    ) -> None:
        self._info, self._capabilities, self._pool = info, capabilities, pool

    async def GetPluginInfo(self, request: Any, context: Context) -> identity_pb2.GetPluginInfoResponse:
        """See the proto."""
        return self._info

    async def GetPluginCapabilities(self, request: Any, context: Context) -> identity_pb2.GetPluginCapabilitiesResponse:
        """See the proto."""
        return self._capabilities

    async def Probe(self, request: Any, context: Context) -> identity_pb2.ProbeResponse:
        """See the proto."""
        if self._pool.failure:
            raise NotReady(
                f"workers fail to start: {self._pool.failure}",
                metadata={"detail": self._pool.failure},
                help="Restart the plugin; its log says why workers fail.",
            )
        return identity_pb2.ProbeResponse(ready=self._pool.ready)


class CompilerServicer(compiler_pb2_grpc.CompilerServicer):
    """The compiler role."""

    def __init__(self, role: Compiler, calls: RoleCalls) -> None:
        self._role, self._calls = role, calls

    async def ListTargets(self, request: Any, context: Context) -> compiler_pb2.ListTargetsResponse:
        """See the proto."""
        return compiler_pb2.ListTargetsResponse(targets=self._role.targets, model_formats=self._role.model_formats)

    async def GetOptionSchema(self, request: Any, context: Context) -> compiler_pb2.GetOptionSchemaResponse:
        """See the proto."""
        return compiler_pb2.GetOptionSchemaResponse(json_schema=schema_text(self._role.option_schema))

    def CheckModel(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """See the proto."""
        return self._calls.serve("check", request_iterator, context)

    def Compile(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """See the proto."""
        return self._calls.serve("compile", request_iterator, context)


class ImporterServicer(importer_pb2_grpc.ImporterServicer):
    """The importer role."""

    def __init__(self, role: Importer, calls: RoleCalls) -> None:
        self._role, self._calls = role, calls

    async def ListConversions(self, request: Any, context: Context) -> importer_pb2.ListConversionsResponse:
        """See the proto."""
        pairs = [importer_pb2.Conversion(**{"from": source, "to": to}) for source, to in self._role.conversions]
        return importer_pb2.ListConversionsResponse(conversions=pairs)

    def Import(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """See the proto."""
        return self._calls.serve("import", request_iterator, context)


class OptimizerServicer(optimizer_pb2_grpc.OptimizerServicer):
    """The optimizer role."""

    def __init__(self, role: Optimizer, calls: RoleCalls) -> None:
        self._role, self._calls = role, calls

    async def GetOptionSchema(self, request: Any, context: Context) -> compiler_pb2.GetOptionSchemaResponse:
        """See the proto."""
        return compiler_pb2.GetOptionSchemaResponse(json_schema=schema_text(self._role.option_schema))

    def Optimize(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """See the proto."""
        return self._calls.serve("optimize", request_iterator, context)


class ProfilerServicer(profiler_pb2_grpc.ProfilerServicer):
    """The profiler role."""

    def __init__(self, role: Profiler, calls: RoleCalls) -> None:
        self._role, self._calls = role, calls

    async def ListTargets(self, request: Any, context: Context) -> profiler_pb2.ProfilerListTargetsResponse:
        """See the proto."""
        return profiler_pb2.ProfilerListTargetsResponse(targets=self._role.targets, references=self._role.references)

    def Profile(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """See the proto."""
        return self._calls.serve("profile", request_iterator, context)

    def RunReference(self, request_iterator: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """See the proto."""
        return self._calls.serve("reference", request_iterator, context)


def header_checker(
    compiler: Compiler | None, optimizer: Optimizer | None, importer: Importer | None, profiler: Profiler | None
) -> Callable[[Rpc, Any], dict[str, Any]]:
    """A function that refuses headers outside of what the roles advertise, and returns the checked options."""

    def check(rpc: Rpc, header: Any) -> dict[str, Any]:
        if rpc.kind in ("check", "compile") and compiler is not None:
            _check_format(header.model_format, compiler.model_formats)
            return check_options(_plain(compiler.option_schema), struct_to_options(header.options))
        if rpc.kind == "optimize" and optimizer is not None:
            return check_options(_plain(optimizer.option_schema), struct_to_options(header.options))
        if rpc.kind == "import" and importer is not None:
            pair = (getattr(header.conversion, "from"), header.conversion.to)
            if pair not in set(importer.conversions):
                names = [
                    tensor_pb2.ModelFormat.Name(f) if f in tensor_pb2.ModelFormat.values() else str(f) for f in pair
                ]
                raise FormatUnsupported(" to ".join(names))
        if rpc.kind == "reference" and profiler is not None and header.reference not in set(profiler.references):
            raise FormatUnsupported(f"reference {header.reference}")
        return {}

    return check


def _check_format(got: Any, accepted: Sequence[int]) -> None:
    if got not in set(accepted):
        raise FormatUnsupported(
            tensor_pb2.ModelFormat.Name(got) if got in tensor_pb2.ModelFormat.values() else str(got)
        )


def _plain(schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if schema is None else dict(schema)
