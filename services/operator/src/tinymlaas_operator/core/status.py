"""Status of a CompilerPlugin: conditions as Kubernetes has them, from what was seen of it.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md (Conditions)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .spec import Identity, PluginSpec, Refused

MESSAGE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Termination:
    """How a container of the plugin ended last."""

    pod: str
    reason: str
    exit_code: int
    time: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cluster and the plugin told of a resource in one round. `probe_error` is why the plugin did not answer."""

    ready_replicas: int = 0
    wanted_replicas: int = 1
    restarts: int = 0
    last_termination: Termination | None = None
    waiting: str = ""
    identity: Identity | None = None
    probe_error: str = ""
    refused: Refused | None = None
    registered: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; `state` is True, False or Unknown."""

    kind: str
    state: str
    reason: str
    message: str = ""


def conditions(spec: PluginSpec, seen: Seen) -> list[Condition]:
    """Accepted, Available, Identified, Registered, Healthy: each says why it is as it is."""
    if spec.deleted:
        return [
            Condition("Accepted", "True", "Draining", "it takes no new work and ends when its running work has ended"),
            Condition("Registered", "False", "Draining"),
        ]
    return [_accepted(seen), _available(seen), _identified(seen), _registered(seen), _healthy(spec, seen)]


def _accepted(seen: Seen) -> Condition:
    if seen.refused is not None:
        return Condition("Accepted", "False", seen.refused.reason, seen.refused.message)
    return Condition("Accepted", "True", "Allowed")


def _available(seen: Seen) -> Condition:
    if seen.ready_replicas:
        return Condition("Available", "True", "Running", f"{seen.ready_replicas} of {seen.wanted_replicas} replicas")
    return Condition("Available", "False", seen.waiting or "NotReady", "no replica is ready")


def _identified(seen: Seen) -> Condition:
    if seen.identity is None:
        return Condition("Identified", "False" if seen.probe_error else "Unknown", "NoAnswer", seen.probe_error)
    told = f"{seen.identity.name} {seen.identity.vendor_version}, contract {seen.identity.contract_version}"
    return Condition("Identified", "True", "Ready" if seen.identity.ready else "Loading", told)


def _registered(seen: Seen) -> Condition:
    if seen.registered:
        return Condition("Registered", "True", "InManifest", "gateways read the manifest anew within about a minute")
    return Condition("Registered", "False", "NotAccepted" if seen.refused else "NotIdentified")


def _healthy(spec: PluginSpec, seen: Seen) -> Condition:
    last = seen.last_termination
    if last is None:
        return Condition("Healthy", "True", "NeverEnded")
    if last.reason == "OOMKilled":
        told = f"{last.pod} was killed for more memory than {spec.resources.memory}; restarts: {seen.restarts}"
        return Condition("Healthy", "False", "OutOfMemory", told)
    told = f"{last.pod} ended with {last.exit_code} ({last.reason}); restarts: {seen.restarts}"
    return Condition("Healthy", "False" if last.exit_code else "True", "Restarted", told)


def status(spec: PluginSpec, seen: Seen, now: str, drain_since: str = "") -> dict[str, Any]:
    """The status to write; a condition's transition time stays while its state does. `now` is RFC 3339."""
    before = {item["type"]: item for item in spec.status.get("conditions", ())}
    made: dict[str, Any] = {
        "observedGeneration": spec.generation,
        "readyReplicas": seen.ready_replicas,
        "restarts": seen.restarts,
        "conditions": [_written(each, before.get(each.kind), spec.generation, now) for each in conditions(spec, seen)],
    }
    if seen.identity is not None:
        made["plugin"] = {
            "name": seen.identity.name,
            "vendorVersion": seen.identity.vendor_version,
            "contractVersion": seen.identity.contract_version,
        }
    elif "plugin" in spec.status:
        made["plugin"] = dict(spec.status["plugin"])
    if seen.last_termination is not None:
        last = seen.last_termination
        made["lastTermination"] = {
            "pod": last.pod,
            "reason": last.reason,
            "exitCode": last.exit_code,
            "time": last.time,
        }
    if drain_since:
        made["drainingSince"] = drain_since
    return made


def _written(condition: Condition, before: Mapping[str, Any] | None, generation: int, now: str) -> dict[str, Any]:
    same = before is not None and before.get("status") == condition.state
    return {
        "type": condition.kind,
        "status": condition.state,
        "reason": condition.reason,
        "message": condition.message[:MESSAGE_CHARACTERS],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if same and before is not None else now,
    }


def observe_pods(pods: Sequence[Mapping[str, Any]]) -> tuple[int, Termination | None, str]:
    """Restarts, the latest termination and why a container waits, of a plugin's pods as the API tells them."""
    restarts, waiting = 0, ""
    terminations: list[Termination] = []
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses") or ():
            restarts += int(container.get("restartCount", 0))
            now = container.get("state") or {}
            waiting = (now.get("waiting") or {}).get("reason", "") or waiting
            for state in (now, container.get("lastState") or {}):
                ended = state.get("terminated")
                if ended:
                    terminations.append(
                        Termination(
                            pod["metadata"]["name"],
                            str(ended.get("reason", "")),
                            int(ended.get("exitCode", 0)),
                            str(ended.get("finishedAt") or ""),
                        )
                    )
    return restarts, max(terminations, key=lambda each: each.time, default=None), waiting
