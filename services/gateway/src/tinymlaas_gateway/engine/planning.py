"""Plans of deployments: who takes part, what speaks against a device, which wave it is in, and which builds are needed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TypedDict

from google.rpc import status_pb2

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, routing_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_servicekit import ServiceError, sql

from ..core import cohort, race, rollout, routing
from ..core.firmware import base_objections, device_target
from ..core.policy import Policy, policy_of
from ..core.rollout_view import make_waves, noted
from . import builds, devices, firmware, optimizing
from .calls import sought
from .context import Context
from .explain import Place, explain

Deployment = deployments_pb2.Deployment
Rollout = deployments_pb2.DeviceRollout


class Group(TypedDict):
    """Admitted devices with one target, which is serialized: one build serves them."""

    target: bytes
    devices: list[str]


async def matching(context: Context, project: str, policy: Policy) -> list[devices_pb2.Device]:
    """Devices of a project that a policy asks for: all, or with a query those that are registered, were read, and match.

    One that its bridge has not read yet says nothing of itself: it joins once it does.
    """
    found = await context.catalogue.devices(project)
    if policy.query is None:
        return found
    here = (
        item for item in found if item.state == devices_pb2.Device.STATE_REGISTERED and item.HasField("capabilities")
    )
    return [item for item in here if cohort.matches(policy.query, item)]


async def plan(context: Context, name: str) -> list[Group]:
    """Explain every device, record who is left out and why and who is in which wave, and return what to build for.

    What is recorded already stays.
    """
    deployment = Deployment()
    deployment.CopyFrom((await context.deployment(name)).body)
    if not deployment.waves:
        found = [await context.catalogue.device(device) for device in deployment.devices]
        if not deployment.rollouts:
            deployment.rollouts.extend(await _judged_patiently(context, deployment, found))
        put_into_waves(deployment, found)

        def planned(body: deployments_pb2.Deployment) -> None:
            if not body.waves:
                del body.rollouts[:]
                body.rollouts.extend(deployment.rollouts)
                body.waves.extend(deployment.waves)
            if body.state == Deployment.STATE_PLANNING:
                body.state = Deployment.STATE_RUNNING
                body.waits_for = ""

        deployment = (await context.edit_deployment(name, planned)).body
    bases = await firmware.bases(context, name.split("/")[1], deployment.firmware_sha256s)
    groups: dict[str, Group] = {}
    for item in deployment.rollouts:
        if item.state != Rollout.STATE_REJECTED:
            target = device_target(await context.catalogue.device(item.device), bases)
            group = Group(target=target.SerializeToString(deterministic=True), devices=[])
            groups.setdefault(race.target_digest(target), group)["devices"].append(item.device)
    return list(groups.values())


def put_into_waves(deployment: deployments_pb2.Deployment, found: Sequence[devices_pb2.Device]) -> None:
    admitted = {item.device for item in deployment.rollouts if item.state != Rollout.STATE_REJECTED}
    known = {item.name: item for item in found if item.name in admitted}
    targets = {name: race.target_digest(item.capabilities.target) for name, item in known.items()}
    make_waves(deployment, policy_of(deployment), known, targets)


async def _judged_patiently(
    context: Context, deployment: deployments_pb2.Deployment, found: Sequence[devices_pb2.Device]
) -> list[deployments_pb2.DeviceRollout]:
    """The rollouts of devices; asks again while one is left out just because a plugin is away, up to its patience."""
    loop = asyncio.get_running_loop()
    end, pause = math.inf, context.limits.retry_pause_seconds
    while True:
        known = context.plugins.known()
        made, undecided = await judged_now(context, deployment, found)
        if not undecided or loop.time() >= end:
            return made
        # It begins here: the registry may have been away before.
        end = min(end, loop.time() + context.limits.plugin_patience_seconds)
        if (await context.edit_deployment(deployment.name, _waiting)).cancel_requested:
            return made
        # A plugin that breaks off each time it is asked is asked less and less often; news of plugins are heard at once.
        await sought(
            lambda known=known: None if context.plugins.known() is known else True,  # type: ignore[misc]
            min(pause, end - loop.time()),
        )
        pause *= 2


def _waiting(body: deployments_pb2.Deployment) -> None:
    if body.state == Deployment.STATE_PLANNING:
        body.waits_for = "plugins that are away"


async def judged(
    context: Context, deployment: deployments_pb2.Deployment, found: Sequence[devices_pb2.Device]
) -> list[deployments_pb2.DeviceRollout]:
    """The rollouts of devices: rejected with objections, or pending with the compilers' verdicts."""
    return (await judged_now(context, deployment, found))[0]


