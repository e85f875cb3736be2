"""A bridge that serves only DTLS sessions, its front as a process, and a NAT that forgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from lwm2m_rig import Artifacts, Rig, image_of

from dtls_processes import front_of
from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas_lwm2m_bridge import Bridge, InstallSettings, LinkSettings, SqlStore
from tinymlaas_lwm2m_bridge.core.device_keys import DeviceKeys
from tinymlaas_lwm2m_bridge.core.sessions import SessionTable
from tinymlaas_lwm2m_bridge.key_store import MASTER_BYTES, SqlKeyStore
from tinymlaas_lwm2m_bridge.security_servicer import Fronts, SecureSessionsServicer
from tinymlaas_servicekit import GrpcServer, ServiceSettings

IMAGE = image_of(40_000)
PATIENT = InstallSettings(poll_s=0.05, stuck_s=30.0, offline_s=60.0)
LINK = LinkSettings(ack_timeout_s=1.0, max_retransmit=4, answer_s=30.0, execute_s=30.0)


@dataclass
class Secured:
    """A bridge that serves only sessions, and its front at `address` (host:port)."""

    rig: Rig
    bridge: Bridge
    keys: DeviceKeys
    sessions: SessionTable
    address: str


def rig_of(folder: Path) -> tuple[Rig, DeviceKeys]:
    """A rig whose devices are patient, and the keys in its database."""
    rig = Rig(folder, Artifacts(IMAGE), install=PATIENT, link=LINK)
    store = SqlStore(f"sqlite:///{folder / 'bridge.db'}")
    return rig, DeviceKeys(SqlKeyStore(store.engine, bytes(MASTER_BYTES)), rig.clock)


@asynccontextmanager
async def secured_bridge(programs: Path, folder: Path, **changes: Any) -> AsyncIterator[Secured]:
    """All three, ended at the end; `changes` go to the bridge."""
    rig, keys = rig_of(folder)
    async with serving(rig, keys, **changes) as (bridge, sessions, address):
        coap = bridge.endpoint.address.removeprefix("coap://")
        async with front_of(programs, folder, address, coap) as front:
            yield Secured(rig, bridge, keys, sessions, front)


@asynccontextmanager
async def serving(rig: Rig, keys: DeviceKeys, **changes: Any) -> AsyncIterator[tuple[Bridge, SessionTable, str]]:
    """A bridge and the gRPC service that fronts ask, with its address."""
    sessions = SessionTable(keys.has, required=True)
    bridge = await rig.bridge(admit=sessions.admit, **changes)

    def register(server: grpc.aio.Server) -> list[str]:
        servicer = SecureSessionsServicer(keys, Fronts(keys, sessions))
        security_pb2_grpc.add_SecureSessionsServicer_to_server(servicer, server)
        return [security_pb2.DESCRIPTOR.services_by_name["SecureSessions"].full_name]

    try:
        async with GrpcServer(ServiceSettings(grace_seconds=0), register) as server:
            yield bridge, sessions, server.address
    finally:
        await bridge.close()


class Nat(asyncio.DatagramProtocol):
    """Between one client and a server; `forget` gives the client another address, as a NAT does after a while."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._client: Any = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Nat]:
        """Take the client's datagrams at `port`."""
        loop = asyncio.get_running_loop()
        self._inner, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = int(self._inner.get_extra_info("sockname")[1])
        await self.forget()
        try:
            yield self
        finally:
            self._inner.close()
            self._outer.close()

    async def forget(self) -> None:
        """Go on from another port; what arrives at the one before is lost."""
        nat = self

        class Outer(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                nat._inner.sendto(data, nat._client)

        loop = asyncio.get_running_loop()
        fresh, _ = await loop.create_datagram_endpoint(Outer, remote_addr=self._server)
        before = getattr(self, "_outer", None)
        self._outer = fresh
        if before is not None:
            before.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._client = addr
        self._outer.sendto(data)
