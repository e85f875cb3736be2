"""The gateway is killed (SIGKILL) at a step and started again: work ends as if nothing had happened, exactly once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import Mock

import pytest
from gateway_fakes import PROJECT, toy_target
from gateway_world import World, until
from test_gateway_deployments import Deployment, Rollout, device_in, model_in, rollouts, started, wanted

import postgres_server
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_gateway.core.rollout import Action, Outcome
from tinymlaas_gateway.engine import devices, durable

Build = builds_pb2.Build
Candidate = builds_pb2.Candidate


async def build_at(world: World, name: str) -> builds_pb2.Build:
    return await world.builds.GetBuild(builds_pb2.GetBuildRequest(name=name))


async def killed_when(world: World, name: str, state: Candidate.State.ValueType) -> None:
    """Kill the gateway while the compiler's candidate is in `state` (or has just left it)."""

    async def reached() -> bool:
        return (await build_at(world, name)).candidates[0].state >= state

    await until(reached, f"candidate in state {state}")
    world.processes["gateway"].kill()


@pytest.mark.parametrize(
    "state", [Candidate.STATE_CHECKING, Candidate.STATE_COMPILING, Candidate.STATE_PROFILING, Candidate.STATE_VERIFYING]
)
async def test_a_build_killed_at_any_step_ends_with_the_same_module(world: World, state: int) -> None:
    world.add_plugin("compiler", roles="compiler", seconds="0.5")
    world.add_plugin("witness", roles="profiler", seconds="0.5")
    model = model_in(world)
    await world.start_gateway()
    request = builds_pb2.CreateBuildRequest(
        parent=PROJECT, build=Build(model_version=model, target=toy_target()), request_id="one"
    )
    operation = await world.builds.CreateBuild(request)
    build = Build()
    operation.metadata.Unpack(build)
    await killed_when(world, build.name, state)  # type: ignore[arg-type]
    await world.start_gateway()
    again = Build()
    (await world.builds.CreateBuild(request)).metadata.Unpack(again)
    assert again.name == build.name, "the request id still names the same build"

    async def ended() -> builds_pb2.Build | None:
        now = await build_at(world, build.name)
        return now if now.state in (Build.STATE_SUCCEEDED, Build.STATE_FAILED) else None

    result = await until(ended, "the build ended")
    assert result.state == Build.STATE_SUCCEEDED, result
    assert len(world.registry.modules) == 1
    assert result.module == next(iter(world.registry.modules))
    assert world.counted("io.example.compiler compile") <= 2, "only the step that was cut is done again"
    if state >= Candidate.STATE_PROFILING:
        assert world.counted("io.example.compiler compile") == 1, "a step that had ended is not done again"


async def test_a_database_that_crashes_in_the_middle_of_a_build_is_waited_for(
    world: World, postgresql_server: postgres_server.Server, tmp_path: Path
) -> None:
    world.settings["TINYMLAAS_DATABASE_URL"] = postgres_server.database(postgresql_server.url, str(tmp_path))
    world.add_plugin("compiler", roles="compiler", seconds="0.5")
    world.add_plugin("witness", roles="profiler", seconds="0.5")
    model = model_in(world)
    await world.start_gateway()
    request = builds_pb2.CreateBuildRequest(parent=PROJECT, build=Build(model_version=model, target=toy_target()))
    build = Build()
    (await world.builds.CreateBuild(request)).metadata.Unpack(build)

    async def compiling() -> bool:
        return (await build_at(world, build.name)).candidates[0].state >= Candidate.STATE_COMPILING

    await until(compiling, "it is being compiled")
    await asyncio.to_thread(postgresql_server.crash)
    asked = asyncio.create_task(build_at(world, build.name))
    await asyncio.to_thread(postgresql_server.start)
    assert (await asked).name == build.name, "a call that came meanwhile is answered"

    async def ended() -> builds_pb2.Build | None:
        now = await build_at(world, build.name)
        return now if now.state in (Build.STATE_SUCCEEDED, Build.STATE_FAILED) else None

    result = await until(ended, "the build ended")
    assert result.state == Build.STATE_SUCCEEDED, result
    assert list(world.registry.modules) == [result.module]


async def test_a_deployment_killed_while_installing_touches_each_device_once(world: World) -> None:
    for name in ("a", "b", "c"):
        device_in(world, name)
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    world.bridge.hold.clear()
    deployment = started(await world.deployments.CreateDeployment(wanted(model_in(world), "one", concurrency=2)))
    await until(lambda: world.bridge.at_once == 2, "installs are under way")
    world.processes["gateway"].kill()
    await until(lambda: world.bridge.at_once == 0, "the calls broke off")
    world.bridge.hold.set()
    await world.start_gateway()

    async def ended() -> deployments_pb2.Deployment | None:
        request = deployments_pb2.GetDeploymentRequest(name=deployment.name)
        now: deployments_pb2.Deployment = await world.deployments.GetDeployment(request)
        return now if now.state not in (Deployment.STATE_PLANNING, Deployment.STATE_RUNNING) else None

    result = await until(ended, "the deployment ended")
    assert result.state == Deployment.STATE_SUCCEEDED, result
    assert {item.state for item in rollouts(result).values()} == {Rollout.STATE_ACTIVE}
    assert sorted(world.bridge.log) == sorted(
        f"{line}" for name in "abc" for line in (f"install {name} STEP_READY", f"activate {name} 0")
    )
    assert world.counted("io.example.compiler compile") == 1


async def test_a_gateway_that_is_stopped_politely_leaves_its_work_for_the_next_start(
    world: World, tmp_path: Path
) -> None:
    world.add_plugin("compiler", roles="compiler", seconds="3")
    world.add_plugin("witness", roles="profiler")
    model = model_in(world)
    await world.start_gateway()
    operation = await world.builds.CreateBuild(
        builds_pb2.CreateBuildRequest(parent=PROJECT, build=Build(model_version=model, target=toy_target()))
    )
    build = Build()
    operation.metadata.Unpack(build)

    async def compiling() -> bool:
        return (await build_at(world, build.name)).candidates[0].state == Candidate.STATE_COMPILING

    await until(compiling, "compiling")
    gateway = world.processes["gateway"]
    status = gateway.stop()
    assert status == 0, gateway.log.read_text()[-3000:]
    await world.start_gateway()

    async def ended() -> bool:
        return (await build_at(world, build.name)).state not in (Build.STATE_QUEUED, Build.STATE_RUNNING)

    await until(ended, "the build ended")
    assert (await build_at(world, build.name)).state == Build.STATE_SUCCEEDED


async def test_what_breaks_off_because_the_gateway_stops_is_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    broke_off, written = asyncio.Event(), []

    async def install(*_: object) -> str:
        broke_off.set()
        raise RuntimeError("cannot schedule new futures after shutdown")

    async def edit(_context: object, _deployment: str, device: str, _change: object) -> None:
        written.append(device)

    monkeypatch.setattr(devices, "install", install)
    monkeypatch.setattr(devices, "edit", edit)
    names = (Action.INSTALL.name, "projects/p/deployments/d", "projects/p/devices/a", "")
    assert await durable._act(Mock(), *names) == Outcome.FAILED.name
    assert written == ["projects/p/devices/a"]
    monkeypatch.setattr(durable, "_stopping", True)
    broke_off.clear()
    step = asyncio.create_task(durable._act(Mock(), *names))
    await broke_off.wait()
    await asyncio.sleep(0)
    assert not step.done()
    step.cancel()
    assert len(written) == 1
