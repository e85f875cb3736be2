"""A device that others wrote through the DTLS front: a Leshan client with a pre-shared key and Connection ID."""

from __future__ import annotations

import socket
from pathlib import Path

from lwm2m_rig import digest_of, eventually, run_install, within

from dtls_processes import front_of
from leshan_peer import Peers
from secured_bridge import IMAGE, Nat, Secured, rig_of, serving
from tinymlaas_lwm2m_bridge import Account, BootstrapSettings, CoapSettings, InstallRequest, Step, Transfer

ENDPOINT = "leshan-1"


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


async def test_a_leshan_client_registers_and_takes_a_module_over_dtls(secured: Secured, peers: Peers) -> None:
    """DO-SEC-006, DO-INST-002: PSK with AES-128-CCM-8, capabilities, push of 40 blocks, activation."""
    key, secret = secured.keys.create(ENDPOINT)
    client = await peers.client(
        ENDPOINT, server=f"coaps://{secured.address}", identity=key.identity, key=secret.hex(), model="NUCLEO-F446RE"
    )
    await client.event("registered")
    assert [session.endpoint for session in secured.sessions.of_identity(key.identity)] == [ENDPOINT]
    record = await within(secured.bridge.read_capabilities(ENDPOINT))
    assert [(p.object_id, p.kind) for p in record.capabilities.peripherals] == [(3303, "temperature")]
    request = InstallRequest("i-1", ENDPOINT, digest_of(IMAGE), transfer=Transfer.PUSH)
    events = await run_install(secured.bridge, request)
    assert events[-1].step is Step.READY, events[-1]
    taken = await client.event("package")
    assert (taken["way"], taken["sha256"]) == ("push", digest_of(IMAGE))
    await within(secured.bridge.activate(ENDPOINT, events[-1].slot or 0))
    await client.event("software", active=True)
    await client.do("stop")
    await client.event("deregistered")
    assert secured.bridge.directory.all() == []


async def test_a_leshan_client_goes_on_behind_a_new_address_without_a_handshake(secured: Secured, peers: Peers) -> None:
    """DO-SEC-010: Scandium sends the front's Connection ID (RFC 9146); the NAT gives it another port."""
    key, secret = secured.keys.create(ENDPOINT)
    async with Nat(_host_and_port(secured.address)).open() as nat:
        client = await peers.client(
            ENDPOINT, server=f"coaps://127.0.0.1:{nat.port}", identity=key.identity, key=secret.hex()
        )
        await client.event("registered")
        before, sessions = secured.bridge.registration(ENDPOINT), secured.sessions.of_identity(key.identity)
        assert len(sessions) == 1
        secured.rig.clock.now += 1
        await nat.forget()
        await client.do("update")
        await client.event("updated registration")
        await eventually(lambda: secured.bridge.registration(ENDPOINT).updated_at > before.updated_at, "updated")
        assert secured.sessions.of_identity(key.identity) == sessions
        # The bridge's own requests find the device at its new address too.
        record = await within(secured.bridge.read_capabilities(ENDPOINT))
        assert [slot.index for slot in record.capabilities.slots] == [0, 1]


async def test_a_leshan_client_with_the_key_of_another_device_is_refused(secured: Secured, peers: Peers) -> None:
    """DO-SEC-006: the handshake succeeds, the registration under a foreign name does not."""
    key, secret = secured.keys.create("somebody-else")
    client = await peers.client(ENDPOINT, server=f"coaps://{secured.address}", identity=key.identity, key=secret.hex())
    refused = await client.event("registration failed")
    assert "FORBIDDEN" in refused["code"] or "403" in refused["code"], refused
    assert secured.bridge.directory.all() == []


async def test_a_leshan_client_with_a_wrong_key_opens_no_session(secured: Secured, peers: Peers) -> None:
    key, _ = secured.keys.create(ENDPOINT)
    client = await peers.client(
        ENDPOINT, server=f"coaps://{secured.address}", identity=key.identity, key="00" * 16, patience="5000"
    )
    await client.event("registration failed")
    assert secured.sessions.of_identity(key.identity) == []
    assert secured.bridge.directory.all() == []


async def test_the_key_of_a_leshan_client_is_rotated_by_bootstrap(programs: Path, peers: Peers, tmp_path: Path) -> None:
    """DO-SEC-012, DO-BOOT-003: the device keeps its bootstrap key; each bootstrap gives it a new one for the bridge."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    rig, keys = rig_of(tmp_path)
    factory, secret = keys.create(ENDPOINT, bootstrap=True)
    account = Account(f"coaps://{listen}", lifetime_s=60)
    bootstrap = BootstrapSettings(CoapSettings(port=0))
    async with serving(rig, keys, bootstrap=bootstrap, account=account, issue_key=keys.reissue) as served:
        bridge, sessions, address = served
        assert bridge.bootstrap is not None
        at = bridge.endpoint.address.removeprefix("coap://")
        commissioning = bridge.bootstrap.address.removeprefix("coap://")
        async with (
            front_of(programs, tmp_path, address, at, listen=listen),
            front_of(programs, tmp_path, address, commissioning) as entrance,
        ):
            client = await peers.client(
                ENDPOINT, bootstrap=f"coaps://{entrance}", identity=factory.identity, key=secret.hex()
            )
            await client.event("bootstrapped")
            await client.event("registered")
            (first,) = (key.identity for key in keys.of_endpoint(ENDPOINT) if not key.bootstrap)
            assert len(sessions.of_identity(first)) == 1
            rig.clock.now += 1
            await within(bridge.trigger_bootstrap(ENDPOINT))
            await client.event("bootstrapped")
            await client.event("registered")
            (second,) = (key.identity for key in keys.of_endpoint(ENDPOINT) if not key.bootstrap)
            assert second != first
            assert factory.identity in [key.identity for key in keys.of_endpoint(ENDPOINT)]
            record = await within(bridge.read_capabilities(ENDPOINT))
            assert record.capabilities.slots
