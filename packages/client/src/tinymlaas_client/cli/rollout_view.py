"""How a deployment looks: its waves, its devices, the timeline of one."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2

DeviceRollout = deployments_pb2.DeviceRollout
MAX_ROWS = 40
_COLOURS = {
    DeviceRollout.STATE_ACTIVE: "green",
    DeviceRollout.STATE_REJECTED: "yellow",
    DeviceRollout.STATE_FAILED: "red",
    DeviceRollout.STATE_ROLLED_BACK: "red",
    DeviceRollout.STATE_CANCELLED: "yellow",
}
_WAVE_COLOURS = {
    rollouts_pb2.Wave.STATE_RUNNING: "cyan",
    rollouts_pb2.Wave.STATE_SOAKING: "cyan",
    rollouts_pb2.Wave.STATE_AWAITING_APPROVAL: "magenta",
    rollouts_pb2.Wave.STATE_PASSED: "green",
    rollouts_pb2.Wave.STATE_FAILED: "red",
    rollouts_pb2.Wave.STATE_CANCELLED: "yellow",
}
# Shown first where there are more devices than rows: what is worked on, what went wrong, what is done, what waits.
_ORDER = (
    DeviceRollout.STATE_INSTALLING,
    DeviceRollout.STATE_SELF_TESTING,
    DeviceRollout.STATE_ACTIVATING,
    DeviceRollout.STATE_FAILED,
    DeviceRollout.STATE_ROLLED_BACK,
    DeviceRollout.STATE_BUILDING,
    DeviceRollout.STATE_CANCELLED,
    DeviceRollout.STATE_ACTIVE,
    DeviceRollout.STATE_REJECTED,
    DeviceRollout.STATE_PENDING,
)


def state_name(deployment: deployments_pb2.Deployment) -> str:
    """State of a deployment as a word."""
    return _word(deployments_pb2.Deployment.State.Name(deployment.state))


def _word(name: str) -> str:
    return name.removeprefix("STATE_").lower().replace("_", " ")


def rollout_view(deployment: deployments_pb2.Deployment) -> RenderableType:
    """A deployment: its waves where it has several, what it waits for, and its devices."""
    parts: list[RenderableType] = []
    if len(deployment.waves) > 1:
        parts.append(wave_table(deployment))
    if deployment.waits_for:
        until = f", until {_clock(deployment)}" if deployment.HasField("next_time") else ""
        parts.append(Text(f"waits for {deployment.waits_for}{until}", style="magenta"))
    parts.append(rollout_table(deployment))
    return Group(*parts)


def _clock(deployment: deployments_pb2.Deployment) -> str:
    return deployment.next_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")


def wave_table(deployment: deployments_pb2.Deployment) -> Table:
    """One row for each wave."""
    table = Table("wave", "state", "active", "failed", "devices", "", "note")
    for wave in deployment.waves:
        bar = ProgressBar(total=wave.devices or 1, completed=wave.active, width=16)
        table.add_row(
            escape(wave.name),
            f"[{_WAVE_COLOURS.get(wave.state, 'dim')}]{_word(rollouts_pb2.Wave.State.Name(wave.state))}[/]",
            str(wave.active),
            f"[red]{wave.failed}[/]" if wave.failed else "0",
            str(wave.devices),
            bar,
            Text(wave.error.message + (" (accepted)" if wave.waived else "")),
        )
    return table


def rollout_table(deployment: deployments_pb2.Deployment) -> Table:
    """One row for each device, at most MAX_ROWS: what is worked on and what went wrong comes first."""
    table = Table(
        "device",
        "wave",
        "state",
        "progress",
        "module",
        "note",
        title=f"{deployment.name} {state_name(deployment)}",
        title_justify="left",
    )
    rank = {state: index for index, state in enumerate(_ORDER)}
    shown = list(deployment.rollouts)
    if len(shown) > MAX_ROWS:
        shown = sorted(shown, key=lambda item: rank.get(item.state, 0))[:MAX_ROWS]
        table.caption = f"and {len(deployment.rollouts) - MAX_ROWS} more"
    for rollout in shown:
        bar = ProgressBar(total=rollout.bytes_total or 1, completed=rollout.bytes_done, width=16)
        rejected = rollout.state == DeviceRollout.STATE_REJECTED
        wave = deployment.waves[rollout.wave].name if rollout.wave < len(deployment.waves) and not rejected else ""
        table.add_row(
            rollout.device.rsplit("/", 1)[-1],
            escape(wave),
            f"[{_COLOURS.get(rollout.state, 'cyan')}]{_word(DeviceRollout.State.Name(rollout.state))}[/]",
            bar,
            rollout.module.rsplit("/", 1)[-1][:16],
            Text(_note(rollout)),
        )
    return table


def _note(rollout: deployments_pb2.DeviceRollout) -> str:
    if rollout.state == DeviceRollout.STATE_REJECTED:
        objections = (objection for verdict in rollout.verdicts for objection in verdict.objections)
        return "; ".join(objection.remedy or objection.message for objection in objections)
    against: str = rollout.feedback.objection.message or rollout.error.message
    if against:
        return against
    if rollout.feedback.invocations:
        told = rollout.feedback
        return f"{told.invocations} runs, {told.errors} failed, last {told.last_latency} {told.latency_unit}"
    return rollout.timeline[-1].detail if rollout.timeline else ""


def timeline_table(rollout: deployments_pb2.DeviceRollout) -> Table:
    """What happened on one device, step by step."""
    table = Table("time (UTC)", "step", "detail", title=rollout.device, title_justify="left")
    for event in rollout.timeline:
        table.add_row(
            event.time.ToDatetime().isoformat(sep=" ", timespec="milliseconds"), event.step, Text(event.detail)
        )
    return table
