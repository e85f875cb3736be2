"""The gateway is killed (SIGKILL) in the middle of a rollout and started again: it goes on, and touches each device once."""

from __future__ import annotations

import grpc
import pytest
from gateway_world import World, until
from test_gateway_deployments import Deployment, device_in, finished, model_in, ready_world, started, wanted
from test_gateway_rollouts import policy, waves_of

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_servicekit import from_rpc_error


async def test_a_gateway_killed_in_a_wave_and_while_it_waits_for_approval_ends_the_rollout_once(world: World) -> None:
    """DO-ROLL-003, 005, 012: pause and approval outlive the process, and each device is touched once."""
    names = [f"d{i}" for i in range(6)]
    for name in names:
        device_in(world, name)
    await ready_world(world)
    world.bridge.hold.clear()
    waves = [{"name": "canary", "count": 2, "soak": "0.2s"}, {"name": "rest", "approval": True}]
    request = wanted(model_in(world), "one", policy=policy(waves=waves, startsPerMinute=100), concurrency=2)
    name = started(await world.deployments.CreateDeployment(request)).name
    await until(lambda: world.bridge.at_once == 2, "the canaries install")
    world.processes["gateway"].kill()
    await until(lambda: world.bridge.at_once == 0, "the calls broke off")
    world.bridge.hold.set()
    await world.start_gateway()

    async def waiting() -> deployments_pb2.Deployment | None:
        now = await world.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=name))
        return now if waves_of(now) == ["PASSED", "AWAITING_APPROVAL"] else None

    assert (await until(waiting, "the second wave waits")).waits_for == "approval of 'rest'"
    await world.deployments.PauseDeployment(deployments_pb2.PauseDeploymentRequest(name=name))
    world.processes["gateway"].kill()
    await world.start_gateway()
    approval = deployments_pb2.ApproveDeploymentRequest(name=name)
    assert (await world.deployments.ApproveDeployment(approval)).state == Deployment.STATE_PAUSED
    with pytest.raises(grpc.RpcError) as caught:
        await world.deployments.ApproveDeployment(deployments_pb2.ApproveDeploymentRequest(name=name, wave="nope"))
    assert from_rpc_error(caught.value).reason == "NOTHING_TO_APPROVE"

    async def held() -> deployments_pb2.Deployment | None:
        now = await world.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=name))
        return now if now.waits_for == "somebody to resume it" else None

    assert (await until(held, "the pause holds")).waves[1].approved
    assert len([line for line in world.bridge.log if line.startswith("install")]) == 2
    await world.deployments.ResumeDeployment(deployments_pb2.ResumeDeploymentRequest(name=name))
    deployment = await finished(world, name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, deployment
    assert waves_of(deployment) == ["PASSED", "PASSED"]
    assert sorted(world.bridge.log) == sorted(
        line for device in names for line in (f"install {device} STEP_READY", f"activate {device} 0")
    )
    assert world.bridge.most_at_once <= 2
    for call, again in (
        (world.deployments.PauseDeployment, deployments_pb2.PauseDeploymentRequest(name=name)),
        (world.deployments.ResumeDeployment, deployments_pb2.ResumeDeploymentRequest(name=name)),
        (world.deployments.ApproveDeployment, approval),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await call(again)
        assert from_rpc_error(caught.value).reason == "DEPLOYMENT_ENDED"
