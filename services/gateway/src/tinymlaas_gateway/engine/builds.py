"""Builds: made from a request, begun, decided. The steps between are those of their candidates."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Literal, get_args

from google.protobuf import timestamp_pb2
from google.rpc import code_pb2

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.registry.v1 import models_pb2, plugins_pb2
from tinymlaas_pluginkit import check_options, parse_schema, struct_to_options
from tinymlaas_servicekit import AlreadyExists, FailedPrecondition, InvalidArgument, ServiceError
from tinymlaas_servicekit.metrics import count

from ..adapters.store import New, Record
from ..core import projection, race, routing
from ..core.firmware import linked_target
from ..core.objections import reason_of, status
from . import optimizing, seal
from .context import Context

BUILD_RESULT = "build"
Build = builds_pb2.Build
Candidate = builds_pb2.Candidate
_Output = Literal[
    "name",
    "state",
    "candidates",
    "module",
    "error",
    "create_time",
    "end_time",
    "request_sha256",
    "cached",
    "optimized_model_version",
]
OUTPUT_FIELDS: tuple[_Output, ...] = get_args(_Output)


def now() -> timestamp_pb2.Timestamp:
    """The time of day, for records that people read; never part of an artifact."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(time.time_ns())
    return stamp


def resource_id(project: str, request_id: str) -> str:
    """Id of a new resource: the same for the same `request_id`, else a fresh one."""
    return race.digest("request", project, request_id)[:24] if request_id else uuid.uuid4().hex[:24]


def plugin_name(text: str) -> str:
    """The resource name of a plugin that a caller named with or without "plugins/"."""
    return text if text.startswith("plugins/") else f"plugins/{text}"


Admission = Callable[[str], AbstractAsyncContextManager[None]]
"""Surrounds the making of a build of a project that has yet to be run; raises where the project may not have another."""


def unbounded(project: str) -> AbstractAsyncContextManager[None]:
    """Admits every build, such as those of deployments, which bound themselves."""
    return nullcontext()


async def create(
    context: Context,
    project: str,
    wanted: builds_pb2.Build,
    request_id: str = "",
    validate_only: bool = False,
    admit: Admission = unbounded,
) -> tuple[builds_pb2.Build, bool]:
    """Make a build from a request; return it and whether it has yet to be run (starting it twice does no harm).

    Repeating a `request_id` returns the build that it made; with other content it is ALREADY_EXISTS /
    REQUEST_ID_REUSED. A build whose result is known ends here, with the same modules. Raises for an unknown model,
    plugin or option, and NO_COMPILER or NO_OPTIMIZER when none is there.
    """
    given = _requested(wanted)
    fingerprint = race.digest("build-request", given.SerializeToString(deterministic=True))
    name = f"projects/{project}/builds/{resource_id(project, request_id)}"
    answer = None if validate_only else await _answer(context, project, given, fingerprint)
    if answer is not None:
        return await _store(context, project, _stamped(answer, name), fingerprint)
    earlier = await asyncio.to_thread(context.builds.get, name) if request_id else None
    if earlier is not None:
        return _repeated(earlier, name, fingerprint)
    if given.model_version.split("/")[1] != project:
        raise InvalidArgument(
            "the model belongs to another project", "PROJECT_MISMATCH", {"field": "build.model_version"}
        )
    version = await context.catalogue.model_version(given.model_version, patience=5.0)
    plugins = context.plugins.known()
    build = Build()
    build.CopyFrom(given)
    build.name = name
    build.model_version = version.name
    build.state = Build.STATE_QUEUED
    for plugin in _compilers(context, given):
        item = build.candidates.add(plugin=plugin.name, plugin_version=plugin.info.vendor_version)
        if plugin.name in given.options:
            item.options.CopyFrom(given.options[plugin.name])
    optimizer = optimizing.required(context, given.optimize, given.samples_sha256) if given.HasField("optimize") else ""
    build.request_sha256 = digest_of(context, build, version, optimizer)
    known = await context.results.known(BUILD_RESULT, build.request_sha256)
    if known is not None:
        _take_over(build, Build.FromString(known))
        context.answered.put(plugins, (project, fingerprint, version.name, version.sha256), build)
    build = _stamped(build, name)
    if validate_only:
        return build, False
    async with unbounded(project) if known is not None else admit(project):
        return await _store(context, project, build, fingerprint)


