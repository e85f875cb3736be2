"""Optimizing first, if asked: an Optimizer makes a derived version of the model, and the work goes on with that one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator

from google.protobuf import struct_pb2
from google.rpc import code_pb2

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, optimizations_pb2
from tinymlaas.plugin.v1 import optimizer_pb2
from tinymlaas.registry.v1 import models_pb2, plugins_pb2
from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_pluginkit import check_options, parse_schema, struct_to_options
from tinymlaas_servicekit import Cancelled, FailedPrecondition, Internal, NotFound, ServiceError

from ..core import projection, race
from ..core.objections import status
from .calls import back, bounded, sought
from .context import Context
from .forms import in_form
from .ports import KnownPlugin, Listener, Sign

OPTIMIZER_ROLE = "role.optimizer"
OPTIMIZE_RESULT = "optimized"
MAX_MEASUREMENTS = 64
# Blobs of an optimizer that are kept with the version: name of the file and media type.
ATTACHED = {
    "recipe": ("recipe.json", "application/json"),
    "report": ("report.json", "application/json"),
    "picture": ("picture.svg", "image/svg+xml"),
}


def _unheard(sign: Sign) -> None:
    """Progress before the race belongs to no candidate."""


def _first(context: Context) -> KnownPlugin | None:
    offered = [
        item
        for item in context.plugins.known()
        if OPTIMIZER_ROLE in item.plugin.capabilities and item.plugin.state != plugins_pb2.Plugin.STATE_QUARANTINED
    ]
    return min(
        offered,
        key=lambda item: (item.plugin.state != plugins_pb2.Plugin.STATE_READY, item.plugin.name),
        default=None,
    )


def choose(context: Context) -> KnownPlugin:
    """The optimizer that is asked: the first by name, one that is ready before others; NO_OPTIMIZER when there is none."""
    found = _first(context)
    if found is None:
        raise FailedPrecondition(
            "there is no optimizer",
            "NO_OPTIMIZER",
            help="Start an optimizer plugin and name it in the plugins manifest, or leave out `optimize`.",
        )
    return found


def required(context: Context, options: struct_pb2.Struct, samples_sha256: str) -> str:
    """Check a request to optimize; return the digest of who does it and how.

    Raises FailedPrecondition / CALIBRATION_MISSING or NO_OPTIMIZER, and the pluginkit's errors for options that the
    optimizer's schema does not allow.
    """
    if not samples_sha256:
        raise FailedPrecondition(
            "optimizing needs samples to calibrate with",
            "CALIBRATION_MISSING",
            {"field": "samples_sha256"},
            "Store an npz with real inputs (`input` or `input_float`, sample first) and name it as the samples.",
        )
    plugin = choose(context).plugin
    check_options(parse_schema(plugin.optimizer_option_schema), struct_to_options(options))
    return race.digest("optimizer", plugin.name, plugin.info.vendor_version, race.options_bytes(options))


async def optimized(
    context: Context,
    version: models_pb2.ModelVersion,
    options: struct_pb2.Struct,
    samples_sha256: str,
    listener: Listener = _unheard,
) -> optimizations_pb2.OptimizeModelResult:
    """The version that the optimizer makes of `version`, stored as a derived version; one made earlier is taken again.

    The optimizer gets the model's ONNX form, and the samples as calibration. Raises what the optimizer refuses with.
    """
    project = version.name.split("/")[1]
    await sought(lambda: _first(context), context.limits.plugin_patience_seconds)
    await back(context, choose(context).plugin.name)
    plugin = choose(context).plugin
    form = await in_form(context, version, tensor_pb2.MODEL_FORMAT_ONNX, listener)
    digest = race.digest(
        "optimized", form.name, form.sha256, samples_sha256, required(context, options, samples_sha256)
    )
    known = await _known(context, digest)
    if known is not None:
        return known
    model = await context.catalogue.read(project, form.sha256)
    calibration = await context.catalogue.read(project, samples_sha256)
    header = optimizer_pb2.OptimizeHeader(model_format=form.format, options=options)
    async with context.compile_places.taken():
        result, blobs = await bounded(
            context,
            plugin.name,
            context.limits.optimize_seconds,
            lambda: context.plugins.optimize(plugin.name, header, model, calibration, listener),
        )
    # Another format would be taken for an imported form of the float model later.
    if result.model_format != tensor_pb2.MODEL_FORMAT_ONNX:
        raise Internal(
            f"{plugin.name} returned a model that is not ONNX",
            "PLUGIN_PROTOCOL",
            {"plugin": plugin.name, "field": "model_format"},
            "The plugin's vendor must run the conformance suite against it.",
        )
    attachments = []
    for blob, (name, media_type) in ATTACHED.items():
        if blob in blobs:
            sha256 = await context.catalogue.write(project, blobs[blob])
            attachments.append(
                models_pb2.Attachment(name=name, media_type=media_type, sha256=sha256, size_bytes=len(blobs[blob]))
            )
    made = await context.catalogue.import_derived(
        form,
        result.model_format,
        blobs["model"],
        f"{plugin.name.removeprefix('plugins/')} {plugin.info.vendor_version}",
        [*_figures(result.before, "before"), *_figures(result.after, "after")],
        attachments,
    )
    answer = optimizations_pb2.OptimizeModelResult(model_version=made, attachments=attachments)
    await asyncio.to_thread(context.results.put, OPTIMIZE_RESULT, digest, answer.SerializeToString())
    return answer


async def _known(context: Context, digest: str) -> optimizations_pb2.OptimizeModelResult | None:
    """What the same request gave earlier, with the version as the registry has it now; None when it was deleted."""
    body = await context.results.known(OPTIMIZE_RESULT, digest)
    if body is None:
        return None
    known = optimizations_pb2.OptimizeModelResult.FromString(body)
    try:
        known.model_version.CopyFrom(await context.catalogue.model_version(known.model_version.name))
    except NotFound:
        return None
    known.cached = True
    return known


def _figures(given: Iterable[measurement_pb2.Measurement], stage: str) -> Iterator[measurement_pb2.Measurement]:
    """A bounded number of finite figures, each with the condition `optimization`: before or after."""
    for index, item in enumerate(given):
        if index >= MAX_MEASUREMENTS:
            return
        if math.isfinite(item.value):
            figure = measurement_pb2.Measurement()
            figure.CopyFrom(item)
            figure.conditions["optimization"] = stage
            yield figure


async def build_step(context: Context, name: str) -> bool:
    """Optimize a build's model and record the version; False when the build goes on to its end without a race."""
    build = (await context.edit_build(name, _waiting)).body
    if projection.ended(build):
        return False

    async def work() -> models_pb2.ModelVersion:
        source = await context.catalogue.model_version(build.model_version)
        return (await optimized(context, source, build.optimize, build.samples_sha256)).model_version

    try:
        version = await context.build_changes.unless_cancelled(name, work())
    except Cancelled:
        return False
    except ServiceError as error:
        fault = error.to_status()

        def fail(body: builds_pb2.Build) -> None:
            not_begun = status(
                code_pb2.FAILED_PRECONDITION, "NOT_OPTIMIZED", "not begun: the model could not be optimized"
            )
            for item in body.candidates:
                projection.fail(item.plugin, not_begun)(body)
            body.error.CopyFrom(fault)

        await context.edit_build(name, fail)
        return False

    def record(body: builds_pb2.Build) -> None:
        body.optimized_model_version = version.name

    await context.edit_build(name, record)
    return True


def _waiting(build: builds_pb2.Build) -> None:
    for item in build.candidates:
        projection.enter(item.plugin, builds_pb2.Candidate.STATE_UNSPECIFIED, "waiting for the optimizer")(build)


async def for_deployment(context: Context, deployment: deployments_pb2.Deployment) -> None:
    """Fill in the optimized version of a deployment that asks for one; raises what the optimizer refuses with."""
    if deployment.HasField("optimize") and not deployment.optimized_model_version:
        source = await context.catalogue.model_version(deployment.model_version)
        answer = await optimized(context, source, deployment.optimize, deployment.samples_sha256)
        deployment.optimized_model_version = answer.model_version.name
