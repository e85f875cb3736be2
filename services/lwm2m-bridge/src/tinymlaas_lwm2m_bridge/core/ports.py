"""What the core needs from the outside: a link to devices, bytes by digest, a memory for installs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from tinymlaas_lwm2m import Path, Value, Values
from tinymlaas_module import Requirement

from .install_record import InstallEvent, InstallRecord
from .registration import Registration

Progress = Callable[[int], Awaitable[None]]
"""Hears of the bytes that a device has taken, before it gets more."""


class ArtifactSource(Protocol):
    """The artifact store."""

    async def read(self, digest: str) -> bytes:
        """All bytes of the artifact with that sha256 (hex); ARTIFACT_NOT_FOUND where there is none.

        An error with the code UNAVAILABLE, CANCELLED or DEADLINE_EXCEEDED where the same call may succeed later. The caller
        checks the digest again; a source need not.
        """
        ...


class DeviceLink(Protocol):
    """Device management interface to one registered device at a time.

    Every call may raise DEVICE_UNREACHABLE (no answer), DEVICE_REJECTED (an error answer; `coap_code` in the metadata)
    and DEVICE_ANSWER_INVALID (an answer that breaks the standard).
    """

    async def read(self, device: Registration, path: Path) -> Values:
        """Values at or under `path`; empty where the device answers that there is nothing."""
        ...

    async def write(self, device: Registration, path: Path, value: Value) -> None:
        """Write one resource or resource instance; long opaque values go block-wise."""
        ...

    async def push(self, device: Registration, path: Path, data: bytes, progress: Progress) -> None:
        """Write an opaque resource block by block; `progress` hears the bytes that the device has taken."""
        ...

    async def execute(self, device: Registration, path: Path, arguments: dict[int, str] | None = None) -> None:
        """Execute a resource; returns when the device has answered."""
        ...

    def observe_several(self, device: Registration, paths: tuple[Path, ...]) -> AsyncGenerator[Values, None]:
        """All values at or under the paths now and whenever one of them changes, until the generator is closed."""
        ...


class PackageServer(Protocol):
    """Serves images to devices that pull."""

    def expect(self, digest: str) -> None:
        """Tell devices to ask later for an image that will be offered; counted, each needs its own `withdraw`."""
        ...

    def offer(self, digest: str, image: bytes) -> None:
        """Start to serve an image under its digest. Repeatable; counted, each needs its own `withdraw`."""
        ...

    def withdraw(self, digest: str) -> None:
        """Stop to serve an image once all that offered it have withdrawn it."""
        ...

    def uri(self, digest: str, device: Registration) -> str:
        """Package URI of an image, as this device can reach it."""
        ...


class InstallStore(Protocol):
    """Where installs outlive the process."""

    def open_installs(self) -> list[InstallRecord]:
        """Records that have not ended, oldest first."""
        ...


class InstallLog(Protocol):
    """The same memory while the bridge runs, for which the event loop does not stop.

    A call that is cancelled ends only once it is carried out or given up: nothing is written behind the back of who takes
    over then.
    """

    async def read(self, install_id: str) -> InstallRecord | None:
        """The record of an install, or None."""
        ...

    async def begin(self, record: InstallRecord) -> InstallRecord:
        """Store the record of a new install, unless its id has one; the one that is stored."""
        ...

    async def note(self, record: InstallRecord | None, event: InstallEvent | None) -> None:
        """Store a record, replacing the earlier one, and append to its timeline, both or none.

        A memory that is away is waited for, however long: an install that is under way outlives that.
        """
        ...

    async def events(self, install_id: str, skip: int) -> list[InstallEvent]:
        """Timeline of an install, oldest first, without its first `skip` entries."""
        ...


class ImageCheck(Protocol):
    """The last look at an image before a byte of it goes out."""

    def __call__(self, image: bytes) -> Requirement:
        """What the image needs on a device; called in a thread, because it may take seconds.

        Raises an error with code, reason, metadata and help where the image must not be installed.
        """
        ...
