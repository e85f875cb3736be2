"""Devices through the DTLS front: handshake with their key, install, a NAT's new address, and who may be whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from fault_board import FaultBoard
from lwm2m_rig import digest_of, eventually, run_install, within

from dtls_processes import front_of, peer_of
from secured_bridge import IMAGE, Secured, rig_of
from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas_lwm2m_bridge import InstallRequest, Step, Transfer
from tinymlaas_lwm2m_bridge.core.sessions import SessionTable
from tinymlaas_lwm2m_bridge.security_servicer import Fronts, SecureSessionsServicer
from tinymlaas_servicekit import GrpcServer, ServiceSettings


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_a_module_is_installed_through_a_session(secured: Secured, programs: Path, transfer: Transfer) -> None:
    key, secret = secured.keys.create("node-1")
    async with peer_of(programs, secured.address, key.identity, secret) as peer:
        device = await secured.rig.device(FaultBoard(), server_port=peer.port)
        await within(device.registered.wait())
        request = InstallRequest("i-1", "node-1", digest_of(IMAGE), transfer=transfer)
        events = await run_install(secured.bridge, request)
        assert events[-1].step is Step.READY, events[-1]
        await device.close()


async def test_a_device_behind_a_new_address_goes_on_without_a_handshake(secured: Secured, programs: Path) -> None:
    """DO-SEC-010."""
    key, secret = secured.keys.create("node-1")
    async with peer_of(programs, secured.address, key.identity, secret) as peer:
        device = await secured.rig.device(FaultBoard(), server_port=peer.port, lifetime_s=4)
        await within(device.registered.wait())
        before = secured.bridge.registration("node-1")
        session = secured.sessions.of_identity(key.identity)
        peer.rebind()
        secured.rig.clock.now += 1
        await eventually(lambda: secured.bridge.registration("node-1").updated_at > before.updated_at, "an update")
        await within(secured.bridge.read_capabilities("node-1"))
        assert secured.bridge.registration("node-1").address == before.address
        assert secured.sessions.of_identity(key.identity) == session
        await device.close()


async def test_a_session_can_not_register_as_another_device(secured: Secured, programs: Path) -> None:
    """DO-SEC-006."""
    key, secret = secured.keys.create("node-1")
    async with peer_of(programs, secured.address, key.identity, secret) as peer:
        device = await secured.rig.device(FaultBoard(), "node-2", server_port=peer.port)
        await eventually(lambda: bool(secured.sessions.of_identity(key.identity)), "the session is open")
        honest = await secured.rig.device(FaultBoard(), "node-1", server_port=peer.port)
        await within(honest.registered.wait())
        assert [one.endpoint for one in secured.bridge.directory.all()] == ["node-1"]
        await honest.close()
        await device.close()


async def test_a_front_tells_a_bridge_that_was_away_of_its_sessions(
    programs: Path,
    tmp_path: Path,
    unused_tcp_port: int,
) -> None:
    """DO-SEC-008."""
    rig, keys = rig_of(tmp_path)
    key, secret = keys.create("node-1")
    sessions = [SessionTable(keys.has, required=True) for _ in range(2)]

    @asynccontextmanager
    async def grpc_side(table: SessionTable) -> AsyncIterator[None]:
        def register(server: grpc.aio.Server) -> list[str]:
            servicer = SecureSessionsServicer(keys, Fronts(keys, table))
            security_pb2_grpc.add_SecureSessionsServicer_to_server(servicer, server)
            return [security_pb2.DESCRIPTOR.services_by_name["SecureSessions"].full_name]

        settings = ServiceSettings(grace_seconds=0, listen=f"127.0.0.1:{unused_tcp_port}")
        async with GrpcServer(settings, register):
            yield

    bridge = await rig.bridge(admit=sessions[0].admit)
    coap = bridge.endpoint.address.removeprefix("coap://")
    async with (
        front_of(programs, tmp_path, f"127.0.0.1:{unused_tcp_port}", coap) as front,
        peer_of(programs, front, key.identity, secret) as peer,
    ):
        async with grpc_side(sessions[0]):
            device = await rig.device(FaultBoard(), server_port=peer.port)
            await within(device.registered.wait())
            await bridge.close()
        bridge = await rig.bridge(admit=sessions[1].admit)
        async with grpc_side(sessions[1]):
            await eventually(lambda: len(sessions[1]) == 1, "the session is told of again")
            record = await within(bridge.read_capabilities("node-1"))
            assert record.capabilities.slots
            await device.close()
    await bridge.close()