async def _answer(context: Context, project: str, given: builds_pb2.Build, fingerprint: str) -> builds_pb2.Build | None:
    """What the same request was answered with before, while model and plugins are as they were; None where that is not kept.

    Where it is kept nothing can be wrong with the request, but for a request_id that was used for another.
    """
    try:
        version = await context.catalogue.model_version(given.model_version, patience=5.0)
    except ServiceError:
        return None
    found = context.answered.get(context.plugins.known(), (project, fingerprint, version.name, version.sha256))
    if found is not None:
        count("tinymlaas.cache.lookups", kind=BUILD_RESULT, result="hit")
    return found


def _stamped(made: builds_pb2.Build, name: str) -> builds_pb2.Build:
    """A copy with a name and the time; one that is known has ended at once."""
    build = Build()
    build.CopyFrom(made)
    build.name = name
    build.create_time.CopyFrom(now())
    if build.cached:
        build.end_time.CopyFrom(build.create_time)
    return build


async def _store(
    context: Context, project: str, build: builds_pb2.Build, fingerprint: str
) -> tuple[builds_pb2.Build, bool]:
    record, made = await context.new_builds(New(project, build, fingerprint))
    return (record.body, not record.ended) if made else _repeated(record, build.name, fingerprint)


def _repeated(record: Record[builds_pb2.Build], name: str, fingerprint: str) -> tuple[builds_pb2.Build, bool]:
    """The build that a request_id made earlier, if it was for the same request."""
    if record.fingerprint != fingerprint:
        raise AlreadyExists(
            "this request_id was used for another build", "REQUEST_ID_REUSED", {"name": name}, "Use a new request_id."
        )
    return record.body, not record.ended


def _requested(wanted: builds_pb2.Build) -> builds_pb2.Build:
    """The request without output fields, plugins named in full and in order."""
    given = Build()
    given.CopyFrom(wanted)
    for field in OUTPUT_FIELDS:
        given.ClearField(field)
    if given.HasField("target"):
        given.target.CopyFrom(linked_target(wanted.target))
    names = sorted({plugin_name(text) for text in wanted.plugins})
    del given.plugins[:]
    given.plugins.extend(names)
    given.ClearField("options")
    for key in wanted.options:
        given.options[plugin_name(key)].CopyFrom(wanted.options[key])
    return given


def _compilers(context: Context, given: builds_pb2.Build) -> Sequence[plugins_pb2.Plugin]:
    """Plugins that take part, by name; raises when one that was named is not there or an option does not hold."""
    compilers = {item.plugin.name: item.plugin for item in context.plugins.known() if routing.is_compiler(item.plugin)}
    for name in [*given.plugins, *given.options]:
        if name not in compilers:
            raise InvalidArgument(
                f"there is no compiler {name}",
                "PLUGIN_UNKNOWN",
                {"plugin": name},
                f"Compilers now: {', '.join(sorted(compilers)) or 'none'}.",
            )
    chosen = [compilers[name] for name in sorted(compilers) if not given.plugins or name in given.plugins]
    if not chosen:
        raise FailedPrecondition(
            "there is no compiler", "NO_COMPILER", help="Start a compiler plugin and name it in the plugins manifest."
        )
    for plugin in chosen:
        if plugin.name in given.options:
            check_options(parse_schema(plugin.compiler_option_schema), struct_to_options(given.options[plugin.name]))
    return chosen


