"""Rollouts over real gRPC: waves, what stops them, what they wait for, and who joins. Decisions in full: test_gateway_waves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from gateway_fakes import PROJECT, toy_target
from gateway_world import TOKEN, World, make_world, until
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from test_gateway_deployments import (
    Deployment,
    Rollout,
    device_in,
    finished,
    model_in,
    ready_world,
    rollouts,
    started,
    wanted,
)
from typer.testing import CliRunner

from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2
from tinymlaas_client import rollout_policy
from tinymlaas_client.cli._app import app
from tinymlaas_servicekit import from_rpc_error

pytestmark = pytest.mark.asyncio(loop_scope="module")
Wave = rollouts_pb2.Wave


def policy(**fields: Any) -> rollouts_pb2.RolloutPolicy:
    return json_format.ParseDict(fields, rollouts_pb2.RolloutPolicy())


async def begin(world: World, model: str, request_id: str = "", **fields: Any) -> deployments_pb2.Deployment:
    """Create a deployment with a policy; other fields of the deployment by their names."""
    return started(await world.deployments.CreateDeployment(wanted(model, request_id, **fields)))


async def seen(
    world: World, name: str, condition: Callable[[deployments_pb2.Deployment], bool], what: str
) -> deployments_pb2.Deployment:
    """The deployment as soon as a condition holds."""

    async def look() -> deployments_pb2.Deployment | None:
        now = await world.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=name))
        return now if condition(now) else None

    return await until(look, what)


def waves_of(deployment: deployments_pb2.Deployment) -> list[str]:
    return [Wave.State.Name(wave.state).removeprefix("STATE_") for wave in deployment.waves]


def in_wave(deployment: deployments_pb2.Deployment, index: int) -> list[str]:
    return sorted(item.device.rsplit("/", 1)[1] for item in deployment.rollouts if item.wave == index)


def reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world with a running gateway for every test here; each has devices of its own."""
    async with make_world(tmp_path_factory.mktemp("town")) as world:
        await ready_world(world)
        yield world


THREE_WAVES = [{"name": "canary", "count": 1}, {"name": "some", "percent": 25}]


@pytest.mark.parametrize("on_failure", ["ON_FAILURE_STOP", "ON_FAILURE_ROLL_BACK"])
async def test_a_wave_that_fails_stops_the_rollout_or_brings_every_device_back(town: World, on_failure: str) -> None:
    """DO-ROLL-001, 002, 004, 013, 014: twelve devices in three waves, whose second one fails."""
    world, ident = town, on_failure.lower().replace("_", "-")
    model = model_in(world, on_failure.encode())
    fakes = {f"{ident}-{i}": device_in(world, f"{ident}-{i}") for i in range(12)}
    rolling = policy(waves=THREE_WAVES, onFailure=on_failure, query={"names": [f"{ident}-*"]})
    fields = {"policy": rolling, "concurrency": 12}
    plan = await begin(world, model, ident, validate_only=True, **fields)
    assert [wave.devices for wave in plan.waves] == [1, 3, 8]
    for device in in_wave(plan, 1):
        fakes[device].refuse_install = True
    deployment = await begin(world, model, ident, **fields)
    deployment = await finished(world, deployment.name)
    assert waves_of(deployment) == ["PASSED", "FAILED", "CANCELLED"]
    assert reason(deployment.error) == "WAVE_FAILED"
    found = rollouts(deployment)
    assert in_wave(deployment, 0) == in_wave(plan, 0), "the plan's canary is the deployment's"
    assert {found[name].state for name in in_wave(deployment, 2)} == {Rollout.STATE_CANCELLED}
    touched = {line.split()[1] for line in world.bridge.log}
    assert not touched & set(in_wave(deployment, 2)), "no device of the third wave was touched"
    (canary,) = in_wave(deployment, 0)
    if on_failure == "ON_FAILURE_STOP":
        assert deployment.state == Deployment.STATE_FAILED
        assert found[canary].state == Rollout.STATE_ACTIVE
        assert deployment.waves[0].active == 1
    else:
        assert deployment.state == Deployment.STATE_ROLLED_BACK
        assert found[canary].state == Rollout.STATE_ROLLED_BACK
        assert fakes[canary].active is None, "it had no module before"
    steps = [event.step for event in found[canary].timeline]
    assert steps[:5] == ["planned", "begun", "build", "install", "downloading"]
    times = [event.time.ToNanoseconds() for event in found[canary].timeline]
    assert times == sorted(times)


