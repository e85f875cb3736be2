"""Edits of the Build message that clients watch. Pure; each may be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from google.rpc import status_pb2

from tinymlaas.gateway.v1 import builds_pb2, routing_pb2
from tinymlaas.type.v1 import measurement_pb2 as m

from . import race
from .objections import clean

Build = builds_pb2.Build
Candidate = builds_pb2.Candidate

LOG_LINES = 50
ENDED = (Build.STATE_SUCCEEDED, Build.STATE_FAILED, Build.STATE_CANCELLED)
CANDIDATE_ENDED = (Candidate.STATE_REJECTED, Candidate.STATE_SEALED, Candidate.STATE_FAILED)

Edit = Callable[[builds_pb2.Build], None]


def ended(build: builds_pb2.Build) -> bool:
    """Tell whether a build has ended."""
    return build.state in ENDED


def candidate(build: builds_pb2.Build, plugin: str) -> builds_pb2.Candidate:
    """Return the candidate of a plugin; raises KeyError when it takes no part."""
    for item in build.candidates:
        if item.plugin == plugin:
            return item
    raise KeyError(plugin)


def enter(plugin: str, state: builds_pb2.Candidate.State.ValueType, step: str = "") -> Edit:
    """Move a candidate to a running state; one that has ended stays as it is."""

    def edit(build: builds_pb2.Build) -> None:
        item = candidate(build, plugin)
        if item.state in CANDIDATE_ENDED:
            return
        item.state, item.step, item.fraction = state, step, 0.0

    return edit


def progress(plugin: str, step: str, fraction: float) -> Edit:
    """Show a running candidate's step; its fraction never goes back within a state."""

    def edit(build: builds_pb2.Build) -> None:
        item = candidate(build, plugin)
        if item.state in CANDIDATE_ENDED:
            return
        item.step = clean(step, 100)
        if math.isfinite(fraction):
            item.fraction = max(item.fraction, min(max(fraction, 0.0), 1.0))

    return edit


def log(plugin: str, lines: Iterable[str]) -> Edit:
    """Append lines of a plugin's log; the last 50 stay."""

    def edit(build: builds_pb2.Build) -> None:
        item = candidate(build, plugin)
        kept = [*item.log, *(clean(line, 500) for line in lines)][-LOG_LINES:]
        del item.log[:]
        item.log.extend(kept)

    return edit


def verdict(plugin: str, value: routing_pb2.Verdict) -> Edit:
    """Record what routing said; a candidate that is not admitted ends as REJECTED."""

    def edit(build: builds_pb2.Build) -> None:
        item = candidate(build, plugin)
        if item.state in CANDIDATE_ENDED:
            return
        item.verdict.CopyFrom(value)
        if not value.admitted:
            item.state, item.step = Candidate.STATE_REJECTED, ""

    return edit


def fail(plugin: str, error: status_pb2.Status) -> Edit:
    """End a candidate as FAILED; one that has ended stays as it is."""

    def edit(build: builds_pb2.Build) -> None:
        item = candidate(build, plugin)
        if item.state in CANDIDATE_ENDED:
            return
        item.state, item.step = Candidate.STATE_FAILED, ""
        item.error.CopyFrom(error)

    return edit


def sealed(plugin: str, result: builds_pb2.Candidate) -> Edit:
    """End a candidate as SEALED with the figures, numerics and module of `result`."""

    def edit(build: builds_pb2.Build) -> None:
        item = candidate(build, plugin)
        if item.state in CANDIDATE_ENDED:
            return
        for field in ("measurements", "operators"):
            item.ClearField(field)
            getattr(item, field).extend(getattr(result, field))
        item.numerics.CopyFrom(result.numerics)
        item.module = result.module
        if result.HasField("verdict"):
            item.verdict.CopyFrom(result.verdict)
        item.state, item.step, item.fraction = Candidate.STATE_SEALED, "", 1.0

    return edit


def entries(build: builds_pb2.Build) -> list[race.Entry]:
    """Return the sealed candidates as entries of the race; RAM is arena and stack together."""
    found = []
    for item in build.candidates:
        if item.state != Candidate.STATE_SEALED:
            continue
        figures = {figure.metric: figure.value for figure in item.measurements}
        found.append(
            race.Entry(
                key=item.plugin,
                instructions=figures.get(m.METRIC_INSTRUCTIONS),
                flash_bytes=figures.get(m.METRIC_FLASH_BYTES, math.inf),
                ram_bytes=figures.get(m.METRIC_ARENA_BYTES, math.inf) + figures.get(m.METRIC_STACK_BYTES, 0.0),
            )
        )
    return found


def decide(build: builds_pb2.Build) -> str | None:
    """Mark the Pareto front and set the winner's module; return the winner's plugin, None when nothing was sealed."""
    items = entries(build)
    front = race.pareto(items)
    for item in build.candidates:
        item.pareto = item.plugin in front
    winner = race.choose(items, build.objective)
    if winner is not None:
        build.module = candidate(build, winner).module
    return winner


def reasons(build: builds_pb2.Build) -> str:
    """Say for each candidate why it gave no module, in one line."""
    parts = []
    for item in build.candidates:
        if item.state == Candidate.STATE_REJECTED:
            why = "; ".join(o.remedy or o.message for o in item.verdict.objections[:3])
            parts.append(f"{item.plugin} rejected: {why}")
        elif item.state == Candidate.STATE_FAILED:
            parts.append(f"{item.plugin} failed: {item.error.message}")
    return " | ".join(parts) or "no compiler took part"
