"""The steps of one compiler's run in a race: check, compile, profile, verify, seal.

Each step may be repeated: plugins answer the same request with the same bytes, artifacts are content-addressed, and an
edit of the build leaves a candidate that has ended alone. A step returns None when the candidate has ended; the fault is
then in the build, in the candidate's own words. Only faults of the platform itself leave a step as exceptions.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar

from google.protobuf import struct_pb2
from google.rpc import code_pb2

from tinymlaas.gateway.v1 import builds_pb2, routing_pb2
from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.registry.v1 import models_pb2, plugins_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_servicekit import Cancelled, FailedPrecondition, Internal, ServiceError, sql

from ..core import claims, projection, routing, samples, sealing
from ..core.objections import status
from .calls import back, bounded, sought
from .context import TOOL, TOOL_VERSION, Context
from .forms import conversions, in_form
from .ports import KnownPlugin
from .progress import ProgressWriter

PROFILER_ROLE = "role.profiler"
State = builds_pb2.Candidate
States = frozenset[plugins_pb2.Plugin.State.ValueType]
READY: States = frozenset({plugins_pb2.Plugin.STATE_READY})
AWAY: States = frozenset({plugins_pb2.Plugin.STATE_LOADING, plugins_pb2.Plugin.STATE_UNREACHABLE})

P = ParamSpec("P")
R = TypeVar("R")
Step = Callable[Concatenate[Context, str, str, P], Awaitable[R | None]]


class Compiled(TypedDict):
    """What the compile step leaves: serialized CompileResult, digest of the payload, version name of the model form."""

    parts: bytes
    payload_sha256: str
    form: str


class Profiled(TypedDict):
    """What the profile step leaves: serialized ProfileResult, inputs and outputs (InputSet), and the profiler's name."""

    result: bytes
    inputs: bytes
    outputs: bytes
    profiler: str


class Referenced(TypedDict):
    """What the reference step leaves: outputs (InputSet) in the payload's own dtypes."""

    outputs: bytes


