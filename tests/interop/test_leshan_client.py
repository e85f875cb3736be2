"""Our bridge against a device that others wrote: a LwM2M 1.1 client on Eclipse Leshan."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from lwm2m_rig import FAST_LINK, Artifacts, Rig, digest_of, eventually, image_of, run_install, within

from leshan_peer import Peers
from tinymlaas_lwm2m import Format, IpsoRes
from tinymlaas_lwm2m import Path as ResourcePath
from tinymlaas_lwm2m_bridge import (
    Account,
    BootstrapSettings,
    BootstrapState,
    Bridge,
    BridgeError,
    CoapSettings,
    InstallRequest,
    InstallSettings,
    Reason,
    Step,
    Transfer,
)

IMAGE = image_of(40_000)
ENDPOINT = "leshan-1"
PATIENT = InstallSettings(poll_s=0.05, stuck_s=30.0, offline_s=60.0)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE), install=PATIENT, link=FAST_LINK)


def uri(bridge: Bridge) -> str:
    return bridge.endpoint.address


async def registered(bridge: Bridge) -> None:
    await eventually(lambda: ENDPOINT in [device.endpoint for device in bridge.directory.all()], "registered")


async def test_a_leshan_client_registers_updates_and_deregisters(rig: Rig, peers: Peers) -> None:
    """DO-REG-001, DO-REG-005."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge), lifetime="77", queue="true")
    await client.event("registered")
    device = bridge.registration(ENDPOINT)
    assert (device.lifetime_s, device.version, device.binding, device.queue_mode) == (77, "1.1", "U", True)
    assert device.instances(9) == [0, 1]
    assert {3, 4, 5, 9, 3303} <= {link.object_id for link in device.objects}
    await client.do("update")
    await client.event("updated registration")
    await client.do("stop")
    await client.event("deregistered")
    assert bridge.directory.all() == []
    await bridge.close()


async def test_the_capabilities_of_a_leshan_client_are_read_from_its_objects(rig: Rig, peers: Peers) -> None:
    """DO-CAP-001 to 003: objects 3, 9 and 3303 of a device without the ML object."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge), manufacturer="STMicroelectronics", model="NUCLEO-F446RE")
    await client.event("registered")
    record = await within(bridge.read_capabilities(ENDPOINT))
    assert (record.manufacturer, record.model, record.serial) == ("STMicroelectronics", "NUCLEO-F446RE", "L-0001")
    assert [(p.object_id, p.kind, p.instance) for p in record.capabilities.peripherals] == [(3303, "temperature", 0)]
    assert [slot.index for slot in record.capabilities.slots] == [0, 1]
    await bridge.close()


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_a_module_is_installed_and_activated_on_a_leshan_client(
    rig: Rig, peers: Peers, transfer: Transfer
) -> None:
    """DO-INST-002, DO-INST-004: pull and push of 40 blocks with Californium's own block-wise code."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge))
    await client.event("registered")
    events = await run_install(bridge, InstallRequest("i-1", ENDPOINT, digest_of(IMAGE), transfer=transfer))
    assert events[-1].step is Step.READY, events[-1]
    taken = await client.event("package")
    assert (taken["way"], taken["bytes"], taken["sha256"]) == (transfer.value.lower(), len(IMAGE), digest_of(IMAGE))
    await within(bridge.activate(ENDPOINT, events[-1].slot or 0))
    await client.event("software", active=True)
    await within(bridge.uninstall(ENDPOINT, events[-1].slot or 0))
    await client.event("software", state=0, active=False)
    await bridge.close()


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_a_leshan_client_without_object_9_takes_the_module_as_firmware(
    rig: Rig, peers: Peers, transfer: Transfer
) -> None:
    """DO-FW-001, DO-FW-002."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, **{"server": uri(bridge), "firmware-only": "true"})
    await client.event("registered")
    events = await run_install(bridge, InstallRequest("i-1", ENDPOINT, digest_of(IMAGE), transfer=transfer))
    assert events[-1].step is Step.READY, events[-1]
    taken = await client.event("firmware")
    assert (taken["way"], taken["sha256"]) == (transfer.value.lower(), digest_of(IMAGE))
    await client.event("updated", version=digest_of(IMAGE)[:12])
    record = await within(bridge.read_capabilities(ENDPOINT))
    assert record.firmware_version == digest_of(IMAGE)[:12]
    await bridge.close()


async def test_an_install_waits_for_a_leshan_client_that_sleeps(rig: Rig, peers: Peers) -> None:
    """DO-INST-014."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge), queue="true", lifetime="300")
    await client.event("registered")
    await client.do("sleep")
    await client.event("asleep")
    install = asyncio.create_task(run_install(bridge, InstallRequest("i-1", ENDPOINT, digest_of(IMAGE))))
    await eventually(
        lambda: any(event.detail.startswith("waiting") for event in bridge._store.events("i-1")), "the install waits"
    )
    await client.do("wake")
    await client.event("registered")
    assert (await within(install))[-1].step is Step.READY
    await bridge.close()


