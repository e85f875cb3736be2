"""The steps on one device of a deployment: install, activate, roll back, through the bridge that owns it.

Each may be repeated: installs are idempotent by their id, activation is repeatable, and a rollback is only asked for
while the device still runs our module. Bridges are waited for while they are away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from google.rpc import code_pb2, status_pb2

from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.registry.v1 import devices_pb2, modules_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_servicekit import Cancelled, FailedPrecondition, NotFound, ServiceError, Unavailable, adapt

from ..adapters.store import Record
from ..core import rollout
from ..core.firmware import bank_objection, is_static
from ..core.objections import status
from ..core.rollout import Outcome
from ..core.rollout_view import noted, stamp
from . import firmware
from .context import Context

log = structlog.get_logger("tinymlaas.gateway")

Rollout = deployments_pb2.DeviceRollout
Step = bridge_pb2.InstallResponse
CANCEL_SECONDS = 30.0
ROLLBACK_TRIES = 3
PLACES = 4096
# Where devices stood when they were looked for: deployments are looked at often by all who work on their devices.
_places: dict[tuple[str, str], int] = {}

_STATES = {
    Step.STEP_DOWNLOADING: Rollout.STATE_INSTALLING,
    Step.STEP_DOWNLOADED: Rollout.STATE_INSTALLING,
    Step.STEP_DELIVERED: Rollout.STATE_INSTALLING,
    Step.STEP_INSTALLED: Rollout.STATE_INSTALLING,
    Step.STEP_SELF_TESTING: Rollout.STATE_SELF_TESTING,
    Step.STEP_READY: Rollout.STATE_SELF_TESTING,
}


def find(deployment: deployments_pb2.Deployment, device: str) -> deployments_pb2.DeviceRollout:
    """The rollout of a device; raises KeyError when it takes no part."""
    place = _places.get((deployment.name, device), 0)
    if place < len(deployment.rollouts) and deployment.rollouts[place].device == device:
        return deployment.rollouts[place]
    for place, item in enumerate(deployment.rollouts):
        if item.device == device:
            if len(_places) >= PLACES:
                _places.clear()
            _places[(deployment.name, device)] = place
            return item
    raise KeyError(device)


async def edit(
    context: Context, deployment: str, device: str, change: Callable[[deployments_pb2.DeviceRollout], None]
) -> deployments_pb2.DeviceRollout:
    """Apply a change to one device's rollout; return it."""
    return await asyncio.to_thread(context.deployments.change_device, deployment, device, change)


def stopped(record: Record[deployments_pb2.Deployment], device: str) -> bool:
    """Tell whether work on a device shall end at the next safe point: aborted, stopped by a failed wave, or stuck."""
    return record.cancel_requested or record.body.stopping or find(record.body, device).stuck


async def take_build(context: Context, deployment: str, device: str, build: str) -> str:
    """Wait for the build of the device's target and take its module; return the outcome's name."""

    def waiting(item: deployments_pb2.DeviceRollout) -> None:
        item.build = build
        if item.state == Rollout.STATE_PENDING:
            item.state = Rollout.STATE_BUILDING
            noted(item, context.clock(), "build", build)

    await edit(context, deployment, device, waiting)
    try:
        record = await context.deployment_changes.unless(
            deployment, context.build_changes.ended(build), lambda now: stopped(now, device)
        )
    except Cancelled:
        return Outcome.CANCELLED.name
    built = record.body
    if built.state == builds_pb2.Build.STATE_CANCELLED:
        return Outcome.CANCELLED.name
    if built.state != builds_pb2.Build.STATE_SUCCEEDED:
        await edit(context, deployment, device, lambda item: item.error.CopyFrom(built.error))
        return Outcome.FAILED.name
    module = await context.catalogue.module(built.module)
    known = await context.catalogue.device(device)
    previous = known.active_module
    if is_static(known):
        try:
            previous = await firmware.running(context, known)
            digests = (await context.deployment_of(deployment, device)).body.firmware_sha256s
            module = await firmware.linked(context, known, module, digests)
        except ServiceError as error:
            fault = error.to_status()
            await edit(context, deployment, device, lambda item: item.error.CopyFrom(fault))
            return Outcome.FAILED.name
        objection = bank_objection(known, module.device_image_bytes)
    else:
        objection = rollout.slot_objection(known, module.device_image_bytes)
    if objection is not None:
        text = f"{objection.message}: {objection.remedy}"
        fault = status(code_pb2.FAILED_PRECONDITION, objection.reason, text, **objection.metadata)
        await edit(context, deployment, device, lambda item: item.error.CopyFrom(fault))
        return Outcome.FAILED.name

    def taken(item: deployments_pb2.DeviceRollout) -> None:
        item.module = module.name
        if not item.previous_module or is_static(known):
            item.previous_module = previous

    await edit(context, deployment, device, taken)
    return Outcome.GOOD.name


