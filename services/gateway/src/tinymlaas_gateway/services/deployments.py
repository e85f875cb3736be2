"""The Deployments service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from google.longrunning import operations_pb2

from tinymlaas.gateway.v1 import deployments_pb2, deployments_pb2_grpc
from tinymlaas_servicekit import FailedPrecondition, NotFound, decode_page_token, encode_page_token, page_size

from ..engine import deployments, durable, rollouts
from ..engine.context import Context
from .operations import operation_of
from .requests import cursor, project_in
from .types import ServicerContext
from .undivided import undivided

Deployment = deployments_pb2.Deployment
ROLLBACK_BEGIN_SECONDS = 5.0


@contextmanager
def _existing(name: str) -> Iterator[None]:
    """NotFound for a deployment that the records do not have."""
    try:
        yield
    except KeyError:
        raise NotFound(f"{name} does not exist", metadata={"name": name}) from None


class DeploymentsServicer(deployments_pb2_grpc.DeploymentsServicer):
    """Maps calls to the engine."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def CreateDeployment(
        self, request: deployments_pb2.CreateDeploymentRequest, context: ServicerContext
    ) -> operations_pb2.Operation:
        """Starts a deployment; with `validate_only` the operation's metadata is the plan."""
        deployment = await undivided(self._created(request))
        return operation_of(deployment, deployments.ended(deployment))

    async def _created(self, request: deployments_pb2.CreateDeploymentRequest) -> deployments_pb2.Deployment:
        deployment, to_run = await deployments.create(
            self._context, project_in(request.parent), request.deployment, request.request_id, request.validate_only
        )
        if to_run:
            await durable.start("rollout", durable.rollout_workflow, deployment.name)
        return deployment

    async def _get(self, name: str) -> deployments_pb2.Deployment:
        record = await asyncio.to_thread(self._context.deployments.get, name)
        if record is None:
            raise NotFound(f"{name} does not exist", metadata={"name": name})
        return record.body

    async def GetDeployment(
        self, request: deployments_pb2.GetDeploymentRequest, context: ServicerContext
    ) -> deployments_pb2.Deployment:
        """The deployment now."""
        return await self._get(request.name)

    async def ListDeployments(
        self, request: deployments_pb2.ListDeploymentsRequest, context: ServicerContext
    ) -> deployments_pb2.ListDeploymentsResponse:
        """A page of the project's deployments, newest first."""
        found, more = await asyncio.to_thread(
            self._context.deployments.page,
            project_in(request.parent),
            page_size(request.page_size),
            cursor(decode_page_token(request)),
        )
        token = encode_page_token(str(more), request) if more is not None else ""
        return deployments_pb2.ListDeploymentsResponse(deployments=found, next_page_token=token)

    async def WatchDeployment(
        self, request: deployments_pb2.WatchDeploymentRequest, context: ServicerContext
    ) -> AsyncIterator[deployments_pb2.Deployment]:
        """The deployment now and at each change, until it ends."""
        async for record in self._context.deployment_changes.watch(request.name):
            yield record.body

    async def PauseDeployment(
        self, request: deployments_pb2.PauseDeploymentRequest, context: ServicerContext
    ) -> deployments_pb2.Deployment:
        """Begins no device until the deployment is resumed."""
        with _existing(request.name):
            return await rollouts.pause(self._context, request.name)

    async def ResumeDeployment(
        self, request: deployments_pb2.ResumeDeploymentRequest, context: ServicerContext
    ) -> deployments_pb2.Deployment:
        """Goes on with a paused deployment."""
        with _existing(request.name):
            return await rollouts.resume(self._context, request.name)

    async def ApproveDeployment(
        self, request: deployments_pb2.ApproveDeploymentRequest, context: ServicerContext
    ) -> deployments_pb2.Deployment:
        """Lets a wave begin."""
        with _existing(request.name):
            return await rollouts.approve(self._context, request.name, request.wave)

    async def CancelDeployment(
        self, request: deployments_pb2.CancelDeploymentRequest, context: ServicerContext
    ) -> deployments_pb2.Deployment:
        """Asks a deployment to stop."""
        with _existing(request.name):
            return (await asyncio.to_thread(self._context.deployments.request_cancel, request.name)).body

    async def RollbackDeployment(
        self, request: deployments_pb2.RollbackDeploymentRequest, context: ServicerContext
    ) -> deployments_pb2.Deployment:
        """Brings every device back to the module before; returns the deployment once the rollback is under way."""
        record = await asyncio.to_thread(self._context.deployments.get, request.name)
        if record is None:
            raise NotFound(f"{request.name} does not exist", metadata={"name": request.name})
        if record.body.state == Deployment.STATE_ROLLED_BACK:
            return record.body
        if not record.ended:
            raise FailedPrecondition(
                f"{request.name} has not ended",
                "DEPLOYMENT_RUNNING",
                {"name": request.name},
                "Cancel it, wait until it has ended, then roll it back.",
            )
        await undivided(durable.start("rollback", durable.rollback_workflow, request.name, str(record.revision)))
        try:
            async with asyncio.timeout(ROLLBACK_BEGIN_SECONDS):
                return await self._begun(request.name, record.revision)
        except TimeoutError:
            return await self._get(request.name)

    async def _begun(self, name: str, revision: int) -> deployments_pb2.Deployment:
        while True:
            async for record in self._context.deployment_changes.watch(name):
                if record.revision > revision:
                    return record.body
            await asyncio.sleep(0.02)

    async def Infer(
        self, request: deployments_pb2.DeviceInferRequest, context: ServicerContext
    ) -> deployments_pb2.DeviceInferResponse:
        """Runs one inference on a device through the bridge that owns it."""
        answer = await self._context.bridges.infer(request.device, request.inputs)
        return deployments_pb2.DeviceInferResponse(
            outputs=answer.outputs, latency=answer.latency, latency_unit=answer.latency_unit
        )
