"""Forms of a model: the file as it was uploaded, and what an Importer makes of it for a compiler or a reference."""

from __future__ import annotations

from collections.abc import Callable, Container

from tinymlaas.plugin.v1 import importer_pb2
from tinymlaas.registry.v1 import models_pb2, plugins_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_servicekit import FailedPrecondition

from ..core.routing import format_text
from .calls import bounded
from .context import Context
from .ports import Listener, Sign

IMPORTER_ROLE = "role.importer"
READY = (plugins_pb2.Plugin.STATE_READY,)
AWAY = (plugins_pb2.Plugin.STATE_UNREACHABLE, plugins_pb2.Plugin.STATE_LOADING)


def conversions(
    context: Context, states: Container[plugins_pb2.Plugin.State.ValueType] = READY
) -> list[importer_pb2.Conversion]:
    """Conversions that importers in these states offer: the ready ones, or those that are away and may be back soon."""
    return [
        conversion
        for known in context.plugins.known()
        if known.plugin.state in states and IMPORTER_ROLE in known.plugin.capabilities
        for conversion in known.plugin.conversions
    ]


async def in_form(
    context: Context,
    version: models_pb2.ModelVersion,
    form: tensor_pb2.ModelFormat.ValueType,
    listener: Callable[[Sign], None] | Listener,
) -> models_pb2.ModelVersion:
    """Return the version of the model in `form`: itself, one derived earlier, or one that an Importer makes now.

    What an importer makes is stored as a derived version, so it is made once. Raises FailedPrecondition /
    FORMAT_UNSUPPORTED when no importer converts.
    """
    if version.format == form:
        return version
    known = await context.catalogue.derived(version, form)
    if known is not None:
        return known
    wanted = importer_pb2.Conversion(to=form)
    setattr(wanted, "from", version.format)
    for item in sorted(context.plugins.known(), key=lambda known: known.plugin.state not in READY):
        if wanted in item.plugin.conversions and IMPORTER_ROLE in item.plugin.capabilities:
            name, project = item.plugin.name, version.name.split("/")[1]
            model = await context.catalogue.read(project, version.sha256)
            data = await bounded(
                context,
                name,
                context.limits.import_seconds,
                lambda name=name, model=model: context.plugins.import_model(name, wanted, model, listener),  # type: ignore[misc]
            )
            short = name.removeprefix("plugins/")
            return await context.catalogue.import_derived(
                version, form, data, f"{short} {item.plugin.info.vendor_version}"
            )
    raise FailedPrecondition(
        f"no importer makes {format_text(form)} of {format_text(version.format)}",
        "FORMAT_UNSUPPORTED",
        {"from": format_text(version.format), "to": format_text(form)},
        "Start a plugin with an Importer for it, or upload the model in that format.",
    )
