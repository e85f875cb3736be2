"""`python -m bench.cluster`: what the release on a cluster survives and how long it takes; rows in bench/results/cluster.json.

Needs what `make test-cluster` needs (tests/cluster/cluster_kit.py). Every figure is counted on the cluster itself. The chart of the
version before is installed, upgraded while a rollout runs, and then done harm: pods are killed without grace at random, servers
restarted, the node drained, while builds, rollouts and callers go on. Each part has a deadline; one that breaks off is a row of its
own, its message is on stderr, and the others are measured all the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT / "scripts")]

import build_images  # noqa: E402
import cluster_kit  # noqa: E402
from suite_on_cluster import (  # noqa: E402
    CHART,
    HELLO,
    DeployedSuite,
    Load,
    begin_builds,
    ended,
    executors,
    glutton,
    known,
    kws,
    latest_install,
    owners,
    previous_chart,
    rolled_out,
    twice_installed,
)
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2  # noqa: E402
from tinymlaas_client import AsyncClient  # noqa: E402
from tinymlaas_client.targets import named_target  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "cluster.json"
PARTS = os.environ.get(
    "TINYMLAAS_CLUSTER_PARTS", ""
)  # names of parts to measure, with commas between them; none for all
BUILDS = int(os.environ.get("TINYMLAAS_CLUSTER_BUILDS", "50"))
DEVICES = int(os.environ.get("TINYMLAAS_CLUSTER_DEVICES", "100"))
IN_A_POD = 10  # a kubelet takes 110 pods, and the suite has some itself
KINDS = ("gateway", "registry", "bridge", "compiler-tvm", "compiler-tflm", "profiler", "postgresql", "minio")
MAX_KILLS = 24
FLOOD = 12
PART_SECONDS = 900.0
RATE_SECONDS = 60.0
SEED = 7
Row = dict[str, str | float]
Done = deployments_pb2.Deployment


def row(case: str, value: float, unit: str) -> Row:
    """One figure, printed at once: a part that breaks off later leaves what it found so far."""
    print(f"{case}: {round(value, 3)} {unit}", flush=True)
    return {"case": case, "value": round(value, 3), "unit": unit}


async def timed(work: Awaitable[object]) -> float:
    """Seconds that something took."""
    began = time.monotonic()
    await work
    return time.monotonic() - began


def counted(what: str, done: Done) -> list[Row]:
    """Devices of a rollout by the state that they ended in."""
    states = Counter(deployments_pb2.DeviceRollout.State.Name(item.state) for item in done.rollouts)
    rows = [row(f"{what}: {name.removeprefix('STATE_').lower()}", states[name], "devices") for name in sorted(states)]
    return [*rows, row(f"{what}: time", done.end_time.seconds - done.create_time.seconds, "s")]


def loaded(what: str, load: Load) -> list[Row]:
    """What callers saw meanwhile."""
    for line in load.failed[:5]:
        print(f"{what}: {line}", file=sys.stderr)
    return [
        row(f"{what}: calls answered", load.calls, "calls"),
        row(f"{what}: calls failed", len(load.failed), "calls"),
        row(f"{what}: slowest answer", load.slowest, "s"),
    ]


async def upgrade(suite: DeployedSuite, client: AsyncClient, devices: list[str]) -> list[Row]:
    """From the chart of the version before to this one, while every device gets its first module."""
    model, digest = await kws(client)
    async with Load(suite) as load:
        begun = await client.create_deployment(model, devices=devices, samples_sha256=digest)
        took = await timed(asyncio.to_thread(suite.upgrade))
        await suite.rolled_out()
        done = await rolled_out(client, begun.name, 1800)
    shared = [row(f"devices of {bridge[-8:]}", count, "devices") for bridge, count in owners(suite).items()]
    rows = [row("upgrade under a rollout", took, "s"), *loaded("upgrade", load)]
    return [*rows, *counted("rollout over upgrade", done), *shared]


async def deaths(suite: DeployedSuite, client: AsyncClient, devices: list[str]) -> list[Row]:
    """Builds and a rollout of another module while pods die at random, each kind at least once; what was lost or doubled."""
    chance = random.Random(SEED)  # noqa: S311  # which pod dies is no secret
    before = await client.list_builds()
    sealed = len(await client.list_modules())
    compiled = suite.calls("compiler-tflm", "Compile")
    marked = latest_install(suite)
    first, second = suite.pods("gateway")[:2]
    began = time.monotonic()
    async with suite.client(first) as one, suite.client(second) as other:
        names = await begin_builds(one, BUILDS // 2, 1000) + await begin_builds(other, BUILDS - BUILDS // 2, 2000)
    model, digest = await kws(client)
    begun = await client.create_deployment(
        model, devices=devices, samples_sha256=digest, objective=builds_pb2.OBJECTIVE_FLASH
    )
    shared = executors(suite, names)
    kills = [*chance.sample(KINDS, len(KINDS)), *chance.choices(KINDS, k=MAX_KILLS - len(KINDS))]
    whole: list[float] = []
    while kills and (len(whole) < len(KINDS) or await busy(client, names, begun.name)):
        kind = kills.pop(0)
        suite.kill(chance.choice(suite.pods(kind)))
        whole.append(await timed(suite.rolled_out()))
    done = await rolled_out(client, begun.name, 1800)
    builds = [await ended(client, name, 1800) for name in names]
    took = time.monotonic() - began
    good = sum(build.state == builds_pb2.Build.STATE_SUCCEEDED for build in builds)
    for build in builds:
        if build.state != builds_pb2.Build.STATE_SUCCEEDED:
            print(build, file=sys.stderr)
    modules = [module.name for module in await client.list_modules()]
    own = {build.name for build in await client.list_builds()} - {build.name for build in before} - set(names)
    of_rollout = {item.build for item in done.rollouts if item.build}
    return [
        row("pods killed", len(whole), "pods"),
        row("whole again after a death, median", sorted(whole)[len(whole) // 2], "s"),
        row("whole again after a death, slowest", max(whole), "s"),
        row("builds asked for while pods were killed", len(names), "builds"),
        row("builds that succeeded", good, "builds"),
        row("builds lost", len(names) - good, "builds"),
        row("builds nobody asked for", len(own - of_rollout), "builds"),
        row("modules sealed", len(modules) - sealed, "modules"),
        row("modules listed twice", len(modules) - len(set(modules)), "modules"),
        row("installs done twice", twice_installed(suite, marked), "installs"),
        *counted("rollout under deaths", done),
        row("builds and rollout with all those deaths", took, "s"),
        *(row(f"builds that gateway {executor[-1]} was given", count, "builds") for executor, count in shared.items()),
        *(row("compilations of a replica before the deaths", count, "calls") for count in compiled.values()),
    ]


async def busy(client: AsyncClient, names: list[str], deployment: str) -> bool:
    """Whether a build or the rollout still goes on."""
    mine = [build for build in await client.list_builds() if build.name in set(names)]
    over = (builds_pb2.Build.STATE_SUCCEEDED, builds_pb2.Build.STATE_FAILED)
    return any(build.state not in over for build in mine) or not (await client.get_deployment(deployment)).HasField(
        "end_time"
    )


async def restarts(suite: DeployedSuite, client: AsyncClient) -> list[Row]:
    """Both servers restarted in order while callers and builds go on."""
    rows = []
    for number, kind in enumerate(("postgresql", "minio")):
        async with Load(suite) as load:
            names = await begin_builds(client, 4, 3000 + 10 * number)
            (pod,) = suite.pods(kind)
            await asyncio.to_thread(suite.kubectl, "delete", "pod", pod)
            took = await timed(suite.rolled_out())
            builds = [await ended(client, name) for name in names]
        lost = sum(build.state != builds_pb2.Build.STATE_SUCCEEDED for build in builds)
        rows += [row(f"{kind} restarted: whole again after", took, "s"), *loaded(f"{kind} restarted", load)]
        rows.append(row(f"{kind} restarted: builds lost", lost, "builds"))
    return rows


async def drained(suite: DeployedSuite, client: AsyncClient) -> list[Row]:
    """The node drained by evictions that heed the budgets, while callers and builds go on."""
    async with Load(suite) as load:
        names = await begin_builds(client, 4, 3100)
        began = time.monotonic()
        refused = await suite.drain()
        took = time.monotonic() - began
        builds = [await ended(client, name) for name in names]
    lost = sum(build.state != builds_pb2.Build.STATE_SUCCEEDED for build in builds)
    rows = [
        row("drain: whole again after", took, "s"),
        row("drain: evictions put off by budgets", refused, "evictions"),
    ]
    return [*rows, *loaded("drain", load), row("drain: builds lost", lost, "builds")]


async def eaten(suite: DeployedSuite, client: AsyncClient) -> list[Row]:
    """A vendor's plugin comes, eats memory while it compiles, is killed and named, and goes."""
    began = time.monotonic()
    suite.apply(glutton())
    await known(suite, HELLO)
    rows = [row("vendor plugin: applied until the gateway may call it", time.monotonic() - began, "s")]
    model, digest = await kws(client)
    started = await client.create_build(model, named_target("cortex-m4"), samples_sha256=digest)
    build = await ended(client, started.name)
    (failed,) = [each for each in build.candidates if each.plugin == f"plugins/{HELLO}"]
    rows.append(row("plugin that ate memory: named in the answer", float(HELLO in str(failed.error)), "builds"))
    others = build.state == builds_pb2.Build.STATE_SUCCEEDED
    rows.append(row("plugin that ate memory: builds that others won", float(others), "builds"))
    took = await timed(asyncio.to_thread(suite.kubectl, "delete", "compilerplugin", "glutton", "--timeout", "5m"))
    return [*rows, row("vendor plugin: deleted and drained after", took, "s")]


