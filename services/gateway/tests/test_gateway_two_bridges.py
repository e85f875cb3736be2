"""Two bridge processes that share a fleet: one is killed in the middle of a rollout, and its devices go on at the other.

Registry and compilers are stand-ins; gateway, bridges, transfers and light devices are real.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway_world import TOKEN, World, until
from test_gateway_deployments import Deployment, Rollout, finished, model_in, rollouts, started, wanted
from test_gateway_rollout_fleet import Fleet, Link, Meter, read_fleet

FIRST = range(3)
"""The devices of the bridge that is killed; three more are the other's."""
COUNT = 6


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def bridge(world: World, name: str) -> tuple[str, tuple[str, int]]:
    """A bridge process on the database that all share; its gRPC address and that of its CoAP."""
    port = free_port()
    settings = {
        "TINYMLAAS_INSTANCE": name,
        "TINYMLAAS_STATE_DIR": str(world.folder / name),
        "TINYMLAAS_DATABASE_URL": f"sqlite:///{world.folder / 'bridges.db'}",
        "TINYMLAAS_MASTER_KEY_FILE": str(world.folder / "master"),
        "TINYMLAAS_REGISTRY_ADDRESS": world.registry_address,
        "TINYMLAAS_COAP_LISTEN": f"127.0.0.1:{port}",
        "TINYMLAAS_LEASE_SECONDS": "2",
        "TINYMLAAS_INSTALL_POLL_SECONDS": "0.1",
        "TINYMLAAS_TOKEN": TOKEN,
    }
    process = world._spawn(name, ["-m", "tinymlaas_lwm2m_bridge"], settings)
    await until(process.address_file.exists, f"{name} listens")
    return process.address_file.read_text().strip(), ("127.0.0.1", port)


@asynccontextmanager
async def fleet(first: tuple[str, int], second: tuple[str, int]) -> AsyncIterator[tuple[list[Meter], Link]]:
    """Six devices at two bridges, and the link of those at the first one, which can be led elsewhere."""
    links = [Link(Fleet(COUNT), server, random.Random(1)) for server in (first, second)]
    devices = [Meter(number, links[number not in FIRST], 20) for number in range(COUNT)]
    loop = asyncio.get_running_loop()
    for link in links:
        loop.add_reader(link.fleet.socket, read_fleet, link, devices)
    try:
        for device in devices:
            device.start()
        yield devices, links[0]
    finally:
        for link in links:
            loop.remove_reader(link.fleet.socket)
        for device in devices:
            device.stop()
        for link in links:
            link.fleet.close()


async def test_a_killed_bridges_devices_move_and_their_installs_end_exactly_once(world: World) -> None:
    """DO-BRIDGE-003, 012, DO-ROLL-012."""
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    (world.folder / "master").write_text("5a" * 32)
    (one, first), (other, second) = await bridge(world, "bridge-1"), await bridge(world, "bridge-2")
    async with fleet(first, second) as (devices, link):
        world.settings["TINYMLAAS_BRIDGES"] = json.dumps([one, other])
        await world.start_gateway()
        await until(
            lambda: sum(bool(item.capabilities.slots) for item in world.registry.devices.values()) == COUNT,
            "the gateway knows every device",
        )
        for number in FIRST:  # they lose power after their first block, and so are in the middle of it
            devices[number].reboot_at_block = 0
        deployment = started(await world.deployments.CreateDeployment(wanted(model_in(world), concurrency=COUNT)))
        await until(lambda: all(devices[number].ledger.reboots for number in FIRST), "they are in the middle")
        world.processes["bridge-1"].kill()
        link.server = second  # what a load balancer does
        deployment = await finished(world, deployment.name)
        assert deployment.state == Deployment.STATE_SUCCEEDED, [item.error for item in deployment.rollouts]
        for device in devices:
            assert [slot.active for slot in device.slots].count(True) == 1
            assert (device.ledger.installs, device.ledger.activations) == (1, 1), device.endpoint
            assert rollouts(deployment)[device.endpoint].state == Rollout.STATE_ACTIVE
        size = len(next(slot.data for slot in devices[0].slots if slot.active))
        assert [device.ledger.bytes_stored for device in devices] == [size] * COUNT, "no byte was stored twice"
