"""Calls about deployments."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import grpc.aio
from google.longrunning import operations_pb2

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, deployments_pb2_grpc, rollouts_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_client._device_calls import DeviceCalls
from tinymlaas_client._requests import all_pages, answer, options_struct, watched


class DeploymentCalls(DeviceCalls):
    """The part of AsyncClient that is about deployments."""

    def _open_deployments(self, channel: grpc.aio.Channel) -> None:
        self._deployments: Any = deployments_pb2_grpc.DeploymentsStub(channel)

    async def create_deployment(
        self,
        model_version: str,
        *,
        devices: Iterable[str] = (),
        objective: builds_pb2.Objective.ValueType = builds_pb2.OBJECTIVE_UNSPECIFIED,
        plugins: Sequence[str] = (),
        samples_sha256: str = "",
        optimize: Mapping[str, Any] | None = None,
        concurrency: int = 0,
        policy: rollouts_pb2.RolloutPolicy | None = None,
        firmware_sha256s: Iterable[str] = (),
        request_id: str = "",
        validate_only: bool = False,
    ) -> deployments_pb2.Deployment:
        """Start a deployment and return it as it stands; with `validate_only` return the plan.

        With `optimize` (also empty) the model is optimized first, and that is planned and installed. `policy` says how it goes
        over the devices (`rollout_policy` makes one from texts). `firmware_sha256s` are artifacts with the base firmware of boards
        that take no module alone.
        """
        deployment = deployments_pb2.Deployment(
            model_version=self.version_name(model_version),
            devices=[self.device_name(name) for name in devices],
            objective=objective,
            plugins=plugins,
            samples_sha256=samples_sha256,
            optimize=None if optimize is None else options_struct(optimize),
            concurrency=concurrency,
            policy=policy,
            firmware_sha256s=firmware_sha256s,
        )
        request = deployments_pb2.CreateDeploymentRequest(
            parent=self.project,
            deployment=deployment,
            request_id=request_id or uuid.uuid4().hex,
            validate_only=validate_only,
        )
        operation: operations_pb2.Operation = await answer(self._deployments.CreateDeployment(request))
        started = deployments_pb2.Deployment()
        operation.metadata.Unpack(started)
        return started

    async def watch_deployment(self, name: str) -> AsyncIterator[deployments_pb2.Deployment]:
        """The deployment now and at each change, until it ends."""
        request = deployments_pb2.WatchDeploymentRequest(name=self._member("deployments", name))
        async for deployment in watched(lambda: self._deployments.WatchDeployment(request)):
            yield deployment

    async def wait_deployment(self, name: str) -> deployments_pb2.Deployment:
        """The deployment once it has ended."""
        latest = await self.get_deployment(name)
        async for update in self.watch_deployment(name):
            latest = update
        return latest

    async def get_deployment(self, name: str) -> deployments_pb2.Deployment:
        """A deployment by its id or full resource name."""
        request = deployments_pb2.GetDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.GetDeployment(request))

    async def list_deployments(self) -> list[deployments_pb2.Deployment]:
        """Every deployment of the project, newest first."""
        return await all_pages(
            lambda token: self._deployments.ListDeployments(
                deployments_pb2.ListDeploymentsRequest(parent=self.project, page_size=200, page_token=token)
            ),
            "deployments",
        )

    async def pause_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Begin no device until `resume_deployment`; devices under way go on."""
        request = deployments_pb2.PauseDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.PauseDeployment(request))

    async def resume_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Go on with a paused deployment, in spite of the failures so far."""
        request = deployments_pb2.ResumeDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.ResumeDeployment(request))

    async def approve_deployment(self, name: str, wave: str = "") -> deployments_pb2.Deployment:
        """Let a wave begin: the one of this name, or without one the wave that waits."""
        request = deployments_pb2.ApproveDeploymentRequest(name=self._member("deployments", name), wave=wave)
        return await answer(self._deployments.ApproveDeployment(request))

    async def cancel_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Ask a deployment to stop."""
        request = deployments_pb2.CancelDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.CancelDeployment(request))

    async def rollback_deployment(self, name: str) -> deployments_pb2.Deployment:
        """Bring every device of a deployment back to the module that was active before."""
        request = deployments_pb2.RollbackDeploymentRequest(name=self._member("deployments", name))
        return await answer(self._deployments.RollbackDeployment(request))

    async def infer(self, device: str, inputs: Sequence[bytes]) -> deployments_pb2.DeviceInferResponse:
        """Run one inference on a device with its active module; `inputs` are the tensors' bytes, C order, little-endian."""
        request = deployments_pb2.DeviceInferRequest(
            device=self.device_name(device), inputs=tensor_pb2.TensorValues(tensors=inputs)
        )
        return await answer(self._deployments.Infer(request))
