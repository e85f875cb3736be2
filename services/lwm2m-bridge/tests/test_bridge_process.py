"""Bridge and device as the processes that people start, configured as people configure them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from lwm2m_rig import eventually, within

from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas_servicekit import connect

TOKEN = "secret"


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(
    log: Path, module: str, *arguments: str, **settings: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running program; killed at the end if it still runs."""
    environment = {**os.environ, **{f"TINYMLAAS_{key}": value for key, value in settings.items()}}
    with log.open("ab") as output:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments, env=environment, stdout=output, stderr=output
        )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


def bridge_of(tmp_path: Path, port: int) -> dict[str, str]:
    address_file = tmp_path / "address"
    address_file.unlink(missing_ok=True)
    return {
        "LISTEN": "127.0.0.1:0",
        "TOKEN": TOKEN,
        "ADDRESS_FILE": str(address_file),
        "STATE_DIR": str(tmp_path / "state"),
        "REGISTRY_ADDRESS": "127.0.0.1:1",
        "COAP_LISTEN": f"127.0.0.1:{port}",
    }


async def first_device(tmp_path: Path) -> bridge_pb2.WatchDevicesResponse:
    """The first event of a watch at the running bridge that tells of a device."""
    file = tmp_path / "address"
    await eventually(file.exists, "the bridge listens")
    async with connect(file.read_text().strip(), TOKEN) as channel:
        stub = bridge_pb2_grpc.BridgeStub(channel)
        async for event in stub.WatchDevices(bridge_pb2.WatchDevicesRequest(parent="projects/default")):
            if event.HasField("device"):
                return event
    raise AssertionError("the watch ended")


@pytest.mark.slow
async def test_a_device_process_registers_and_stays_reachable_over_a_kill_of_the_bridge(tmp_path: Path) -> None:
    """DO-BRIDGE-007."""
    port, log = free_udp_port(), tmp_path / "log"
    arguments = ["--board", "node-m4f", "--name", "meter-1", "--server", f"coap://127.0.0.1:{port}"]
    arguments += ["--state", str(tmp_path / "flash"), "--trusted-key", "11" * 32]
    async with (
        process(log, "tinymlaas_lwm2m_bridge", **bridge_of(tmp_path, port)) as bridge,
        process(log, "tinymlaas_device", *arguments) as device,
    ):
        event = await within(first_device(tmp_path))
        assert event.kind == bridge_pb2.WatchDevicesResponse.KIND_REGISTERED
        assert event.device.name == "projects/default/devices/meter-1"
        assert event.device.capabilities.target.cpu == "cortex-m4"
        bridge.send_signal(signal.SIGKILL)
        await within(bridge.wait())
        async with process(log, "tinymlaas_lwm2m_bridge", **bridge_of(tmp_path, port)) as again:
            event = await within(first_device(tmp_path))
            assert event.device.name == "projects/default/devices/meter-1"
            assert event.device.capabilities.target.cpu == "cortex-m4"
            device.terminate()
            assert await within(device.wait()) == 0
            again.terminate()
            assert await within(again.wait()) == 0
    assert "Traceback" not in log.read_text()


async def test_without_the_token_nothing_is_told(tmp_path: Path) -> None:
    port, log = free_udp_port(), tmp_path / "log"
    async with process(log, "tinymlaas_lwm2m_bridge", **bridge_of(tmp_path, port)):
        file = tmp_path / "address"
        await eventually(file.exists, "the bridge listens")
        async with connect(file.read_text().strip(), "wrong") as channel:
            stub = bridge_pb2_grpc.BridgeStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await within(stub.CancelInstall(bridge_pb2.CancelInstallRequest(install_id="a")))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_open_address_ends_the_bridge_with_one_clear_line(tmp_path: Path) -> None:
    """DO-SEC-001."""
    settings = bridge_of(tmp_path, 0) | {"COAP_LISTEN": "0.0.0.0:0"}
    async with process(tmp_path / "log", "tinymlaas_lwm2m_bridge", **settings) as bridge:
        assert await within(bridge.wait()) == 1
    assert "PLAIN_COAP_REFUSED" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
