"""What the gateway counts of its own work (tinymlaas_servicekit.metrics has the names and their meaning)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas_servicekit.metrics import count, watch

from .context import Context

_UP = (plugins_pb2.Plugin.STATE_READY,)


def observe(context: Context) -> Callable[[], None]:
    """Count what ends and show what is open, from now until the result is called."""
    context.builds.on_end(build_ended)
    context.deployments.on_end(deployment_ended)
    stops = [
        watch("tinymlaas.builds.queue", lambda: [(len(context.builds.unfinished()), {})]),
        watch("tinymlaas.deployments.open", lambda: [(len(context.deployments.unfinished()), {})]),
        watch("tinymlaas.plugin.up", lambda: _plugins(context)),
    ]

    def stop() -> None:
        for each in stops:
            each()

    return stop


def _plugins(context: Context) -> Iterable[tuple[float, dict[str, str]]]:
    for item in context.plugins.known():
        state = plugins_pb2.Plugin.State.Name(item.plugin.state).removeprefix("STATE_")
        yield float(item.plugin.state in _UP), {"plugin": item.plugin.name, "state": state}


def build_ended(build: builds_pb2.Build) -> None:
    """Count a build and the outcome of its race; one that was answered from what is known had no race of its own."""
    state = builds_pb2.Build.State.Name(build.state).removeprefix("STATE_")
    count("tinymlaas.builds.ended", state=state, cached=str(build.cached).lower())
    for item in () if build.cached else build.candidates:
        won = bool(item.module) and item.module == build.module
        outcome = "won" if won else builds_pb2.Candidate.State.Name(item.state).removeprefix("STATE_").lower()
        count("tinymlaas.race.outcomes", plugin=item.plugin, outcome=outcome)


def deployment_ended(deployment: deployments_pb2.Deployment) -> None:
    """Count a deployment and the states that its devices ended in."""
    name = deployments_pb2.Deployment.State.Name(deployment.state).removeprefix("STATE_")
    count("tinymlaas.deployments.ended", state=name)
    states = Counter(deployments_pb2.DeviceRollout.State.Name(item.state) for item in deployment.rollouts)
    for state, devices in states.items():
        count("tinymlaas.rollout.devices", devices, state=state.removeprefix("STATE_"))
