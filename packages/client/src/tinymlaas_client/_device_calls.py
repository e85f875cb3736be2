"""Calls about devices, their keys, and plugins."""

from __future__ import annotations

from typing import Any

import grpc.aio

from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas.gateway.v1 import quarantine_pb2, quarantine_pb2_grpc
from tinymlaas.registry.v1 import devices_pb2, devices_pb2_grpc, plugins_pb2, plugins_pb2_grpc
from tinymlaas_client._requests import ProjectCalls, all_pages, answer


class DeviceCalls(ProjectCalls):
    """The part of AsyncClient that is about devices and plugins."""

    def _open_devices(self, channel: grpc.aio.Channel) -> None:
        self._devices: Any = devices_pb2_grpc.DevicesStub(channel)
        self._device_keys: Any = security_pb2_grpc.DeviceKeysStub(channel)
        self._plugins: Any = plugins_pb2_grpc.PluginsStub(channel)
        self._quarantine: Any = quarantine_pb2_grpc.QuarantineStub(channel)

    async def list_devices(self) -> list[devices_pb2.Device]:
        """Every device of the project."""
        return await all_pages(
            lambda token: self._devices.ListDevices(
                devices_pb2.ListDevicesRequest(parent=self.project, page_size=200, page_token=token)
            ),
            "devices",
        )

    async def get_device(self, name: str) -> devices_pb2.Device:
        """A device by its endpoint name or full resource name."""
        return await answer(self._devices.GetDevice(devices_pb2.GetDeviceRequest(name=self.device_name(name))))

    def device_name(self, name: str) -> str:
        """Full resource name of a device given by its endpoint name."""
        return name if name.startswith("projects/") else f"{self.project}/devices/{name}"

    async def create_device_key(
        self, endpoint: str, *, bootstrap: bool = False
    ) -> security_pb2.CreateDeviceKeyResponse:
        """A new pre-shared key for an endpoint name, with its secret, which is told this once.

        With `bootstrap` for the bootstrap server: it stays when that hands out others.
        """
        request = security_pb2.CreateDeviceKeyRequest(parent=self.project, endpoint=endpoint, bootstrap=bootstrap)
        return await answer(self._device_keys.CreateDeviceKey(request))

    async def list_device_keys(self, endpoint: str = "") -> list[security_pb2.DeviceKey]:
        """Keys of one endpoint, or of all, without their secrets."""
        return await all_pages(
            lambda token: self._device_keys.ListDeviceKeys(
                security_pb2.ListDeviceKeysRequest(
                    parent=self.project, endpoint=endpoint, page_size=1000, page_token=token
                )
            ),
            "keys",
        )

    async def delete_device_key(self, identity: str) -> None:
        """Take a key back; its open sessions end. Repeatable."""
        request = security_pb2.DeleteDeviceKeyRequest(parent=self.project, identity=identity)
        await answer(self._device_keys.DeleteDeviceKey(request))

    async def list_plugins(self) -> list[plugins_pb2.Plugin]:
        """Every plugin that the gateway knows."""
        return await all_pages(
            lambda token: self._plugins.ListPlugins(plugins_pb2.ListPluginsRequest(page_size=200, page_token=token)),
            "plugins",
        )

    async def release_plugin(self, name: str, vendor_version: str, reason: str) -> plugins_pb2.Plugin:
        """Let a version of a plugin that is in quarantine take part in builds again; the reason goes to the audit log."""
        full = name if name.startswith("plugins/") else f"plugins/{name}"
        request = quarantine_pb2.ReleasePluginRequest(name=full, vendor_version=vendor_version, reason=reason)
        return await answer(self._quarantine.ReleasePlugin(request))
