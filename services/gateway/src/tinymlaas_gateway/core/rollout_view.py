"""A deployment's message read for `waves.decide`, and what that decided written back into it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf import timestamp_pb2
from google.rpc import code_pb2, status_pb2

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2
from tinymlaas.registry.v1 import devices_pb2

from . import cohort
from .objections import clean, status
from .policy import Policy
from .waves import BAD, OVER, Decision, Dependency, DeviceNow, Now, State, WaveNow, WaveState

Deployment = deployments_pb2.Deployment
MAX_TIMELINE = 200


def stamp(seconds: float) -> timestamp_pb2.Timestamp:
    """A time (seconds since 1970) as a message."""
    made = timestamp_pb2.Timestamp()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


def seconds_of(time: timestamp_pb2.Timestamp) -> float:
    """A message's time in seconds since 1970."""
    return time.ToNanoseconds() / 1e9


def noted(item: deployments_pb2.DeviceRollout, at: float, step: str, detail: str = "") -> None:
    """Append to a device's timeline, unless its last entry says the same; the first and the last 199 entries stay.

    It counts as progress of the device.
    """
    if item.timeline and (item.timeline[-1].step, item.timeline[-1].detail) == (step, clean(detail, 200)):
        return
    item.timeline.add(time=stamp(at), step=step, detail=clean(detail, 200))
    item.progress_time.CopyFrom(stamp(at))
    if len(item.timeline) > MAX_TIMELINE:
        del item.timeline[1]


def make_waves(
    body: deployments_pb2.Deployment,
    policy: Policy,
    devices: Mapping[str, devices_pb2.Device],
    targets: Mapping[str, str],
) -> None:
    """Put the admitted devices of a plan into waves. `targets` has the digest of each admitted device's target."""
    ordered = cohort.order(body.name, targets)
    placed = cohort.divide(policy, ordered, lambda query, name: cohort.matches(query, devices[name]))
    del body.waves[:]
    for wave in policy.waves:
        body.waves.add(name=wave.name, state=WaveState.STATE_PENDING)
    for item in body.rollouts:
        item.wave = placed.get(item.device, 0)
    count(body)


def devices_now(
    body: deployments_pb2.Deployment, dependencies: Mapping[str, Dependency], since: float = 0.0
) -> tuple[DeviceNow, ...]:
    """The admitted devices of a deployment. What moved before `since`, when nobody could see it, counts as moved then."""
    return tuple(
        DeviceNow(
            name=item.device,
            wave=min(item.wave, max(len(body.waves) - 1, 0)),
            state=item.state,
            start=seconds_of(item.start_time) if item.HasField("start_time") else None,
            moved=max(since, seconds_of(item.progress_time)),
            draw=cohort.draw(body.name, item.device, "jitter"),
            stuck=item.stuck,
            degraded=item.feedback.HasField("objection"),
            dependency=dependencies.get(item.device, Dependency.MET),
        )
        for item in body.rollouts
        if item.state != State.STATE_REJECTED
    )


def waves_now(body: deployments_pb2.Deployment) -> tuple[WaveNow, ...]:
    """The waves of a deployment."""
    return tuple(
        WaveNow(
            state=wave.state or WaveState.STATE_PENDING,
            start=seconds_of(wave.start_time),
            settled=seconds_of(wave.settle_time),
            approved=wave.approved,
            waived=wave.waived,
            failure=wave.error.message if wave.HasField("error") else "",
        )
        for wave in body.waves
    )


def facts(body: deployments_pb2.Deployment, time: float, *, cancelled: bool) -> Now:
    """What holds beside devices and waves."""
    return Now(time, body.state == Deployment.STATE_PAUSED, cancelled, body.stopping)