def step(function: Step[P, R]) -> Callable[Concatenate[Context, str, str, P], Coroutine[Any, Any, R | None]]:
    """Make a candidate's step: it stops when the build is cancelled, and a ServiceError ends the candidate, not the build."""

    @functools.wraps(function)
    async def run(context: Context, build: str, plugin: str, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        async def work() -> R | None:
            return await function(context, build, plugin, *args, **kwargs)

        try:
            return await context.build_changes.unless_cancelled(build, work())
        except Cancelled as error:
            await context.edit_build(build, projection.fail(plugin, error.to_status()))
        except ServiceError as error:
            if error.reason == sql.AWAY:  # no fault of the candidate's
                raise
            await context.edit_build(build, projection.fail(plugin, error.to_status()))
        except samples.SampleError as error:
            await context.edit_build(
                build, projection.fail(plugin, status(code_pb2.FAILED_PRECONDITION, "SAMPLES_UNUSABLE", str(error)))
            )
        return None

    return run


def project_of(build: str) -> str:
    """Project id in the name of a build or deployment."""
    return build.split("/")[1]


def candidate_options(build: builds_pb2.Build, plugin: str) -> struct_pb2.Struct | None:
    """Options of a candidate; None when it has none."""
    item = projection.candidate(build, plugin)
    return item.options if item.HasField("options") else None


def known(context: Context, plugin: str) -> KnownPlugin:
    """A plugin that is known now; FailedPrecondition / PLUGIN_GONE otherwise."""
    for item in context.plugins.known():
        if item.plugin.name == plugin:
            return item
    raise FailedPrecondition(
        f"{plugin} is gone", "PLUGIN_GONE", {"plugin": plugin}, "Start the plugin again, then build again."
    )


async def model_version(context: Context, build: builds_pb2.Build) -> models_pb2.ModelVersion:
    """The model version that the race is run with: what the optimizer made, else what was named."""
    return await context.catalogue.model_version(build.optimized_model_version or build.model_version)


async def header_of(
    context: Context,
    build: builds_pb2.Build,
    plugin: str,
    form: models_pb2.ModelVersion,
    kind: target_pb2.PayloadKind.ValueType,
) -> tuple[compiler_pb2.CompileHeader, bytes]:
    """The header of CheckModel and Compile, and the model's bytes."""
    model = await context.catalogue.read(project_of(build.name), form.sha256)
    header = compiler_pb2.CompileHeader(
        model_format=form.format,
        model_sha256=bytes.fromhex(form.sha256),
        model_bytes=len(model),
        target=build.target,
        options=candidate_options(build, plugin),
        payload_kind=kind,
    )
    return header, model


@step
async def check(context: Context, name: str, plugin: str) -> str | None:
    """Route, bring the model into a form that the plugin takes, ask CheckModel; return the form's version name."""
    build = (await context.edit_build(name, projection.enter(plugin, State.STATE_CHECKING, "check"))).body
    version = await model_version(context, build)
    facts = routing.ModelFacts(version.format, version.size_bytes, dict(version.operators))
    patience = context.limits.plugin_patience_seconds if await back(context, plugin) else 0.0

    def judged() -> routing_pb2.Verdict:
        here, away = conversions(context), conversions(context, AWAY)
        return routing.judge(0, build.target, known(context, plugin).plugin, facts, here, away=away)

    # Whatever else it takes, such as an importer that restarts, is waited for as the plugin itself is.
    await sought(lambda: None if routing.only_away(judged()) else True, patience)
    verdict, entry = judged(), known(context, plugin)
    if not verdict.admitted:
        await context.edit_build(name, projection.verdict(plugin, verdict))
        return None
    form_kind = routing.model_form(version.format, entry.plugin.compiler.model_formats, conversions(context))
    assert form_kind is not None, "an admitted plugin takes a form"
    async with ProgressWriter(context, name, plugin) as listener:
        form = await in_form(context, version, form_kind, listener)
    header, model = await header_of(context, build, plugin, form, verdict.payload_kind)
    result = await bounded(
        context,
        plugin,
        context.limits.check_seconds,
        lambda: context.plugins.check_model(plugin, header, model),
    )
    verdict = routing.with_check(verdict, build.target, result)
    await context.edit_build(name, projection.verdict(plugin, verdict))
    return form.name if verdict.admitted else None


@step
async def compile_model(context: Context, name: str, plugin: str, form_name: str) -> Compiled | None:
    """Compile, check the parts' form, certificate and fit, and store the payload."""
    record = await context.edit_build(name, projection.enter(plugin, State.STATE_COMPILING, "waiting for a free place"))
    build = record.body
    form = await context.catalogue.model_version(form_name)
    verdict = projection.candidate(build, plugin).verdict
    header, model = await header_of(context, build, plugin, form, verdict.payload_kind)
    async with context.compile_places.taken(), ProgressWriter(context, name, plugin) as listener:
        await context.edit_build(name, projection.enter(plugin, State.STATE_COMPILING, "compile"))
        parts, payload = await bounded(
            context,
            plugin,
            context.limits.compile_seconds,
            lambda: context.plugins.compile(plugin, header, model, listener),
        )
    _check_parts(plugin, build.target, verdict.payload_kind, parts, payload, context.limits.max_payload_bytes)
    try:
        faults = await asyncio.to_thread(sealing.certificate_faults, parts, payload)
    except sealing.SealError as error:
        raise contract_broken(plugin, "parts", str(error)) from error
    if faults:
        await context.plugins.count_refutation(plugin, projection.candidate(build, plugin).plugin_version, name)
        raise FailedPrecondition(
            f"the memory certificate does not hold: {'; '.join(faults)}",
            "CERTIFICATE_INVALID",
            {"plugin": plugin, "detail": faults[0]},
            "The plugin's vendor must correct what it certifies; nothing is installed without a certificate that holds.",
        )
    objections = _fit(build.target, verdict, parts, payload, known(context, plugin).plugin)
    if objections:
        rejected = routing_pb2.Verdict()
        rejected.CopyFrom(verdict)
        rejected.admitted = False
        rejected.objections.extend(objections)
        await context.edit_build(name, projection.verdict(plugin, rejected))
        return None
    sha256 = await context.catalogue.write(project_of(name), payload)
    return Compiled(parts=parts.SerializeToString(deterministic=True), payload_sha256=sha256, form=form_name)


def _check_parts(
    plugin: str,
    target: target_pb2.Target,
    kind: target_pb2.PayloadKind.ValueType,
    parts: compiler_pb2.CompileResult,
    payload: bytes,
    max_payload: int,
) -> None:
    """Raise Internal / PLUGIN_PROTOCOL for parts that contradict the request or themselves."""
    native = parts.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE
    faults = [
        ("payload_kind", parts.payload_kind != kind),
        ("payload_bytes", parts.payload_bytes != len(payload) or not 0 < len(payload) <= max_payload),
        ("inputs", not 0 < len(parts.inputs) <= 16),
        ("outputs", not 0 < len(parts.outputs) <= 16),
        ("numerics", not getattr(parts.numerics, "class") or not parts.numerics.reference),
        ("arena_bytes", not 0 < parts.arena_bytes < 1 << 31),
        ("isa", native and parts.isa != target.isa),
        ("required_features", native and not set(parts.required_features) <= set(target.features)),
        ("loader_abi", native and not 0 < parts.loader_abi <= target.loader_abi),
        ("certificate", native and not parts.HasField("certificate")),
    ]
    for field, broken in faults:
        if broken:
            raise contract_broken(plugin, field, f"{field} contradicts the request")


def contract_broken(plugin: str, field: str, detail: str) -> Internal:
    """The error for an answer that breaks the plugin contract."""
    return Internal(
        f"{plugin} returned parts that no module can be made of: {detail}",
        "PLUGIN_PROTOCOL",
        {"plugin": plugin, "field": field},
        "The plugin's vendor must run the conformance suite against it.",
    )


def _fit(
    target: target_pb2.Target,
    verdict: routing_pb2.Verdict,
    parts: compiler_pb2.CompileResult,
    payload: bytes,
    plugin: plugins_pb2.Plugin,
) -> list[routing_pb2.Objection]:
    """Objections against the compiled parts on this target: memory, and operators that the firmware's runtime lacks."""
    found, _ = routing.fit_objections(
        target, ram_bytes=parts.arena_bytes + parts.stack_bytes, flash_bytes=len(payload), basis="claim"
    )
    for runtime in sorted(
        {c.runtime for c in plugin.compiler.targets if c.payload_kind == verdict.payload_kind and c.runtime}
    ):
        missing, _ = routing.missing_operators(target, runtime, parts.operators)
        found += routing.operator_objections(runtime, missing)
    return found


def choose_profiler(
    plugins: Sequence[KnownPlugin],
    compiler: str,
    target: target_pb2.Target,
    kind: target_pb2.PayloadKind.ValueType,
    states: States = READY,
) -> KnownPlugin | None:
    """Return a Profiler that can run the payload and is not the compiler's own plugin; the first by name in these states."""
    for item in sorted(plugins, key=lambda entry: entry.plugin.name):
        if not _is_witness(item, compiler, states):
            continue
        for constraint in item.profiler.targets:
            objections, _ = routing.match(target, constraint)
            if constraint.payload_kind == kind and all(o.reason == "DOES_NOT_FIT" for o in objections):
                return item
    return None


def choose_reference(
    plugins: Sequence[KnownPlugin],
    compiler: str,
    reference: tensor_pb2.Reference.ValueType,
    states: States = READY,
) -> KnownPlugin | None:
    """Return a Profiler that has the reference executor and is not the compiler's own plugin, in one of these states."""
    for item in sorted(plugins, key=lambda entry: entry.plugin.name):
        if _is_witness(item, compiler, states) and reference in item.profiler.references:
            return item
    return None


def _is_witness(item: KnownPlugin, compiler: str, states: States) -> bool:
    plugin = item.plugin
    return plugin.state in states and plugin.name != compiler and PROFILER_ROLE in plugin.capabilities


async def _witness(context: Context, choose: Callable[[States], KnownPlugin | None]) -> KnownPlugin | None:
    """The Profiler that is chosen once it is ready; one that is known but away, such as one that restarts, is waited for."""
    found = await sought(lambda: choose(READY), context.limits.witness_patience_seconds)
    if found is None and choose(AWAY) is not None:
        found = await sought(lambda: choose(READY), context.limits.plugin_patience_seconds)
    return found


async def verification_inputs(
    context: Context, build: builds_pb2.Build, parts: compiler_pb2.CompileResult, version: models_pb2.ModelVersion
) -> profiler_pb2.InputSet:
    """Inputs for verification and golden vectors: of the samples artifact, else pseudo-random from the model's digest."""
    # Integers in a samples file are those of the uploaded model; a derived one may have other scales.
    requantize = bool(version.derived_from)
    count = context.limits.verification_samples
    if not build.samples_sha256:
        return samples.pseudo_random(parts.inputs, count, bytes.fromhex(version.sha256))
    data = await context.catalogue.read(project_of(build.name), build.samples_sha256)
    labelled = min(len(await asyncio.to_thread(samples.labels_of, data)), context.limits.labelled_samples)
    specs = samples.with_scales(parts.inputs, version.inputs)
    return await asyncio.to_thread(samples.from_npz, data, specs, max(count, labelled), requantize=requantize)


async def labels(context: Context, build: builds_pb2.Build) -> list[int]:
    """Classes of the samples that the build was given, empty when they have none."""
    if not build.samples_sha256:
        return []
    data = await context.catalogue.read(project_of(build.name), build.samples_sha256)
    return await asyncio.to_thread(samples.labels_of, data)


@step
async def profile(context: Context, name: str, plugin: str, compiled: Compiled) -> Profiled | None:
    """Run the payload with an independent Profiler."""
    build = (await context.edit_build(name, projection.enter(plugin, State.STATE_PROFILING, "profile"))).body
    parts = compiler_pb2.CompileResult.FromString(compiled["parts"])
    witness = await _witness(
        context,
        lambda states: choose_profiler(context.plugins.known(), plugin, build.target, parts.payload_kind, states),
    )
    if witness is None:
        raise FailedPrecondition(
            f"no profiler other than {plugin} runs such payloads for this target",
            "NO_PROFILER",
            {"target": build.target.name or build.target.cpu},
            "Start a plugin with a Profiler for this target; claims are never taken on trust.",
        )
    version = await model_version(context, build)
    inputs = await verification_inputs(context, build, parts, version)
    payload = await context.catalogue.read(project_of(name), compiled["payload_sha256"])
    header = profiler_pb2.ProfileHeader(target=build.target, parts=parts)
    async with ProgressWriter(context, name, plugin) as listener:
        result, outputs = await bounded(
            context,
            witness.plugin.name,
            context.limits.profile_seconds,
            lambda: context.plugins.profile(witness.plugin.name, header, payload, inputs, listener),
        )
    return Profiled(
        result=result.SerializeToString(deterministic=True),
        inputs=inputs.SerializeToString(deterministic=True),
        outputs=outputs.SerializeToString(deterministic=True),
        profiler=witness.plugin.name,
    )


@step
async def reference(
    context: Context, name: str, plugin: str, compiled: Compiled, profiled: Profiled
) -> Referenced | None:
    """Run the same inputs through the reference executor that the compiler declared."""
    build = (await context.edit_build(name, projection.enter(plugin, State.STATE_VERIFYING, "reference"))).body
    parts = compiler_pb2.CompileResult.FromString(compiled["parts"])
    wanted = parts.numerics.reference
    formats = {
        tensor_pb2.REFERENCE_ONNX: tensor_pb2.MODEL_FORMAT_ONNX,
        tensor_pb2.REFERENCE_TFLITE: tensor_pb2.MODEL_FORMAT_TFLITE,
    }
    witness = await _witness(context, lambda states: choose_reference(context.plugins.known(), plugin, wanted, states))
    if wanted not in formats or witness is None:
        raise FailedPrecondition(
            f"no profiler other than {plugin} has the reference executor that it names",
            "NO_REFERENCE",
            {"reference": str(int(wanted))},
            "Start a Profiler with that reference executor; outputs are never taken on trust.",
        )
    version = await model_version(context, build)
    async with ProgressWriter(context, name, plugin) as listener:
        form = await in_form(context, version, formats[wanted], listener)
        model = await context.catalogue.read(project_of(name), form.sha256)
        given = profiler_pb2.InputSet.FromString(profiled["inputs"])
        inputs = samples.convert(given, parts.inputs, form.inputs)
        result, outputs = await bounded(
            context,
            witness.plugin.name,
            context.limits.profile_seconds,
            lambda: context.plugins.run_reference(witness.plugin.name, form.format, wanted, model, inputs, listener),
        )
    converted = samples.convert(outputs, result.outputs, parts.outputs)
    return Referenced(outputs=converted.SerializeToString(deterministic=True))


class Verified(TypedDict):
    """What the verify step leaves: serialized Measurements."""

    measurements: list[bytes]


@step
async def verify(
    context: Context, name: str, plugin: str, compiled: Compiled, profiled: Profiled, referenced: Referenced
) -> Verified | None:
    """Compare what was claimed with what was seen; a false claim ends the candidate and counts against the plugin."""
    build = (await context.build(name)).body
    parts = compiler_pb2.CompileResult.FromString(compiled["parts"])
    seen = profiler_pb2.ProfileResult.FromString(profiled["result"])
    measurements = [item for item in list(seen.measurements)[:64] if item.unit and item.method and item.tool]
    payload_bytes = parts.payload_bytes
    refuted = claims.refute(parts, payload_bytes, measurements)
    comparison = claims.fidelity(
        parts.numerics,
        parts.outputs,
        profiler_pb2.InputSet.FromString(profiled["outputs"]),
        profiler_pb2.InputSet.FromString(referenced["outputs"]),
    )
    if refuted is None and not comparison.holds:
        refuted = claims.Refutation("numerics", claims.numerics_text(parts.numerics), fidelity_text(comparison))
    if refuted is not None:
        await context.plugins.count_refutation(plugin, projection.candidate(build, plugin).plugin_version, name)
        await context.edit_build(name, projection.fail(plugin, refuted.status()))
        return None
    missing = claims.unverified(parts, measurements)
    if missing is not None:
        raise FailedPrecondition(
            f"nothing verified the claim {missing}",
            "CLAIM_UNVERIFIED",
            {"claim": missing, "profiler": profiled["profiler"]},
            "Use a Profiler that measures it.",
        )
    executor = tensor_pb2.Reference.Name(parts.numerics.reference).removeprefix("REFERENCE_").lower()
    count = len(profiler_pb2.InputSet.FromString(profiled["inputs"]).samples)
    measurements += claims.fidelity_measurements(comparison, count, executor, TOOL, TOOL_VERSION)
    outputs = profiler_pb2.InputSet.FromString(profiled["outputs"])
    right = claims.accuracy(parts.inputs, parts.outputs, outputs, await labels(context, build))
    if right is not None:
        measurements.append(claims.accuracy_measurement(right, TOOL, TOOL_VERSION))
    measurements = _with_reserved(parts, compiled["payload_sha256"], measurements)
    return Verified(measurements=[item.SerializeToString(deterministic=True) for item in measurements])


def fidelity_text(comparison: claims.Fidelity) -> str:
    """Write a comparison for people."""
    steps = "" if comparison.max_lsb is None else f", at most {comparison.max_lsb} LSB"
    return f"{comparison.equal:.2%} equal{steps}, at most {comparison.max_abs:g} apart"


def _with_reserved(
    parts: compiler_pb2.CompileResult, payload_sha256: str, seen: list[measurement_pb2.Measurement]
) -> list[measurement_pb2.Measurement]:
    """What a device must reserve takes the place of what one run used: arena, stack and payload bytes, all verified.

    Arena and stack of a native payload are bounds from the checked certificate (LINKED); an arena that an interpreter
    measured stays SIMULATED. A smaller figure that a profiler saw stands in the conditions.
    """
    observed = {item.metric: item for item in seen}
    kept = [
        item
        for item in seen
        if item.metric
        not in (
            measurement_pb2.METRIC_ARENA_BYTES,
            measurement_pb2.METRIC_STACK_BYTES,
            measurement_pb2.METRIC_FLASH_BYTES,
        )
    ]
    native = parts.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE
    for metric, value in (
        (measurement_pb2.METRIC_ARENA_BYTES, parts.arena_bytes),
        (measurement_pb2.METRIC_STACK_BYTES, parts.stack_bytes),
        (measurement_pb2.METRIC_FLASH_BYTES, parts.payload_bytes),
    ):
        witness = observed.get(metric)
        if metric == measurement_pb2.METRIC_STACK_BYTES and not native and witness is None:
            continue  # the interpreter's stack is the firmware's own, and nobody measured it
        conditions = {"bound": "certificate" if native else "claim"}
        if metric == measurement_pb2.METRIC_FLASH_BYTES:
            conditions = {"of": "payload"}
        elif witness is not None:
            conditions["observed"] = f"{witness.value:.0f}"
            conditions["observed_by"] = f"{witness.tool} {witness.tool_version}"[:128]
        measured = not native and witness is not None and metric != measurement_pb2.METRIC_FLASH_BYTES
        kept.append(
            measurement_pb2.Measurement(
                metric=metric,
                value=float(value),
                unit="B",
                method=measurement_pb2.METHOD_SIMULATED if measured else measurement_pb2.METHOD_LINKED,
                tool=witness.tool if measured and witness is not None else TOOL,
                tool_version=witness.tool_version if measured and witness is not None else TOOL_VERSION,
                subject_sha256s=[payload_sha256],
                conditions=conditions,
            )
        )
    return sorted(kept, key=lambda item: (item.metric, item.SerializeToString(deterministic=True)))
