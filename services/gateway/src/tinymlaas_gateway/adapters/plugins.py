"""Plugins: found by manifest, asked who they are, watched, recorded in the registry, and called with every answer checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message
from sqlalchemy.exc import SQLAlchemyError

from tinymlaas.plugin.v1 import compiler_pb2, importer_pb2, optimizer_pb2, profiler_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_pluginkit import (
    ClientLimits,
    LogEvent,
    PluginCall,
    PluginClient,
    PluginTimeout,
    PluginUnavailable,
    ProgressEvent,
)
from tinymlaas_pluginkit.client import outputs_of
from tinymlaas_servicekit import FailedPrecondition, NotFound, ServiceError, TlsFiles
from tinymlaas_servicekit.metrics import measure

from ..engine.calls import fell_silent
from ..engine.fairness import FairPlaces
from ..engine.ports import KnownPlugin, Listener, Sign
from .catalogue import Catalogue
from .endpoints import unless_closed
from .manifest import Entry, Manifest
from .replicas import Replica, Resolver, best
from .store import Refutations

log = structlog.get_logger("tinymlaas.gateway")

QUARANTINE_AFTER = 3
LOOK_SECONDS = 1.0
State = plugins_pb2.Plugin
R = TypeVar("R", bound=Message)


@dataclass(slots=True)
class _Seat:
    """One entry of the manifest, or one replica of it, with the plugin that sits there.

    `moved`: what is known was told at another address, and is asked anew at this one. `busy`: calls under way or waiting.
    `turn`: how many calls all seats had taken with this one's last.
    """

    entry: Entry
    address: str | None = None
    client: PluginClient | None = None
    known: KnownPlugin | None = None
    moved: bool = False
    busy: int = 0
    turn: int = 0
    places: FairPlaces = field(default_factory=lambda: FairPlaces(1))


class PluginDirectory:
    """The plugins that are there, by manifest, and calls to them."""

    def __init__(
        self,
        manifest: Manifest,
        catalogue: Catalogue,
        refutations: Refutations,
        token: str | None = None,
        limits: ClientLimits | None = None,
        *,
        tls: TlsFiles | None = None,
    ) -> None:
        self._tls = tls
        self._manifest = manifest
        self._catalogue = catalogue
        self._refutations = refutations
        self._token = token
        self._limits = limits or ClientLimits()
        self._resolver = Resolver()
        self._seats: dict[Entry, _Seat] = {}
        self._leaving: list[_Seat] = []
        self._recorded: dict[str, bytes] = {}
        # As they were last, those that the manifest lists no more.
        self._unlisted: dict[str, plugins_pb2.Plugin] = {}
        self._recording: asyncio.Task[None] | None = None
        # Builds with a refuted claim by plugin and version, and how often this process has added one.
        self._refuted: dict[tuple[str, str], int] = {}
        self._noted = 0
        self._turns = 0
        self._known: tuple[KnownPlugin, ...] = ()
        self._looked = asyncio.Event()

    def known(self) -> Sequence[KnownPlugin]:
        """Plugins that have told who they are, by name; of several with one name the best: ready, then first in the manifest.

        The same object as long as nothing about them changes.
        """
        names = sorted({seat.known.plugin.name for seat in self._seats.values() if seat.known is not None})
        found = [self._best(self._named(name), idle=True) for name in names]
        known = tuple(seat.known for seat in found if seat is not None and seat.known is not None)
        if len(known) != len(self._known) or any(now is not then for now, then in zip(known, self._known, strict=True)):
            self._known = known
        return self._known

    def _named(self, plugin: str) -> list[_Seat]:
        return [seat for seat in self._seats.values() if seat.known is not None and seat.known.plugin.name == plugin]

    def _best(self, seats: list[_Seat], *, idle: bool = False) -> _Seat | None:
        """The seat that a call goes to; `idle`: whatever they do and did."""
        replicas = [
            Replica(seat.known.plugin.state, 0 if idle else seat.busy, place, 0 if idle else seat.turn)
            for place, seat in enumerate(seats)
            if seat.known is not None
        ]
        chosen = best(replicas)
        return None if chosen is None else seats[chosen.place]

    async def first_look(self) -> None:
        """Wait until every entry of the manifest has been asked once."""
        await self._looked.wait()

    async def watch(self) -> None:
        """Look at every plugin again and again, until cancelled; what goes wrong in one look is logged."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:
                    log.exception("plugins could not be looked at")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            if self._recording is not None:
                self._recording.cancel()
                await asyncio.gather(self._recording, return_exceptions=True)
            for seat in [*self._seats.values(), *self._leaving]:
                if seat.client is not None:
                    await seat.client.close()

    async def look(self) -> None:
        """Look at every plugin once, at the same time; the registry is told of changes without being waited for."""
        entries = await self._resolver.expand(self._manifest.entries())
        gone = [self._seats.pop(entry) for entry in list(self._seats) if entry not in entries]
        for seat in gone:
            self._leave(seat)
        for entry in entries:
            if entry not in self._seats:
                self._seats[entry] = self._seat_for(entry, gone)
        await self._read_refuted()
        await asyncio.gather(*(self._look_at(seat) for seat in list(self._seats.values())))
        self._record_soon()
        await self._end_leaving()
        self._looked.set()

    async def _read_refuted(self) -> None:
        """Read what all gateways have counted; not what is older than this one's last count."""
        noted = self._noted
        with suppress(SQLAlchemyError):  # a database that restarts must not keep plugins from being looked at
            counts = await asyncio.to_thread(self._refutations.counts)
            if self._noted == noted:
                self._refuted = counts

    def _seat_for(self, entry: Entry, gone: Sequence[_Seat]) -> _Seat:
        """A seat for a new entry; a service whose only replica has moved is known all the while, and away until it answers."""
        former = [seat.known for seat in gone if entry.of and seat.entry.of == entry.of and seat.known is not None]
        seat = _Seat(entry, known=former[0] if former else None, moved=bool(former))
        self._set_state(seat, State.STATE_UNREACHABLE, "it has moved")
        return seat

    async def _look_at(self, seat: _Seat) -> None:
        address = seat.entry.location.resolve()
        if address is None or address != seat.address:
            if seat.client is not None:
                await seat.client.close()
            seat.address = address
            seat.client = (
                None
                if address is None
                else PluginClient(
                    address,
                    token=seat.entry.token or self._token,
                    limits=self._limits,
                    tls=self._tls,
                    peer=seat.entry.peer,
                )
            )
            if address is not None:
                seat.moved = True
                self._set_state(seat, State.STATE_UNREACHABLE, "it has moved")
        if seat.client is None:
            self._set_state(seat, State.STATE_UNREACHABLE, "it is not up")
        else:
            try:
                with unless_closed("the plugin"):  # by another look, at one that has moved
                    ready = await seat.client.probe()
                    known = seat.known
                    # A replaced container answers on the same address, so who sits there is asked each time.
                    if known is None or seat.moved or known.plugin.info != await seat.client.info():
                        seat.known = await self._ask(seat.client, seat.entry.of or seat.address or "")
                        seat.moved = False
                        limit = max(1, min(seat.known.plugin.limits.max_concurrency, 64))
                        seat.places = FairPlaces(limit)
                self._set_state(seat, State.STATE_READY if ready else State.STATE_LOADING, "")
            except ServiceError as error:
                if seat.known is None:
                    log.warning("a plugin does not tell who it is", address=seat.address, error=str(error))
                self._set_state(seat, State.STATE_UNREACHABLE, error.message[:200])

    async def _ask(self, client: PluginClient, address: str) -> KnownPlugin:
        """Ask a plugin who it is and, role by role, what it offers; nothing that it did not advertise is called."""
        info = await client.info()
        told = await client.capabilities()
        plugin = plugins_pb2.Plugin(
            name=f"plugins/{info.name}",
            address=address,
            info=info,
            capabilities=sorted(set(told.capabilities)),
            limits=told.limits,
        )
        profiler = profiler_pb2.ProfilerListTargetsResponse()
        if "role.compiler" in told.capabilities:
            plugin.compiler.CopyFrom(await client.compiler_targets())
            plugin.compiler_option_schema = await client.compiler_option_schema()
        if "role.importer" in told.capabilities:
            plugin.conversions.extend(await client.conversions())
        if "role.optimizer" in told.capabilities:
            plugin.optimizer_option_schema = await client.optimizer_option_schema()
        if "role.profiler" in told.capabilities:
            profiler = await client.profiler_targets()
        log.info("plugin found", plugin=plugin.name, version=info.vendor_version, roles=list(plugin.capabilities))
        return KnownPlugin(plugin, profiler)

    def _set_state(self, seat: _Seat, state: plugins_pb2.Plugin.State.ValueType, detail: str) -> None:
        if seat.known is None:
            return
        plugin = plugins_pb2.Plugin()
        plugin.CopyFrom(seat.known.plugin)
        refuted = self._refuted.get((plugin.name, plugin.info.vendor_version), 0)
        plugin.refuted_claims = refuted
        if refuted >= QUARANTINE_AFTER:
            state, detail = State.STATE_QUARANTINED, f"claims were refuted in {refuted} builds"
        plugin.state, plugin.detail = state, detail
        if plugin != seat.known.plugin:
            seat.known = KnownPlugin(plugin, seat.known.profiler)

    def _record_soon(self) -> None:
        """Have the registry told of what has changed, unless that is under way: what changes meanwhile the next look tells."""
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record_changes(), name="record plugins")

    async def _record_changes(self) -> None:
        known = {item.plugin.name: item.plugin for item in self.known()}
        self._unlisted = {name: plugin for name, plugin in self._unlisted.items() if name not in known}
        for plugin in [*self._unlisted.values(), *known.values()]:
            data = plugin.SerializeToString(deterministic=True)
            if data != self._recorded.get(plugin.name):
                with suppress(ServiceError):  # a registry that is away gets it later
                    await self._catalogue.upsert_plugin(plugin, patience=0.0)
                    self._recorded[plugin.name] = data

    def _leave(self, seat: _Seat) -> None:
        """A seat that is no longer listed takes no new call; its connection ends with the last one under way."""
        self._leaving.append(seat)
        if seat.known is not None and not self._named(seat.known.plugin.name):
            self._set_state(seat, State.STATE_UNREACHABLE, "it is no longer in the manifest")
            self._unlisted[seat.known.plugin.name] = seat.known.plugin

    async def _end_leaving(self) -> None:
        for seat in [seat for seat in self._leaving if not seat.busy]:
            self._leaving.remove(seat)
            if seat.client is not None:
                await seat.client.close()

    async def count_refutation(self, plugin: str, version: str, build: str) -> None:
        """Note a refuted claim; the third build puts the plugin's version in quarantine."""
        count = await asyncio.to_thread(self._refutations.add, plugin, version, build)
        self._refuted[plugin, version] = count
        self._noted += 1
        log.warning("a claim was refuted", plugin=plugin, version=version, build=build, builds=count)
        for seat in self._named(plugin):
            if seat.known is not None:
                self._set_state(seat, seat.known.plugin.state, seat.known.plugin.detail)
        self._record_soon()

    async def release(self, plugin: str, version: str) -> plugins_pb2.Plugin:
        """Let a version of a plugin that is in quarantine take part again; return the plugin as it is now."""
        known = {item.plugin.name: item.plugin for item in self.known()}.get(plugin)
        if known is None:
            raise NotFound(f"there is no plugin {plugin[:128]}", metadata={"name": plugin})
        if known.info.vendor_version != version:
            raise FailedPrecondition(
                f"{plugin} runs {known.info.vendor_version}, not {version[:128]}",
                "VERSION_MISMATCH",
                {"plugin": plugin, "vendor_version": known.info.vendor_version},
                "Look at the version that runs now, then release that one.",
            )
        await asyncio.to_thread(self._refutations.release, plugin, version)
        self._refuted.pop((plugin, version), None)
        self._noted += 1
        log.warning("a plugin was released from quarantine", plugin=plugin, version=version)
        await asyncio.gather(*(self._look_at(seat) for seat in self._named(plugin)))
        return {item.plugin.name: item.plugin for item in self.known()}.get(plugin, known)

    def _seat(self, plugin: str) -> tuple[_Seat, PluginClient]:
        listed = self._named(plugin)
        first = self._best(listed, idle=True)
        # While a new version is rolled out, only replicas of the one that `known` tells of: it is part of every build's digest.
        alike = [
            seat
            for seat in listed
            if seat.client is not None
            and first is not None
            and seat.known is not None
            and first.known is not None
            and seat.known.plugin.info == first.known.plugin.info
        ]
        seat = self._best(alike)
        if seat is not None and seat.client is not None:
            return seat, seat.client
        raise PluginUnavailable(f"{plugin} is not up")

    async def _run(self, seat: _Seat, call: PluginCall[R], listener: Listener) -> Any:
        """Run a role call to its end, at most as many at once as the plugin takes."""

        def on_event(event: ProgressEvent | LogEvent) -> None:
            if isinstance(event, ProgressEvent):
                listener(Sign(step=event.step, fraction=-1.0 if event.fraction is None else event.fraction))
            else:
                listener(Sign(log=event.text))

        self._turns += 1
        seat.busy, seat.turn = seat.busy + 1, self._turns
        try:
            async with seat.places.taken():
                return await call.finish(on_event)
        except (PluginUnavailable, PluginTimeout) as error:
            # The next try goes to another replica, or waits until the next look has found this one, not a dead container's address.
            if isinstance(error, PluginUnavailable) or fell_silent(error):
                self._set_state(seat, State.STATE_UNREACHABLE, error.message[:200])
                # It may be found ready before the next try, which should go to another one all the same.
                self._turns += 1
                seat.turn = self._turns
            raise
        finally:
            seat.busy -= 1

    async def check_model(
        self, plugin: str, header: compiler_pb2.CompileHeader, model: bytes
    ) -> compiler_pb2.CheckModelResult:
        """Ask whether a model would be compiled."""
        seat, client = self._seat(plugin)
        outcome = await self._run(seat, client.check_model(header, model), lambda sign: None)
        result: compiler_pb2.CheckModelResult = outcome.result
        return result

    async def compile(
        self, plugin: str, header: compiler_pb2.CompileHeader, model: bytes, listener: Listener
    ) -> tuple[compiler_pb2.CompileResult, bytes]:
        """Compile; digest and size of the payload hold."""
        seat, client = self._seat(plugin)
        began = time.perf_counter()
        outcome = await self._run(seat, client.compile(header, model), listener)
        measure("tinymlaas.compile.duration", time.perf_counter() - began, plugin=plugin)
        return outcome.result, outcome.blobs["payload"]

    async def import_model(
        self, plugin: str, conversion: importer_pb2.Conversion, model: bytes, listener: Listener
    ) -> bytes:
        """Convert a model file."""
        seat, client = self._seat(plugin)
        outcome = await self._run(
            seat, client.import_model(importer_pb2.ImportHeader(conversion=conversion), model), listener
        )
        data: bytes = outcome.blobs["model"]
        return data

    async def optimize(
        self, plugin: str, header: optimizer_pb2.OptimizeHeader, model: bytes, calibration: bytes, listener: Listener
    ) -> tuple[optimizer_pb2.OptimizeResult, Mapping[str, bytes]]:
        """Optimize a model file; return the result and its checked blobs, "model" among them."""
        seat, client = self._seat(plugin)
        outcome = await self._run(seat, client.optimize(header, model, calibration), listener)
        return outcome.result, outcome.blobs

    async def profile(
        self,
        plugin: str,
        header: profiler_pb2.ProfileHeader,
        payload: bytes,
        inputs: profiler_pb2.InputSet,
        listener: Listener,
    ) -> tuple[profiler_pb2.ProfileResult, profiler_pb2.InputSet]:
        """Run a payload on inputs."""
        seat, client = self._seat(plugin)
        outcome = await self._run(seat, client.profile(header, payload, inputs), listener)
        return outcome.result, outputs_of(outcome)

    async def run_reference(
        self,
        plugin: str,
        form: tensor_pb2.ModelFormat.ValueType,
        reference: tensor_pb2.Reference.ValueType,
        model: bytes,
        inputs: profiler_pb2.InputSet,
        listener: Listener,
    ) -> tuple[profiler_pb2.RunReferenceResult, profiler_pb2.InputSet]:
        """Run a model with a reference executor."""
        seat, client = self._seat(plugin)
        header = profiler_pb2.RunReferenceHeader(model_format=form, reference=reference)
        outcome = await self._run(seat, client.run_reference(header, model, inputs), listener)
        return outcome.result, outputs_of(outcome)
