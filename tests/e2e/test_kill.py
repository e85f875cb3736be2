"""Killing any process at any time loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from suite_rig import ZOO, RunningSuite, eventually, finished_deployment, start_suite, suite_below
from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_client import AsyncClient
from tinymlaas_servicekit.errors import ServiceError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kill"), pytest.mark.timeout(900)]

DEPLOYMENTS = 10
BOARDS = {"kill-m4f": "node-m4f", "kill-tflm": "tflm-m4f"}
VICTIMS = ("gateway", "registry", "lwm2m-bridge", "compiler-tvm", "compiler-tflm", "profiler")


async def kill_and_restart(running: RunningSuite, name: str) -> None:
    """SIGKILL a process of the suite and start it again."""
    os.kill(running.suite.records()[name].pid, signal.SIGKILL)

    async def gone() -> bool:
        return not running.suite.records()[name].running

    await eventually(gone)
    await running.start_missing()


async def deploy(running: RunningSuite, version: str, samples: str, request_id: str) -> deployments_pb2.Deployment:
    """Create a deployment and wait for its end, however often the connection breaks."""
    async with asyncio.timeout(300):
        while True:
            try:
                async with running.client() as client:
                    begun = await client.create_deployment(
                        version, devices=BOARDS, samples_sha256=samples, request_id=request_id
                    )
                    return await finished_deployment(client, begun.name)
            except ServiceError as error:
                if error.code not in {"UNAVAILABLE", "CANCELLED", "UNKNOWN"}:
                    raise
                await asyncio.sleep(0.2)


async def prepared(client: AsyncClient) -> tuple[str, str]:
    """A model and its samples in the catalogue."""
    data = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
    version = await client.import_model(data, "kws", tensor_pb2.MODEL_FORMAT_TFLITE)
    return version.name, await client.write_artifact((ZOO / "kws" / "samples.npz").read_bytes())


def test_ten_deployments_end_once_and_rightly_whatever_is_killed_meanwhile(tmp_path: Path) -> None:
    chance = random.Random(20)
    suite = suite_below(tmp_path)
    try:
        running = start_suite(tmp_path)

        async def scenario() -> None:
            async with running.client() as client:
                version, samples = await prepared(client)
                for endpoint, kind in BOARDS.items():
                    await running.board(client, kind, endpoint)
            for index in range(DEPLOYMENTS):
                work = asyncio.create_task(deploy(running, version, samples, f"kill-{index}"))
                await asyncio.sleep(chance.uniform(0.1, 4.0))
                await kill_and_restart(running, VICTIMS[index % len(VICTIMS)])
                deployment = await work
                states = [rollout.state for rollout in deployment.rollouts]
                assert states == [deployments_pb2.DeviceRollout.STATE_ACTIVE] * len(BOARDS), deployment
            async with running.client() as client:
                assert len(await client.list_deployments()) == DEPLOYMENTS
                modules = await client.list_modules()
                digests = [module.sha256 for module in modules]
                assert len(digests) == len(set(digests))
                for device in await client.list_devices():
                    active = [slot for slot in device.capabilities.slots if slot.state == devices_pb2.Slot.STATE_ACTIVE]
                    assert len(active) == 1, device

        asyncio.run(scenario())
    finally:
        suite.stop()
