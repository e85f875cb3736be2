"""Devices with static firmware: what they need, what is built for them, and the package that a module is linked into. Pure,
but for Ed25519, which is deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import tinymlaas_module as tim
from tinymlaas.gateway.v1 import routing_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2

from .objections import bytes_text, objection

MAX_BASES = 16
NATIVE_ABI = 1
# Flash that is left for a module is rounded down to this, so that one build serves a base and its later releases.
SHARED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Base:
    """Firmware of a board that modules are linked into, and the digest (sha256, hex) of the artifact that it came as."""

    application: tim.Application
    sha256: str


def base_of(image: bytes, sha256: str, key: Ed25519PrivateKey) -> Base:
    """The base in an artifact. Raises tim.ModuleError where it is none, or not signed with the key that modules are signed with.

    What a package is made of runs on devices under this key, so nobody else's code goes into one (IM-LINK-006).
    """
    package = tim.parse(image)
    tim.verify(package, tim.KeyRing.of([tim.raw_public_key(key)]))
    return Base(tim.application_of(package), sha256)


def is_static(device: devices_pb2.Device) -> bool:
    """Tell whether a device takes modules in its firmware only."""
    capabilities = device.capabilities
    return not capabilities.slots and (
        capabilities.HasField("firmware") or target_pb2.PAYLOAD_KIND_FIRMWARE in capabilities.target.payload_kinds
    )


def linked_target(target: target_pb2.Target) -> target_pb2.Target:
    """What a module is built for that goes into a target's firmware; other targets as they are."""
    kinds = set(target.payload_kinds)
    if target_pb2.PAYLOAD_KIND_FIRMWARE not in kinds or target_pb2.PAYLOAD_KIND_NATIVE in kinds:
        return target
    return _native(target)


def device_target(device: devices_pb2.Device, bases: Mapping[str, Base] | None = None) -> target_pb2.Target:
    """What a module for a device is built for: its target, with static firmware without the flash that the base takes."""
    target = device.capabilities.target
    if not is_static(device):
        return target
    made = _native(target)
    base = (bases or {}).get(device.model)
    if base is not None:
        for region in made.memory_regions:
            if region.kind == target_pb2.MemoryRegion.KIND_FLASH and region.HasField("free_bytes"):
                left = max(0, region.free_bytes - len(base.application.code))
                region.free_bytes = left // SHARED_BYTES * SHARED_BYTES
    return made


def _native(target: target_pb2.Target) -> target_pb2.Target:
    """The target as its firmware's loader is: the application that comes with a package has one."""
    made = target_pb2.Target()
    made.CopyFrom(target)
    made.payload_kinds[:] = [target_pb2.PAYLOAD_KIND_NATIVE]
    made.loader_abi = made.loader_abi or NATIVE_ABI
    return made


def base_objections(device: devices_pb2.Device, bases: Mapping[str, Base]) -> list[routing_pb2.Objection]:
    """FIRMWARE_MISSING for a device with static firmware whose board has no base among those of the deployment."""
    if not is_static(device) or device.model in bases:
        return []
    return [
        objection(
            "FIRMWARE_MISSING",
            f"modules come in this device's firmware, and none for board {device.model or '(unknown)'} is given",
            "needs the board's base firmware in firmware_sha256s (deploy create --firmware FILE)",
            board=device.model,
        )
    ]


def bank_objection(device: devices_pb2.Device, package_bytes: int) -> routing_pb2.Objection | None:
    """DOES_NOT_FIT where a package is bigger than the flash that is free for it, else None, also where that is unknown."""
    for region in device.capabilities.target.memory_regions:
        if region.kind == target_pb2.MemoryRegion.KIND_FLASH and region.HasField("free_bytes"):
            have = region.free_bytes
            if package_bytes > have:
                return objection(
                    "DOES_NOT_FIT",
                    f"the firmware package has {bytes_text(package_bytes)}, {region.name} has room for {bytes_text(have)}",
                    f"needs {bytes_text(package_bytes - have)} more",
                    constraint="flash",
                    region=region.name,
                    need=package_bytes,
                    have=have,
                    basis="linked",
                )
    return None
