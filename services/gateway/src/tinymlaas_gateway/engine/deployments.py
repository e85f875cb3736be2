"""Deployments: made from a request, planned, ended. The steps on a device are in `devices`."""

from __future__ import annotations

import asyncio
from typing import Literal, get_args

from google.rpc import code_pb2

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_servicekit import (
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ServiceError,
)

from ..core import race, rollout
from ..core.objections import status
from ..core.policy import OnFailure, Policy, policy_of
from ..core.rollout_view import count
from . import builds, firmware, optimizing, planning
from .context import Context

Deployment = deployments_pb2.Deployment
Rollout = deployments_pb2.DeviceRollout
_Output = Literal[
    "name",
    "state",
    "rollouts",
    "error",
    "create_time",
    "end_time",
    "optimized_model_version",
    "waves",
    "waits_for",
    "next_time",
    "stopping",
]
OUTPUT_FIELDS: tuple[_Output, ...] = get_args(_Output)
ENDED = (
    Deployment.STATE_SUCCEEDED,
    Deployment.STATE_FAILED,
    Deployment.STATE_CANCELLED,
    Deployment.STATE_ROLLED_BACK,
)
MAX_DEVICES = 1000


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
    policy = await _policy(context, project, given)
    await firmware.bases(context, project, given.firmware_sha256s)
    version = await context.catalogue.model_version(given.model_version, patience=5.0)
    deployment = Deployment()
    deployment.CopyFrom(given)
    deployment.name = name
    deployment.model_version = version.name
    deployment.create_time.CopyFrom(builds.now())
    deployment.state = Deployment.STATE_PLANNING
    if given.HasField("optimize"):
        optimizing.required(context, given.optimize, given.samples_sha256)
    found = await _devices(context, project, given, policy)
    if validate_only:  # optimizing takes minutes and stores a version: a plan is about the model as it was given
        deployment.rollouts.extend(await planning.judged(context, deployment, found))
        planning.put_into_waves(deployment, found)
        return deployment, False
    del deployment.devices[:]
    deployment.devices.extend(item.name for item in found)
    record, _ = await asyncio.to_thread(context.deployments.create, project, deployment, fingerprint)
    return record.body, not record.ended


async def _policy(context: Context, project: str, given: deployments_pb2.Deployment) -> Policy:
    """The checked policy of a request; InvalidArgument, or NotFound for a deployment of `after` that is not there."""
    policy = policy_of(given)
    if policy.query is not None and given.devices:
        raise InvalidArgument(
            "devices are named and asked for by a query", "POLICY_INVALID", {"field": "policy.query"}, "Do one of both."
        )
    if policy.open_until and policy.query is None:
        raise InvalidArgument(
            "open_until is set, but no device can join without a query",
            "POLICY_INVALID",
            {"field": "policy.open_until"},
            "Set policy.query too; an empty one takes every device.",
        )
    for name in policy.after:
        if not name.startswith(f"projects/{project}/deployments/"):
            raise InvalidArgument(f"{name} is no deployment of the project", "PROJECT_MISMATCH", {"name": name})
        if await asyncio.to_thread(context.deployments.get, name) is None:
            raise NotFound(f"{name} does not exist", metadata={"name": name})
    return policy


async def _devices(
    context: Context, project: str, given: deployments_pb2.Deployment, policy: Policy
) -> list[devices_pb2.Device]:
    if len(given.devices) > MAX_DEVICES:
        raise InvalidArgument(
            f"{len(given.devices)} devices are named, at most {MAX_DEVICES} are allowed",
            "LIMIT_EXCEEDED",
            {"limit": "devices"},
        )
    if given.devices:
        return [await context.catalogue.device(name) for name in dict.fromkeys(given.devices)]
    found = await planning.matching(context, project, policy)
    if not found and policy.open_until <= context.clock():
        raise FailedPrecondition(
            "the project has no device" if policy.query is None else "no device is what the query asks for",
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


async def finish(context: Context, name: str) -> str:
    """End a deployment whose devices have ended; return its state."""
    record = await context.deployment(name)
    if record.ended:
        return Deployment.State.Name(record.body.state)

    def edit(body: deployments_pb2.Deployment) -> None:
        if ended(body):
            return
        count(body)
        body.waits_for = ""
        body.ClearField("next_time")
        body.end_time.CopyFrom(builds.now())
        if body.stopping:  # its error is that of the wave
            body.state = _stopped_state(body)
            return
        body.state = rollout.deployment_state((item.state for item in body.rollouts), cancelled=record.cancel_requested)
        if body.state == Deployment.STATE_FAILED:
            reason, message = _fault(body)
            body.error.CopyFrom(status(code_pb2.FAILED_PRECONDITION, reason, message))

    body = (await context.edit_deployment(name, edit)).body
    return Deployment.State.Name(body.state)


def _stopped_state(body: deployments_pb2.Deployment) -> deployments_pb2.Deployment.State.ValueType:
    """How a deployment ended whose wave failed: rolled back where the policy wants it and no device is left active."""
    wants = policy_of(body).on_failure == OnFailure.ON_FAILURE_ROLL_BACK
    left = any(item.state == Rollout.STATE_ACTIVE for item in body.rollouts)
    return Deployment.STATE_ROLLED_BACK if wants and not left else Deployment.STATE_FAILED


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
        count(body)
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
