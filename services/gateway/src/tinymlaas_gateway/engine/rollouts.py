"""A rollout while it runs: decided anew at each change and in time; devices that register later join it."""

from __future__ import annotations

import asyncio
from typing import TypedDict

import structlog

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_servicekit import FailedPrecondition, ServiceError

from ..adapters.store import Record
from ..core import rollout_view, waves
from ..core.policy import OnFailure, Policy, policy_of
from ..core.waves import Decision, Dependency
from . import deployments, planning
from .context import Context
from .feedback import Observers

log = structlog.get_logger("tinymlaas.gateway")

Deployment = deployments_pb2.Deployment
SETTLE_SECONDS = 0.05
MAX_SETTLE_SECONDS = 0.5
IDLE_SECONDS = 60.0
# Devices that this process has handed out to be worked on, by deployment: after a restart all that are under way are handed
# out once more, and whose work goes on already is found by its workflow's id.
_handed: dict[str, set[str]] = {}


class Order(TypedDict):
    """What a rollout's workflow does next: work on these devices; `ended`: there is nothing more to come."""

    begin: list[str]
    ended: bool


async def advance(context: Context, name: str) -> Order:
    """Decide until devices begin or the rollout has ended; in between, wait for changes and take devices in.

    May be repeated: a device that has begun begins no second time.
    """
    handed = _handed.setdefault(name, set())
    next_look = 0.0
    async with Observers(context, name) as observers:
        while True:
            record = await context.deployment(name)
            policy = policy_of(record.body)
            if policy.query is not None and context.clock() >= next_look:
                await _take_in(context, record, policy)
                next_look = context.clock() + context.limits.cohort_look_seconds
            decision, record = await decide(context, name, policy)
            order = _order(decision, record.body, handed)
            if order["begin"] or order["ended"]:
                return order
            observers.follow(policy, record.body)
            if not (decision.unmet or decision.stuck or decision.drop or decision.pause or decision.stop):
                wake = _wake(context, policy, decision, next_look)
                await context.deployment_changes.news(name, record, lambda wake=wake: wake - context.clock())  # type: ignore[misc]
                # Changes come in swarms, and a look at many devices takes its time.
                await asyncio.sleep(min(MAX_SETTLE_SECONDS, SETTLE_SECONDS * (1 + len(record.body.rollouts) / 100)))


async def decide(context: Context, name: str, policy: Policy) -> tuple[Decision, Record[deployments_pb2.Deployment]]:
    """Decide once and write the decision, in one transaction; return it and the deployment after it."""
    record = await context.deployment(name)
    dependencies = await _dependencies(context, policy, record.body)
    decisions: list[Decision] = []

    def edit(body: deployments_pb2.Deployment) -> None:
        now = context.clock()
        facts = rollout_view.facts(body, now, cancelled=record.cancel_requested)
        decision = waves.decide(
            policy, rollout_view.waves_now(body), rollout_view.devices_now(body, dependencies, context.started), facts
        )
        rollout_view.apply(body, decision, now)
        decisions.append(decision)

    record = await context.edit_deployment(name, edit)
    return decisions[-1], record


async def _dependencies(context: Context, policy: Policy, body: deployments_pb2.Deployment) -> dict[str, Dependency]:
    if not policy.after:
        return {}
    found = [await asyncio.to_thread(context.deployments.get, name) for name in policy.after]
    before = [rollout_view.Before(record.body if record is not None else None) for record in found]
    return {item.device: rollout_view.together([one.reached(item.device) for one in before]) for item in body.rollouts}


def _order(decision: Decision, body: deployments_pb2.Deployment, handed: set[str]) -> Order:
    under_way = [item.device for item in body.rollouts if item.HasField("start_time") and item.state not in waves.ENDED]
    begin = [device for device in under_way if device not in handed]
    handed.update(begin)
    return Order(begin=begin, ended=decision.ended)


