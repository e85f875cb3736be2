"""Gateways that share a PostgreSQL database: what one leaves, by death or by order, another ends; nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc.aio
import pytest
from gateway_fakes import PROJECT, toy_target
from gateway_world import TOKEN, World, until
from test_gateway_deployments import Deployment, Rollout, device_in, model_in, rollouts, started, wanted

import otlp_sink
import postgres_server
from tinymlaas.gateway.v1 import builds_pb2, builds_pb2_grpc, deployments_pb2
from tinymlaas_servicekit import connect

Build = builds_pb2.Build
Candidate = builds_pb2.Candidate
TRACE = "0123456789abcdef" * 2


@pytest.fixture
def sink() -> Iterator[otlp_sink.Sink]:
    """Where the gateways export to."""
    with otlp_sink.running() as made:
        yield made


@pytest.fixture
def shared(world: World, postgresql: str, sink: otlp_sink.Sink, tmp_path: Path) -> World:
    """A world whose gateways share a database and a signing key."""
    world.settings["TINYMLAAS_DATABASE_URL"] = postgres_server.database(postgresql, str(tmp_path))
    world.settings["TINYMLAAS_LEASE_SECONDS"] = "2"
    world.settings |= {"TINYMLAAS_OTLP_ENDPOINT": sink.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    return world


async def build_started(world: World, stub: builds_pb2_grpc.BuildsStub, request_id: str, trace: str = TRACE) -> str:
    model = model_in(world, b"\x05" + request_id.encode())
    build = Build(model_version=model, target=toy_target())
    request = builds_pb2.CreateBuildRequest(parent=PROJECT, build=build, request_id=request_id)
    parent = ("traceparent", f"00-{trace}-{'1' * 16}-01")
    (await stub.CreateBuild(request, metadata=(parent,))).metadata.Unpack(build)
    return build.name


def ended(stub: builds_pb2_grpc.BuildsStub, name: str) -> Callable[[], object]:
    async def look() -> builds_pb2.Build | None:
        now: builds_pb2.Build = await stub.GetBuild(builds_pb2.GetBuildRequest(name=name))
        return now if now.state in (Build.STATE_SUCCEEDED, Build.STATE_FAILED, Build.STATE_CANCELLED) else None

    return look


def compiling(stub: builds_pb2_grpc.BuildsStub, name: str) -> Callable[[], object]:
    async def look() -> bool:
        now = await stub.GetBuild(builds_pb2.GetBuildRequest(name=name))
        return bool(now.candidates and now.candidates[0].state == Candidate.STATE_COMPILING)

    return look


@pytest.mark.parametrize("way", ["killed", "stopped"])
async def test_a_peer_ends_what_a_gateway_left(shared: World, sink: otlp_sink.Sink, way: str) -> None:
    shared.add_plugin("compiler", roles="compiler", seconds="0.5")
    shared.add_plugin("witness", roles="profiler")
    for name in ("a", "b", "c"):
        device_in(shared, name)
    await shared.start_gateway("gateway-0")
    build = await build_started(shared, shared.builds, "one")
    deployment = started(await shared.deployments.CreateDeployment(wanted(model_in(shared), "two", concurrency=2)))
    await until(compiling(shared.builds, build), "compiling")
    if way == "killed":
        shared.processes["gateway-0"].kill()
    else:
        assert shared.processes["gateway-0"].stop() == 0
    await shared.start_gateway("gateway-1")
    result = await until(ended(shared.builds, build), "the peer ended the build")
    assert result.state == Build.STATE_SUCCEEDED, str(result)

    async def rolled_out() -> deployments_pb2.Deployment | None:
        request = deployments_pb2.GetDeploymentRequest(name=deployment.name)
        now: deployments_pb2.Deployment = await shared.deployments.GetDeployment(request)
        return now if now.state not in (Deployment.STATE_PLANNING, Deployment.STATE_RUNNING) else None

    whole = await until(rolled_out, "the peer ended the deployment")
    assert {item.state for item in rollouts(whole).values()} == {Rollout.STATE_ACTIVE}
    lines = [f"{work} {name} {end}" for name in "abc" for work, end in (("install", "STEP_READY"), ("activate", "0"))]
    assert sorted(shared.bridge.log) == sorted(lines), "each device was touched once"
    await until(
        lambda: {"gateway-0", "gateway-1"} <= {span.instance for span in sink.spans(TRACE)}, "one trace over both"
    )
    await until(
        lambda: [span for span in sink.spans(TRACE) if span.name == "build workflow"], "what was resumed is in it"
    )
    if way == "stopped":
        return
    # The first one comes back: it finds nothing to do, and serves what the other did.
    await shared.start_gateway("gateway-0")
    again = await shared.builds.GetBuild(builds_pb2.GetBuildRequest(name=build))
    assert again == result


async def test_two_gateways_share_work_and_each_tells_of_the_others(shared: World) -> None:
    shared.add_plugin("compiler", roles="compiler", seconds="0.3")
    shared.add_plugin("witness", roles="profiler")
    channels: list[grpc.aio.Channel] = []
    try:
        for instance in ("gateway-0", "gateway-1"):
            process = await shared.start_gateway(instance)
            channels.append(connect(process.address_file.read_text().strip(), TOKEN))
        stubs = [builds_pb2_grpc.BuildsStub(channel) for channel in channels]
        names = [await build_started(shared, stubs[index % 2], f"build-{index}") for index in range(4)]
        assert len(set(names)) == 4
        # The same request at the other gateway is the same build.
        assert await build_started(shared, stubs[1], "build-0") == names[0]
        for index, name in enumerate(names):
            other = stubs[(index + 1) % 2]
            result = await until(ended(other, name), f"{name} ended, as the other gateway tells")
            assert result.state == Build.STATE_SUCCEEDED, str(result)
        assert shared.counted("io.example.compiler compile") == 4, "nothing was compiled twice"
        listed = [
            {build.name for build in (await stub.ListBuilds(builds_pb2.ListBuildsRequest(parent=PROJECT))).builds}
            for stub in stubs
        ]
        assert listed == [set(names)] * 2
    finally:
        for channel in channels:
            await channel.close()
