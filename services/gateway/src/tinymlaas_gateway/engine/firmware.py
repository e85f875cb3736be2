"""Firmware packages in deployments: bases are read and checked, modules linked in, packages stored and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import tinymlaas_module as tim
from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas.registry.v1 import devices_pb2, modules_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_servicekit import FailedPrecondition, InvalidArgument, NotFound

from ..core.firmware import MAX_BASES, Base, base_of
from ..core.objections import reason_of
from ..core.rollout import step_name
from ..core.rollout_view import noted
from .context import Context


async def bases(context: Context, project: str, digests: Iterable[str]) -> dict[str, Base]:
    """The base firmware of artifacts, by board.

    Raises InvalidArgument: LIMIT_EXCEEDED, FIRMWARE_INVALID for what is no base signed with the gateway's key,
    FIRMWARE_AMBIGUOUS for two of one board; errors of the registry pass through.
    """
    wanted = list(dict.fromkeys(digests))
    if len(wanted) > MAX_BASES:
        raise InvalidArgument(
            f"{len(wanted)} base firmwares are given, at most {MAX_BASES} are allowed",
            "LIMIT_EXCEEDED",
            {"limit": "firmware_sha256s"},
        )
    found: dict[str, Base] = {}
    for sha256 in wanted:
        image = await context.catalogue.read(project, sha256)
        try:
            base = await asyncio.to_thread(base_of, image, sha256, context.key)
        except tim.ModuleError as error:
            raise InvalidArgument(
                f"artifact {sha256} is no base firmware: {error}",
                "FIRMWARE_INVALID",
                {"subject": sha256, "cause": str(error.reason), "key_id": context.key_id},
                "Make it with tinymlaas-firmware --base, with the key that this gateway signs modules with.",
            ) from error
        board = base.application.board
        if board in found:
            raise InvalidArgument(
                f"two base firmwares are for board {board}",
                "FIRMWARE_AMBIGUOUS",
                {"board": board, "subjects": f"{found[board].sha256} {sha256}"},
                "Give one for each board.",
            )
        found[board] = base
    return found


async def linked(
    context: Context, device: devices_pb2.Device, module: modules_pb2.Module, digests: Iterable[str]
) -> modules_pb2.Module:
    """The package that brings a module to a device, stored and recorded; the same however often it is asked for.

    Raises FailedPrecondition: FIRMWARE_MISSING without a base for the device's board, LINK_FAILED for a module that can't
    be linked.
    """
    project = device.name.split("/")[1]
    base = (await bases(context, project, digests)).get(device.model)
    if base is None:
        raise FailedPrecondition(
            f"no base firmware is for board {device.model}",
            "FIRMWARE_MISSING",
            {"device": device.name, "board": device.model},
            "Give one in firmware_sha256s.",
        )
    image = await context.catalogue.read(project, module.device_image_sha256)
    try:
        package = await asyncio.to_thread(tim.link_firmware, base.application, image, context.key)
    except tim.ModuleError as error:
        raise FailedPrecondition(
            f"{module.name} can't be linked: {error}",
            "LINK_FAILED",
            {"module": module.name, "cause": str(error.reason)},
        ) from error
    sha256 = await context.catalogue.write(project, package)
    return await context.catalogue.create_module(
        project,
        modules_pb2.Module(
            name=f"projects/{project}/modules/{sha256}",
            sha256=sha256,
            size_bytes=len(package),
            device_image_sha256=sha256,
            device_image_bytes=len(package),
            payload_kind=target_pb2.PAYLOAD_KIND_FIRMWARE,
            manifest=module.manifest,
            arena_bytes=module.arena_bytes,
            stack_bytes=module.stack_bytes,
            security_counter=module.security_counter,
            key_id=context.key_id,
            model_version=module.model_version,
            linked_module=module.name,
            firmware_sha256=base.sha256,
        ),
    )


async def running(context: Context, device: devices_pb2.Device) -> str:
    """Name of the package that a device runs; empty where it runs none that was installed from here, or does not say."""
    shown = device.capabilities.firmware.package_sha256
    if not shown or not device.active_module:
        return ""
    try:
        known = await context.catalogue.module(device.active_module)
    except NotFound:
        return ""
    return known.name if known.device_image_sha256 == shown else ""


async def reinstall_former(
    context: Context,
    deployment: str,
    device: str,
    item: deployments_pb2.DeviceRollout,
    module: modules_pb2.Module,
) -> devices_pb2.Device:
    """Install the package again that a device ran before `module`; return the device as it is then.

    Object 5 knows no way back but another update. Raises FailedPrecondition: NO_PREVIOUS_FIRMWARE where the device ran no
    package that was installed from here, else the reason of the install that failed.
    """
    if not item.previous_module or item.previous_module == module.name:
        raise FailedPrecondition(
            f"{device} ran no firmware package before this one",
            "NO_PREVIOUS_FIRMWARE",
            {"device": device, "module": module.name},
            "Deploy a model that did well there: static firmware can't be taken out, only replaced.",
        )
    former = await context.catalogue.module(item.previous_module)
    # An id tells the bridge whether it is the same install; one that failed is tried anew.
    tries = sum(event.step == "rollback failed" for event in item.timeline)
    request = bridge_pb2.InstallRequest(
        install_id=f"{item.install_id}-back-{tries}", device=device, module_sha256=former.device_image_sha256
    )
    last = bridge_pb2.InstallResponse()
    async for last in context.bridges.install(request):
        await asyncio.to_thread(context.deployments.change_device, deployment, device, _note(context.clock(), last))
    if last.step != bridge_pb2.InstallResponse.STEP_READY:
        text = last.error.message or last.detail or "the install of the former package ended without a result"
        raise FailedPrecondition(text, reason_of(last.error) or "INSTALL_FAILED", {"device": device})
    return await context.bridges.read_capabilities(device)


def _note(at: float, event: bridge_pb2.InstallResponse) -> Callable[[deployments_pb2.DeviceRollout], None]:
    shown = f"back: {step_name(event)}"

    def note(item: deployments_pb2.DeviceRollout) -> None:
        if not item.timeline or item.timeline[-1].step != shown:
            noted(item, at, shown, event.detail)

    return note
