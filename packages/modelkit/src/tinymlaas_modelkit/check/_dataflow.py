"""Order and names of a graph: who writes what, who reads what, and whether an order exists."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ._rejection import ModelRejected, Problem

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Step(Generic[Name]):
    """One operator as the dataflow sees it: a label for messages, the tensors it reads and writes."""

    label: str
    reads: Sequence[Name]
    writes: Sequence[Name]


def check_dataflow(steps: Sequence[Step[Name]], given: Iterable[Name], outputs: Iterable[Name]) -> None:
    """Every tensor has one writer, is written before it is read, and every output is written.

    Raises DUPLICATE_NAME, UNDEFINED_TENSOR, CYCLE, or MALFORMED where an order exists but the file does not follow it.
    Runs in time linear in the edges, without recursion.
    """
    known = set(given)
    writer: dict[Name, int] = {}
    for index, step in enumerate(steps):
        for name in step.writes:
            if name in known or name in writer:
                raise ModelRejected(Problem.DUPLICATE_NAME, step.label, f"tensor {name} is already written or given")
            writer[name] = index
    for step in steps:
        for name in step.reads:
            if name not in known and name not in writer:
                raise ModelRejected(Problem.UNDEFINED_TENSOR, step.label, f"reads tensor {name}, which nothing makes")
    for name in outputs:
        if name not in known and name not in writer:
            raise ModelRejected(Problem.UNDEFINED_TENSOR, "graph outputs", f"output {name} is made by nothing")

    edges = {index: {writer[name] for name in step.reads if name in writer} for index, step in enumerate(steps)}
    stuck = find_cycle(edges)
    if stuck is not None:
        raise ModelRejected(Problem.CYCLE, steps[stuck].label, "depends on its own result")
    for index, sources in edges.items():
        if any(source > index for source in sources):
            raise ModelRejected(Problem.MALFORMED, steps[index].label, "runs before the operator that it reads from")


def find_cycle(depends_on: Mapping[Name, Iterable[Name]]) -> Name | None:
    """A node that is part of a cycle or waits for one; None if the graph has none (Kahn's algorithm, 1962)."""
    waiting = {node: set(sources) for node, sources in depends_on.items()}
    readers: dict[Name, list[Name]] = {}
    for node, sources in waiting.items():
        for source in sources:
            readers.setdefault(source, []).append(node)
    ready = deque(node for node, sources in waiting.items() if not sources)
    done = 0
    while ready:
        node = ready.popleft()
        done += 1
        for reader in readers.get(node, ()):
            waiting[reader].discard(node)
            if not waiting[reader]:
                ready.append(reader)
    if done == len(waiting):
        return None
    return next(node for node, sources in waiting.items() if sources)
