"""A bridge and devices on loopback UDP, with a lossy link between them where a test wants one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fault_board import FaultBoard

from tinymlaas_device.lwm2m import DeviceSettings, LwM2mDevice
from tinymlaas_device.lwm2m_download import DownloadSettings
from tinymlaas_lwm2m_bridge import (
    Account,
    BootstrapSettings,
    Bridge,
    BridgeError,
    BridgeSettings,
    CoapSettings,
    ImageCheck,
    InstallEvent,
    InstallRequest,
    InstallSettings,
    LinkSettings,
    Reason,
    SqlStore,
    Step,
)
from tinymlaas_module import Requirement

T = TypeVar("T")
DEADLINE_S = 90.0
FAST_LINK = LinkSettings(ack_timeout_s=0.1, max_retransmit=2, answer_s=5.0, execute_s=20.0)
FAST_INSTALL = InstallSettings(poll_s=0.02, stuck_s=2.0, offline_s=20.0)
FAST_DOWNLOAD = DownloadSettings(attempts=2, retry_s=0.05, ack_timeout_s=0.1, max_retransmit=2)


def image_of(size: int, seed: int = 0) -> bytes:
    """`size` bytes that differ from block to block, the same for the same seed."""
    blocks = (hashlib.sha256(f"{seed}/{index}".encode()).digest() for index in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def digest_of(image: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(image).hexdigest()


class Artifacts:
    """An artifact store in memory."""

    def __init__(self, *images: bytes) -> None:
        self.images = {digest_of(image): image for image in images}

    async def read(self, digest: str) -> bytes:
        if digest not in self.images:
            raise BridgeError(Reason.ARTIFACT_NOT_FOUND, "no such artifact", digest=digest)
        return self.images[digest]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def accept_any(image: bytes) -> Requirement:
    """Check of images for tests whose images are no modules: the protocol does not care, but for their length."""
    return Requirement(len(image), 0, 1, 0)


@dataclass
class Rig:
    """Builds bridges on one database and devices that register at them."""

    folder: Path
    artifacts: Artifacts = field(default_factory=Artifacts)
    clock: Clock = field(default_factory=Clock)
    check: ImageCheck = accept_any
    install: InstallSettings = FAST_INSTALL
    link: LinkSettings = FAST_LINK
    port: int = 0
    database_url: str = ""

    async def bridge(
        self,
        *,
        bootstrap: BootstrapSettings | None = None,
        account: Account | None = None,
        instance: str = "bridge",
        **changes: Any,
    ) -> Bridge:
        """A started bridge; the first one chooses the port, later ones of the same name take the same."""
        store = SqlStore(self.database_url or f"sqlite:///{self.folder / 'bridge.db'}", instance)
        settings = BridgeSettings(
            coap=CoapSettings(port=self.port if instance == "bridge" else 0),
            link=self.link,
            install=self.install,
            bootstrap=bootstrap,
            account=account or Account(""),
            expiry_poll_s=0.05,
            lease_s=1.0,
            fleet_poll_s=0.05,
        )
        bridge = Bridge(store, self.artifacts, self.check, settings, clock=self.clock, **changes)
        await bridge.start()
        self.port = int(bridge.endpoint.address.rsplit(":", 1)[1])
        return bridge

    async def device(
        self, board: FaultBoard | None = None, endpoint: str = "node-1", *, server_port: int = 0, **changes: Any
    ) -> LwM2mDevice:
        """A started device; its memory lies in the rig's folder under its name."""
        settings = DeviceSettings(
            endpoint=endpoint,
            server=f"coap://127.0.0.1:{server_port or self.port}",
            retry_s=0.05,
            state_file=self.folder / f"{endpoint}.json",
            download=FAST_DOWNLOAD,
            **changes,
        )
        device = LwM2mDevice(board or FaultBoard(), settings)
        await device.start()
        return device


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, at most `DEADLINE_S`."""
    end = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"not in {DEADLINE_S:g} s: {what}")
        await asyncio.sleep(0.01)


async def within(work: Awaitable[T]) -> T:
    """Await with the deadline of all tests."""
    async with asyncio.timeout(DEADLINE_S):
        return await work


async def run_install(bridge: Bridge, request: InstallRequest) -> list[InstallEvent]:
    """All events of an install."""

    async def collect() -> list[InstallEvent]:
        return [event async for event in bridge.install(request)]

    return await within(collect())


def failure(events: list[InstallEvent]) -> tuple[Step, str]:
    """Step and reason with which an install failed."""
    last = events[-1]
    assert last.failure is not None, last
    assert last.failure.help
    return last.step, last.failure.reason


async def until(events: Any, wanted: Step, bytes_done: int = 0) -> InstallEvent:
    """The first event of a running install at a step, with at least so many bytes."""
    while True:
        event: InstallEvent = await within(anext(events))
        assert not event.step.terminal or event.step is wanted, event
        if event.step is wanted and event.bytes_done >= bytes_done:
            return event


class Relay(asyncio.DatagramProtocol):
    """A UDP link between one device and the bridge that can be cut, and that counts what goes over it."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._device: Any = None
        self._front: asyncio.DatagramTransport | None = None
        self._back: asyncio.DatagramTransport | None = None
        self.up = True
        self.bytes_to_device = 0
        self.datagrams_to_device = 0
        self.cut_at_bytes: int | None = None
        self.drop: Callable[[int, bytes], bool] = lambda number, data: False

    @property
    def port(self) -> int:
        assert self._front is not None
        return int(self._front.get_extra_info("sockname")[1])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Relay]:
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        await self.turn(self._server)
        try:
            yield self
        finally:
            self._front.close()
            assert self._back is not None
            self._back.close()

    async def turn(self, server: tuple[str, int]) -> None:
        """Lead to a bridge from now on, as a load balancer does when an instance went away."""
        relay = self

        class Back(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                relay.to_device(data)

        if self._back is not None:
            self._back.close()
        loop = asyncio.get_running_loop()
        self._back, _ = await loop.create_datagram_endpoint(Back, remote_addr=server)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._device = addr
        if self.up and self._back is not None:
            self._back.sendto(data)

    def to_device(self, data: bytes) -> None:
        if self.cut_at_bytes is not None and self.bytes_to_device >= self.cut_at_bytes:
            self.up, self.cut_at_bytes = False, None
        self.datagrams_to_device += 1
        if self.up and self._front is not None and self._device and not self.drop(self.datagrams_to_device, data):
            self.bytes_to_device += len(data)
            self._front.sendto(data, self._device)
