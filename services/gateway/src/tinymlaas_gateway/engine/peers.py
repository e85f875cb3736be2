"""Gateways that share their records: each holds a lease on its name, and takes up what one that died has left.

DBOS starts a dead gateway's workflows again on whichever gateway is there, each on one only; so several peers may notice
the same death. A gateway that is stopped gives its lease up and need not be waited for. Work that was accepted and never began, as
its start failed, is begun by whichever gateway finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from tinymlaas_servicekit.leases import Leases

from . import durable
from .context import Context

log = structlog.get_logger("tinymlaas.gateway")

UNBEGUN_SECONDS = 60.0


class Peers:
    """Keeps this gateway's lease and watches those of the others."""

    def __init__(self, leases: Leases, context: Context) -> None:
        self._leases = leases
        self._context = context
        self._tasks: list[asyncio.Task[None]] = []

    async def hold(self) -> None:
        """Take the lease, before work begins here that others must leave alone."""
        await asyncio.to_thread(self._leases.take)

    def start(self) -> None:
        """Keep the lease until `stop`, look after the others' and after what never began, now that durable execution runs."""
        self._tasks = [
            asyncio.create_task(self._keep(), name="leases of gateways"),
            asyncio.create_task(self._begin_unbegun(), name="work that never began"),
        ]

    def rest(self) -> None:
        """Look after leases no longer: durable execution is about to stop, and takes the threads for it along."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Give the lease up: call it once nothing is worked on here any more."""
        if self._tasks:
            self.rest()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = []
            with suppress(SQLAlchemyError):
                # Not in a thread: DBOS has closed the event loop's pool by now.
                self._leases.release()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._leases.seconds / 4)
            try:
                if not await asyncio.to_thread(self._leases.renew):
                    log.error(
                        "the lease was lost: this gateway was too slow, or another one has its name",
                        instance=self._leases.instance,
                    )
                    await asyncio.to_thread(self._leases.take)
                for name in await asyncio.to_thread(self._leases.expired):
                    await self._take_over(name)
            except Exception:
                # The database may be away for a while; until it is back nobody can take over anything.
                log.exception("leases of gateways could not be kept")

    async def _take_over(self, instance: str) -> None:
        # What DBOS itself calls at a start, there with the own name; it has no public form for another's name.
        taken = await asyncio.to_thread(DBOS._recover_pending_workflows, [instance])
        if taken:
            log.warning("took over the work of a gateway", instance=instance, workflows=len(taken))
        else:
            await asyncio.to_thread(self._leases.clear, instance)
        await durable.begin_what_never_began(self._context)

    async def _begin_unbegun(self) -> None:
        builds = Unbegun("build", durable.build_workflow, self._context.builds.unfinished)
        rollouts = Unbegun("rollout", durable.rollout_workflow, self._context.deployments.unfinished)
        while True:
            await asyncio.sleep(UNBEGUN_SECONDS)
            try:
                await builds.begin()
                await rollouts.begin()
            except Exception:
                log.exception("work that never began could not be looked for")


class Unbegun:
    """Begins resources of one kind that were accepted and whose workflow was never started.

    A resource is looked at once: at the look after the first that finds it, as it may be about to begin. So a look costs one
    query of names, however much is under way. Another gateway may do the same: a workflow of one id runs once.
    """

    def __init__(self, kind: str, workflow: Callable[..., Any], unfinished: Callable[[], list[str]]) -> None:
        self._kind, self._workflow, self._unfinished = kind, workflow, unfinished
        self._seen: set[str] = set()
        self._new: list[str] = []

    async def begin(self) -> None:
        """Look once; what an error keeps from being looked at comes again."""
        names = await asyncio.to_thread(self._unfinished)
        unfinished = set(names)
        left = [name for name in self._new if name in unfinished]
        await durable.begin_unbegun(self._kind, self._workflow, left)
        self._new = [name for name in names if name not in self._seen]
        self._seen = unfinished
