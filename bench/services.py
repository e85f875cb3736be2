"""What the services cost: builds that are known already, explain calls, also while another project floods, uploads.

Rates are per core of the gateway: calls divided by the CPU seconds that its process spent on them, so that client, registry
and other work on the machine do not count. Latencies are what the client saw.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tinymlaas.registry.v1 import artifacts_pb2, models_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.targets import named_target

UPLOAD_BYTES = 64 * 1024 * 1024
REPEATS = 20
LOAD_CALLS = 2000
LOAD_AT_ONCE = 16
FLOOD_AT_ONCE = 128
CALM_CALLS = 120
CALM_PAUSE_S = 0.05


@dataclass(frozen=True)
class Row:
    """One figure; `peer_value` is null where there is no peer in the same run."""

    case: str
    value: float
    unit: str
    method: str


@dataclass(frozen=True)
class Load:
    """Many calls at once: calls per second of the gateway's CPU time, and latencies in ms."""

    rate: float
    median_ms: float
    p99_ms: float


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has spent so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[-1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(call: Callable[[], Awaitable[object]], gateway_pid: int) -> Load:
    """Make LOAD_CALLS calls, LOAD_AT_ONCE at a time."""
    durations: list[float] = []

    async def worker() -> None:
        for _ in range(LOAD_CALLS // LOAD_AT_ONCE):
            began = time.perf_counter()
            await call()
            durations.append(time.perf_counter() - began)

    before = cpu_seconds(gateway_pid)
    await asyncio.gather(*(worker() for _ in range(LOAD_AT_ONCE)))
    spent = cpu_seconds(gateway_pid) - before
    durations.sort()
    p99 = durations[math.ceil(0.99 * len(durations)) - 1]
    return Load(len(durations) / spent, 1000 * statistics.median(durations), 1000 * p99)


@dataclass(frozen=True)
class Gateway:
    """Where the measured gateway listens, the token that it wants, and its process."""

    address: str
    token: str
    pid: int


async def fairness(gateway: Gateway, zoo: Path) -> list[Row]:
    """Explain calls of a project, one after the other: alone, then while another keeps FLOOD_AT_ONCE of its own waiting.

    The flood comes from a process of its own, so that only the gateway is shared.
    """
    alone: list[float] = []
    beside: list[float] = []
    pauses = random.Random(1)  # noqa: S311 - pauses, not secrets
    async with AsyncClient(gateway.address, token=gateway.token, project="calm") as client:
        version = await _kws(client, zoo)

        async def timed(durations: list[float]) -> None:
            # Calls one right after another keep step with the flood's; those at random times see its average (PASTA, Wolff 1982).
            await asyncio.sleep(pauses.expovariate(1 / CALM_PAUSE_S))
            began = time.perf_counter()
            await client.explain(version.name, targets=[named_target("cortex-m4")])
            durations.append(1000 * (time.perf_counter() - began))

        await timed([])
        for _ in range(CALM_CALLS):
            await timed(alone)
        spawn = multiprocessing.get_context("spawn")
        ends, other = spawn.Pipe()
        process = spawn.Process(target=_flood, args=(gateway, zoo, other), daemon=True)
        process.start()
        try:
            await asyncio.to_thread(ends.recv)  # it has begun
            for _ in range(CALM_CALLS):
                await timed(beside)
            ends.send(None)
            flood: list[float] = await asyncio.to_thread(ends.recv)
        finally:
            process.kill()
    method = f"{CALM_CALLS} calls at random times"
    with_flood = f"{method}, another project has {FLOOD_AT_ONCE} calls at once"
    return [
        Row("explain, alone, median", statistics.median(alone), "ms", method),
        Row("explain beside a flood, median", statistics.median(beside), "ms", with_flood),
        Row("explain beside a flood, 90 %", statistics.quantiles(beside, n=10)[-1], "ms", with_flood),
        Row("explain of the flood, median", statistics.median(flood), "ms", f"{FLOOD_AT_ONCE} calls at once"),
    ]


def _flood(gateway: Gateway, zoo: Path, pipe: Connection) -> None:
    """Say when calls have begun to be answered; call until told to stop, then send how long each call took, in ms."""
    durations: list[float] = []

    async def again_and_again(client: AsyncClient, name: str) -> None:
        while not pipe.poll():
            began = time.perf_counter()
            await client.explain(name, targets=[named_target("cortex-m4")])
            durations.append(1000 * (time.perf_counter() - began))
            if len(durations) == FLOOD_AT_ONCE:
                pipe.send(None)

    async def all_at_once() -> None:
        async with AsyncClient(gateway.address, token=gateway.token, project="flood") as client:
            name = (await _kws(client, zoo)).name
            await asyncio.gather(*(again_and_again(client, name) for _ in range(FLOOD_AT_ONCE)))

    asyncio.run(all_at_once())
    pipe.send(durations)


async def _kws(client: AsyncClient, zoo: Path) -> models_pb2.ModelVersion:
    path = zoo / "kws" / "kws_int8.tflite"
    return await client.import_model(path.read_bytes(), "kws", model_format(path))


async def measure(client: AsyncClient, zoo: Path, gateway: Gateway) -> list[Row]:
    """Measure on a suite that has built kws for cortex-m4 already, or build it first."""
    version = await _kws(client, zoo)
    target = named_target("cortex-m4")

    async def build() -> None:
        if not (await client.create_build(version.name, target)).cached:
            raise RuntimeError("a repeated build was not answered from what is known")

    started = await client.create_build(version.name, target)
    await client.wait_build(started.name)
    durations = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await build()
        durations.append(time.perf_counter() - began)
    builds = await load(build, gateway.pid)

    async def explain() -> None:
        await client.explain(version.name, targets=[target])

    await explain()
    explains = await load(explain, gateway.pid)

    began = time.perf_counter()
    await upload(client, UPLOAD_BYTES)
    rate = UPLOAD_BYTES / 1e6 / (time.perf_counter() - began)
    many = f"{LOAD_CALLS} calls, {LOAD_AT_ONCE} at once"
    return [
        Row("cached build, median", 1000 * statistics.median(durations), "ms", f"{REPEATS} calls one after another"),
        Row("cached build, worst", 1000 * max(durations), "ms", f"{REPEATS} calls one after another"),
        *_rows("cached build", builds, many),
        *_rows("explain", explains, f"{many}, every compiler asked CheckModel before"),
        *await fairness(gateway, zoo),
        Row("catalogue upload", rate, "MB/s", f"{UPLOAD_BYTES >> 20} MiB through gateway and registry, digest checked"),
    ]


def _rows(case: str, found: Load, method: str) -> list[Row]:
    return [
        Row(f"{case} under load", found.rate, "calls/s per gateway core", method),
        Row(f"{case} under load, median", found.median_ms, "ms", method),
        Row(f"{case} under load, p99", found.p99_ms, "ms", method),
    ]


async def upload(client: AsyncClient, size: int) -> None:
    """Upload bytes that were never uploaded before."""
    block = hashlib.sha256(str(time.time_ns()).encode()).digest() * (size // 32)
    digest = hashlib.sha256(block).hexdigest()

    async def requests() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        yield artifacts_pb2.WriteArtifactRequest(sha256=digest, parent=client.project)
        for offset in range(0, len(block), 1024 * 1024):
            yield artifacts_pb2.WriteArtifactRequest(data=block[offset : offset + 1024 * 1024])

    await client._artifacts.WriteArtifact(requests())


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table("case", "value", "unit", "method", title="Services")
    for entry in rows:
        table.add_row(entry.case, f"{entry.value:,.1f}", entry.unit, entry.method)
    console.print(table)


def write(rows: list[Row], path: Path) -> None:
    """Keep the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(entry) for entry in rows], indent=1) + "\n", encoding="utf-8")
