"""Deployments: made from a request, planned, ended. The steps on a device are in `devices`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, TypedDict

from google.rpc import code_pb2

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, routing_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_servicekit import AlreadyExists, Cancelled, FailedPrecondition, InvalidArgument, ServiceError

from ..core import race, rollout
from ..core.objections import status
from . import builds, devices, optimizing
from .context import Context
from .explain import Place, explain, settled

Deployment = deployments_pb2.Deployment
Rollout = deployments_pb2.DeviceRollout
_Output = Literal["name", "state", "rollouts", "error", "create_time", "end_time", "optimized_model_version"]
OUTPUT_FIELDS: tuple[_Output, ...] = (
    "name",
    "state",
    "rollouts",
    "error",
    "create_time",
    "end_time",
    "optimized_model_version",
)
ENDED = (
    Deployment.STATE_SUCCEEDED,
    Deployment.STATE_FAILED,
    Deployment.STATE_CANCELLED,
    Deployment.STATE_ROLLED_BACK,
)
MAX_DEVICES = 1000
DEFAULT_CONCURRENCY = 4


class Planned(TypedDict):
    """One admitted device: its name, the digest of its target, and the target serialized."""

    device: str
    target_digest: str
    target: bytes
    plugins: list[str]


def ended(deployment: deployments_pb2.Deployment) -> bool:
    """Tell whether a deployment has ended."""
    return deployment.state in ENDED


async def create(
    context: Context,
    project: str,
    wanted: deployments_pb2.Deployment,
    request_id: str = "",
    validate_only: bool = False,
) -> tuple[deployments_pb2.Deployment, bool]:
    """Make a deployment from a request; return it and whether somebody has to run it.

    Repeating a `request_id` returns the deployment that it made. With `validate_only` the plan, for the model as it was
    given, is in the answer and nothing is stored. Raises for an unknown model or device and for a project without devices.
    """
    given = Deployment()
    given.CopyFrom(wanted)
    for field in OUTPUT_FIELDS:
        given.ClearField(field)
    names = sorted({builds.plugin_name(text) for text in wanted.plugins})
    del given.plugins[:]
    given.plugins.extend(names)
    fingerprint = race.digest("deployment-request", given.SerializeToString(deterministic=True))
    name = f"projects/{project}/deployments/{builds.resource_id(project, request_id)}"
    earlier = await asyncio.to_thread(context.deployments.get, name)
    if earlier is not None:
        if earlier.fingerprint != fingerprint:
            raise AlreadyExists(
                "this request_id was used for another deployment", "REQUEST_ID_REUSED", {"name": name}, "Use a new one."
            )
        return earlier.body, not earlier.ended
    for resource in (given.model_version, *given.devices):
        if resource.split("/")[1] != project:
            raise InvalidArgument(f"{resource} belongs to another project", "PROJECT_MISMATCH", {"name": resource})
    version = await context.catalogue.model_version(given.model_version, patience=5.0)
    deployment = Deployment()
    deployment.CopyFrom(given)
    deployment.name = name
    deployment.model_version = version.name
    deployment.create_time.CopyFrom(builds.now())
    deployment.state = Deployment.STATE_PLANNING
    if given.HasField("optimize"):
        optimizing.required(context, given.optimize, given.samples_sha256)
    found = await _devices(context, project, given)
    if validate_only:  # optimizing takes minutes and stores a version: a plan is about the model as it was given
        await _plan(context, deployment, found)
        return deployment, False
    del deployment.devices[:]
    deployment.devices.extend(item.name for item in found)
    record, _ = await asyncio.to_thread(context.deployments.create, project, deployment, fingerprint)
    return record.body, not record.ended


async def _devices(context: Context, project: str, given: deployments_pb2.Deployment) -> list[devices_pb2.Device]:
    if len(given.devices) > MAX_DEVICES:
        raise InvalidArgument(
            f"{len(given.devices)} devices are named, at most {MAX_DEVICES} are allowed",
            "LIMIT_EXCEEDED",
            {"limit": "devices"},
        )
    if given.devices:
        return [await context.catalogue.device(name) for name in dict.fromkeys(given.devices)]
    found = await context.catalogue.devices(project)
    if not found:
        raise FailedPrecondition(
            "the project has no device",
            "NO_DEVICE",
            {"project": project},
            "Let a device register, or name a target and build.",
        )
    return found


async def asks_to_optimize(context: Context, name: str) -> bool:
    """Tell whether the model is optimized before the plan: part of the request, so it never changes."""
    return (await context.deployment(name)).body.HasField("optimize")


async def optimize(context: Context, name: str) -> bool:
    """Optimize a deployment's model and record the version; False when the deployment has nothing to deploy."""
    deployment = Deployment()
    deployment.CopyFrom((await context.deployment(name)).body)
    try:
        await context.deployment_changes.unless_cancelled(name, optimizing.for_deployment(context, deployment))
    except ServiceError as error:
        fault = error.to_status()
        state = Deployment.STATE_CANCELLED if isinstance(error, Cancelled) else Deployment.STATE_FAILED

        def end(body: deployments_pb2.Deployment) -> None:
            if not ended(body):
                body.state = state
                body.error.CopyFrom(fault)
                body.end_time.CopyFrom(builds.now())

        await context.edit_deployment(name, end)
        return False

    def record(body: deployments_pb2.Deployment) -> None:
        body.optimized_model_version = deployment.optimized_model_version

    await context.edit_deployment(name, record)
    return True


