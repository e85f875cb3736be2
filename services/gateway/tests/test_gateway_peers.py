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
from tinymlaas.gateway.v1 import builds_pb2, builds_pb2_grpc, deployments_pb2, deployments_pb2_grpc
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


async def build_started(world: World, stub: builds_pb2_grpc.BuildsStub, request_id: str, trace: str = "f" * 32) -> str:
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


async def test_two_gateways_share_work_and_one_ends_what_the_other_left_when_it_was_killed(
    shared: World, sink: otlp_sink.Sink
) -> None:
    shared.add_plugin("compiler", roles="compiler", seconds="0.5")
    shared.add_plugin("witness", roles="profiler")
    for name in ("a", "b", "c"):
        device_in(shared, name)
    channels: list[grpc.aio.Channel] = []
    try:
        for instance in ("gateway-0", "gateway-1"):
            process = await shared.start_gateway(instance)
            channels.append(connect(process.address_file.read_text().strip(), TOKEN))
        first, second = (builds_pb2_grpc.BuildsStub(channel) for channel in channels)
        # More at once than the compiler takes: the gateways, which know nothing of each other's calls, wait for it.
        names = [await build_started(shared, (first, second)[index % 2], f"build-{index}") for index in range(4)]
        assert len(set(names)) == 4
        assert await build_started(shared, second, "build-0") == names[0], (
            "the same request at the other is the same build"
        )
        for index, name in enumerate(names):
            result = await until(ended((second, first)[index % 2], name), f"{name} ended, as the other gateway tells")
            assert result.state == Build.STATE_SUCCEEDED, str(result)
        assert shared.counted("io.example.compiler compile") == 4, "nothing was compiled twice"
        for stub in (first, second):
            listed = await stub.ListBuilds(builds_pb2.ListBuildsRequest(parent=PROJECT))
            assert {build.name for build in listed.builds} == set(names)

        build = await build_started(shared, first, "one", TRACE)
        asked = wanted(model_in(shared), "two", concurrency=2)
        deployment = started(await deployments_pb2_grpc.DeploymentsStub(channels[0]).CreateDeployment(asked))
        await until(compiling(first, build), "compiling")
        shared.processes["gateway-0"].kill()
        result = await until(ended(second, build), "the peer ended the build")
        assert result.state == Build.STATE_SUCCEEDED, str(result)
        whole = await until(rolled_out(shared, deployment.name), "the peer ended the deployment")
    finally:
        for channel in channels:
            await channel.close()
    assert {item.state for item in rollouts(whole).values()} == {Rollout.STATE_ACTIVE}
    lines = [f"{work} {name} {end}" for name in "abc" for work, end in (("install", "STEP_READY"), ("activate", "0"))]
    assert sorted(shared.bridge.log) == sorted(lines), "each device was touched once"
    instances = {"gateway-0", "gateway-1"}
    await until(lambda: instances <= {span.instance for span in sink.spans(TRACE)}, "one trace over both gateways")
    await until(
        lambda: [span for span in sink.spans(TRACE) if span.name == "build workflow"], "what was resumed is in it"
    )


async def test_a_gateway_that_is_stopped_leaves_its_work_to_a_peer_at_once(shared: World) -> None:
    shared.settings["TINYMLAAS_LEASE_SECONDS"] = "3600"
    shared.add_plugin("compiler", roles="compiler", seconds="0.5")
    shared.add_plugin("witness", roles="profiler")
    await shared.start_gateway("gateway-0")
    build = await build_started(shared, shared.builds, "one")
    await until(compiling(shared.builds, build), "compiling")
    assert shared.processes["gateway-0"].stop() == 0
    shared.settings["TINYMLAAS_LEASE_SECONDS"] = "2"
    await shared.start_gateway("gateway-1")
    result = await until(ended(shared.builds, build), "the peer ended the build")
    assert result.state == Build.STATE_SUCCEEDED, str(result)


def rolled_out(world: World, name: str) -> Callable[[], object]:
    async def look() -> deployments_pb2.Deployment | None:
        request = deployments_pb2.GetDeploymentRequest(name=name)
        now: deployments_pb2.Deployment = await world.deployments.GetDeployment(request)
        return now if now.state not in (Deployment.STATE_PLANNING, Deployment.STATE_RUNNING) else None

    return look