async def flooded(suite: DeployedSuite, client: AsyncClient) -> list[Row]:
    """One build of a project: alone, then asked for after another project has asked both gateways for FLOOD of its own."""
    (name,) = await begin_builds(client, 1, 4000)
    rows = [row("fairness: a build alone", await timed(ended(client, name)), "s")]
    async with AsyncClient(suite.gateway_address(), token=suite.secret("client-token"), project="flood") as other:
        flood = await begin_builds(other, FLOOD, 5000)
        (name,) = await begin_builds(client, 1, 4004)
        began = time.monotonic()
        rows.append(
            row("fairness: another project's build asked for after them", await timed(ended(client, name)), "s")
        )
        over = [await other.get_build(each) for each in flood]
        first = sum(build.state == builds_pb2.Build.STATE_SUCCEEDED for build in over)
        rows.append(row("fairness: builds of the flood that ended before it", first, "builds"))
        builds = [await ended(other, each) for each in flood]
        rows.append(row("fairness: the whole flood", time.monotonic() - began, "s"))
    return [
        *rows,
        row("fairness: builds of a flooding project", FLOOD, "builds"),
        row("fairness: builds lost", sum(each.state != builds_pb2.Build.STATE_SUCCEEDED for each in builds), "builds"),
    ]


async def rate(call: Callable[[], Awaitable[object]], calls: int, at_once: int) -> tuple[float, float]:
    """Calls per second of wall time and the 99th percentile in ms, of as many calls or those that RATE_SECONDS allow."""
    took: list[float] = []
    end = time.monotonic() + RATE_SECONDS

    async def worker() -> None:
        for _ in range(calls // at_once):
            if time.monotonic() < end:
                took.append(await timed(call()))

    whole = await timed(asyncio.gather(*(worker() for _ in range(at_once))))
    took.sort()
    return len(took) / whole, 1000 * took[int(0.99 * (len(took) - 1))]


async def rates(client: AsyncClient) -> list[Row]:
    """How many calls one connection gets answered, with everything on the same processors."""
    model, digest = await kws(client)
    target = named_target("cortex-m4")
    await ended(client, (await client.create_build(model, target, samples_sha256=digest)).name)
    rows = []
    for what, call in (
        ("explain", lambda: client.explain(model, targets=[target])),
        ("cached build", lambda: client.create_build(model, target, samples_sha256=digest)),
    ):
        each, p99 = await rate(call, 2000, 8)
        rows += [row(f"{what}, one connection", each, "calls/s"), row(f"{what}, p99", p99, "ms")]
    return rows


async def measure(suite: DeployedSuite, rows: list[Row]) -> None:
    """All figures of an installed release, added as they come."""
    for name in build_images.images():
        size = build_images.size_bytes(f"tinymlaas/{name}:{build_images.VERSION}")
        if size is not None:
            rows.append(row(f"image {name}", size / 1e6, "MB"))
    async with suite.client() as client:
        devices = [f"board-{number}" for number in range(DEVICES)]
        for start in range(0, DEVICES, IN_A_POD):
            suite.apply(suite.board_pod("tflm-m4f", *devices[start : start + IN_A_POD]))
        rows.append(row(f"{DEVICES} boards registered", await timed(suite.registered(client, set(devices))), "s"))
        parts: dict[str, Callable[[], Awaitable[list[Row]]]] = {
            "upgrade": lambda: upgrade(suite, client, devices),
            "calls per second": lambda: rates(client),
            "fairness": lambda: flooded(suite, client),
            "deaths": lambda: deaths(suite, client, devices),
            "restarts": lambda: restarts(suite, client),
            "drain": lambda: drained(suite, client),
            "vendor plugin": lambda: eaten(suite, client),
        }
        for name, part in parts.items():
            if name not in PARTS.split(",") and PARTS:
                continue
            try:
                async with asyncio.timeout(PART_SECONDS):
                    rows += await part()
            except Exception:
                traceback.print_exc()
                rows.append(row(f"{name}: broke off", 1, "parts"))


def main() -> None:
    """Start or take a cluster, install, measure, write the rows."""
    cluster = cluster_kit.start()
    if isinstance(cluster, str):
        raise SystemExit(cluster)
    try:
        cluster_kit.provide_images(cluster)
        with tempfile.TemporaryDirectory() as folder:
            suite = DeployedSuite(cluster, "tinymlaas-bench", Path(folder) / "values.yaml")
            suite.remove()
            began = time.monotonic()
            suite.install(previous_chart(Path(folder)) or CHART)
            rows = [row("install until every pod is ready", time.monotonic() - began, "s")]
            asyncio.run(measure(suite, rows))
            if not PARTS:
                RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            suite.remove(wait=False)
            if broke_off := [str(each["case"]) for each in rows if each["unit"] == "parts"]:
                raise SystemExit("; ".join(broke_off))
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