async def test_a_sensor_of_a_leshan_client_is_observed(rig: Rig, peers: Peers) -> None:
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge))
    await client.event("registered")
    path = ResourcePath(3303, 0, IpsoRes.VALUE)
    watch = bridge.endpoint.link.observe(bridge.registration(ENDPOINT), path)
    assert await within(anext(watch)) == {path: 20.0}
    await client.do("temperature", value=21.5)
    assert await within(anext(watch)) == {path: 21.5}
    await watch.aclose()
    await bridge.close()


async def test_several_objects_of_a_leshan_client_are_observed_at_once(rig: Rig, peers: Peers) -> None:
    """DO-OBS-005: one Observe-Composite."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge))
    await client.event("registered")
    link, device = bridge.endpoint.link, bridge.registration(ENDPOINT)
    maker, value = ResourcePath(3, 0, 0), ResourcePath(3303, 0, IpsoRes.VALUE)
    async with aclosing(link.observe_several(device, (maker, value))) as watch:
        assert await within(anext(watch)) == {maker: "Leshan", value: 20.0}
        assert link._several[ENDPOINT] == (device.id, Format.SENML_CBOR)
        await client.do("temperature", value=21.5)
        assert await within(anext(watch)) == {maker: "Leshan", value: 21.5}
    await bridge.close()


async def test_instances_are_created_and_deleted_at_a_leshan_client(rig: Rig, peers: Peers) -> None:
    """Core TS 1.1, clauses 6.3.6 and 6.3.7: under an id of ours and one of the client's; what it must keep stays."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge))
    await client.event("registered")
    link, device = bridge.endpoint.link, bridge.registration(ENDPOINT)
    ours = ResourcePath(3303, 7)
    assert await within(link.create(device, 3303, 7, {ours.child(5750): "oven"})) == ours
    assert await within(link.read(device, ours.child(5750))) == {ours.child(5750): "oven"}
    theirs = await within(link.create(device, 3303, None, {ResourcePath(3303, 0, 5750): "fridge"}))
    assert theirs not in (ours, ResourcePath(3303, 0))
    assert await within(link.read(device, theirs.child(5750))) == {theirs.child(5750): "fridge"}
    assert {ours, theirs} <= set(await within(link.discover(device, ResourcePath(3303))))
    await eventually(
        lambda: {7, theirs.instance_id} <= set(bridge.registration(ENDPOINT).instances(3303)), "an update tells of them"
    )
    for path in (ours, theirs):
        await within(link.delete(device, path))
    left = set(await within(link.discover(device, ResourcePath(3303))))
    assert not left & {ours, theirs}
    for refused in (
        link.delete(device, ResourcePath(3, 0)),
        link.create(device, 3, 1, {ResourcePath(3, 1, 14): "+01"}),
    ):
        with pytest.raises(BridgeError) as caught:
            await within(refused)
        assert caught.value.reason == Reason.DEVICE_REJECTED
    await bridge.close()


async def test_several_objects_of_a_leshan_client_are_read_and_written_at_once(rig: Rig, peers: Peers) -> None:
    """Core TS 1.1, clauses 6.3.8 and 6.3.9: Read-Composite and Write-Composite."""
    bridge = await rig.bridge()
    client = await peers.client(ENDPOINT, server=uri(bridge), lifetime="300")
    await client.event("registered")
    link, device = bridge.endpoint.link, bridge.registration(ENDPOINT)
    maker, value, lifetime = ResourcePath(3, 0, 0), ResourcePath(3303, 0, 5700), ResourcePath(1, 0, 1)
    read = await within(link.read_several(device, (maker, value, lifetime)))
    assert read == {maker: "Leshan", value: 20.0, lifetime: 300}
    await within(link.write_several(device, {lifetime: 240}))
    assert await within(link.read_several(device, (lifetime,))) == {lifetime: 240}
    await bridge.close()


async def test_a_leshan_client_is_bootstrapped_and_then_registers(rig: Rig, peers: Peers) -> None:
    """DO-BOOT-001, DO-BOOT-002, DO-BOOT-005: initiated by the client, then once more by the server."""
    bridge = await rig.bridge(bootstrap=BootstrapSettings(CoapSettings(port=0)), account=Account("", lifetime_s=123))
    assert bridge.bootstrap is not None
    client = await peers.client(ENDPOINT, bootstrap=bridge.bootstrap.address)
    await client.event("bootstrapped")
    assert (await client.event("registered"))["server"] == uri(bridge)
    assert bridge.registration(ENDPOINT).lifetime_s == 123
    await eventually(lambda: bridge.bootstrapped(ENDPOINT).state is BootstrapState.FINISHED, "noted as finished")  # type: ignore[union-attr]
    await within(bridge.trigger_bootstrap(ENDPOINT))
    await client.event("bootstrapped")
    await client.event("registered")
    await bridge.close()
