"""Gateways that share their records: each holds a lease on its name, and takes up what one that died has left.

DBOS starts a dead gateway's workflows again on whichever gateway is there, each on one only; so several peers may notice
the same death. A gateway that is stopped gives its lease up and need not be waited for.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from tinymlaas_servicekit.leases import Leases

from . import durable
from .context import Context

log = structlog.get_logger("tinymlaas.gateway")


class Peers:
    """Keeps this gateway's lease and watches those of the others."""

    def __init__(self, leases: Leases, context: Context) -> None:
        self._leases = leases
        self._context = context
        self._task: asyncio.Task[None] | None = None

    async def hold(self) -> None:
        """Take the lease, before work begins here that others must leave alone."""
        await asyncio.to_thread(self._leases.take)

    def start(self) -> None:
        """Keep the lease until `stop`, and look after the others', now that durable execution runs."""
        self._task = asyncio.create_task(self._keep(), name="leases of gateways")

    def rest(self) -> None:
        """Look after leases no longer: durable execution is about to stop, and takes the threads for it along."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Give the lease up: call it once nothing is worked on here any more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
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
