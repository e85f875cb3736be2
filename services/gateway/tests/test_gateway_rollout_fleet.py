"""Rollouts with the real LwM2M bridge: twelve light devices over CoAP, three waves, a canary that fails, a killed gateway.

Registry and compilers are stand-ins; gateway, bridge, transfer, self-test and activation are real.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from gateway_world import TOKEN, World, until
from test_gateway_deployments import Deployment, Rollout, finished, model_in, rollouts, started, wanted
from test_gateway_rollouts import in_wave, policy, reason, waves_of

from tinymlaas.bridge.v1 import bridge_pb2_grpc
from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_lwm2m import MlRes, Values, ml
from tinymlaas_lwm2m_bridge.artifacts import RegistryArtifacts
from tinymlaas_lwm2m_bridge.bridge import Bridge, BridgeSettings
from tinymlaas_lwm2m_bridge.core.install_run import InstallSettings
from tinymlaas_lwm2m_bridge.images import SignedImages
from tinymlaas_lwm2m_bridge.servicer import BridgeServicer
from tinymlaas_lwm2m_bridge.store import SqlStore
from tinymlaas_servicekit import GrpcServer, ServiceSettings, connect

sys.path.append(str(Path(__file__).resolve().parents[3]))

from bench.lwm2m.device import Device, Link, read_fleet
from bench.lwm2m.wire import Fleet

CANARY, BROKEN = 3, 7


class Meter(Device):
    """A light device that takes what the sample compiler makes."""

    def _values(self) -> Values:
        values = super()._values()
        values[ml(MlRes.PAYLOAD_KINDS, 0)] = "TFLITE"
        values[ml(MlRes.RUNTIME_NAME, 0)] = "tflite-micro"
        values[ml(MlRes.RUNTIME_OPERATORS, 0)] = "ADD,CONV_2D"
        return values


@asynccontextmanager
async def real_bridge(world: World, folder: Path) -> AsyncIterator[tuple[str, tuple[str, int]]]:
    """A bridge in this process; gives its gRPC address, and host and port of its CoAP."""
    channel = connect(world.registry_address, TOKEN)
    settings = BridgeSettings(install=InstallSettings(poll_s=0.05))
    artifacts = RegistryArtifacts(channel, "default", max_bytes=1 << 20)
    bridge = Bridge(SqlStore(f"sqlite:///{folder / 'bridge.db'}"), artifacts, SignedImages(""), settings)
    await bridge.start()
    common = {"listen": "127.0.0.1:0", "token": TOKEN, "grace_seconds": 0.1}
    server: GrpcServer

    def register(grpc_server: grpc.aio.Server) -> list[str]:
        servicer = BridgeServicer(bridge, "default", lambda: server.address)
        bridge_pb2_grpc.add_BridgeServicer_to_server(servicer, grpc_server)
        return ["tinymlaas.bridge.v1.Bridge"]

    server = GrpcServer(ServiceSettings(**common), register)  # type: ignore[arg-type]
    try:
        async with server:
            host, _, port = bridge.endpoint.address.removeprefix("coap://").rpartition(":")
            yield server.address, (host, int(port))
    finally:
        await bridge.close()
        await channel.close()


@asynccontextmanager
async def fleet_of(count: int, server: tuple[str, int], broken: set[int]) -> AsyncIterator[list[Meter]]:
    """Light devices that register at a bridge; `broken` ones fail every self-test."""
    link = Link(Fleet(count), server, random.Random(1))
    devices = [Meter(number, link, 600, fails_self_test=number in broken) for number in range(count)]
    loop = asyncio.get_running_loop()
    loop.add_reader(link.fleet.socket, read_fleet, link, devices)
    try:
        for device in devices:
            device.start()
        yield devices
    finally:
        loop.remove_reader(link.fleet.socket)
        for device in devices:
            device.stop()
        link.fleet.close()


async def test_a_canary_that_fails_stops_a_rollout_and_the_next_one_survives_a_killed_gateway(
    world: World, tmp_path: Path
) -> None:
    """DO-ROLL-001, 002, 004, 012: judged by the devices themselves, and the gateway's account says the same."""
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    async with real_bridge(world, tmp_path) as (address, coap), fleet_of(12, coap, {CANARY, BROKEN}) as devices:
        world.settings["TINYMLAAS_BRIDGES"] = json.dumps([address])
        await world.start_gateway()
        await until(
            lambda: sum(bool(item.capabilities.slots) for item in world.registry.devices.values()) == len(devices),
            "the gateway knows every device",
        )
        model = model_in(world)
        lab = {"name": "canary", "query": {"names": [devices[CANARY].endpoint]}}
        request = wanted(model, "first", policy=policy(waves=[lab, {"name": "some", "percent": 25}], query={}))
        first = started(await world.deployments.CreateDeployment(request))
        first = await finished(world, first.name)
        assert first.state == Deployment.STATE_FAILED
        assert (waves_of(first), reason(first.error)) == (["FAILED", "CANCELLED", "CANCELLED"], "WAVE_FAILED")
        assert [wave.devices for wave in first.waves] == [1, 3, 8]
        canary = rollouts(first)[devices[CANARY].endpoint]
        assert (canary.state, reason(canary.error)) == (Rollout.STATE_FAILED, "SELF_TEST_FAILED")
        assert [device.number for device in devices if device.ledger.installs] == [CANARY]
        assert not any(slot.active for device in devices for slot in device.slots)

        rolling = policy(
            waves=[{"name": "canary", "count": 2}, {"name": "some", "percent": 25}],
            thresholds={"maxFailed": 2},
            query={},
        )
        request = wanted(model, "second", policy=rolling, concurrency=3)
        second = started(await world.deployments.CreateDeployment(request))
        await until(lambda: any(slot.active for device in devices for slot in device.slots), "one device is active")
        world.processes["gateway"].kill()
        await world.start_gateway()
        second = await finished(world, second.name)
        assert waves_of(second) == ["PASSED"] * 3, second
        assert [len(in_wave(second, index)) for index in range(3)] == [2, 3, 7]
        assert second.state == Deployment.STATE_FAILED, "two devices failed, which the thresholds allow"
        for device in devices:
            good = device.number not in (CANARY, BROKEN)
            assert [slot.active for slot in device.slots].count(True) == good
            state = rollouts(second)[device.endpoint].state
            assert state == (Rollout.STATE_ACTIVE if good else Rollout.STATE_FAILED)
            assert device.ledger.activations == good, "exactly once"
            assert device.ledger.installs == (1 + (device.number == CANARY)), "the canary was installed by both"
        names = deployments_pb2.DeviceRollout.State
        assert {names.Name(item.state) for item in second.rollouts} == {"STATE_ACTIVE", "STATE_FAILED"}
