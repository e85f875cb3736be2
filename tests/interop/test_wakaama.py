"""Our bridge against Eclipse Wakaama's example client, where a path to it is given: TINYMLAAS_WAKAAMA=/path/to/lwm2mclient."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lwm2m_rig import FAST_LINK, Rig, eventually, within

from tinymlaas_lwm2m import DeviceRes
from tinymlaas_lwm2m import Path as ResourcePath
from tinymlaas_lwm2m_bridge import Account, BootstrapSettings, BootstrapState, Bridge, CoapSettings

ENDPOINT = "wakaama-1"
CLIENT = os.environ.get("TINYMLAAS_WAKAAMA", "")
pytestmark = pytest.mark.skipif(
    not CLIENT,
    reason="set TINYMLAAS_WAKAAMA to Wakaama's lwm2mclient: there is no package of it (tests/interop/README.md)",
)


@asynccontextmanager
async def wakaama(port: int, log: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The example client, registering at a port of loopback; killed at the end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        own = str(probe.getsockname()[1])
    command = [CLIENT, "-4", "-h", "127.0.0.1", "-p", str(port), "-l", own, "-n", ENDPOINT, "-t", "60", *options]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, link=FAST_LINK)


async def registered(bridge: Bridge) -> None:
    await eventually(lambda: ENDPOINT in [device.endpoint for device in bridge.directory.all()], "registered")


async def test_a_wakaama_client_registers_and_is_read(rig: Rig, tmp_path: Path) -> None:
    """DO-REG-001, DO-CAP-005: it has no SenML-CBOR, so another format is found."""
    bridge = await rig.bridge()
    async with wakaama(rig.port, tmp_path / "wakaama.log"):
        await registered(bridge)
        device = bridge.registration(ENDPOINT)
        assert {1, 3} <= {link.object_id for link in device.objects}
        record = await within(bridge.read_capabilities(ENDPOINT))
        assert record.manufacturer
        assert record.model
        path = ResourcePath(3, 0, DeviceRes.MANUFACTURER)
        assert await within(bridge.endpoint.link.read(device, path)) == {path: record.manufacturer}
    await bridge.close()


async def test_a_wakaama_client_is_bootstrapped_and_then_registers(rig: Rig, tmp_path: Path) -> None:
    """DO-BOOT-001, DO-BOOT-002, DO-BOOT-005."""
    bridge = await rig.bridge(bootstrap=BootstrapSettings(CoapSettings(port=0)), account=Account("", lifetime_s=77))
    assert bridge.bootstrap is not None
    async with wakaama(int(bridge.bootstrap.address.rsplit(":", 1)[1]), tmp_path / "wakaama.log", "-b"):
        await registered(bridge)
        assert bridge.registration(ENDPOINT).lifetime_s == 77
        record = bridge.bootstrapped(ENDPOINT)
        assert record is not None
        assert record.state is BootstrapState.FINISHED
    await bridge.close()
