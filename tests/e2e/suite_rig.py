"""A real suite for the end-to-end tests: every process of the embedded suite, in a folder of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from otlp_sink import Sink
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_client import AsyncClient
from tinymlaas_client.cli._context import Session
from tinymlaas_client.cli.device_commands import start_board
from tinymlaas_client.cli.suite_commands import start_and_wait
from tinymlaas_client.suite import Suite, load_manifest

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "zoo"
DEADLINE_SECONDS = 120.0
T = TypeVar("T")


@dataclass
class RunningSuite:
    """A started suite and how to reach it."""

    suite: Suite
    session: Session
    sink: Sink

    def client(self) -> AsyncClient:
        """A new connection to its gateway."""
        return self.session.connect()

    async def start_missing(self) -> None:
        """Start again what was killed and wait until it is ready."""
        await start_and_wait(self.suite, self.session)

    async def board(self, client: AsyncClient, kind: str, endpoint: str) -> str:
        """Start a virtual board, wait until the registry knows it, and return its endpoint name."""
        start_board(self.session, kind, endpoint)

        async def registered() -> bool:
            return any(device.name.endswith(f"/{endpoint}") for device in await client.list_devices())

        await eventually(registered)
        return endpoint


async def eventually(condition: Callable[[], Awaitable[T]], *, seconds: float = DEADLINE_SECONDS) -> T:
    """The first true answer of a condition; AssertionError when there is none in time."""
    async with asyncio.timeout(seconds):
        while True:
            answer = await condition()
            if answer:
                return answer
            await asyncio.sleep(0.05)


async def finished_build(client: AsyncClient, name: str) -> builds_pb2.Build:
    """The build once it has ended."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await client.wait_build(name)


async def finished_deployment(client: AsyncClient, name: str) -> deployments_pb2.Deployment:
    """The deployment once it has ended."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await client.wait_deployment(name)


def suite_below(state: Path, **settings: str) -> Suite:
    """The embedded suite with its state in this folder, started or not; `settings` are for each of its processes."""
    manifest = load_manifest(ROOT / "deploy" / "local" / "suite.toml")
    processes = tuple(replace(spec, settings={**spec.settings, **settings}) for spec in manifest.processes)
    return Suite(replace(manifest, processes=processes), state)


def start_suite(state: Path, sink: Sink | None = None, **settings: str) -> RunningSuite:
    """Start every process of the embedded suite below `state`; what they tell of themselves goes to `sink`."""
    session = Session(address="", token_file=None, project="default", state=state, as_json=True)
    often = {"OTEL_METRIC_EXPORT_INTERVAL": "2000", "OTEL_BSP_SCHEDULE_DELAY": "1000"}
    if sink is not None:
        settings |= {"TINYMLAAS_OTLP_ENDPOINT": sink.address, **often}
    running = RunningSuite(suite_below(state, **settings), session, sink or Sink())
    asyncio.run(running.start_missing())
    return running
