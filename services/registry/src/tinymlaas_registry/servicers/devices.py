"""The Devices service."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tinymlaas.registry.v1 import devices_pb2, devices_pb2_grpc
from tinymlaas_servicekit import encode_page_token
from tinymlaas_servicekit.resource_names import PROJECT, parse_name

from ..core.devices import checked_paths, written
from ..core.ports import Records
from ._common import found, page_of, require


class DevicesServicer(devices_pb2_grpc.DevicesServicer):
    """See protos/tinymlaas/registry/v1/devices.proto."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def UpsertDevice(self, request: devices_pb2.UpsertDeviceRequest, context: Any) -> devices_pb2.Device:
        """See the proto."""
        name = require(request.device, "name", "device")
        paths, now = checked_paths(request.update_mask), Timestamp()
        now.GetCurrentTime()
        change = partial(written, told=request.device, paths=paths, now=now)
        return await asyncio.to_thread(self._records.change_device, name, change)

    async def GetDevice(self, request: devices_pb2.GetDeviceRequest, context: Any) -> devices_pb2.Device:
        """See the proto."""
        return found(await asyncio.to_thread(self._records.get_device, request.name), request.name)

    async def ListDevices(
        self, request: devices_pb2.ListDevicesRequest, context: Any
    ) -> devices_pb2.ListDevicesResponse:
        """See the proto."""
        project, page = parse_name(PROJECT, request.parent)["project"], page_of(request)
        devices, cursor = await asyncio.to_thread(self._records.list_devices, project, page)
        token = "" if cursor is None else encode_page_token(cursor, request)
        return devices_pb2.ListDevicesResponse(devices=devices, next_page_token=token)

    async def DeleteDevice(self, request: devices_pb2.DeleteDeviceRequest, context: Any) -> empty_pb2.Empty:
        """See the proto."""
        deleted = await asyncio.to_thread(self._records.delete_device, request.name)
        found(deleted or None, request.name)
        return empty_pb2.Empty()
