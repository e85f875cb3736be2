"""Explanations: every compiler against every target, by capabilities and, unless told otherwise, by CheckModel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.rpc import status_pb2

from tinymlaas.gateway.v1 import routing_pb2
from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.registry.v1 import devices_pb2, models_pb2, plugins_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_servicekit import Internal, ServiceError, Unavailable

from ..core import race, rollout, routing
from .calls import bounded
from .context import Context
from .forms import AWAY, conversions, in_form

NEEDS_TAG = "needs:"
CHECKS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A target under consideration, with the device that has it, if it is one of the catalogue."""

    target: target_pb2.Target
    device: devices_pb2.Device | None = None


@dataclass(slots=True)
class Explanation:
    """Verdicts by compiler and place, and the plugins that could not be asked.

    `undecided` are destinations that a compiler may yet admit: one that is away, broke off, or is not known so far.
    """

    verdicts: list[routing_pb2.Verdict] = field(default_factory=list)
    unreachable: dict[str, status_pb2.Status] = field(default_factory=dict)
    undecided: set[int] = field(default_factory=set)


async def facts_of(context: Context, version: models_pb2.ModelVersion) -> routing.ModelFacts:
    """What routing needs to know of a model; tags such as "needs:microphone" name peripherals."""
    model = await context.catalogue.model(version.name.rsplit("/versions/", 1)[0])
    needs = tuple(sorted(tag.removeprefix(NEEDS_TAG) for tag in model.tags if tag.startswith(NEEDS_TAG)))
    return routing.ModelFacts(version.format, version.size_bytes, dict(version.operators), needs)


async def explain(
    context: Context,
    version: models_pb2.ModelVersion,
    places: Sequence[Place],
    *,
    routing_only: bool = False,
    plugins: Sequence[str] = (),
) -> Explanation:
    """Judge every compiler (or those of `plugins`) for every place.

    CheckModel is asked once for each compiler and distinct target, and only where the capabilities match.
    """
    facts = await facts_of(context, version)
    known = context.plugins.known()
    compilers = [item.plugin for item in known if routing.is_compiler(item.plugin)]
    compilers = [item for item in compilers if not plugins or item.name in plugins]
    missing = not compilers or len(compilers) < len(set(plugins))
    # Where nothing about model, target, and plugins has changed, the verdicts are those of the last time.
    asked = (version.name, version.sha256, facts.needs, tuple(item.name for item in compilers), routing_only)
    judge = _Judge(context, version, facts, routing_only)
    found: list[tuple[routing_pb2.Verdict, ...] | list[_Pending]] = []
    keys: list[tuple[object, ...]] = []
    result = Explanation()
    try:
        for place in places:
            peripherals = rollout.peripherals(place.device) if place.device is not None else facts.needs
            keys.append((*asked, place.target.SerializeToString(deterministic=True), tuple(peripherals)))
            kept = context.judged.get(known, keys[-1])
            found.append([judge.begin(place, item, peripherals) for item in compilers] if kept is None else kept)
        await judge.finished()
        for index, verdicts in enumerate(found):
            faults: dict[str, ServiceError] = {}
            if isinstance(verdicts, list):
                verdicts = tuple(_decided(places[index], item, faults) for item in verdicts)
                if not faults:
                    context.judged.put(known, keys[index], verdicts)
            result.unreachable.update((plugin, error.to_status()) for plugin, error in faults.items())
            broken = {plugin for plugin, error in faults.items() if isinstance(error, Unavailable | Internal)}
            if missing or any(routing.only_away(item) or item.plugin in broken for item in verdicts):
                result.undecided.add(index)
            for verdict in verdicts:
                told = routing_pb2.Verdict()
                told.CopyFrom(verdict)
                told.destination = index
                result.verdicts.append(told)
    finally:
        judge.stop()
    return result


@dataclass(frozen=True, slots=True)
class _Pending:
    """A verdict by capabilities, and the CheckModel call that has the last word, where there is one."""

    verdict: routing_pb2.Verdict
    check: asyncio.Task[compiler_pb2.CheckModelResult] | None


