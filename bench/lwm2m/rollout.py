"""One module onto a fleet over a bad link, while devices reboot and the bridge and the gateway are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench.lwm2m.bad_link import BadLink, bad_link
from bench.lwm2m.device import Device, Link, read_fleet
from bench.lwm2m.servers import cpu_seconds
from bench.lwm2m.wire import Fleet
from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.cli._context import Session
from tinymlaas_client.cli.suite_commands import start_and_wait
from tinymlaas_client.suite import Suite, SuiteManifest, load_manifest
from tinymlaas_lwm2m import UpdateState
from tinymlaas_servicekit import ServiceError

DEVICES = 1_000
REBOOTING = 0.3
BROKEN = 0.01
LIFETIME_S = 300
KILLED = ("lwm2m-bridge", "gateway")
KILLS_AT = (0.15, 0.4, 0.7)
LIMIT_S = 3_000.0
BRIDGE = {
    "TINYMLAAS_CONCURRENT_INSTALLS": "128",
    "TINYMLAAS_INSTALL_POLL_SECONDS": "3.0",
    "TINYMLAAS_COAP_ACK_TIMEOUT_SECONDS": "1.0",
}
_NEEDED = {"registry", "lwm2m-bridge", "compiler-tvm", "compiler-tflm", "profiler", "gateway"}
_Rollout = deployments_pb2.DeviceRollout


@dataclass(frozen=True)
class Outcome:
    """How it ended. `stuck` devices are neither active nor in a safe state; `doubled` ones did something twice."""

    seconds: float
    devices: int
    active: int
    failed_safely: int
    stuck: int
    doubled: int
    module_bytes: int
    link: str
    reboots: int
    kills: int
    overhead: float
    gateway_cpu_s: float
    bridge_cpu_s: float


async def measure(root: Path, state: Path, console: Console, count: int = DEVICES) -> Outcome:
    """Start a suite of its own, register the devices, deploy, break things, wait for the end."""
    session = Session(address="", token_file=None, project="default", state=state, as_json=False)
    suite = Suite(_manifest(), state)
    draw = random.Random(1)  # noqa: S311 - the same faults each time
    try:
        await start_and_wait(suite, session)
        port = int(suite.records()["lwm2m-bridge"].address.rsplit(":", 1)[1])
        with bad_link(root, port, seed=1) as between:
            outcome = await _with_fleet(root, suite, count, between, draw, console)
        return replace(outcome, link=between.told)
    finally:
        suite.stop()


async def _with_fleet(
    root: Path, suite: Suite, count: int, between: BadLink, draw: random.Random, console: Console
) -> Outcome:
    link = Link(Fleet(count), ("127.0.0.1", between.port), draw)
    broken = set(draw.sample(range(count), max(1, round(BROKEN * count))))
    devices = [Device(number, link, LIFETIME_S, fails_self_test=number in broken) for number in range(count)]
    loop = asyncio.get_running_loop()
    loop.add_reader(link.fleet.socket, read_fleet, link, devices)
    for device in devices:
        device.start()
    try:
        return await _roll_out(root, suite, devices, draw, console)
    finally:
        loop.remove_reader(link.fleet.socket)
        for device in devices:
            device.stop()
        link.fleet.close()


async def _roll_out(root: Path, suite: Suite, devices: list[Device], draw: random.Random, console: Console) -> Outcome:
    async with AsyncClient(suite.gateway_address, token=suite.token, project="default") as client:
        path = root / "zoo" / "kws" / "kws_int8.tflite"
        version = await client.import_model(path.read_bytes(), "kws", model_format(path))
        await _known(client, len(devices), sum(spec.role == "plugin" for spec in suite.manifest.processes))
        console.print(f"{len(devices)} devices are known; deploying")
        began, spent = time.monotonic(), Counter({name: -_cpu_s(suite, name) for name in KILLED})
        started = await client.create_deployment(version.name, concurrency=256)
        for device in draw.sample(devices, round(REBOOTING * len(devices))):
            device.reboot_at_block = draw.randrange(40)
        kills = [fraction * len(devices) for fraction in KILLS_AT]
        killed = rounds = 0
        while True:
            await asyncio.sleep(1.0)
            on = draw.choice(devices)
            on.reboot(draw.uniform(0.5, 3.0))
            done = sum(device.ledger.activations > 0 for device in devices)
            if killed < len(kills) and done >= kills[killed]:
                killed += 1
                console.print(f"{time.monotonic() - began:.0f} s: {done} active; killing {' and '.join(KILLED)}")
                spent.update({name: _cpu_s(suite, name) for name in KILLED})
                await _kill(suite)
            rounds += 1
            # A deployment of many devices is a large message: ask for it once in a while.
            ended = await _ended(client, started.name) if rounds % 5 == 0 else None
            if ended is not None:
                for why, number in Counter(_why(rollout) for rollout in ended.rollouts).most_common():
                    console.print(f"{number} devices: {why}")
                spent.update({name: _cpu_s(suite, name) for name in KILLED})
                return _outcome(ended, devices, time.monotonic() - began, killed, spent)
            if time.monotonic() - began > LIMIT_S:
                raise RuntimeError(f"not at its end after {LIMIT_S:.0f} s: {done} of {len(devices)} active")


async def _known(client: AsyncClient, count: int, plugins: int) -> None:
    """Wait until the gateway knows every device with its capabilities, and every plugin."""
    end = time.monotonic() + 300
    known = found = 0
    while known < count or found < plugins:
        if time.monotonic() > end:
            raise RuntimeError(f"the gateway knows {known} of {count} devices and {found} of {plugins} plugins")
        await asyncio.sleep(1.0)
        known = sum(bool(device.capabilities.slots) for device in await client.list_devices())
        found = len(await client.list_plugins())


def _cpu_s(suite: Suite, name: str) -> float:
    """Processor time of a process of the suite so far."""
    return cpu_seconds(suite.records()[name].pid)


async def _kill(suite: Suite) -> None:
    """SIGKILL, a second of nothing, and a start on the same addresses."""
    for name in KILLED:
        os.kill(suite.records()[name].pid, signal.SIGKILL)
    await asyncio.sleep(1.0)
    suite.start_missing(KILLED)


async def _ended(client: AsyncClient, name: str) -> deployments_pb2.Deployment | None:
    """The deployment where it has ended; None also while the gateway is away."""
    try:
        deployment = await client.get_deployment(name)
    except ServiceError:
        return None
    return deployment if deployment.HasField("end_time") else None


def _why(rollout: deployments_pb2.DeviceRollout) -> str:
    """How a device ended, in words."""
    error = rollout.error.message.replace(rollout.device.rsplit("/", 1)[1], "…")
    return f"{_Rollout.State.Name(rollout.state).removeprefix('STATE_')} {error}".strip()


def _outcome(
    ended: deployments_pb2.Deployment, devices: list[Device], seconds: float, kills: int, spent: Mapping[str, float]
) -> Outcome:
    """Judge by the devices themselves; the gateway's account of each must say the same."""
    told = {rollout.device.rsplit("/", 1)[1]: rollout.state for rollout in ended.rollouts}
    active = failed = stuck = doubled = size = 0
    for device in devices:
        states = Counter(slot.active for slot in device.slots)
        idle = all(slot.state is UpdateState.INITIAL for slot in device.slots)
        if states[True] == 1 and told.get(device.endpoint) == _Rollout.STATE_ACTIVE:
            active += 1
            size = len(next(slot.data for slot in device.slots if slot.active))
        elif (
            not states[True]
            and idle
            and told.get(device.endpoint) in (_Rollout.STATE_FAILED, _Rollout.STATE_ROLLED_BACK)
        ):
            failed += 1
        else:
            stuck += 1
        doubled += device.ledger.installs > 1 or device.ledger.activations > 1
    if not size:
        raise RuntimeError(f"nothing was installed: {ended.error} {ended.rollouts[0]}")
    return Outcome(
        seconds=seconds,
        devices=len(devices),
        active=active,
        failed_safely=failed,
        stuck=stuck,
        doubled=doubled,
        module_bytes=size,
        link="",
        reboots=sum(device.ledger.reboots for device in devices),
        kills=kills,
        overhead=sum(device.ledger.bytes_stored for device in devices) / (size * len(devices)),
        gateway_cpu_s=spent["gateway"],
        bridge_cpu_s=spent["lwm2m-bridge"],
    )


def _manifest() -> SuiteManifest:
    """What a rollout needs of the embedded suite, with a bridge for many installs at once."""
    manifest = load_manifest()
    chosen = [spec for spec in manifest.processes if spec.name in _NEEDED]
    changed = tuple(
        replace(spec, settings={**spec.settings, **BRIDGE}) if spec.name == "lwm2m-bridge" else spec for spec in chosen
    )
    return SuiteManifest(root=manifest.root, processes=changed)
