"""The link to devices with a span for each operation: the last hop of a trace, as seen from the bridge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from opentelemetry.trace import SpanKind

from tinymlaas_lwm2m import Path, Value, Values
from tinymlaas_servicekit.telemetry import traced

from ..core.ports import DeviceLink, Progress
from ..core.registration import Registration


class TracedLink:
    """A DeviceLink around another; operations are spans named after those of LwM2M. An observation lasts, and gets none."""

    def __init__(self, link: DeviceLink) -> None:
        self._link = link

    async def read(self, device: Registration, path: Path) -> Values:
        """See DeviceLink."""
        with traced("lwm2m Read", kind=SpanKind.CLIENT, device=device.endpoint, path=str(path)):
            return await self._link.read(device, path)

    async def write(self, device: Registration, path: Path, value: Value) -> None:
        """See DeviceLink."""
        with traced("lwm2m Write", kind=SpanKind.CLIENT, device=device.endpoint, path=str(path)):
            await self._link.write(device, path, value)

    async def push(self, device: Registration, path: Path, data: bytes, progress: Progress) -> None:
        """See DeviceLink."""
        with traced("lwm2m Write", kind=SpanKind.CLIENT, device=device.endpoint, path=str(path), bytes=len(data)):
            await self._link.push(device, path, data, progress)

    async def execute(self, device: Registration, path: Path, arguments: dict[int, str] | None = None) -> None:
        """See DeviceLink."""
        with traced("lwm2m Execute", kind=SpanKind.CLIENT, device=device.endpoint, path=str(path)):
            await self._link.execute(device, path, arguments)

    def observe_several(self, device: Registration, paths: tuple[Path, ...]) -> AsyncGenerator[Values, None]:
        """See DeviceLink."""
        return self._link.observe_several(device, paths)
