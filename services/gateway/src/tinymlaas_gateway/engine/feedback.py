"""Active devices of a rollout are observed through their bridges, and what they count is written into the deployment."""

from __future__ import annotations

import asyncio
from types import TracebackType

import structlog

import tinymlaas_module as tim
from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_servicekit import ServiceError

from ..core import feedback
from ..core.policy import Feedback, Policy
from ..core.rollout_view import noted
from . import devices
from .context import Context

log = structlog.get_logger("tinymlaas.gateway")

Rollout = deployments_pb2.DeviceRollout
WRITE_SECONDS = 1.0


class Observers:
    """One observation for each active device, at most `observed_at_once`, as long as the `async with` block runs."""

    def __init__(self, context: Context, deployment: str) -> None:
        self._context = context
        self._deployment = deployment
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._baselines: dict[str, feedback.Baseline] = {}

    async def __aenter__(self) -> Observers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def follow(self, policy: Policy, body: deployments_pb2.Deployment) -> None:
        """Observe the devices that are active now, and no others; those nothing is objected to yet."""
        if policy.feedback is None:
            return
        active = {
            item.device: item.module
            for item in reversed(body.rollouts)
            if item.state == Rollout.STATE_ACTIVE and item.module and not item.feedback.HasField("objection")
        }
        for device in [device for device, task in self._tasks.items() if device not in active or task.done()]:
            self._tasks.pop(device).cancel()
        for device, module in active.items():
            if device not in self._tasks and len(self._tasks) < self._context.limits.observed_at_once:
                self._tasks[device] = asyncio.create_task(self._observe(policy.feedback, device, module))

    async def _observe(self, policy: Feedback, device: str, module: str) -> None:
        """Follow one device for good; a device or bridge that is away is asked again."""
        while True:
            try:
                known = await self._context.catalogue.module(module)
                baseline = await self._baseline(module)
                await self._follow(policy, device, known.device_image_sha256, baseline)
            except ServiceError as error:
                log.debug("a device is not observed", device=device, error=str(error)[:200])
            except tim.ModuleError as error:
                log.warning("a module can't be read", module=module, error=str(error)[:200])
                return
            await asyncio.sleep(self._context.limits.feedback_pause_seconds)

    async def _baseline(self, module: str) -> feedback.Baseline:
        if module not in self._baselines:
            known = await self._context.catalogue.module(module)
            data = await self._context.catalogue.read(module.split("/")[1], known.sha256)
            self._baselines[module] = feedback.baseline_of(known, tim.parse(data))
        return self._baselines[module]

    async def _follow(self, policy: Feedback, device: str, image: str, baseline: feedback.Baseline) -> None:
        """Write the newest counters, at most one a second however often a device tells them."""
        newest: list[bridge_pb2.ObserveResponse] = []
        told = asyncio.Event()

        async def listen() -> None:
            try:
                async for seen in self._context.bridges.observe(device):
                    newest[:] = [seen]
                    told.set()
            finally:
                told.set()

        listening = asyncio.create_task(listen())
        try:
            while True:
                await told.wait()
                told.clear()
                if newest and newest[0].module_sha256 == image:
                    await self._take(policy, device, newest[0], baseline)
                newest.clear()
                if listening.done():
                    listening.result()
                    return
                await asyncio.sleep(WRITE_SECONDS)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _take(
        self, policy: Feedback, device: str, seen: bridge_pb2.ObserveResponse, baseline: feedback.Baseline
    ) -> None:
        at = self._context.clock()

        def write(item: deployments_pb2.DeviceRollout) -> None:
            feedback.take(item.feedback, seen, baseline, at)
            against = feedback.objection(policy, item.feedback)
            if against is not None and not item.feedback.HasField("objection"):
                item.feedback.objection.CopyFrom(against)
                noted(item, at, "feedback", against.message)

        await devices.edit(self._context, self._deployment, device, write)
