"""Deployments over real gRPC: gateway and plugins are processes, registry and bridge are stand-ins."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gateway_fakes import PROJECT, toy_target
from gateway_world import World, until

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_servicekit import from_rpc_error

Deployment = deployments_pb2.Deployment
Rollout = deployments_pb2.DeviceRollout


def wanted(model: str, request_id: str = "", validate_only: bool = False, **fields: Any) -> Any:
    return deployments_pb2.CreateDeploymentRequest(
        parent=PROJECT,
        deployment=Deployment(model_version=model, **fields),
        request_id=request_id,
        validate_only=validate_only,
    )


def started(operation: Any) -> deployments_pb2.Deployment:
    deployment = Deployment()
    assert operation.metadata.Unpack(deployment)
    return deployment


async def finished(world: World, name: str) -> deployments_pb2.Deployment:
    last = None
    async for deployment in world.deployments.WatchDeployment(
        deployments_pb2.WatchDeploymentRequest(name=name), timeout=90
    ):
        last = deployment
    assert last is not None
    return last


def rollouts(deployment: deployments_pb2.Deployment) -> dict[str, deployments_pb2.DeviceRollout]:
    return {item.device.rsplit("/", 1)[1]: item for item in deployment.rollouts}


def model_in(world: World, data: bytes = b"\x05model") -> str:
    return world.registry.add_model("toy", data, tensor_pb2.MODEL_FORMAT_TFLITE)


def device_in(world: World, device_id: str, **target: Any) -> Any:
    name = world.registry.add_device(device_id, toy_target(**target))
    return world.bridge.add(world.registry.devices[name])


async def ready_world(world: World, **settings: str) -> None:
    world.add_plugin("compiler", roles="compiler", **settings)
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()


async def test_devices_that_fit_become_active_and_a_small_one_is_left_out_with_numbers(world: World) -> None:
    """DO-EVID-001: what does not fit a target is not offered to it."""
    model = model_in(world)
    for name in ("a", "b"):
        device_in(world, name)
    device_in(world, "tiny", ram=2048)
    await ready_world(world)
    deployment = started(await world.deployments.CreateDeployment(wanted(model)))
    deployment = await finished(world, deployment.name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, deployment
    found = rollouts(deployment)
    assert found["a"].state == found["b"].state == Rollout.STATE_ACTIVE
    assert found["a"].build == found["b"].build, "equal targets share one build"
    assert found["tiny"].state == Rollout.STATE_REJECTED
    assert [o.remedy for o in found["tiny"].verdicts[0].objections] == ["needs 2,048 B more RAM"]
    assert world.counted("io.example.compiler compile") == 1
    assert sorted(world.bridge.log) == [
        "activate a 0",
        "activate b 0",
        "install a STEP_READY",
        "install b STEP_READY",
    ]
    assert world.registry.devices[f"{PROJECT}/devices/a"].active_module == found["a"].module
    steps = [event.step for event in found["a"].timeline]
    assert steps[0] == "planned"
    assert steps[-1] == "active"


@pytest.mark.parametrize("breaks", [[], ["unheard"], ["unheard", "heard"]], ids=["", "unheard", "both"])
async def test_a_failed_activation_brings_the_previous_module_back(world: World, breaks: list[str]) -> None:
    """Also where calls of the bridge break off, before or after they are carried out."""
    fake = device_in(world, "a")
    fake.rollbacks_break = breaks
    await ready_world(world)
    first = started(await world.deployments.CreateDeployment(wanted(model_in(world))))
    assert (await finished(world, first.name)).state == Deployment.STATE_SUCCEEDED
    before = dict(fake.images)[fake.active or 0]
    fake.refuse_activate = True
    second = started(await world.deployments.CreateDeployment(wanted(model_in(world, b"\x09other"))))
    second = await finished(world, second.name)
    assert second.state == Deployment.STATE_FAILED
    item = rollouts(second)["a"]
    assert item.state == Rollout.STATE_ROLLED_BACK
    assert fake.active is not None
    assert fake.images[fake.active] == before
    assert world.bridge.log.count("rollback a") == 1


async def test_a_deployment_rolls_back_once_however_often_it_is_asked(world: World) -> None:
    fake = device_in(world, "a")
    await ready_world(world)
    first = started(await world.deployments.CreateDeployment(wanted(model_in(world))))
    await finished(world, first.name)
    second = started(await world.deployments.CreateDeployment(wanted(model_in(world, b"\x09other"))))
    second = await finished(world, second.name)
    assert second.state == Deployment.STATE_SUCCEEDED
    request = deployments_pb2.RollbackDeploymentRequest(name=second.name)
    await asyncio.gather(*(world.deployments.RollbackDeployment(request) for _ in range(3)))
    second = await finished(world, second.name)
    assert second.state == Deployment.STATE_ROLLED_BACK
    await world.deployments.RollbackDeployment(request)
    assert world.bridge.log.count("rollback a") == 1
    first_module = rollouts(await finished(world, first.name))["a"].module
    assert world.registry.devices[f"{PROJECT}/devices/a"].active_module == first_module
    assert fake.images[fake.active or 0] == world.registry.modules[first_module].device_image_sha256


async def test_a_plan_with_validate_only_does_nothing(world: World) -> None:
    device_in(world, "a")
    await ready_world(world)
    plan = started(await world.deployments.CreateDeployment(wanted(model_in(world), validate_only=True)))
    assert rollouts(plan)["a"].state == Rollout.STATE_PENDING
    assert world.bridge.log == []
    with pytest.raises(grpc.RpcError) as caught:
        await world.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=plan.name))
    assert from_rpc_error(caught.value).code == "NOT_FOUND"


async def test_cancelling_stops_installs_at_a_safe_point_and_leaves_active_modules(world: World) -> None:
    for name in ("a", "b"):
        device_in(world, name)
    await ready_world(world)
    world.bridge.hold.clear()
    deployment = started(await world.deployments.CreateDeployment(wanted(model_in(world), concurrency=1)))
    await until(lambda: world.bridge.at_once == 1, "an install is under way")
    await world.deployments.CancelDeployment(deployments_pb2.CancelDeploymentRequest(name=deployment.name))
    deployment = await finished(world, deployment.name)
    assert deployment.state == Deployment.STATE_CANCELLED
    assert {item.state for item in deployment.rollouts} == {Rollout.STATE_CANCELLED}
    assert world.bridge.most_at_once == 1
    assert not [line for line in world.bridge.log if line.startswith("activate")]


async def test_inference_goes_to_the_bridge_that_owns_the_device(world: World) -> None:
    device_in(world, "a")
    await ready_world(world)
    inputs = tensor_pb2.TensorValues(tensors=[b"\x01\x02"])
    answer = await world.deployments.Infer(
        deployments_pb2.DeviceInferRequest(device=f"{PROJECT}/devices/a", inputs=inputs)
    )
    assert answer.outputs == inputs
    assert (answer.latency, answer.latency_unit) == (42, "instructions")
