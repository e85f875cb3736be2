"""Reading a device: the resources behind its capability record, and the state of its slots."""

from __future__ import annotations

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_lwm2m import ML_CAPABILITY, ObjectLibrary, Path, Values
from tinymlaas_lwm2m.objects import DEVICE, FIRMWARE, SOFTWARE

from .capabilities import build_device
from .catalogue import Catalogue
from .errors import BridgeError, Reason
from .install_plan import DeviceView, read_firmware_view, read_view
from .ports import DeviceLink
from .registration import Registration

_MAX_SLOTS = 16


class Surveyor:
    """Asks devices what they are and how they stand."""

    def __init__(self, link: DeviceLink, catalogue: Catalogue, library: ObjectLibrary) -> None:
        self._link = link
        self._catalogue = catalogue
        self._library = library

    async def capabilities(self, device: Registration) -> devices_pb2.Device:
        """The device's record, read afresh from objects 3, 9 and 42769 and the object list."""
        values: Values = {}
        for object_id in (DEVICE, ML_CAPABILITY):
            if device.has(object_id):
                values |= await self._link.read(device, Path(object_id, 0))
        if device.has(SOFTWARE):
            values |= await self._link.read(device, Path(SOFTWARE))
        return build_device(values, device.objects, self._catalogue, self._library)

    async def view(self, device: Registration) -> DeviceView:
        """State of all slots, or of the firmware of a device without; INSTALL_UNSUPPORTED where it has neither."""
        slots = device.instances(SOFTWARE)[:_MAX_SLOTS]
        if not slots and 0 in device.instances(FIRMWARE):
            values = await self._link.read(device, Path(FIRMWARE, 0))
            if device.has(ML_CAPABILITY):
                values |= await self._link.read(device, Path(ML_CAPABILITY, 0))
            return read_firmware_view(values)
        if not slots:
            raise BridgeError(
                Reason.INSTALL_UNSUPPORTED,
                f"{device.endpoint} has no instance of object 9 or 5",
                device=device.endpoint,
            )
        values = await self._link.read(device, Path(SOFTWARE))
        if device.has(ML_CAPABILITY):
            values |= await self._link.read(device, Path(ML_CAPABILITY, 0))
        return read_view(values, slots)