async def install(context: Context, deployment: str, device: str) -> str:
    """Install the module and have it self-tested; return the outcome's name. Cancelling stops at a safe point."""
    item = find((await context.deployment_of(deployment, device)).body, device)
    module = await context.catalogue.module(item.module)
    request = bridge_pb2.InstallRequest(
        install_id=item.install_id, device=device, module_sha256=module.device_image_sha256
    )

    def starting(item: deployments_pb2.DeviceRollout) -> None:
        item.state = Rollout.STATE_INSTALLING
        item.bytes_total = module.device_image_bytes
        noted(item, context.clock(), "install", module.name)

    await edit(context, deployment, device, starting)
    last = await _follow(context, deployment, device, request)
    if last.step == Step.STEP_READY:

        def ready(item: deployments_pb2.DeviceRollout) -> None:
            item.slot, item.bytes_done = last.slot, item.bytes_total

        await edit(context, deployment, device, ready)
        return Outcome.GOOD.name
    if last.step == Step.STEP_CANCELLED:
        return Outcome.CANCELLED.name
    fault = (
        last.error
        if last.HasField("error")
        else status(code_pb2.UNKNOWN, "INSTALL_FAILED", last.detail or "install failed")
    )
    await edit(context, deployment, device, lambda item: item.error.CopyFrom(fault))
    return Outcome.FAILED.name


async def _follow(
    context: Context, deployment: str, device: str, request: bridge_pb2.InstallRequest
) -> bridge_pb2.InstallResponse:
    """Follow an install to its terminal step; the call is made again whenever the bridge went away in between.

    Once work on the device shall end, the bridge is asked to stop at a safe point and followed to there; one that is
    stuck is followed no longer.
    """
    following = asyncio.create_task(_to_its_end(context, deployment, device, request))
    try:
        for reason in (stopped, _stuck):
            end = await _unless(context, deployment, device, following, reason)
            if end is not None:
                return end
            await _cancel(context, device, request.install_id)
            if _stuck(await context.deployment_of(deployment, device), device):
                break
        fault = status(code_pb2.DEADLINE_EXCEEDED, "DEVICE_STUCK", "it made no progress for too long", device=device)
        return bridge_pb2.InstallResponse(step=Step.STEP_FAILED, error=fault)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _unless(
    context: Context,
    deployment: str,
    device: str,
    following: asyncio.Task[bridge_pb2.InstallResponse],
    reason: Callable[[Record[deployments_pb2.Deployment], str], bool],
) -> bridge_pb2.InstallResponse | None:
    """Return how an install ended, or None as soon as `reason` holds."""
    waiting = _ended(following)
    try:
        await context.deployment_changes.unless(deployment, waiting, lambda now: reason(now, device))
    except Cancelled:
        return None
    return following.result()


async def _ended(task: asyncio.Task[bridge_pb2.InstallResponse]) -> None:
    await asyncio.wait({task})


async def _cancel(context: Context, device: str, install_id: str) -> None:
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            await context.bridges.cancel_install(device, install_id)
    except (ServiceError, TimeoutError) as error:
        log.warning("an install could not be cancelled", device=device, install_id=install_id, error=str(error)[:200])


def _stuck(record: Record[deployments_pb2.Deployment], device: str) -> bool:
    return find(record.body, device).stuck


async def _to_its_end(
    context: Context, deployment: str, device: str, request: bridge_pb2.InstallRequest
) -> bridge_pb2.InstallResponse:
    try:
        async for event in context.bridges.install(request):
            await edit(context, deployment, device, lambda item, event=event: _show(item, context.clock(), event))  # type: ignore[misc]
            if event.step in (Step.STEP_READY, Step.STEP_FAILED, Step.STEP_CANCELLED):
                return event
    except ServiceError as error:
        return bridge_pb2.InstallResponse(step=Step.STEP_FAILED, error=error.to_status())
    fault = status(code_pb2.INTERNAL, "PLUGIN_PROTOCOL", "the bridge ended without a result")
    return bridge_pb2.InstallResponse(step=Step.STEP_FAILED, error=fault)


def _show(item: deployments_pb2.DeviceRollout, at: float, event: bridge_pb2.InstallResponse) -> None:
    if event.step in _STATES:
        item.state = _STATES[event.step]
    if event.bytes_done > item.bytes_done:
        item.bytes_done = event.bytes_done
        item.progress_time.CopyFrom(stamp(at))
    item.bytes_total = event.bytes_total or item.bytes_total
    name = rollout.step_name(event)
    if name == "downloading" and item.timeline and item.timeline[-1].step == name:
        return
    noted(item, at, name, event.detail)


async def activate(context: Context, deployment: str, device: str) -> str:
    """Make the installed module the active one; return the outcome's name."""

    def starting(item: deployments_pb2.DeviceRollout) -> None:
        item.state = Rollout.STATE_ACTIVATING
        noted(item, context.clock(), "activate", f"slot {item.slot}")

    item = await edit(context, deployment, device, starting)
    module = await context.catalogue.module(item.module)
    try:
        after = await context.bridges.activate(device, item.slot)
        if module.payload_kind == target_pb2.PAYLOAD_KIND_FIRMWARE and not _runs(after, module):
            raise FailedPrecondition(
                f"{device} runs other firmware than the package that it installed",
                "FIRMWARE_REVERTED",
                {"device": device, "running": rollout.active_image(after)},
                "The device went back: read its status and log, then deploy a package that starts there.",
            )
    except ServiceError as error:
        fault, why = error.to_status(), str(error)

        def failed(item: deployments_pb2.DeviceRollout) -> None:
            item.error.CopyFrom(fault)
            noted(item, context.clock(), "activation failed", why)

        await edit(context, deployment, device, failed)
        return Outcome.FAILED.name
    await context.catalogue.record_active(after, item.module)
    return Outcome.GOOD.name


