"""The Plugins service."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tinymlaas.registry.v1 import plugins_pb2, plugins_pb2_grpc
from tinymlaas_servicekit import encode_page_token

from ..core.ports import Records
from ._common import found, page_of, require


class PluginsServicer(plugins_pb2_grpc.PluginsServicer):
    """See protos/tinymlaas/registry/v1/plugins.proto."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def UpsertPlugin(self, request: plugins_pb2.UpsertPluginRequest, context: Any) -> plugins_pb2.Plugin:
        """See the proto."""
        require(request.plugin, "name", "plugin")
        plugin = plugins_pb2.Plugin()
        plugin.CopyFrom(request.plugin)
        now = Timestamp()
        now.GetCurrentTime()
        plugin.update_time.CopyFrom(now)
        await asyncio.to_thread(self._records.put_plugin, plugin)
        return plugin

    async def GetPlugin(self, request: plugins_pb2.GetPluginRequest, context: Any) -> plugins_pb2.Plugin:
        """See the proto."""
        return found(await asyncio.to_thread(self._records.get_plugin, request.name), request.name)

    async def ListPlugins(
        self, request: plugins_pb2.ListPluginsRequest, context: Any
    ) -> plugins_pb2.ListPluginsResponse:
        """See the proto."""
        plugins, cursor = await asyncio.to_thread(self._records.list_plugins, page_of(request))
        token = "" if cursor is None else encode_page_token(cursor, request)
        return plugins_pb2.ListPluginsResponse(plugins=plugins, next_page_token=token)

    async def DeletePlugin(self, request: plugins_pb2.DeletePluginRequest, context: Any) -> empty_pb2.Empty:
        """See the proto."""
        deleted = await asyncio.to_thread(self._records.delete_plugin, request.name)
        found(deleted or None, request.name)
        return empty_pb2.Empty()
