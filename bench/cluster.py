"""`python -m bench.cluster`: what the release on a cluster survives and how long it takes; rows in bench/results/cluster.json.

Needs what `make test-cluster` needs (tests/cluster/cluster_kit.py). Every figure is counted on the cluster itself: pods are
killed without grace, one of each kind after another, while builds and a rollout go on.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT / "scripts")]

import build_images  # noqa: E402
import cluster_kit  # noqa: E402
from suite_on_cluster import DeployedSuite, ended, kws, rolled_out  # noqa: E402
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2  # noqa: E402
from tinymlaas_client import AsyncClient  # noqa: E402
from tinymlaas_client.targets import named_target  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "cluster.json"
BUILDS = int(os.environ.get("TINYMLAAS_CLUSTER_BUILDS", "50"))
DEVICES = int(os.environ.get("TINYMLAAS_CLUSTER_DEVICES", "100"))
KINDS = ("gateway", "registry", "bridge", "compiler-tvm", "compiler-tflm", "profiler", "postgresql", "minio")
SEED = 7
Row = dict[str, str | float]


def row(case: str, value: float, unit: str) -> Row:
    """One figure."""
    return {"case": case, "value": round(value, 3), "unit": unit}


async def timed(work: Awaitable[object]) -> float:
    """Seconds that something took."""
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def survive(suite: DeployedSuite, client: AsyncClient, rows: list[Row]) -> None:
    """Builds and a rollout while one pod of each kind is killed; counts what was lost or done twice."""
    chance = random.Random(SEED)  # noqa: S311  # which pod dies is no secret
    model, digest = await kws(client)
    names = []
    for number in range(BUILDS):
        target = named_target(chance.choice(["cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"]))
        target.memory_regions[1].total_bytes -= 256 * number
        names.append((await client.create_build(model, target, samples_sha256=digest)).name)
    devices = sorted(device.name.rsplit("/", 1)[-1] for device in await client.list_devices())
    deployment = await client.create_deployment(model, devices=devices, samples_sha256=digest)
    kinds = list(KINDS)
    chance.shuffle(kinds)
    began = time.monotonic()
    for kind in kinds:
        for pod in suite.pods(kind)[:1]:
            suite.kill(pod)
        rows.append(row(f"killed {kind}: whole again after", await timed(suite.rolled_out()), "s"))
    done = await rolled_out(client, deployment.name, 3600)
    states = Counter(deployments_pb2.DeviceRollout.State.Name(item.state) for item in done.rollouts)
    rows += [row(f"devices {name.removeprefix('STATE_').lower()}", count, "devices") for name, count in states.items()]
    builds = [await ended(client, name, 3600) for name in names]
    good = sum(build.state == builds_pb2.Build.STATE_SUCCEEDED for build in builds)
    modules = [module.name for module in await client.list_modules()]
    rows += [
        row("builds asked for while pods were killed", BUILDS, "builds"),
        row("builds that succeeded", good, "builds"),
        row("builds lost", BUILDS - good, "builds"),
        row("modules sealed twice", len(modules) - len(set(modules)), "modules"),
        row("builds and rollout with all those deaths", time.monotonic() - began, "s"),
    ]


async def rate(call: Callable[[], Awaitable[object]], calls: int, at_once: int) -> tuple[float, float]:
    """Calls per second of wall time and the 99th percentile in ms."""
    took: list[float] = []

    async def worker() -> None:
        for _ in range(calls // at_once):
            took.append(await timed(call()))

    whole = await timed(asyncio.gather(*(worker() for _ in range(at_once))))
    took.sort()
    return len(took) / whole, 1000 * took[int(0.99 * (len(took) - 1))]


async def measure(suite: DeployedSuite) -> list[Row]:
    """All figures of an installed release."""
    rows: list[Row] = []
    for name in build_images.images():
        size = build_images.size_bytes(f"tinymlaas/{name}:{build_images.VERSION}")
        if size is not None:
            rows.append(row(f"image {name}", size / 1e6, "MB"))
    async with suite.client() as client:
        endpoints = [f"board-{number}" for number in range(DEVICES)]
        for endpoint in endpoints:
            suite.apply(suite.board_pod("tflm-m4f", endpoint))
        rows.append(row(f"{DEVICES} boards registered", await timed(suite.registered(client, set(endpoints))), "s"))
        await survive(suite, client, rows)
        model, digest = await kws(client)
        target = named_target("cortex-m4")
        await ended(client, (await client.create_build(model, target, samples_sha256=digest)).name)
        explained, p99 = await rate(lambda: client.explain(model, targets=[target]), 400, 8)
        rows += [row("explain, two gateways", explained, "calls/s"), row("explain, p99", p99, "ms")]
        rows.append(row("upgrade of the release", await timed(asyncio.to_thread(suite.upgrade, "logLevel=debug")), "s"))
    return rows


def main() -> None:
    """Start or take a cluster, install, measure, write the rows."""
    cluster = cluster_kit.start()
    if isinstance(cluster, str):
        raise SystemExit(cluster)
    try:
        cluster_kit.provide_images(cluster)
        with tempfile.TemporaryDirectory() as folder:
            suite = DeployedSuite(cluster, "tinymlaas-bench", Path(folder) / "values.yaml")
            began = time.monotonic()
            suite.install()
            rows = [row("install until every pod is ready", time.monotonic() - began, "s")]
            rows += asyncio.run(measure(suite))
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        for each in rows:
            print(f"{each['case']}: {each['value']} {each['unit']}")
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
