"""One deployment is one trace, from the client's call to each operation on the device; and every metric is really told."""

from __future__ import annotations

import asyncio
import sys

import pytest

from suite_rig import DEADLINE_SECONDS, RunningSuite, eventually
from test_journey import imported
from tinymlaas_client import AsyncClient
from tinymlaas_servicekit.metrics import METRICS

pytestmark = pytest.mark.xdist_group("suite")

# What an operator's own program does: OpenTelemetry configured, one call, in a process of its own.
PROGRAM = """
import asyncio, sys
from opentelemetry import trace
from tinymlaas_client import AsyncClient
from tinymlaas_servicekit import ServiceSettings, configure_tracing
from tinymlaas_servicekit.telemetry import traceparent, traced

async def main(endpoint, address, token, model, device):
    configure_tracing(ServiceSettings(otlp_endpoint=endpoint), "operator")
    async with AsyncClient(address, token=token) as client:
        with traced("rollout of an operator"):
            print(traceparent().split("-")[1])
            deployment = await client.create_deployment(model, devices=[device])
            ended = await client.wait_deployment(deployment.name)
            print([rollout.State.Name(rollout.state) for rollout in ended.rollouts])
    trace.get_tracer_provider().force_flush()

asyncio.run(main(*sys.argv[1:]))
"""
# Each hop with what it does for one device; the board takes native code only, so the other compiler has no part.
HOPS = {
    "operator": {"rollout of an operator", "client create_deployment", "client wait_deployment"},
    "tinymlaas-gateway": {
        "tinymlaas.gateway.v1.Deployments/CreateDeployment",
        "rollout workflow",
        "build workflow",
        "candidate workflow",
        "device workflow",
        "step compile",
        "step install",
        "step activate",
    },
    "io.tinymlaas.compiler-tvm": {"tinymlaas.plugin.v1.Compiler/CheckModel", "tinymlaas.plugin.v1.Compiler/Compile"},
    "io.tinymlaas.profiler": {
        "tinymlaas.plugin.v1.Profiler/Profile",
        "tinymlaas.plugin.v1.Profiler/RunReference",
    },
    "tinymlaas-registry": {
        "tinymlaas.registry.v1.Modules/CreateModule",
        "tinymlaas.registry.v1.Artifacts/ReadArtifact",
    },
    "tinymlaas-lwm2m-bridge": {
        "tinymlaas.bridge.v1.Bridge/Install",
        "tinymlaas.bridge.v1.Bridge/Activate",
        "install",
        "lwm2m Read",
        "lwm2m Write",
        "lwm2m Execute",
    },
}
# Told only where something goes wrong.
FAULTS = {"tinymlaas.installs.failed"}


async def test_a_deployment_is_one_trace_through_every_part_down_to_the_device(
    running: RunningSuite, client: AsyncClient
) -> None:
    version = await imported(client, "kws", "kws_int8.tflite")
    device = await running.board(client, "node-m4f", "traced-node")
    suite, sink = running.suite, running.sink
    arguments = [sink.address, suite.gateway_address, suite.token, version.name, device]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *arguments, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(2 * DEADLINE_SECONDS):
        output, _ = await process.communicate()
    trace, states = output.decode().splitlines()
    assert states == "['STATE_ACTIVE']"

    def missing() -> dict[str, set[str]]:
        told: dict[str, set[str]] = {}
        for span in sink.spans(trace):
            told.setdefault(span.service, set()).add(span.name)
        return {name: names - told.get(name, set()) for name, names in HOPS.items() if names - told.get(name, set())}

    async def whole() -> bool:
        known = {span.id for span in sink.spans(trace)}
        return not missing() and all(span.parent in known for span in sink.spans(trace) if span.parent)

    try:
        await eventually(whole)
    except TimeoutError:
        raise AssertionError(f"not in the trace: {missing()}") from None
    spans = sink.spans(trace)
    assert [span.name for span in spans if not span.parent] == ["rollout of an operator"], "there is one root"
    operations = [span for span in spans if span.name.startswith("lwm2m ")]
    assert {dict(span.attributes)["device"] for span in operations} == {device}


async def test_every_metric_that_is_declared_is_told(running: RunningSuite, client: AsyncClient) -> None:
    sink = running.sink
    version = await imported(client, "kws", "kws_int8.tflite")
    device = await running.board(client, "node-m4f", "counted-node")
    deployment = await client.create_deployment(version.name, devices=[device])
    await client.wait_deployment(deployment.name)

    async def told() -> bool:
        return {point.name for point in sink.points()} >= set(METRICS) - FAULTS

    try:
        await eventually(told)
    except TimeoutError:
        missing = set(METRICS) - FAULTS - {point.name for point in sink.points()}
        raise AssertionError(f"never told: {sorted(missing)}") from None
    for point in sink.points():
        if point.name in METRICS:
            assert {key for key, _ in point.attributes} == set(METRICS[point.name].attributes), point
    assert any(point.value == 1 for point in sink.points("tinymlaas.plugin.up"))
    wins = [point for point in sink.points("tinymlaas.race.outcomes") if dict(point.attributes)["outcome"] == "won"]
    assert wins
