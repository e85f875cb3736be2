"""Fair turns: where projects wait for the same thing, none waits for all that another one asked for before.

Max-min fairness (Bertsekas, Gallager: Data Networks, 6.5.2) over places that are given up when their holder has finished:
a free place goes to the project that holds the fewest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

from tinymlaas_servicekit import ResourceExhausted

MAX_WAITING = 4096

_project: ContextVar[str] = ContextVar("tinymlaas_project", default="")


@contextmanager
def on_behalf_of(resource: str) -> Iterator[None]:
    """Whatever takes a place inside takes it for the project of this resource name."""
    parts = resource.split("/", 2)
    token = _project.set(parts[1] if parts[0] == "projects" and len(parts) > 1 else "")
    try:
        yield
    finally:
        _project.reset(token)


class FairPlaces:
    """At most `size` places at once, of which a project has at most `each`. For one event loop.

    A free place goes to the waiting project that holds the fewest, among equals to the one whose last turn is longest ago;
    within a project to who came first.

    `rounds`: that many rounds of the event loop pass between two places given. gRPC keeps calls of all projects in one line
    and hands over the next one only every few rounds; were places given as fast, turns would be taken in that line.
    """

    def __init__(self, size: int, each: int | None = None, max_waiting: int = MAX_WAITING, *, rounds: int = 0) -> None:
        self._free = size
        self._rounds = rounds
        # Rounds until the next place may be given.
        self._resting = 0
        self._each = size if each is None else each
        self._max_waiting = max_waiting
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._turns = 0
        # When a project that holds or waits had its last turn.
        self._last: dict[str, int] = {}

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Holds a place, for the project that `on_behalf_of` names; ResourceExhausted / LIMIT_EXCEEDED where too many wait."""
        project = _project.get()
        await self._take(project)
        try:
            yield
        finally:
            self._give_back(project)

    async def _take(self, project: str) -> None:
        if project not in self._waiting and self._has_place(project):
            self._hold(project)
            return
        line = self._waiting.setdefault(project, deque())
        if len(line) >= self._max_waiting:
            raise ResourceExhausted(
                f"{len(line)} calls of projects/{project} wait already",
                "LIMIT_EXCEEDED",
                {"limit": "waiting_calls", "max": self._max_waiting, "project": f"projects/{project}"},
                "Wait for answers before you ask more.",
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come just then
                self._give_back(project)
            else:
                self._leave(project, turn)
            raise

    def _has_place(self, project: str) -> bool:
        return self._free > 0 and not self._resting and self._held.get(project, 0) < self._each

    def _hold(self, project: str) -> None:
        self._free -= 1
        self._held[project] = self._held.get(project, 0) + 1
        self._turns += 1
        self._last[project] = self._turns
        if self._rounds:
            self._resting = self._rounds
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self._resting -= 1
        if self._resting:
            asyncio.get_running_loop().call_soon(self._round)
        else:
            self._next()

    def _give_back(self, project: str) -> None:
        self._free += 1
        self._held[project] -= 1
        self._forget(project)
        self._next()

    def _next(self) -> None:
        while waiting := [project for project in self._waiting if self._has_place(project)]:
            project = min(waiting, key=lambda name: (self._held.get(name, 0), self._last.get(name, 0)))
            turn = self._waiting[project].popleft()
            if not self._waiting[project]:
                del self._waiting[project]
            if turn.cancelled():  # its caller was told to stop and has not run since: it leaves by itself
                continue
            self._hold(project)
            turn.set_result(None)

    def _leave(self, project: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(project)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[project]
        self._forget(project)

    def _forget(self, project: str) -> None:
        if not self._held.get(project):
            self._held.pop(project, None)
            if project not in self._waiting:
                self._last.pop(project, None)