def digest_of(context: Context, build: builds_pb2.Build, version: models_pb2.ModelVersion, optimizer: str = "") -> str:
    """Digest of the canonical request of a build whose candidates, and optimizer if it has one, are known."""
    digests = {item.plugin: seal.request_of(context, build, version.sha256, item.plugin) for item in build.candidates}
    return race.build_digest(seal.common_of(context, build, version.sha256), build.objective, digests, optimizer)


def _take_over(build: builds_pb2.Build, known: builds_pb2.Build) -> None:
    build.ClearField("candidates")
    build.candidates.extend(known.candidates)
    build.module = known.module
    build.optimized_model_version = known.optimized_model_version
    build.state = Build.STATE_SUCCEEDED
    build.cached = True


async def begin(context: Context, name: str) -> list[str]:
    """Move a build to RUNNING; return the plugins that take part."""

    def edit(build: builds_pb2.Build) -> None:
        if build.state == Build.STATE_QUEUED:
            build.state = Build.STATE_RUNNING

    build = (await context.edit_build(name, edit)).body
    return [item.plugin for item in build.candidates]


async def asks_to_optimize(context: Context, name: str) -> bool:
    """Tell whether the model is optimized before the race: part of the request, so it never changes."""
    return (await context.build(name)).body.HasField("optimize")


async def decide(context: Context, name: str) -> str:
    """End a build whose candidates have ended: the winner by objective, or why there is none; return its state.

    A cancelled build that has a sealed candidate nevertheless ends as CANCELLED: nobody waits for it any more.
    """
    record = await context.build(name)
    if record.ended:
        return Build.State.Name(record.body.state)
    cancelled = record.cancel_requested

    def edit(build: builds_pb2.Build) -> None:
        if projection.ended(build):
            return
        for item in build.candidates:
            if item.state not in projection.CANDIDATE_ENDED:
                text = "cancelled" if cancelled else "ended without a result"
                code, reason = (code_pb2.CANCELLED, "CANCELLED") if cancelled else (code_pb2.INTERNAL, "NO_RESULT")
                projection.fail(item.plugin, status(code, reason, text))(build)
        winner = projection.decide(build)
        build.end_time.CopyFrom(now())
        if cancelled:
            build.state = Build.STATE_CANCELLED
            build.ClearField("module")
        elif winner is None:
            build.state = Build.STATE_FAILED
            if not build.HasField("error"):  # else the optimizer refused, and there was no race
                build.error.CopyFrom(
                    status(code_pb2.FAILED_PRECONDITION, "NO_CANDIDATE_SUCCEEDED", projection.reasons(build))
                )
        else:
            build.state = Build.STATE_SUCCEEDED

    # What is known is noted first: whoever sees the build end may ask for the same one at once.
    decided = Build()
    decided.CopyFrom(record.body)
    edit(decided)
    if decided.state == Build.STATE_SUCCEEDED and all(_lasting(item) for item in decided.candidates):
        await asyncio.to_thread(
            context.results.put, BUILD_RESULT, decided.request_sha256, decided.SerializeToString(deterministic=True)
        )
    return Build.State.Name((await context.edit_build(name, edit)).body.state)


# Faults that follow from request and plugin version alone; others (a plugin that was away) may not come again.
_LASTING_FAULTS = {
    "CLAIM_REFUTED",
    "CERTIFICATE_INVALID",
    "OP_UNSUPPORTED",
    "DOES_NOT_FIT",
    "TARGET_UNSUPPORTED",
    "MODEL_INVALID",
}


def _lasting(item: builds_pb2.Candidate) -> bool:
    """Whether a candidate's end follows from the request alone, so that the same build would end the same way."""
    if item.state == Candidate.STATE_SEALED:
        return True
    if item.state == Candidate.STATE_FAILED:
        return reason_of(item.error) in _LASTING_FAULTS
    return {o.reason for o in item.verdict.objections} <= _LASTING_FAULTS
