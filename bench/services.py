"""What the services cost: a build that is known already, explain calls, uploads."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tinymlaas.registry.v1 import artifacts_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.targets import named_target

UPLOAD_BYTES = 64 * 1024 * 1024
REPEATS = 20


@dataclass(frozen=True)
class Row:
    """One figure; `peer_value` is null where there is no peer in the same run."""

    case: str
    value: float
    unit: str
    method: str


async def measure(client: AsyncClient, zoo: Path) -> list[Row]:
    """Measure on a suite that has built kws for cortex-m4 already, or build it first."""
    path = zoo / "kws" / "kws_int8.tflite"
    version = await client.import_model(path.read_bytes(), "kws", model_format(path))
    target = named_target("cortex-m4")

    async def build() -> bool:
        started = await client.create_build(version.name, target)
        return (await client.wait_build(started.name)).cached

    await build()
    durations = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        if not await build():
            raise RuntimeError("a repeated build was not answered from what is known")
        durations.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client.explain(version.name, targets=[target]) for _ in range(100)))
    explain = time.perf_counter() - began

    began = time.perf_counter()
    await upload(client, UPLOAD_BYTES)
    rate = UPLOAD_BYTES / 1e6 / (time.perf_counter() - began)
    return [
        Row("cached build, median", 1000 * statistics.median(durations), "ms", f"{REPEATS} calls one after another"),
        Row("cached build, worst", 1000 * max(durations), "ms", f"{REPEATS} calls one after another"),
        Row("explain, 100 at once", 1000 * explain, "ms for all", "CheckModel included"),
        Row("explain", 100 / explain, "calls/s", "100 at once"),
        Row("catalogue upload", rate, "MB/s", f"{UPLOAD_BYTES >> 20} MiB through gateway and registry, digest checked"),
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
