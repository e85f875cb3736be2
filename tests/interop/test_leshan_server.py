"""Our device against a server that others wrote: Eclipse Leshan registers it, reads it and manages it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fault_board import FaultBoard
from lwm2m_rig import FAST_DOWNLOAD, digest_of, eventually, image_of, within

from leshan_peer import Peer, Peers
from tinymlaas_device.board import SlotState
from tinymlaas_device.lwm2m import DeviceSettings, LwM2mDevice

IMAGE = image_of(20_000)
ENDPOINT = "node-1"


@asynccontextmanager
async def managed(peers: Peers, folder: Path, board: FaultBoard) -> AsyncIterator[tuple[Peer, LwM2mDevice]]:
    """A Leshan server and our device, registered at it."""
    server, uri = await peers.server()
    settings = DeviceSettings(ENDPOINT, uri, retry_s=0.2, state_file=folder / "device.json", download=FAST_DOWNLOAD)
    device = LwM2mDevice(board, settings)
    await device.start()
    try:
        await within(device.registered.wait())
        yield server, device
    except BaseException:
        await device.vanish()
        raise
    await device.close()


async def test_our_device_registers_updates_and_deregisters_at_a_leshan_server(peers: Peers, tmp_path: Path) -> None:
    """DO-REG-001, DO-REG-006."""
    async with managed(peers, tmp_path, FaultBoard()) as (server, _):
        told = await server.event("registered")
        assert (told["endpoint"], told["lifetime"], told["version"]) == (ENDPOINT, 60, "1.1")
        assert {"/3/0", "/9/0", "/9/1", "/42769/0", "/3324/0"} <= set(told["links"])
        changed = await server.ask("write", ENDPOINT, path="/1/0/1", format="TLV", value=120)
        assert changed["code"] == "204"
        await server.event("updated", lifetime=120)
    await server.event("unregistered", expired=False)


@pytest.mark.parametrize("spoken", ["TLV", "SENML_JSON", "SENML_CBOR"])
async def test_a_leshan_server_reads_the_objects_of_our_device_in_each_format(
    peers: Peers, tmp_path: Path, spoken: str
) -> None:
    """DO-CAP-005 from the device's side; Leshan checks the types by our definition of 42769."""
    async with managed(peers, tmp_path, FaultBoard()) as (server, _):
        device = await server.ask("read", ENDPOINT, path="/3/0", format=spoken)
        assert (device["code"], device["values"]["/0"], device["values"]["/11/0"]) == ("205", "TinyMLaaS", 0)
        ml = await server.ask("read", ENDPOINT, path="/42769/0", format=spoken)
        assert ml["code"] == "205", ml
        assert ml["values"]["/0"] == "armv7e-m"
        assert [ml["values"][f"/7/{slot}"] for slot in (0, 1)] == [131_072, 131_072]
        one = await server.ask("read", ENDPOINT, path="/42769/0/12", format=spoken)
        assert one["values"] == {"": True}


async def test_a_leshan_server_discovers_and_reads_text(peers: Peers, tmp_path: Path) -> None:
    async with managed(peers, tmp_path, FaultBoard()) as (server, _):
        found = await server.ask("discover", ENDPOINT, path="/3")
        assert found["code"] == "205", found
        assert {"/3", "/3/0", "/3/0/0", "/3/0/4"} <= set(found["values"])
        text = await server.ask("read", ENDPOINT, path="/3/0/1", format="TEXT")
        assert text["values"] == {"": "node-m4f"}
        absent = await server.ask("read", ENDPOINT, path="/3/0/99", format="TLV")
        assert absent["code"] == "404"


@pytest.mark.parametrize("spoken", ["SENML_JSON", "SENML_CBOR"])
async def test_a_leshan_server_reads_and_writes_several_objects_at_once(
    peers: Peers, tmp_path: Path, spoken: str
) -> None:
    """Read-Composite, Observe-Composite and Write-Composite (Core TS 1.1, clauses 6.3.8 to 6.3.10)."""
    paths = ["/3/0/0", "/42769/0/12", "/9"]
    async with managed(peers, tmp_path, FaultBoard()) as (server, _):
        read = await server.ask("read-composite", ENDPOINT, paths=paths, format=spoken)
        assert read["code"] == "205", read
        assert (read["values"]["/3/0/0"], read["values"]["/42769/0/12"], read["values"]["/9/0/7"]) == (
            "TinyMLaaS",
            True,
            0,
        )
        watched = await server.ask("observe-composite", ENDPOINT, paths=["/1/0/1", "/3/0/0"], format=spoken)
        assert watched["code"] == "205", watched
        written = await server.ask("write-composite", ENDPOINT, paths=["/1/0/1"], value=99, format=spoken)
        assert written["code"] == "204", written
        await server.event("updated", lifetime=99)
        await server.event("notified", path="[/1/0/1, /3/0/0]")


async def test_a_leshan_server_installs_a_module_by_push_and_observes_it(peers: Peers, tmp_path: Path) -> None:
    """DO-INST-008, DO-ACT-001, DO-OBS-001, with the block-wise code and the encoders of others."""
    board = FaultBoard()
    async with managed(peers, tmp_path, board) as (server, _):
        watch = await server.ask("observe", ENDPOINT, path="/9/0/7", format="TLV")
        assert watch["values"] == {"/9/0/7": 0}
        expected = await server.ask("write", ENDPOINT, path="/42769/0/36/0", hex=digest_of(IMAGE))
        assert expected["code"] == "204", expected
        pushed = await server.ask("write", ENDPOINT, path="/9/0/2", hex=IMAGE.hex())
        assert pushed["code"] == "204", pushed
        await server.event("notified", path="/9/0/7", values={"/9/0/7": 3})
        refused = await server.ask("execute", ENDPOINT, path="/9/0/10")
        assert refused["code"] == "405"
        for path, arguments in (("/9/0/4", ""), ("/42769/0/23", "0='0'")):
            done = await server.ask("execute", ENDPOINT, path=path, arguments=arguments)
            assert done["code"] == "204", done
        await eventually(lambda: board.slot(0).state is SlotState.TESTED, "the self-test passed")
        active = await server.ask("execute", ENDPOINT, path="/9/0/10")
        assert active["code"] == "204", active
        shown = await server.ask("read", ENDPOINT, path="/9/0/12", format="TLV")
        assert shown["values"] == {"": True}


async def test_a_device_that_lost_its_server_registers_anew(peers: Peers, tmp_path: Path) -> None:
    """DO-REG-006: a Leshan server that was started again does not know the device."""
    server, uri = await peers.server()
    settings = DeviceSettings(ENDPOINT, uri, lifetime_s=2, retry_s=0.2, download=FAST_DOWNLOAD)
    device = LwM2mDevice(FaultBoard(), settings)
    await device.start()
    try:
        await server.event("registered")
        server.process.kill()
        again, _ = await peers.server(port=uri.rsplit(":", 1)[1])
        await again.event("registered", endpoint=ENDPOINT)
    finally:
        await asyncio.shield(device.vanish())