async def judged_now(
    context: Context, deployment: deployments_pb2.Deployment, found: Sequence[devices_pb2.Device]
) -> tuple[list[deployments_pb2.DeviceRollout], set[str]]:
    """The rollouts of devices, and which of the rejected may yet be admitted: all that speaks against them is an absence."""
    version = await context.catalogue.model_version(deployment.optimized_model_version or deployment.model_version)
    bases = await firmware.bases(context, deployment.name.split("/")[1], deployment.firmware_sha256s)
    places = [Place(device_target(item, bases), item) for item in found]
    explanation = await explain(context, version, places, plugins=list(deployment.plugins))
    verdicts: dict[int, list[routing_pb2.Verdict]] = {}
    for verdict in explanation.verdicts:
        verdicts.setdefault(verdict.destination, []).append(verdict)
    counter = deployment.security_counter or 1
    made: list[deployments_pb2.DeviceRollout] = []
    undecided: set[str] = set()
    for index, item in enumerate(found):
        rollout_of = Rollout(device=item.name, previous_module=item.active_module)
        rollout_of.install_id = install_id(deployment.name, item.name)
        against = rollout.device_objections(item, key_id=context.key_id, security_counter=counter)
        against += base_objections(item, bases)
        for verdict in verdicts.get(index) or [routing_pb2.Verdict(destination=index)]:
            added = rollout_of.verdicts.add()
            added.CopyFrom(verdict)
            added.objections.extend(against)
            added.admitted = verdict.admitted and not against
        admitted = any(verdict.admitted for verdict in rollout_of.verdicts)
        rollout_of.state = Rollout.STATE_PENDING if admitted else Rollout.STATE_REJECTED
        why = "" if admitted else _why(rollout_of)
        noted(rollout_of, context.clock(), "planned" if admitted else "rejected", why)
        made.append(rollout_of)
        if not admitted and not against and index in explanation.undecided:
            undecided.add(item.name)
    return made, undecided


def _why(item: deployments_pb2.DeviceRollout) -> str:
    remedies = [o.remedy for verdict in item.verdicts for o in verdict.objections]
    return "; ".join(dict.fromkeys(remedies)) or "there is no compiler"


def install_id(deployment: str, device: str) -> str:
    """Id of the install of a deployment on a device: [a-z0-9-], the same however often it is asked for."""
    return f"{deployment.rsplit('/', 1)[1]}-{race.digest('install', deployment, device)[:24]}"


async def start_build(context: Context, name: str, group: Group) -> tuple[str, bool]:
    """Make the build for one target and note it at its devices; ("", False) when none can be made: the devices fail."""
    deployment = (await context.deployment(name)).body
    project = name.split("/")[1]
    members = set(group["devices"])
    await _found_again(context, deployment, members)
    target = target_pb2.Target.FromString(group["target"])
    wanted = builds_pb2.Build(
        model_version=deployment.model_version,
        target=target,
        objective=deployment.objective,
        plugins=deployment.plugins,
        samples_sha256=deployment.samples_sha256,
        security_counter=deployment.security_counter,
        optimize=deployment.optimize if deployment.HasField("optimize") else None,
    )
    request_id = f"{name.rsplit('/', 1)[1]}-{race.target_digest(target)[:32]}"
    fault: status_pb2.Status | None = None
    made, to_run = "", False
    try:
        build, to_run = await builds.create(context, project, wanted, request_id)
        made = build.name
    except ServiceError as error:
        if error.reason == sql.AWAY:  # no fault of the devices'
            raise
        fault = error.to_status()

    def note(body: deployments_pb2.Deployment) -> None:
        for item in body.rollouts:
            if item.device in members:
                item.build = made
                if fault is not None:
                    item.error.CopyFrom(fault)

    await context.edit_deployment(name, note)
    return made, to_run


async def _found_again(context: Context, deployment: deployments_pb2.Deployment, devices: set[str]) -> None:
    """Wait for the plugins that a build for these devices needs: a gateway that was started anew finds them one by one."""
    verdicts = [verdict for item in deployment.rollouts if item.device in devices for verdict in item.verdicts]
    wanted = {*deployment.plugins, *(verdict.plugin for verdict in verdicts if verdict.admitted)}
    optimizes = deployment.HasField("optimize")

    def look() -> bool | None:
        known = [item.plugin for item in context.plugins.known()]
        compilers = {plugin.name for plugin in known if routing.is_compiler(plugin)}
        optimizer = any(optimizing.OPTIMIZER_ROLE in plugin.capabilities for plugin in known)
        return True if compilers and wanted <= compilers and (optimizer or not optimizes) else None

    await sought(look, context.limits.plugin_patience_seconds)


async def device_build(context: Context, name: str, device: str) -> tuple[str, bool]:
    """The build for a device as the plan made it; for one that joined later it is made now, as `start_build` does."""
    item = devices.find((await context.deployment_of(name, device)).body, device)
    if item.build or item.HasField("error"):
        return item.build, False
    known = await context.catalogue.device(device)
    digests = (await context.deployment(name)).body.firmware_sha256s
    target = device_target(known, await firmware.bases(context, name.split("/")[1], digests))
    group = Group(target=target.SerializeToString(deterministic=True), devices=[device])
    return await start_build(context, name, group)