def apply(body: deployments_pb2.Deployment, decision: Decision, now: float) -> None:
    """Write a decision into a deployment. Devices that begin get their start time; working on them is the engine's."""
    for wave, after in zip(body.waves, decision.waves, strict=True):
        _write_wave(wave, after, now)
    items = {item.device: item for item in body.rollouts}
    for name in decision.begin:
        items[name].start_time.CopyFrom(stamp(now))
        noted(items[name], now, "begun", body.waves[items[name].wave].name)
    for name in decision.stuck:
        items[name].stuck = True
        items[name].error.CopyFrom(_fault("DEVICE_STUCK", "it made no progress for too long", device=name))
        noted(items[name], now, "stuck", "no progress for too long")
    for name in decision.unmet:
        items[name].state = State.STATE_FAILED
        items[name].error.CopyFrom(_fault("DEPENDENCY_FAILED", "a deployment before it failed for it", device=name))
        noted(items[name], now, "failed", "a deployment before it failed for it")
    for name in decision.drop:
        items[name].state = State.STATE_CANCELLED
        noted(items[name], now, "cancelled", "the rollout ended before it")
    if decision.pause and body.state in (Deployment.STATE_RUNNING, Deployment.STATE_PLANNING):
        body.state = Deployment.STATE_PAUSED
    if decision.stop and not body.stopping:
        body.stopping = True
        failed = next((wave for wave in body.waves if wave.HasField("error")), None)
        if failed is not None:
            body.error.CopyFrom(failed.error)
    body.waits_for = decision.waits_for
    if decision.waits_for and decision.wake is not None:
        body.next_time.CopyFrom(stamp(decision.wake))
    else:
        body.ClearField("next_time")
    count(body)


def _write_wave(wave: rollouts_pb2.Wave, after: WaveNow, now: float) -> None:
    wave.state = after.state
    if after.start and not wave.HasField("start_time"):
        wave.start_time.CopyFrom(stamp(after.start))
    if after.settled:
        wave.settle_time.CopyFrom(stamp(after.settled))
    else:
        wave.ClearField("settle_time")
    if after.state in OVER and not wave.HasField("end_time"):
        wave.end_time.CopyFrom(stamp(now))
    if after.failure and not wave.HasField("error"):
        wave.error.CopyFrom(_fault("WAVE_FAILED", f"{wave.name}: {after.failure}", wave=wave.name))


def count(body: deployments_pb2.Deployment) -> None:
    """Write into each wave how many devices it has, and how many of them are active and failed."""
    total, active, failed = ([0] * len(body.waves) for _ in range(3))
    for item in body.rollouts:
        if item.state == State.STATE_REJECTED or item.wave >= len(total):
            continue
        total[item.wave] += 1
        active[item.wave] += item.state == State.STATE_ACTIVE
        failed[item.wave] += item.state in BAD or item.stuck or item.feedback.HasField("objection")
    for wave, *counts in zip(body.waves, total, active, failed, strict=True):
        wave.devices, wave.active, wave.failed = counts


def waive(body: deployments_pb2.Deployment) -> None:
    """Accept the failures so far: waves that failed are not judged again."""
    for wave in body.waves:
        if wave.HasField("error"):
            wave.waived = True


def approve(body: deployments_pb2.Deployment, name: str) -> bool:
    """Approve the wave of this name, or without one the wave that waits; False when there is none."""
    waiting = [wave for wave in body.waves if wave.state == WaveState.STATE_AWAITING_APPROVAL]
    found = [wave for wave in body.waves if wave.name == name] if name else waiting
    for wave in found[:1]:
        wave.approved = True
    return bool(found)


class Before:
    """A deployment that has to come first; None is one that is gone."""

    def __init__(self, body: deployments_pb2.Deployment | None) -> None:
        self._state = body.state if body is not None else None
        self._devices = {item.device: item.state for item in body.rollouts} if body is not None else {}

    def reached(self, device: str) -> Dependency:
        """Tell whether it has reached a device: made it active, and did not take that back, or succeeded without it."""
        if self._state is None:
            return Dependency.FAILED
        mine = self._devices.get(device)
        ended = self._state not in (Deployment.STATE_PLANNING, Deployment.STATE_RUNNING, Deployment.STATE_PAUSED)
        if mine == State.STATE_ACTIVE:
            return Dependency.MET
        if mine is not None and (ended or mine in (State.STATE_FAILED, State.STATE_ROLLED_BACK)):
            return Dependency.FAILED
        if not ended:
            return Dependency.WAITING
        return Dependency.MET if self._state == Deployment.STATE_SUCCEEDED else Dependency.FAILED


def together(found: Sequence[Dependency]) -> Dependency:
    """What several dependencies come to: all must be met."""
    if Dependency.FAILED in found:
        return Dependency.FAILED
    return Dependency.WAITING if Dependency.WAITING in found else Dependency.MET


def _fault(reason: str, message: str, **metadata: object) -> status_pb2.Status:
    return status(code_pb2.FAILED_PRECONDITION, reason, message, **metadata)
