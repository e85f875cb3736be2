"""A gateway with everything around it: fake registry and bridge in this process, sample plugins and the gateway as processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gateway_fakes as fakes
import grpc.aio

from tinymlaas.gateway.v1 import builds_pb2_grpc, deployments_pb2_grpc, optimizations_pb2_grpc, routing_pb2_grpc
from tinymlaas_servicekit import ServiceSettings, connect

HERE = Path(__file__).parent
TOKEN = "test-token"
DEADLINE = 150.0


async def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Wait for a condition (a function, perhaps a coroutine function) and return its first true value."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)
    raise AssertionError(what)


@dataclass
class Process:
    """A process of the suite under test; its output goes to a file that a failing test shows."""

    process: subprocess.Popen[bytes]
    address_file: Path
    log: Path

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.address_file.unlink(missing_ok=True)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise


@dataclass
class World:
    """What a test works with."""

    folder: Path
    registry: fakes.FakeRegistry
    bridge: fakes.FakeBridge
    registry_address: str
    bridge_address: str
    settings: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    channel: grpc.aio.Channel | None = None
    plugins: list[str] = field(default_factory=list)

    def _spawn(self, name: str, command: list[str], environment: dict[str, str]) -> Process:
        address_file = self.folder / f"{name}.addr"
        address_file.unlink(missing_ok=True)
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={
                    **os.environ,
                    "TINYMLAAS_LISTEN": "127.0.0.1:0",
                    "TINYMLAAS_TOKEN": TOKEN,
                    "TINYMLAAS_ADDRESS_FILE": str(address_file),
                    "TINYMLAAS_GRACE_SECONDS": "0.2",
                    **environment,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = Process(process, address_file, log)
        return self.processes[name]

    def add_plugin(self, name: str, **settings: str) -> Process:
        """Start a sample plugin and put it into the manifest."""
        environment = {f"TINYMLAAS_SAMPLE_{key.upper()}": value for key, value in settings.items()}
        environment["TINYMLAAS_SAMPLE_NAME"] = f"io.example.{name}"
        environment["TINYMLAAS_SAMPLE_COUNTER"] = str(self.folder / "counter")
        process = self._spawn(name, [str(HERE / "gateway_sample_plugin.py")], environment)
        if name not in self.plugins:
            self.plugins.append(name)
        entries = [{"address_file": f"{plugin}.addr"} for plugin in self.plugins]
        (self.folder / "plugins.json").write_text(json.dumps(entries))
        return process

    def counted(self, line: str) -> int:
        """How often plugins really did a piece of work: "io.example.NAME compile"."""
        path = self.folder / "counter"
        return path.read_text().splitlines().count(line) if path.exists() else 0

    async def start_gateway(self, instance: str = "gateway", command: str = "", **settings: str) -> Process:
        """Start a gateway and wait until it serves and knows every plugin; the stubs speak with the one started last.

        `command` is a script that starts it in another way.
        """
        for name in self.plugins:
            await until(self.processes[name].address_file.exists, f"{name} listens")
        environment = {
            "TINYMLAAS_INSTANCE": instance,
            "TINYMLAAS_STATE_DIR": str(self.folder / "state"),
            "TINYMLAAS_REGISTRY_ADDRESS": self.registry_address,
            "TINYMLAAS_PLUGINS_MANIFEST": str(self.folder / "plugins.json"),
            "TINYMLAAS_BRIDGES": json.dumps([self.bridge_address]),
            **self.settings,
            **settings,
        }
        process = self._spawn(instance, [command] if command else ["-m", "tinymlaas_gateway"], environment)

        def listening() -> bool:
            assert process.process.poll() is None, process.log.read_text()[-4000:]
            return process.address_file.exists()

        await until(listening, "the gateway listens")
        if self.channel is not None:
            await self.channel.close()
        self.channel = connect(process.address_file.read_text().strip(), TOKEN)
        for name in self.plugins:
            plugin = f"plugins/io.example.{name}"
            await until(lambda plugin=plugin: self._ready(plugin), f"{plugin} is ready")
        return process

    def _ready(self, plugin: str) -> bool:
        known = self.registry.plugins.get(plugin)
        return known is not None and known.state in (2, 4)

    @property
    def builds(self) -> Any:
        """Stub of the Builds service."""
        return builds_pb2_grpc.BuildsStub(self.channel)

    @property
    def optimizations(self) -> Any:
        """Stub of the Optimizations service."""
        return optimizations_pb2_grpc.OptimizationsStub(self.channel)

    @property
    def deployments(self) -> Any:
        """Stub of the Deployments service."""
        return deployments_pb2_grpc.DeploymentsStub(self.channel)

    @property
    def routing(self) -> Any:
        """Stub of the Routing service."""
        return routing_pb2_grpc.RoutingStub(self.channel)


@asynccontextmanager
async def make_world(folder: Path) -> AsyncIterator[World]:
    """A world without plugins and gateway; what a test starts is stopped at its end."""
    registry, bridge = fakes.FakeRegistry(), fakes.FakeBridge()
    common: dict[str, Any] = {"listen": "127.0.0.1:0", "token": TOKEN, "grace_seconds": 0.1}
    async with AsyncExitStack() as stack:
        registry_server = await stack.enter_async_context(fakes.registry_server(registry, ServiceSettings(**common)))
        bridge_server = await stack.enter_async_context(fakes.bridge_server(bridge, ServiceSettings(**common)))
        world = World(folder, registry, bridge, registry_server.address, bridge_server.address)
        try:
            yield world
        finally:
            if world.channel is not None:
                await world.channel.close()
            for process in reversed(list(world.processes.values())):
                await asyncio.to_thread(process.stop)
