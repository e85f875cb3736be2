"""Gateways that write the same device's record at once lose nothing of each other, before a real registry on each database."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway_world import TOKEN
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_gateway.adapters.catalogue import Catalogue
from tinymlaas_gateway.adapters.endpoints import Endpoint, Location
from tinymlaas_registry import RegistrySettings, build_registry
from tinymlaas_servicekit import NotFound

DEVICE = "projects/default/devices/node-1"
State = devices_pb2.Device


class ByHand(Catalogue):
    """A gateway's client of the registry that has read when `read` is set, and writes when `may_write` is."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.read, self.may_write = asyncio.Event(), asyncio.Event()

    async def upsert_device(self, device: devices_pb2.Device, mask: FieldMask) -> devices_pb2.Device:
        self.read.set()
        await self.may_write.wait()
        return await super().upsert_device(device, mask)


@asynccontextmanager
async def gateways(folder: Path, database_url: str) -> AsyncIterator[Callable[[], ByHand]]:
    """A registry, and what makes one more client of it."""
    settings = RegistrySettings(
        _env_file=None,  # type: ignore[call-arg]
        state_dir=folder / "registry",
        listen="127.0.0.1:0",
        token=TOKEN,  # type: ignore[arg-type]
        grace_seconds=0,
        database_url=database_url,
    )
    endpoints: list[Endpoint] = []
    async with build_registry(settings) as registry:

        def one_more() -> ByHand:
            endpoints.append(Endpoint("registry", Location(address=registry.address), TOKEN))
            return ByHand(endpoints[-1])

        try:
            yield one_more
        finally:
            for endpoint in endpoints:
                await endpoint.close()


def told(seconds: int, bridge: str, rtos: str = "", **fields: str) -> devices_pb2.Device:
    """What a bridge tells of the device that it heard at that time; `rtos` is what it read, empty where it could not."""
    device = devices_pb2.Device(
        name=DEVICE, state=State.STATE_REGISTERED, bridge=bridge, last_seen_time=Timestamp(seconds=seconds), **fields
    )
    if rtos:
        device.capabilities.rtos = rtos
        device.capabilities.target.cpu, device.capabilities.target.isa = "cortex-m4", "armv7e-m"
    return device


async def recorded(catalogue: ByHand, device: devices_pb2.Device, module: str = "") -> None:
    """Make the record, with the module active."""
    catalogue.may_write.set()
    await catalogue.tell_device(device)
    await catalogue.record_active(devices_pb2.Device(name=DEVICE), module)


async def test_what_gateways_have_read_and_write_in_any_order_is_all_there(tmp_path: Path, database_url: str) -> None:
    """A rollout makes a module active while the device comes to another bridge, and its former one is heard late."""
    async with gateways(tmp_path, database_url) as gateway:
        first = gateway()
        first.may_write.set()
        for order in itertools.permutations(range(3)):
            await first.upsert_device(told(10, "bridge-1", "before", firmware_version="1", serial="s"), FieldMask())
            clients = [gateway() for _ in order]
            tasks = [
                asyncio.create_task(clients[0].record_active(told(20, "bridge-1", "activated"), "after")),
                asyncio.create_task(clients[1].tell_device(told(30, "bridge-2", "updated", firmware_version="2"))),
                asyncio.create_task(clients[2].tell_device(told(15, "bridge-1", "late", firmware_version="1"))),
            ]
            for client in clients:
                await client.read.wait()
            for turn in order:
                clients[turn].may_write.set()
                await tasks[turn]
            expected = told(30, "bridge-2", "updated", firmware_version="2", active_module="after")
            assert await first.device(DEVICE) == expected, order


async def test_a_device_that_its_bridge_cannot_read_stays_known(tmp_path: Path, database_url: str) -> None:
    """As one that is lost before it was read, after a restart of its bridge."""
    async with gateways(tmp_path, database_url) as gateway:
        catalogue = gateway()
        await recorded(catalogue, told(10, "bridge-1", "known", serial="s"), "active")
        lost = told(10, "bridge-1")
        lost.state = State.STATE_LOST
        await catalogue.tell_device(lost)
        found = await catalogue.device(DEVICE)
        assert (found.state, found.capabilities.rtos, found.serial, found.active_module) == (
            State.STATE_LOST,
            "known",
            "s",
            "active",
        )
        await catalogue.tell_device(told(20, "bridge-1", "another"))
        found = await catalogue.device(DEVICE)
        assert (found.state, found.serial) == (State.STATE_REGISTERED, ""), "read anew, it has no serial"


async def test_no_module_can_be_active_on_a_device_that_was_deleted(tmp_path: Path, database_url: str) -> None:
    async with gateways(tmp_path, database_url) as gateway:
        with pytest.raises(NotFound):
            await gateway().record_active(told(10, "bridge-1"), "after")
