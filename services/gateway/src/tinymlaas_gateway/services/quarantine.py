"""The Quarantine service."""

from __future__ import annotations

from tinymlaas.gateway.v1 import quarantine_pb2, quarantine_pb2_grpc
from tinymlaas.registry.v1 import plugins_pb2

from ..engine.context import Context
from .types import ServicerContext


class QuarantineServicer(quarantine_pb2_grpc.QuarantineServicer):
    """Maps calls to the plugins; the reason stands in the audit log's entry of the call."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def ReleasePlugin(
        self, request: quarantine_pb2.ReleasePluginRequest, context: ServicerContext
    ) -> plugins_pb2.Plugin:
        """Lets a version of a plugin take part again."""
        return await self._context.plugins.release(request.name, request.vendor_version)
