"""Rollouts that wait for a time, at a running gateway whose clock the test sets: windows, jitter, rate."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from gateway_world import HERE, World, make_world
from test_gateway_deployments import Deployment, Rollout, device_in, finished, model_in, rollouts
from test_gateway_rollouts import begin, policy, seen

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_gateway.core import cohort

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOUR = 3600.0


@dataclass
class Town:
    """A world with a gateway, and its clock."""

    world: World
    file: Path

    def now(self) -> float:
        """The gateway's time."""
        return float(self.file.read_text())

    def set(self, to: float) -> None:
        """Make it so late."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(str(to))
        os.replace(fresh, self.file)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    folder = tmp_path_factory.mktemp("timed")
    file = folder / "clock"
    file.write_text(str(time.time()))
    async with make_world(folder) as world:
        world.add_plugin("compiler", roles="compiler")
        world.add_plugin("witness", roles="profiler")
        world.settings["TINYMLAAS_TEST_CLOCK"] = str(file)
        await world.start_gateway(command=str(HERE / "gateway_with_clock.py"))
        yield Town(world, file)


def begun(deployment: deployments_pb2.Deployment) -> set[str]:
    return {name for name, item in rollouts(deployment).items() if item.HasField("start_time")}


def active(deployment: deployments_pb2.Deployment) -> set[str]:
    return {name for name, item in rollouts(deployment).items() if item.state == Rollout.STATE_ACTIVE}


def next_time(deployment: deployments_pb2.Deployment) -> float:
    return deployment.next_time.ToNanoseconds() / 1e9


async def test_devices_begin_inside_of_a_window_and_no_earlier_than_their_jitter(town: Town) -> None:
    """DO-ROLL-006."""
    names = [f"night-{number}" for number in range(8)]
    for name in names:
        device_in(town.world, name)
    opens = (town.now() // 60 + 120) * 60
    start = datetime.fromtimestamp(opens, UTC).strftime("%H:%M")
    nightly = policy(windows=[{"start": start, "duration": "3600s"}], jitter="1200s", query={"names": ["night-*"]})
    model = model_in(town.world, b"\x11night")
    deployment = await begin(town.world, model, policy=nightly)
    waiting = await seen(town.world, deployment.name, lambda now: bool(now.waits_for), "it waits")
    assert waiting.waits_for == "its maintenance window"
    assert next_time(waiting) == opens
    assert not begun(waiting)
    jitter = {name: 1200 * cohort.draw(deployment.name, f"projects/default/devices/{name}", "jitter") for name in names}
    half = sorted(jitter.values())[3] + 1
    town.set(opens + half)
    early = {name for name in names if jitter[name] <= half}
    now = await seen(town.world, deployment.name, lambda now: active(now) == early, "those whose jitter is over")
    assert len(early) >= 4
    assert begun(now) == early
    town.set(opens + 1200)
    done = await finished(town.world, deployment.name)
    assert done.state == Deployment.STATE_SUCCEEDED
    for name, item in rollouts(done).items():
        assert item.start_time.ToNanoseconds() / 1e9 >= opens + jitter[name]


async def test_a_rate_spreads_devices_and_a_window_that_closes_keeps_the_rest_until_the_next_day(town: Town) -> None:
    """DO-ROLL-006, 007."""
    for number in range(5):
        device_in(town.world, f"rate-{number}")
    opened = town.now() // 60 * 60
    start = datetime.fromtimestamp(opened, UTC).strftime("%H:%M")
    slow = policy(windows=[{"start": start, "duration": "7200s"}], startsPerMinute=2, query={"names": ["rate-*"]})
    deployment = await begin(town.world, model_in(town.world, b"\x12rate"), policy=slow)
    first = await seen(town.world, deployment.name, lambda now: len(active(now)) == 2, "two of them")
    assert len(begun(first)) == 2
    waiting = await seen(town.world, deployment.name, lambda now: now.waits_for == "its rate", "it waits")
    starts = sorted(item.start_time.ToNanoseconds() / 1e9 for item in rollouts(waiting).values() if item.module)
    assert next_time(waiting) == pytest.approx(starts[0] + 60, abs=1e-3)
    town.set(starts[-1] + 61)
    await seen(town.world, deployment.name, lambda now: len(active(now)) == 4, "two more")
    town.set(opened + 2 * HOUR + 1)
    closed = await seen(town.world, deployment.name, lambda now: "window" in now.waits_for, "the window is closed")
    assert next_time(closed) == opened + 24 * HOUR
    assert len(begun(closed)) == 4
    town.set(opened + 24 * HOUR + 1)
    done = await finished(town.world, deployment.name)
    assert done.state == Deployment.STATE_SUCCEEDED
    starts = sorted(item.start_time.ToNanoseconds() / 1e9 for item in rollouts(done).values())
    assert all(later - earlier >= 60 for earlier, later in zip(starts, starts[2:], strict=False))