def _wake(context: Context, policy: Policy, decision: Decision, next_look: float) -> float:
    """When to look again though nothing has changed."""
    wakes = [context.clock() + IDLE_SECONDS]
    if decision.wake is not None:
        wakes.append(decision.wake)
    if policy.query is not None:
        wakes.append(next_look)
    return min(wakes)


async def _take_in(context: Context, record: Record[deployments_pb2.Deployment], policy: Policy) -> None:
    """Plan for devices that match the query and take no part yet, and put them into the last wave, as long as it is not over.

    One that would be left out just because a plugin is away is none yet: it is looked at again.
    """
    body = record.body
    if record.cancel_requested or body.stopping or not body.waves or body.waves[-1].state in waves.OVER:
        return
    known = {item.device for item in body.rollouts}
    try:
        matching = await planning.matching(context, body.name.split("/")[1], policy)
        joined = [item for item in matching if item.name not in known][: deployments.MAX_DEVICES - len(known)]
        if not joined:
            return
        judged, undecided = await planning.judged_now(context, body, joined)
    except ServiceError as error:
        log.warning("nobody could join a rollout", deployment=body.name, error=str(error)[:300])
        return
    joining = [item for item in judged if item.device not in undecided]
    if not joining:
        return

    def edit(body: deployments_pb2.Deployment) -> None:
        there = {item.device for item in body.rollouts}
        for item in joining:
            if item.device not in there:
                item.wave = len(body.waves) - 1
                rollout_view.noted(item, context.clock(), "joined", body.waves[-1].name)
                body.rollouts.append(item)
                body.devices.append(item.device)

    await context.edit_deployment(body.name, edit)


async def to_roll_back(context: Context, name: str) -> list[str]:
    """The devices that go back because a wave failed and the policy wants it."""
    body = (await context.deployment(name)).body
    _handed.pop(name, None)
    if not body.stopping or policy_of(body).on_failure != OnFailure.ON_FAILURE_ROLL_BACK:
        return []
    return await deployments.roll_back_all(context, name)


def forget() -> None:
    """Hand out anew whatever is under way: what a gateway that starts has to do."""
    _handed.clear()


async def pause(context: Context, name: str) -> deployments_pb2.Deployment:
    """Begin no device until `resume`; FailedPrecondition / DEPLOYMENT_ENDED when it has ended."""

    def edit(body: deployments_pb2.Deployment) -> None:
        _refuse_ended(body)
        body.state = Deployment.STATE_PAUSED
        body.waits_for = waves.SOMEBODY

    return (await context.edit_deployment(name, edit)).body


async def resume(context: Context, name: str) -> deployments_pb2.Deployment:
    """Go on with a paused deployment, in spite of failures so far; FailedPrecondition / DEPLOYMENT_ENDED when it has ended."""

    def edit(body: deployments_pb2.Deployment) -> None:
        _refuse_ended(body)
        if body.state == Deployment.STATE_PAUSED:
            rollout_view.waive(body)
            body.state = Deployment.STATE_RUNNING if body.waves else Deployment.STATE_PLANNING
            body.waits_for = ""

    return (await context.edit_deployment(name, edit)).body


async def approve(context: Context, name: str, wave: str) -> deployments_pb2.Deployment:
    """Approve a wave; FailedPrecondition / NOTHING_TO_APPROVE when none waits and none of this name is there."""

    def edit(body: deployments_pb2.Deployment) -> None:
        _refuse_ended(body)
        if not rollout_view.approve(body, wave):
            raise FailedPrecondition(
                f"no wave is called {wave!r}" if wave else "no wave waits for approval",
                "NOTHING_TO_APPROVE",
                {"name": name, "waves": ", ".join(item.name for item in body.waves)},
                "Name a wave of the deployment, or wait until one asks for approval.",
            )

    return (await context.edit_deployment(name, edit)).body


def _refuse_ended(body: deployments_pb2.Deployment) -> None:
    if deployments.ended(body) or body.stopping:
        raise FailedPrecondition(
            f"{body.name} has ended", "DEPLOYMENT_ENDED", {"name": body.name}, "Create another deployment."
        )