async def plan(context: Context, name: str) -> list[Planned]:
    """Explain every device, record who is left out and why, and return the admitted ones; recorded once."""
    record = await context.deployment(name)
    deployment = Deployment()
    deployment.CopyFrom(record.body)
    if not deployment.rollouts:
        found = [await context.catalogue.device(device) for device in deployment.devices]
        await settled(context, list(deployment.plugins))
        await _plan(context, deployment, found)

        def planned(body: deployments_pb2.Deployment) -> None:
            if not body.rollouts:
                body.rollouts.extend(deployment.rollouts)
            if body.state == Deployment.STATE_PLANNING:
                body.state = Deployment.STATE_RUNNING

        deployment = (await context.edit_deployment(name, planned)).body
    admitted = []
    for item in deployment.rollouts:
        if item.state == Rollout.STATE_REJECTED:
            continue
        target = (await context.catalogue.device(item.device)).capabilities.target
        plugins = [verdict.plugin for verdict in item.verdicts if verdict.admitted]
        admitted.append(
            Planned(
                device=item.device,
                target_digest=race.target_digest(target),
                target=target.SerializeToString(deterministic=True),
                plugins=plugins,
            )
        )
    return admitted


async def _plan(context: Context, deployment: deployments_pb2.Deployment, found: Sequence[devices_pb2.Device]) -> None:
    """Fill in the rollouts of a deployment: rejected with objections, or pending with the compilers' verdicts."""
    version = await context.catalogue.model_version(deployment.optimized_model_version or deployment.model_version)
    places = [Place(item.capabilities.target, item) for item in found]
    explanation = await explain(context, version, places, plugins=list(deployment.plugins))
    counter = deployment.security_counter or 1
    for index, item in enumerate(found):
        rollout_of = deployment.rollouts.add(device=item.name, previous_module=item.active_module)
        rollout_of.install_id = install_id(deployment.name, item.name)
        against = rollout.device_objections(item, key_id=context.key_id, security_counter=counter)
        verdicts = [verdict for verdict in explanation.verdicts if verdict.destination == index]
        for verdict in verdicts or [routing_pb2.Verdict(destination=index)]:
            added = rollout_of.verdicts.add()
            added.CopyFrom(verdict)
            added.objections.extend(against)
            added.admitted = verdict.admitted and not against
        admitted = any(verdict.admitted for verdict in rollout_of.verdicts)
        rollout_of.state = Rollout.STATE_PENDING if admitted else Rollout.STATE_REJECTED
        devices.noted(rollout_of, "planned" if admitted else "rejected", "" if admitted else _why(rollout_of))


