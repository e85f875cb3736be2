"""A device with static firmware: deployments link the built module into its board's firmware, install, boot and replace it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.rpc import error_details_pb2

from suite_rig import DEADLINE_SECONDS, ZOO, RunningSuite, eventually
from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_module import application_of, base_firmware, linked_module, parse

# A build and three updates of a simulated board's firmware, each with signatures and golden vectors on its CPU.
pytestmark = [pytest.mark.xdist_group("suite"), pytest.mark.timeout(600)]

Deployment, Rollout = deployments_pb2.Deployment, deployments_pb2.DeviceRollout
TVM = ["plugins/io.tinymlaas.compiler-tvm"]


async def test_deployments_link_firmware_that_the_board_boots_and_go_back_to_the_package_before(
    running: RunningSuite, client: AsyncClient, tmp_path: Path
) -> None:
    """DO-FW-001, DO-FW-007 to 010, IM-LINK-001, IM-LINK-006: gateway, compiler, linker, bridge, object 5, the simulated board."""
    samples = np.load(ZOO / "kws" / "samples.npz")
    inputs = await client.write_artifact((ZOO / "kws" / "samples.npz").read_bytes())
    model = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
    version = await client.import_model(
        model, "kws-int8", model_format(ZOO / "kws" / "kws_int8.tflite"), licence="Apache-2.0"
    )
    board = await running.board(client, "static-m4", "static-1")
    await eventually(lambda: _is_static(client, board))
    plan = await client.create_deployment(version.name, devices=[board], plugins=TVM, validate_only=True)
    objections = [o for verdict in plan.rollouts[0].verdicts for o in verdict.objections]
    assert {o.reason for o in objections} == {"FIRMWARE_MISSING"}, objections

    base = tmp_path / "base.tim"
    tool = [sys.executable, "-m", "tinymlaas_device.link", "--board", "static-m4", "--base", "--output", str(base)]
    key = running.suite.state / "signing.pem"
    await asyncio.to_thread(subprocess.run, [*tool, "--key", str(key)], check=True, timeout=DEADLINE_SECONDS)
    firmware = await client.write_artifact(base.read_bytes())

    async def deploy(firmware: str) -> Deployment:
        started = await client.create_deployment(
            version.name, devices=[board], plugins=TVM, samples_sha256=inputs, firmware_sha256s=[firmware]
        )
        async with asyncio.timeout(2 * DEADLINE_SECONDS):
            return await client.wait_deployment(started.name)

    first = await deploy(firmware)
    assert first.state == Deployment.STATE_SUCCEEDED, first
    package = await client.get_module(first.rollouts[0].module)
    module = await client.get_module(package.linked_module)
    assert (package.payload_kind, module.payload_kind) == (
        target_pb2.PAYLOAD_KIND_FIRMWARE,
        target_pb2.PAYLOAD_KIND_NATIVE,
    )
    assert (package.firmware_sha256, package.manifest) == (firmware, module.manifest)
    image = parse(await client.read_artifact(package.sha256))
    assert linked_module(image) == parse(await client.read_artifact(module.device_image_sha256))
    assert application_of(image) == application_of(parse(base.read_bytes()))
    for index in range(2):
        answer = await client.infer(board, [samples["input_int8"][index].tobytes()])
        assert answer.outputs.tensors[0] == samples["output_int8"][index].tobytes()
    steps = [event.step for event in first.rollouts[0].timeline]
    assert steps.index("downloading") < steps.index("delivered") < steps.index("ready") < steps.index("active")

    # Nothing came before the first package, and object 5 has no way out.
    await client.rollback_deployment(first.name)
    kept = await eventually(lambda: _ended(client, first.name))
    assert kept.rollouts[0].state == Rollout.STATE_ACTIVE
    assert _reason(kept.rollouts[0]) == "NO_PREVIOUS_FIRMWARE"

    # The board's next release brings the same module: no other build is made.
    application = application_of(parse(base.read_bytes()))
    signer = load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(signer, Ed25519PrivateKey)
    release = base_firmware(replace(application, code=application.code + bytes(16)), signer)
    second = await deploy(await client.write_artifact(release))
    assert second.state == Deployment.STATE_SUCCEEDED, second
    assert second.rollouts[0].module != package.name
    assert (await client.get_module(second.rollouts[0].module)).linked_module == module.name
    newer = await client.get_module(second.rollouts[0].module)
    await eventually(lambda: _is_running(client, board, newer.sha256))
    await client.rollback_deployment(second.name)
    undone = await eventually(lambda: _ended(client, second.name))
    assert undone.state == Deployment.STATE_ROLLED_BACK, undone
    assert (await client.get_device(board)).active_module == package.name
    await eventually(lambda: _is_running(client, board, package.sha256))
    answer = await client.infer(board, [samples["input_int8"][0].tobytes()])
    assert answer.outputs.tensors[0] == samples["output_int8"][0].tobytes()


async def _is_static(client: AsyncClient, board: str) -> bool:
    return (await client.get_device(board)).capabilities.HasField("firmware")


async def _is_running(client: AsyncClient, board: str, sha256: str) -> bool:
    """What the bridge tells of the device's reboot may still be on its way into the catalogue."""
    return (await client.get_device(board)).capabilities.firmware.package_sha256 == sha256


async def _ended(client: AsyncClient, name: str) -> Deployment | None:
    now = await client.get_deployment(name)
    return (
        now
        if now.HasField("end_time") and now.state in (Deployment.STATE_FAILED, Deployment.STATE_ROLLED_BACK)
        else None
    )


def _reason(item: Rollout) -> str:
    info = error_details_pb2.ErrorInfo()
    assert item.error.details[0].Unpack(info)
    return info.reason
