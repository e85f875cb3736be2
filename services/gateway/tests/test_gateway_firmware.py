"""Devices with static firmware: what speaks against them, what is built for them, which firmware modules are linked into."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import tinymlaas_module as tim
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_gateway.core import rollout
from tinymlaas_gateway.core.firmware import (
    bank_objection,
    base_objections,
    base_of,
    device_target,
    is_static,
    linked_target,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
APPLICATION = tim.Application("board-1", tim.Isa.ARMV7E_M, tim.Feature.THUMB2, bytes(range(1, 200)), 4)
BASE = tim.base_firmware(APPLICATION, KEY)
FLASH, RAM = target_pb2.MemoryRegion.KIND_FLASH, target_pb2.MemoryRegion.KIND_RAM


def static_device(model: str = "board-1", kinds: tuple[int, ...] = (8,), *, shown: bool = True) -> devices_pb2.Device:
    """A device as a bridge shows one with object 5 and no slot; `shown` is what it says of its firmware."""
    device = devices_pb2.Device(name="projects/p/devices/d", model=model, state=devices_pb2.Device.STATE_REGISTERED)
    target = device.capabilities.target
    target.payload_kinds.extend(kinds)  # type: ignore[arg-type]
    target.memory_regions.add(name="ram", kind=RAM, total_bytes=1000, free_bytes=900)
    target.memory_regions.add(name="flash", kind=FLASH, total_bytes=90_000, free_bytes=40_000)
    if shown:
        device.capabilities.firmware.package_sha256 = "ab" * 32
    return device


@pytest.mark.parametrize(
    ("device", "static"),
    [
        (static_device(), True),
        (static_device(kinds=(8,), shown=False), True),
        (static_device(kinds=(), shown=True), True),
        (static_device(kinds=(), shown=False), False),
        (static_device(kinds=(1,), shown=False), False),
    ],
)
def test_static_firmware_is_what_the_device_shows_or_says(device: devices_pb2.Device, static: bool) -> None:
    """DO-FW-007; without it a device that has no slot can take nothing."""
    assert is_static(device) == static
    found = rollout.device_objections(device, key_id="", security_counter=1)
    assert [item.reason for item in found] == ([] if static else ["NO_SLOT"])
    device.capabilities.slots.add(index=0)
    assert not is_static(device)


def test_a_device_takes_part_where_its_board_has_a_base() -> None:
    """DO-FW-008."""
    bases = {"board-1": base_of(BASE, "00", KEY)}
    assert base_objections(static_device(), bases) == []
    assert base_objections(static_device(kinds=(1,), shown=False), {}) == []
    for model in ("board-2", ""):
        (objection,) = base_objections(static_device(model), bases)
        assert (objection.reason, objection.metadata["board"]) == ("FIRMWARE_MISSING", model)


def test_a_module_is_built_for_the_loader_in_the_firmware_and_the_flash_that_the_base_leaves() -> None:
    """DO-FW-008: releases of a base that differ by little share a build."""
    base = base_of(BASE, "00", KEY)
    longer = replace(base, application=replace(APPLICATION, code=bytes(1000)))
    target = device_target(static_device(), {"board-1": base})
    assert (list(target.payload_kinds), target.loader_abi) == ([target_pb2.PAYLOAD_KIND_NATIVE], 1)
    assert {region.name: region.free_bytes for region in target.memory_regions} == {"ram": 900, "flash": 36_864}
    assert device_target(static_device(), {"board-1": longer}) == target
    too_long = replace(base, application=replace(APPLICATION, code=bytes(50_000)))
    assert device_target(static_device(), {"board-1": too_long}).memory_regions[1].free_bytes == 0
    assert device_target(static_device()).memory_regions[1].free_bytes == 40_000
    other = static_device(kinds=(1, 2), shown=False)
    assert device_target(other, {"board-1": base}) is other.capabilities.target
    assert linked_target(other.capabilities.target) is other.capabilities.target
    assert list(linked_target(static_device().capabilities.target).payload_kinds) == [target_pb2.PAYLOAD_KIND_NATIVE]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (tim.base_firmware(APPLICATION, Ed25519PrivateKey.from_private_bytes(bytes(32))), "KEY_UNKNOWN"),
        (BASE.replace(APPLICATION.code, APPLICATION.code[::-1]), "DIGEST_MISMATCH"),
        (BASE[:100], "TRUNCATED"),
        (b"", "TRUNCATED"),
    ],
    ids=["another key", "changed", "cut", "empty"],
)
def test_a_base_is_taken_with_the_gateways_own_signature_only(image: bytes, reason: str) -> None:
    """DO-FW-008, IM-LINK-006."""
    assert base_of(BASE, "00", KEY).application.board == "board-1"
    with pytest.raises(tim.ModuleError) as caught:
        base_of(image, "00", KEY)
    assert caught.value.reason == reason


def test_a_package_that_no_bank_holds_is_objected_to() -> None:
    assert bank_objection(static_device(), 40_000) is None
    objection = bank_objection(static_device(), 40_001)
    assert objection is not None
    assert (objection.reason, objection.remedy) == ("DOES_NOT_FIT", "needs 1 B more")
    unknown = static_device()
    unknown.capabilities.target.memory_regions[1].ClearField("free_bytes")
    assert bank_objection(unknown, 1 << 30) is None


def test_the_package_that_runs_is_what_is_active() -> None:
    """DO-FW-009."""
    assert rollout.active_image(static_device()) == "ab" * 32
    assert rollout.active_image(static_device(shown=False)) == ""
