"""A device with static firmware: a real model is compiled, profiled and sealed, linked into firmware, installed and booted."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from suite_rig import DEADLINE_SECONDS, ZOO, RunningSuite, finished_build
from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.targets import named_target
from tinymlaas_servicekit import connect

pytestmark = pytest.mark.xdist_group("suite")


async def test_a_built_module_is_linked_into_firmware_that_the_board_boots_and_computes_with(
    running: RunningSuite, client: AsyncClient, tmp_path: Path
) -> None:
    """DO-FW-001, IM-LINK-001: gateway and compiler, the linker's command, the bridge, object 5, the simulated board."""
    model = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
    version = await client.import_model(
        model, "kws-int8", model_format(ZOO / "kws" / "kws_int8.tflite"), licence="Apache-2.0"
    )
    samples = ZOO / "kws" / "samples.npz"
    started = await client.create_build(
        version.name,
        named_target("cortex-m4"),
        plugins=["plugins/io.tinymlaas.compiler-tvm"],
        samples_sha256=await client.write_artifact(samples.read_bytes()),
    )
    build = await finished_build(client, started.name)
    assert build.state == builds_pb2.Build.STATE_SUCCEEDED, build
    module = await client.get_module(build.module)
    sealed, package = tmp_path / "kws.tim", tmp_path / "package.tim"
    sealed.write_bytes(await client.read_artifact(module.device_image_sha256))
    tool = [sys.executable, "-m", "tinymlaas_device.link", "--board", "static-m4", "--module", str(sealed)]
    await asyncio.to_thread(
        subprocess.run,
        [*tool, "--key", str(running.suite.state / "signing.pem"), "--output", str(package)],
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    image = package.read_bytes()
    assert await client.write_artifact(image) == hashlib.sha256(image).hexdigest()
    board = await running.board(client, "static-m4", "static-1")
    last = (await installed(running, board, hashlib.sha256(image).hexdigest()))[-1]
    assert last.step == bridge_pb2.InstallResponse.STEP_READY, last
    data = np.load(samples)
    for index in range(2):
        answer = await client.infer(board, [data["input_int8"][index].tobytes()])
        assert answer.outputs.tensors[0] == data["output_int8"][index].tobytes()


async def installed(running: RunningSuite, board: str, digest: str) -> list[bridge_pb2.InstallResponse]:
    """Events of the install of an artifact, asked of the bridge itself."""
    address = running.suite.records()["lwm2m-bridge"].address
    async with connect(address, running.suite.token) as channel:
        stub = bridge_pb2_grpc.BridgeStub(channel)
        request = bridge_pb2.InstallRequest(
            install_id="static-1", device=f"projects/default/devices/{board}", module_sha256=digest
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [event async for event in stub.Install(request)]