class _Judge:
    """Judges compilers for places; each compiler is asked CheckModel once for each distinct target."""

    def __init__(
        self, context: Context, version: models_pb2.ModelVersion, facts: routing.ModelFacts, routing_only: bool
    ) -> None:
        self._context, self._version, self._facts = context, version, facts
        self._routing_only = routing_only
        self._offered, self._away = conversions(context), conversions(context, AWAY)
        self._slots = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._checks: dict[tuple[str, str], asyncio.Task[compiler_pb2.CheckModelResult]] = {}

    def begin(self, place: Place, plugin: plugins_pb2.Plugin, peripherals: Sequence[str]) -> _Pending:
        """The verdict by capabilities; CheckModel is begun where they match."""
        verdict = routing.judge(0, place.target, plugin, self._facts, self._offered, peripherals, self._away)
        if not verdict.admitted or self._routing_only:
            return _Pending(verdict, None)
        form = routing.model_form(self._version.format, plugin.compiler.model_formats, self._offered)
        assert form is not None, "an admitted plugin takes a form"
        key = (plugin.name, race.target_digest(place.target))
        if key not in self._checks:
            self._checks[key] = asyncio.create_task(
                _check(self._context, self._slots, self._version, form, plugin, place.target, verdict.payload_kind)
            )
        return _Pending(verdict, self._checks[key])

    async def finished(self) -> None:
        """Wait for every answer, or fault."""
        if self._checks:
            await asyncio.gather(*self._checks.values(), return_exceptions=True)

    def stop(self) -> None:
        """End what has not finished."""
        for task in self._checks.values():
            task.cancel()


async def _check(
    context: Context,
    slots: asyncio.Semaphore,
    version: models_pb2.ModelVersion,
    form_kind: tensor_pb2.ModelFormat.ValueType,
    plugin: plugins_pb2.Plugin,
    target: target_pb2.Target,
    kind: target_pb2.PayloadKind.ValueType,
) -> compiler_pb2.CheckModelResult:
    """Ask CheckModel; known answers of the same plugin version, model and target are kept."""
    target_key = race.target_digest(target)
    digest = race.digest("check", plugin.name, plugin.info.vendor_version, version.sha256, target_key, int(kind))
    known = await context.results.known("check", digest)
    if known is not None:
        return compiler_pb2.CheckModelResult.FromString(known)
    # Many callers may ask the same at once; the plugin is asked once, and one caller that leaves stops no other.
    key = (id(asyncio.get_running_loop()), digest)
    asked = context.checks.get(key)
    if asked is None:
        asked = asyncio.create_task(_ask(context, slots, version, form_kind, plugin, target, kind, digest))
        context.checks[key] = asked
        asked.add_done_callback(lambda _: context.checks.pop(key, None))
    return await asyncio.shield(asked)


async def _ask(
    context: Context,
    slots: asyncio.Semaphore,
    version: models_pb2.ModelVersion,
    form_kind: tensor_pb2.ModelFormat.ValueType,
    plugin: plugins_pb2.Plugin,
    target: target_pb2.Target,
    kind: target_pb2.PayloadKind.ValueType,
    digest: str,
) -> compiler_pb2.CheckModelResult:
    """Ask a plugin CheckModel and keep the answer under `digest`."""
    async with slots:
        form = await in_form(context, version, form_kind, lambda sign: None)
        model = await context.catalogue.read(version.name.split("/")[1], form.sha256)
        header = compiler_pb2.CompileHeader(
            model_format=form.format,
            model_sha256=bytes.fromhex(form.sha256),
            model_bytes=len(model),
            target=target,
            payload_kind=kind,
        )
        result = await bounded(
            context,
            plugin.name,
            context.limits.check_seconds,
            lambda: context.plugins.check_model(plugin.name, header, model),
        )
    await asyncio.to_thread(context.results.put, "check", digest, result.SerializeToString(deterministic=True))
    return result


def _decided(place: Place, pending: _Pending, faults: dict[str, ServiceError]) -> routing_pb2.Verdict:
    verdict = pending.verdict
    if pending.check is None:
        return verdict
    try:
        return routing.with_check(verdict, place.target, pending.check.result())
    except ServiceError as error:
        result = routing_pb2.Verdict()
        result.CopyFrom(verdict)
        result.admitted = False
        result.objections.append(routing.objection_from(error.reason, error.message, error.metadata))
        faults[verdict.plugin] = error
        return result
