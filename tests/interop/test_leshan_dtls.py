"""A device that others wrote through the DTLS front: a Leshan client with a pre-shared key and Connection ID."""

from __future__ import annotations

from lwm2m_rig import digest_of, eventually, run_install, within

from leshan_peer import Peers
from secured_bridge import IMAGE, Nat, Secured
from tinymlaas_lwm2m_bridge import InstallRequest, Step, Transfer

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