async def runs_ours(context: Context, deployment: str, device: str) -> bool:
    """Ask the device whether it runs the deployment's module; what cannot be asked counts as running it."""
    item = find((await context.deployment_of(deployment, device)).body, device)
    try:
        module = await context.catalogue.module(item.module)
        now_there = await context.bridges.read_capabilities(device)
    except ServiceError:
        return True
    return _runs(now_there, module)


def _runs(device: devices_pb2.Device, module: modules_pb2.Module) -> bool:
    """Tell whether a module is active on a device; firmware that is not told counts as the package that was installed last."""
    active = rollout.active_image(device)
    return active == module.device_image_sha256 or (not active and is_static(device))


async def roll_back(context: Context, deployment: str, device: str) -> str:
    """Bring back the module that was active before; return the outcome's name.

    A device that does not run our module is left as it is: repeating a rollback must not bring ours back. A device that
    had no module before gets ours deactivated; one with static firmware can't be without, and fails with
    NO_PREVIOUS_FIRMWARE.
    """
    item = find((await context.deployment_of(deployment, device)).body, device)
    if not item.module:
        return Outcome.FAILED.name
    try:
        module = await context.catalogue.module(item.module)
        if module.payload_kind == target_pb2.PAYLOAD_KIND_FIRMWARE:
            there = await context.bridges.read_capabilities(device)
            if _runs(there, module):
                there = await firmware.reinstall_former(context, deployment, device, item, module)
        else:
            there = await _undone(context, device, item, module)
        await context.catalogue.record_active(there, await _name_of_active(context, there, item, module))
    except ServiceError as error:
        fault, why = error.to_status(), str(error)

        def failed(item: deployments_pb2.DeviceRollout) -> None:
            if not item.HasField("error"):
                item.error.CopyFrom(fault)
            noted(item, context.clock(), "rollback failed", why)

        await edit(context, deployment, device, failed)
        return Outcome.FAILED.name
    await edit(
        context,
        deployment,
        device,
        lambda item: noted(item, context.clock(), "rolled back", item.previous_module or "no module"),
    )
    return Outcome.GOOD.name


async def _undone(
    context: Context, device: str, item: deployments_pb2.DeviceRollout, module: modules_pb2.Module
) -> devices_pb2.Device:
    """The device once it does not run our module; looked at again after a call that broke off, which may have been heard."""
    for again in reversed(range(ROLLBACK_TRIES)):
        there = await context.bridges.read_capabilities(device)
        if rollout.active_image(there) != module.device_image_sha256:
            break
        try:
            return await _undo(context, device, item, module)
        except (Unavailable, Cancelled):
            if not again:
                raise
    return there


async def _undo(
    context: Context, device: str, item: deployments_pb2.DeviceRollout, module: modules_pb2.Module
) -> devices_pb2.Device:
    try:
        return await context.bridges.rollback(device, module.device_image_sha256)
    except FailedPrecondition as error:
        if error.reason != "NO_PREVIOUS_MODULE":
            raise
        return await context.bridges.deactivate(device, item.slot)


async def _name_of_active(
    context: Context, there: devices_pb2.Device, item: deployments_pb2.DeviceRollout, ours: modules_pb2.Module
) -> str:
    """Name of the module that the device runs after a rollback; empty when it runs none or one that is not known."""
    active = rollout.active_image(there)
    if not active:
        return ""
    if active == ours.device_image_sha256:
        return ours.name
    try:
        previous = await context.catalogue.module(item.previous_module) if item.previous_module else None
    except NotFound:
        previous = None
    return previous.name if previous is not None and previous.device_image_sha256 == active else ""


async def end(
    context: Context, deployment: str, device: str, state: deployments_pb2.DeviceRollout.State.ValueType
) -> None:
    """Put a device's rollout into its end state."""

    def ended(item: deployments_pb2.DeviceRollout) -> None:
        if item.state != state:
            item.state = state
            if state == Rollout.STATE_ACTIVE:  # it came late, but it came
                item.stuck = False
                item.ClearField("error")
            noted(item, context.clock(), Rollout.State.Name(state).removeprefix("STATE_").lower().replace("_", " "))

    await edit(context, deployment, device, ended)


def error_status(error: Exception) -> status_pb2.Status:
    """The status of any exception; an unforeseen one is INTERNAL without its text."""
    adapted = adapt(error)
    return adapted.to_status() if adapted is not None else status(code_pb2.INTERNAL, "INTERNAL_ERROR", "internal error")
