"""One round of the operator: look at every CompilerPlugin and move the cluster towards what it asks for.

Level-triggered: a round needs nothing of the round before, so one that failed is made up for by the next.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from tinymlaas_servicekit import ServiceError

from .core import manifest, objects
from .core.ports import Cluster, Prober
from .core.spec import FINALIZER, PluginSpec, Refused, admit, check_identity, read
from .core.status import Seen, observe_pods, status

log = structlog.get_logger("tinymlaas.operator")


def utc_now() -> str:
    """The time as conditions have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reconciler:
    """Rounds over one namespace. `trusted_images` are the prefixes of images that may ask for trust."""

    def __init__(
        self,
        cluster: Cluster,
        prober: Prober,
        around: objects.Surroundings,
        trusted_images: Sequence[str] = (),
        clock: Callable[[], str] = utc_now,
    ) -> None:
        self._cluster = cluster
        self._prober = prober
        self._around = around
        self._trusted = trusted_images
        self._clock = clock

    async def round(self) -> None:
        """Once over all resources; one that fails does not keep others from their turn."""
        specs = [read(each) for each in await asyncio.to_thread(self._cluster.plugins)]
        secret = self._around.manifest_secret
        before = await asyncio.to_thread(self._cluster.read_secret, secret)
        known = manifest.registered(before)
        # Tokens first: a container mounts its own.
        resources = frozenset(spec.name for spec in specs)
        tokens = manifest.content(before, _of(known, resources), resources, _token)
        if tokens != before:
            await asyncio.to_thread(self._cluster.write_secret, secret, tokens)
        kept: dict[str, manifest.Registered] = {}
        for spec in specs:
            entry = await self._guarded(spec, {**known, **kept}, tokens)
            if entry is not None:
                kept[spec.name] = entry
        after = manifest.content(tokens, kept, resources, _token)
        if after != tokens:
            await asyncio.to_thread(self._cluster.write_secret, secret, after)
            log.info("manifest written", plugins=sorted(kept))

    async def _guarded(
        self, spec: PluginSpec, known: Mapping[str, manifest.Registered], tokens: Mapping[str, str]
    ) -> manifest.Registered | None:
        try:
            return await (self._drain(spec) if spec.deleted else self._move(spec, known, tokens))
        except Exception as error:
            log.error("a resource was not handled", resource=spec.name, exc_info=error)
            return None if spec.deleted else known.get(spec.name)

    async def _move(
        self, spec: PluginSpec, known: Mapping[str, manifest.Registered], tokens: Mapping[str, str]
    ) -> manifest.Registered | None:
        """Start, probe and register a plugin; returns its entry in the manifest, if it gets one."""
        if FINALIZER not in spec.finalizers:
            await asyncio.to_thread(self._cluster.set_finalizers, spec.name, (*spec.finalizers, FINALIZER))
        try:
            admit(spec, self._trusted)
        except Refused as refused:
            await self._tell(spec, Seen(refused=refused))
            return None
        for wanted in objects.wanted(spec, self._around):
            await asyncio.to_thread(self._cluster.apply, wanted)
        seen, entry = await self._look(spec, known, tokens)
        await self._tell(spec, seen)
        return entry

    async def _look(
        self, spec: PluginSpec, known: Mapping[str, manifest.Registered], tokens: Mapping[str, str]
    ) -> tuple[Seen, manifest.Registered | None]:
        ready = await asyncio.to_thread(self._cluster.ready_replicas, objects.object_name(spec))
        restarts, last, waiting = observe_pods(await asyncio.to_thread(self._cluster.pods, spec.name))
        identity, refused, problem = None, None, ""
        address = objects.address(spec, self._around)
        entry = known.get(spec.name)
        if ready:
            try:
                identity = await self._prober.ask(spec, address, tokens[objects.token_key(spec.name)])
                taken = {each.plugin: name for name, each in known.items()}
                check_identity(spec, identity, taken)
                named = objects.identity(spec, self._around)
                entry = manifest.Registered(spec.name, identity.name, address, named)
            except ServiceError as error:
                problem = error.message
            except Refused as error:
                refused, entry = error, None
        # A plugin that is away for a while stays registered: the gateway sees for itself that it is unreachable.
        seen = Seen(
            ready_replicas=ready,
            wanted_replicas=min(spec.replicas, self._around.max_replicas),
            restarts=restarts,
            last_termination=last,
            waiting=waiting,
            identity=identity,
            probe_error=problem,
            refused=refused,
            registered=entry is not None,
        )
        return seen, entry

    async def _drain(self, spec: PluginSpec) -> None:
        """Out of the manifest at once; the container ends when gateways know of it and running work had time to end."""
        if FINALIZER not in spec.finalizers:
            return
        now = self._clock()
        since = str(spec.status.get("drainingSince") or now)
        if _seconds_between(since, now) >= spec.drain_seconds:
            left = tuple(each for each in spec.finalizers if each != FINALIZER)
            await asyncio.to_thread(self._cluster.set_finalizers, spec.name, left)
            log.info("drained", resource=spec.name)
            return
        await self._tell(spec, Seen(), since)

    async def _tell(self, spec: PluginSpec, seen: Seen, drain_since: str = "") -> None:
        made = status(spec, seen, self._clock(), drain_since)
        if made != spec.status:
            await asyncio.to_thread(self._cluster.write_status, spec.name, made)


def _of(known: Mapping[str, manifest.Registered], resources: frozenset[str]) -> dict[str, manifest.Registered]:
    return {name: entry for name, entry in known.items() if name in resources}


def _token() -> str:
    return secrets.token_urlsafe(32)


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


async def run_forever(reconciler: Reconciler, seconds: float, beat: Callable[[bool], Any] | None = None) -> None:
    """Rounds with a pause between them, until cancelled. `beat` is told after each whether it succeeded."""
    while True:
        try:
            await reconciler.round()
            good = True
        except Exception as error:
            # The API server may be away; the next round sees the world as it is then.
            log.error("a round failed", exc_info=error)
            good = False
        if beat is not None:
            await beat(good)
        await asyncio.sleep(seconds)