async def test_devices_that_register_later_join_when_they_are_what_the_query_asks_for(town: World) -> None:
    """DO-ROLL-010: and those who do not match are left alone."""
    world = town
    device_in(world, "meter-1")
    device_in(world, "lock-1")
    open_until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    fields = {"policy": policy(query={"names": ["meter-*"], "isas": ["armv7e-m"]}, openUntil=open_until)}
    deployment = await begin(world, model_in(world, b"\x05joins"), **fields)
    await seen(world, deployment.name, lambda now: now.waits_for == "devices that join", "it waits for devices")
    device_in(world, "lock-2")
    device_in(world, "meter-2")
    riscv = toy_target()
    riscv.isa = "rv32imc"
    world.registry.add_device("meter-riscv", riscv)

    def active(now: deployments_pb2.Deployment) -> bool:
        return [item.state for item in now.rollouts] == [Rollout.STATE_ACTIVE] * 2

    deployment = await seen(world, deployment.name, active, "the second one joined")
    assert sorted(rollouts(deployment)) == ["meter-1", "meter-2"]
    assert "joined" in [event.step for event in rollouts(deployment)["meter-2"].timeline]
    assert len({item.build for item in deployment.rollouts}) == 1, "the build of the same target is shared"
    await world.deployments.CancelDeployment(deployments_pb2.CancelDeploymentRequest(name=deployment.name))
    deployment = await finished(world, deployment.name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, "aborting kept no device from its end"


async def test_a_deployment_waits_for_those_before_it_and_a_stuck_device_counts_as_failed(town: World) -> None:
    """DO-ROLL-008, 009."""
    device_in(town, "stuck-1")
    only = {"devices": [f"{PROJECT}/devices/stuck-1"]}
    town.bridge.hold.clear()
    first = await begin(town, model_in(town, b"\x05first"), policy=policy(stuckAfter="2s"), **only)
    second = await begin(town, model_in(town, b"\x06second"), policy=policy(after=[first.name]), **only)
    await seen(town, second.name, lambda now: now.waits_for == "the deployments before it", "it waits")
    first = await finished(town, first.name)
    town.bridge.hold.set()
    assert first.state == Deployment.STATE_FAILED
    stuck = rollouts(first)["stuck-1"]
    assert (stuck.state, stuck.stuck, reason(stuck.error)) == (Rollout.STATE_FAILED, True, "DEVICE_STUCK")
    second = await finished(town, second.name)
    assert reason(rollouts(second)["stuck-1"].error) == "DEPENDENCY_FAILED"
    third = await begin(town, model_in(town, b"\x07third"), **only)
    fourth = await begin(town, model_in(town, b"\x08fourth"), policy=policy(after=[third.name]), **only)
    assert (await finished(town, fourth.name)).state == Deployment.STATE_SUCCEEDED
    assert (await finished(town, third.name)).state == Deployment.STATE_SUCCEEDED


async def test_a_drop_against_the_baseline_stops_a_rollout_while_its_canary_soaks(town: World) -> None:
    """DO-ROLL-009, 015."""
    world = town
    fakes = {name: device_in(world, name) for name in ("soak-a", "soak-b")}
    feedback = {"minInvocations": 5, "maxErrorPercent": 20}
    waves = [{"name": "canary", "count": 1, "soak": "86400s"}]
    rolling = policy(waves=waves, feedback=feedback, query={"names": ["soak-*"]})
    deployment = await begin(world, model_in(world, b"\x05soaks"), policy=rolling)
    soaking = await seen(world, deployment.name, lambda now: "SOAKING" in waves_of(now), "the canary soaks")
    (canary,) = in_wave(soaking, 0)
    fakes[canary].counters = bridge_pb2.ObserveResponse(invocations=20, errors=1, last_latency=7, latency_unit="us")

    def told(now: deployments_pb2.Deployment) -> bool:
        return rollouts(now)[canary].feedback.invocations == 20

    good = await seen(world, deployment.name, told, "the counters arrive")
    assert waves_of(good) == ["SOAKING", "PENDING"]
    fakes[canary].counters = bridge_pb2.ObserveResponse(invocations=20, errors=9)
    deployment = await finished(world, deployment.name)
    assert deployment.state == Deployment.STATE_FAILED
    assert waves_of(deployment) == ["FAILED", "CANCELLED"]
    item = rollouts(deployment)[canary]
    assert reason(item.feedback.objection) == "ERRORS_ABOVE_LIMIT"
    assert item.timeline[-1].step == "feedback"
    assert item.state == Rollout.STATE_ACTIVE, "what to do about it is the policy's: it stops"


async def test_a_rollout_is_planned_watched_paused_approved_and_told_from_the_command_line(
    town: World, tmp_path: Path
) -> None:
    for index in range(3):
        device_in(town, f"cli-{index}")
    model = model_in(town, b"\x05command line").split("/models/")[1]
    (tmp_path / "token").write_text(TOKEN)
    address = town.processes["gateway"].address_file.read_text().strip()

    async def said(*words: str) -> Any:
        command = ["--address", address, "--token-file", str(tmp_path / "token"), *words]
        return await asyncio.to_thread(CliRunner(env={"COLUMNS": "200"}).invoke, app, command)

    create = [
        "deploy",
        "create",
        model,
        "--wave",
        "canary=1",
        "--approve",
        "--where",
        "name=cli-*",
        "--where",
        "ram=1k",
    ]
    plan = await said(*create, "--plan")
    assert plan.exit_code == 0, plan.output
    assert [word in plan.output for word in ("canary", "rest", "pending", "cli-2")] == [True] * 4
    wrong = await said(*create, "--window", "at night")
    assert wrong.exit_code == 2
    assert "is no window" in wrong.output
    rolling = rollout_policy(waves=["canary=1"], approve=True, where=["name=cli-*"])
    name = (await begin(town, f"{PROJECT}/models/{model}", policy=rolling)).name
    await seen(town, name, lambda now: waves_of(now) == ["PASSED", "AWAITING_APPROVAL"], "the second wave waits")
    ident = name.rsplit("/", 1)[1]
    assert "paused" in (await said("deploy", "pause", ident)).output
    assert (await said("deploy", "approve", ident)).exit_code == 0
    assert (await said("deploy", "resume", ident)).exit_code == 0
    watched = await said("--json", "deploy", "watch", ident)
    assert [wave["state"] for wave in json.loads(watched.output.splitlines()[-1])["waves"]] == ["STATE_PASSED"] * 2
    told = await said("deploy", "timeline", ident, "cli-1")
    assert [step in told.output for step in ("planned", "begun", "install", "activate")] == [True] * 4
    assert (await said("deploy", "timeline", ident, "nobody")).exit_code == 2
    again = await said("deploy", "resume", ident)
    assert getattr(again.exception, "reason", "") == "DEPLOYMENT_ENDED"


async def test_a_policy_that_makes_no_sense_is_refused_before_anything_is_done(town: World) -> None:
    """DO-ROLL-011."""
    world = town
    device_in(world, "refused-1")
    model = model_in(world)
    before = await world.deployments.ListDeployments(deployments_pb2.ListDeploymentsRequest(parent=PROJECT))
    for fields, field in (
        ({"policy": policy(waves=[{"percent": 200}])}, "policy.waves[0].percent"),
        ({"policy": policy(query={}), "devices": [f"{PROJECT}/devices/refused-1"]}, "policy.query"),
        ({"policy": policy(openUntil="2030-01-01T00:00:00Z")}, "policy.open_until"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await begin(world, model, **fields)  # type: ignore[arg-type]
        assert from_rpc_error(caught.value).metadata["field"] == field
    with pytest.raises(grpc.RpcError) as caught:
        await begin(world, model, policy=policy(after=[f"{PROJECT}/deployments/none"]))
    assert from_rpc_error(caught.value).code == "NOT_FOUND"
    listed = await world.deployments.ListDeployments(deployments_pb2.ListDeploymentsRequest(parent=PROJECT))
    assert listed == before
