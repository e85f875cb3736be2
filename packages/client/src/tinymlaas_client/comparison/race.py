"""Every compiler for every target: what a race gave, beside the peer, and who is not beaten. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.type.v1 import measurement_pb2
from tinymlaas_client import figures as _figures
from tinymlaas_client.comparison.peers import Peer, peer_method, peer_name, peer_of

METRICS = {
    "flash": measurement_pb2.METRIC_FLASH_BYTES,
    "arena": measurement_pb2.METRIC_ARENA_BYTES,
    "stack": measurement_pb2.METRIC_STACK_BYTES,
    "instructions": measurement_pb2.METRIC_INSTRUCTIONS,
    "cycles": measurement_pb2.METRIC_CYCLES,
    "accuracy": measurement_pb2.METRIC_ACCURACY,
}


@dataclass(frozen=True, order=True)
class Figure:
    """A value and the way it was obtained: estimated, linked, simulated or hardware."""

    value: float
    method: str


@dataclass(frozen=True)
class Entry:
    """One compiler's module for one target, or why there is none (`note`, with `state` rejected or failed).

    `ram` is arena and stack together; without a measured stack it is the arena alone and `stack` is missing. `ratios`
    are to the peer on `peer_cpu`. `pareto`: no other entry for this target is at least as good in flash, RAM and
    instructions and better in one.
    """

    target: str
    compiler: str
    objectives: tuple[str, ...]
    state: str
    figures: dict[str, Figure] = field(default_factory=dict)
    fidelity: str = ""
    module: str = ""
    note: str = ""
    peer_cpu: str = ""
    ratios: dict[str, float] = field(default_factory=dict)
    pareto: bool = False

    def value(self, name: str) -> float | None:
        """A figure's value, None when it was not measured."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value

    @property
    def label(self) -> str:
        """Compiler, with the objectives that gave this module where it was asked for several."""
        return f"{self.compiler} · {', '.join(self.objectives)}" if self.objectives else self.compiler


@dataclass(frozen=True)
class Comparison:
    """The races of one model version."""

    model: str
    version: str
    sha256: str
    peer_model: str
    entries: tuple[Entry, ...]

    def targets(self) -> list[str]:
        """Targets in the order of the races."""
        return list(dict.fromkeys(entry.target for entry in self.entries))

    def peers(self) -> dict[str, Peer]:
        """The peer's figures for each target that it was measured on itself."""
        found = {target: peer_of(self.peer_model, target) for target in self.targets()}
        return {target: peer for target, peer in found.items() if peer is not None and peer.cpu == target}

    def document(self) -> dict[str, Any]:
        """The comparison as JSON-ready values."""
        return {
            "model": self.model,
            "version": self.version,
            "sha256": self.sha256,
            "entries": [asdict(entry) for entry in self.entries],
            "peer": {
                "name": peer_name(),
                "method": peer_method(),
                "figures": {target: asdict(peer) for target, peer in self.peers().items()},
            },
        }


def entry_of(
    target: str, cpu: str, candidate: builds_pb2.Candidate, objective: str = "", peer_model: str = ""
) -> Entry:
    """What one candidate of a finished build gave."""
    compiler = candidate.plugin.rsplit(".", 1)[-1]
    objectives = (objective,) if objective else ()
    if candidate.state != builds_pb2.Candidate.STATE_SEALED:
        objections = [f"{each.reason}: {each.message}" for each in candidate.verdict.objections]
        rejected = candidate.state == builds_pb2.Candidate.STATE_REJECTED
        note = "; ".join(objections) if rejected else candidate.error.message
        return Entry(target, compiler, objectives, "rejected" if rejected else "failed", note=note)
    found = {name: _figures.find(candidate.measurements, metric) for name, metric in METRICS.items()}
    values = {name: Figure(item.value, _method(item.method)) for name, item in found.items() if item is not None}
    if "arena" in values:
        stack = values.get("stack")
        values["ram"] = Figure(values["arena"].value + (stack.value if stack else 0), values["arena"].method)
    peer = peer_of(peer_model, cpu)
    return Entry(
        target,
        compiler,
        objectives,
        "sealed",
        values,
        _figures.numerics(candidate.numerics),
        candidate.module.rsplit("/", 1)[-1],
        peer_cpu=peer.cpu if peer else "",
        ratios=_ratios(values, peer) if peer else {},
    )


def compare(model: str, version: str, sha256: str, peer_model: str, entries: Iterable[Entry]) -> Comparison:
    """Join what several races gave, and mark the Pareto front of each target.

    Entries of one compiler that are equal in every figure become one, with the objectives of all and the first's module.
    """
    joined: dict[tuple[object, ...], Entry] = {}
    for entry in entries:
        key = (entry.target, entry.compiler, tuple(sorted(entry.figures.items())), entry.fidelity, entry.note)
        known = joined.get(key)
        joined[key] = replace(known, objectives=known.objectives + entry.objectives) if known else entry
    merged = list(joined.values())
    marked = [replace(entry, pareto=_unbeaten(entry, merged)) for entry in merged]
    return Comparison(model, version, sha256, peer_model, tuple(marked))


def front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Tell of each point whether no other is at least as small in every coordinate and smaller in one."""
    return [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]


def _unbeaten(entry: Entry, entries: Sequence[Entry]) -> bool:
    if entry.state != "sealed":
        return False
    rivals = [other for other in entries if other.state == "sealed" and other.target == entry.target]
    return front([_coordinates(other) for other in rivals])[rivals.index(entry)]


def _coordinates(entry: Entry) -> tuple[float, ...]:
    """Flash, RAM, instructions; what was not measured counts as infinite, so it beats nothing."""
    values = [entry.value(name) for name in ("flash", "ram", "instructions")]
    return tuple(float("inf") if value is None else value for value in values)


def _ratios(values: dict[str, Figure], peer: Peer) -> dict[str, float]:
    of = {"flash": peer.flash_bytes, "ram": peer.arena_bytes, "instructions": peer.instructions}
    return {name: values[name].value / count for name, count in of.items() if name in values}


def _method(method: measurement_pb2.Method.ValueType) -> str:
    return measurement_pb2.Method.Name(method).removeprefix("METHOD_").lower()