def _why(item: deployments_pb2.DeviceRollout) -> str:
    remedies = [o.remedy for verdict in item.verdicts for o in verdict.objections]
    return "; ".join(dict.fromkeys(remedies)) or "there is no compiler"


def install_id(deployment: str, device: str) -> str:
    """Id of the install of a deployment on a device: [a-z0-9-], the same however often it is asked for."""
    return f"{deployment.rsplit('/', 1)[1]}-{race.digest('install', deployment, device)[:24]}"


async def start_build(context: Context, name: str, group: Planned) -> tuple[str, bool] | None:
    """Make the build for one distinct target, shared by its devices; None when none can be made (the devices fail)."""
    deployment = (await context.deployment(name)).body
    project = name.split("/")[1]
    wanted = builds_pb2.Build(
        model_version=deployment.model_version,
        target=target_pb2.Target.FromString(group["target"]),
        objective=deployment.objective,
        plugins=deployment.plugins,
        samples_sha256=deployment.samples_sha256,
        security_counter=deployment.security_counter,
        optimize=deployment.optimize if deployment.HasField("optimize") else None,
    )
    request_id = f"{name.rsplit('/', 1)[1]}-{group['target_digest'][:32]}"
    try:
        build, to_run = await builds.create(context, project, wanted, request_id)
    except ServiceError as error:
        fault = error.to_status()
        await devices.edit(context, name, group["device"], lambda item: item.error.CopyFrom(fault))
        return None
    return build.name, to_run


async def finish(context: Context, name: str) -> str:
    """End a deployment whose devices have ended; return its state."""
    record = await context.deployment(name)
    if record.ended:
        return Deployment.State.Name(record.body.state)

    def edit(body: deployments_pb2.Deployment) -> None:
        if ended(body):
            return
        body.state = rollout.deployment_state((item.state for item in body.rollouts), cancelled=record.cancel_requested)
        body.end_time.CopyFrom(builds.now())
        if body.state == Deployment.STATE_FAILED:
            reason, message = _fault(body)
            body.error.CopyFrom(status(code_pb2.FAILED_PRECONDITION, reason, message))

    body = (await context.edit_deployment(name, edit)).body
    return Deployment.State.Name(body.state)


def _fault(body: deployments_pb2.Deployment) -> tuple[str, str]:
    states = [item.state for item in body.rollouts]
    if all(state == Rollout.STATE_REJECTED for state in states):
        return "NO_DEVICE_ADMITTED", f"none of {len(states)} devices was admitted; the verdicts say why"
    bad = [item for item in body.rollouts if item.state in (Rollout.STATE_FAILED, Rollout.STATE_ROLLED_BACK)]
    shown = "; ".join(f"{item.device.rsplit('/', 1)[1]}: {item.error.message}" for item in bad[:3])
    return "DEVICES_FAILED", f"{len(bad)} of {len(states)} devices failed: {shown}"


async def roll_back_all(context: Context, name: str) -> list[str]:
    """Return the devices that a rollback has to visit: those that run, or may run, the deployment's module."""
    body = (await context.deployment(name)).body
    return [
        item.device
        for item in body.rollouts
        if item.module and item.state in (Rollout.STATE_ACTIVE, Rollout.STATE_FAILED)
    ]


async def rolled_back(context: Context, name: str) -> None:
    """Mark a deployment as rolled back when no device of it is left active."""

    def edit(body: deployments_pb2.Deployment) -> None:
        if any(item.state == Rollout.STATE_ACTIVE for item in body.rollouts):
            body.error.CopyFrom(
                status(code_pb2.FAILED_PRECONDITION, "ROLLBACK_INCOMPLETE", "some devices could not be rolled back")
            )
            body.state = Deployment.STATE_FAILED
        else:
            body.state = Deployment.STATE_ROLLED_BACK
        if not body.HasField("end_time"):
            body.end_time.CopyFrom(builds.now())

    await context.edit_deployment(name, edit)
