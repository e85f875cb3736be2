"""The last step of a candidate: seal, sign, store, record."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.module.v1 import manifest_pb2
from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.registry.v1 import models_pb2, modules_pb2
from tinymlaas.type.v1 import measurement_pb2

from ..core import projection, race, routing, sealing
from .candidates import (
    Compiled,
    Profiled,
    Referenced,
    State,
    Verified,
    candidate_options,
    contract_broken,
    model_version,
    project_of,
    step,
)
from .context import TOOL, TOOL_VERSION, Context

CANDIDATE_RESULT = "candidate"
MAX_DERIVATIONS = 8


def common_of(context: Context, build: builds_pb2.Build, model_sha256: str) -> race.Common:
    """What all candidates of a build share, as their digests see it."""
    return race.Common(
        project=project_of(build.name),
        model_version=build.optimized_model_version or build.model_version,
        model_sha256=model_sha256,
        target=build.target,
        samples_sha256=build.samples_sha256,
        security_counter=counter_of(build),
        key_id=context.key_id,
    )


def counter_of(build: builds_pb2.Build) -> int:
    """Security counter of a build's modules."""
    return build.security_counter or 1


def request_of(context: Context, build: builds_pb2.Build, model_sha256: str, plugin: str) -> str:
    """Digest of a candidate's request."""
    item = projection.candidate(build, plugin)
    common = common_of(context, build, model_sha256)
    return race.candidate_digest(common, plugin, item.plugin_version, candidate_options(build, plugin))


@step
async def reuse(context: Context, name: str, plugin: str) -> str | None:
    """End the candidate with the module that an earlier build sealed for the same request; return it, None if unknown."""
    build = (await context.build(name)).body
    version = await model_version(context, build)
    body = await context.results.known(CANDIDATE_RESULT, request_of(context, build, version.sha256, plugin))
    if body is None:
        return None
    result = builds_pb2.Candidate.FromString(body)
    await context.edit_build(name, projection.sealed(plugin, result))
    return result.module


def manifest_of(
    build: builds_pb2.Build,
    plugin: str,
    request_sha256: str,
    source: models_pb2.ModelVersion,
    origin: models_pb2.ModelVersion,
    form: models_pb2.ModelVersion,
    parts: compiler_pb2.CompileResult,
    verified: Verified,
) -> manifest_pb2.Manifest:
    """The manifest: everything that an auditor needs, nothing of when or where."""
    item = projection.candidate(build, plugin)
    return manifest_pb2.Manifest(
        model_sha256=form.sha256,
        source_model_sha256=origin.sha256,
        request_sha256=request_sha256,
        plugin_name=plugin.removeprefix("plugins/"),
        plugin_version=item.plugin_version,
        options=candidate_options(build, plugin),
        target=race.canonical_target(build.target),
        operators=parts.operators,
        inputs=parts.inputs,
        outputs=parts.outputs,
        numerics=parts.numerics,
        measurements=[measurement_pb2.Measurement.FromString(item) for item in verified["measurements"]],
        licences=sorted({source.licence} - {""}),
    )


async def uploaded(context: Context, version: models_pb2.ModelVersion) -> models_pb2.ModelVersion:
    """The upload that a version was derived from, itself when it is one."""
    for _ in range(MAX_DERIVATIONS):
        if not version.derived_from:
            break
        version = await context.catalogue.model_version(version.derived_from)
    return version


@step
async def seal(
    context: Context,
    name: str,
    plugin: str,
    compiled: Compiled,
    profiled: Profiled,
    referenced: Referenced,
    verified: Verified,
) -> str | None:
    """Seal the verified parts, store module and device image, record the module; return the module's name."""
    build = (await context.edit_build(name, projection.enter(plugin, State.STATE_SEALING, "seal"))).body
    project = project_of(name)
    parts = compiler_pb2.CompileResult.FromString(compiled["parts"])
    source = await model_version(context, build)
    form = await context.catalogue.model_version(compiled["form"])
    payload = await context.catalogue.read(project, compiled["payload_sha256"])
    request_sha256 = request_of(context, build, source.sha256, plugin)
    origin = await uploaded(context, source)
    manifest = manifest_of(build, plugin, request_sha256, source, origin, form, parts, verified)
    count = context.limits.golden_vectors
    golden_inputs, golden_outputs = (
        profiler_pb2.InputSet(samples=profiler_pb2.InputSet.FromString(data).samples[:count])
        for data in (profiled["inputs"], referenced["outputs"])
    )
    model_id = source.name.split("/")[3]
    try:
        sealed = await asyncio.to_thread(
            sealing.seal,
            name=model_id,
            version=source.sha256[:12],
            parts=parts,
            payload=payload,
            golden_inputs=golden_inputs,
            golden_outputs=golden_outputs,
            manifest=manifest,
            security_counter=counter_of(build),
            key=context.key,
        )
    except sealing.SealError as error:
        raise contract_broken(plugin, "parts", str(error)) from error
    objections, _ = routing.requirement_objections(build.target, sealed.requirement, basis="verified")
    if objections:
        rejected = projection.candidate(build, plugin).verdict
        rejected.admitted = False
        rejected.objections.extend(objections)
        await context.edit_build(name, projection.verdict(plugin, rejected))
        return None
    await context.catalogue.write(project, sealed.image)
    await context.catalogue.write(project, sealed.device_image)
    module = await context.catalogue.create_module(
        project,
        modules_pb2.Module(
            name=f"projects/{project}/modules/{sealed.sha256}",
            sha256=sealed.sha256,
            size_bytes=len(sealed.image),
            device_image_sha256=sealed.device_sha256,
            device_image_bytes=len(sealed.device_image),
            payload_kind=parts.payload_kind,
            manifest=manifest,
            arena_bytes=parts.arena_bytes,
            stack_bytes=parts.stack_bytes,
            security_counter=counter_of(build),
            key_id=context.key_id,
            model_version=source.name,
        ),
    )
    result = builds_pb2.Candidate(
        measurements=_with_image(manifest.measurements, sealed),
        operators=list(profiler_pb2.ProfileResult.FromString(profiled["result"]).operators)[:4096],
        numerics=parts.numerics,
        module=module.name,
        verdict=projection.candidate(build, plugin).verdict,
    )
    await asyncio.to_thread(
        context.results.put, CANDIDATE_RESULT, request_sha256, result.SerializeToString(deterministic=True)
    )
    await context.edit_build(name, projection.sealed(plugin, result))
    return module.name


def _with_image(
    measurements: Iterable[measurement_pb2.Measurement], sealed: sealing.Sealed
) -> list[measurement_pb2.Measurement]:
    """The manifest's figures, with the flash of the whole device image in place of the payload's."""
    kept = [item for item in measurements if item.metric != measurement_pb2.METRIC_FLASH_BYTES]
    kept.append(
        measurement_pb2.Measurement(
            metric=measurement_pb2.METRIC_FLASH_BYTES,
            value=float(len(sealed.device_image)),
            unit="B",
            method=measurement_pb2.METHOD_LINKED,
            tool=TOOL,
            tool_version=TOOL_VERSION,
            subject_sha256s=[sealed.device_sha256],
            conditions={"of": "device image"},
        )
    )
    return kept
