"""Devices with static firmware: a package with a module linked in goes through object 5 onto a board that boots and runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_rig import board_of, install, running, signed_rig
from certified_modules import KEY, OTHER_KEY, certified_for, module_for
from lwm2m_rig import Rig, accept_any, digest_of, failure, until, within

from tinymlaas_device.board import SlotState
from tinymlaas_device.boards import BoardModel, board_models
from tinymlaas_device.firmware_build import build_application
from tinymlaas_device.virtual_board import VirtualBoard
from tinymlaas_lwm2m_bridge import (
    Bridge,
    InstallRequest,
    Reason,
    Step,
    Transfer,
)
from tinymlaas_module import Application, base_firmware, link_firmware, linked_module, parse

CPU = "cortex-m4"
INPUT = bytes(range(0, 32, 2))
MODEL: BoardModel = board_models()["static-m4"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return signed_rig(tmp_path)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[VirtualBoard]:
    made = board_of(MODEL.spec.name, tmp_path / "flash")
    yield made
    made.close()


@pytest.fixture(scope="module")
def application() -> Application:
    return build_application(MODEL)


async def computes(bridge: Bridge) -> int:
    """What the module that runs adds to its inputs: all of it happens in the firmware of the package."""
    return (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0]


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_a_package_is_brought_verified_booted_and_its_module_computes(
    rig: Rig, board: VirtualBoard, application: Application, transfer: Transfer
) -> None:
    """DO-FW-001, DO-FW-002, DO-FW-005, IM-LINK-001: and the next package goes into the other bank."""
    first = link_firmware(application, certified_for(CPU, add=3), KEY)
    second = link_firmware(application, certified_for(CPU, add=7, version="2"), KEY)
    async with running(rig, board) as bridge:
        record = await within(bridge.read_capabilities("node-1"))
        assert (record.firmware_version, list(record.capabilities.slots)) == ("1.0.0", [])
        last = await install(rig, bridge, first, "a", transfer)
        assert last.step is Step.READY, last
        assert await computes(bridge) == 3
        assert board.counters().reboots == 1
        assert (await install(rig, bridge, second, "b", transfer)).step is Step.READY
        assert await computes(bridge) == 7
        assert (await within(bridge.read_capabilities("node-1"))).firmware_version == "2"
        board.reboot()
        assert board.active_slot() == 1


BAD_PACKAGES = {
    "digest": Reason.INTEGRITY_FAILED,
    "signature": Reason.INTEGRITY_FAILED,
    "signature of the linked module": Reason.INTEGRITY_FAILED,
    "too large": Reason.DEVICE_STORAGE_FULL,
    "needs too much RAM": Reason.DEVICE_OUT_OF_MEMORY,
    "another board's": Reason.PACKAGE_UNSUPPORTED,
    "base without a module": Reason.INTEGRITY_FAILED,
    "module alone": Reason.PACKAGE_UNSUPPORTED,
    "wrong results": Reason.INSTALL_FAILED,
    "module that faults": Reason.INSTALL_FAILED,
    "application that faults": Reason.INSTALL_FAILED,
}


async def test_a_bad_package_ends_with_its_reason_and_the_board_goes_on_with_the_firmware_before(
    rig: Rig, board: VirtualBoard, application: Application
) -> None:
    """DO-FW-003, DO-FW-006, IM-LINK-002 to 006: results 2, 3, 5, 6 and 8, each found by the device itself."""
    rig.check = accept_any
    async with running(rig, board) as bridge:
        good = link_firmware(application, certified_for(CPU, add=3), KEY)
        assert (await install(rig, bridge, good, "good")).step is Step.READY
        for number, (fault, reason) in enumerate(BAD_PACKAGES.items()):
            last = await install(rig, bridge, bad_package(application, fault), f"bad-{number}")
            assert failure([last]) == (Step.FAILED, reason), fault
            assert await computes(bridge) == 3, fault
        after = link_firmware(application, certified_for(CPU, add=5, version="3"), KEY)
        assert (await install(rig, bridge, after, "after")).step is Step.READY
        assert await computes(bridge) == 5


def bad_package(application: Application, fault: str) -> bytes:
    """A package that the board must not run."""
    module = certified_for(CPU, add=9, version="2")
    if fault == "digest":
        damaged = bytearray(link_firmware(application, module, KEY))
        damaged[9_000] ^= 1
        return bytes(damaged)
    if fault == "signature":
        return link_firmware(application, module, OTHER_KEY)
    if fault == "another board's":
        return link_firmware(dataclasses.replace(application, board="static-m7"), module, KEY)
    if fault == "base without a module":
        return base_firmware(application, KEY)
    if fault == "module alone":
        return module
    if fault == "application that faults":
        return link_firmware(dataclasses.replace(application, code=b"\xff" * len(application.code)), module, KEY)
    if fault == "too large":
        application = dataclasses.replace(application, code=application.code + bytes(MODEL.spec.slot_sizes[0]))
    modules = {
        "signature of the linked module": lambda: certified_for(CPU, key=OTHER_KEY),
        "needs too much RAM": lambda: certified_for(CPU, arena_bytes=260_000),
        "wrong results": lambda: certified_for(CPU, add=2, golden_add=3, version="2"),
        "module that faults": lambda: certified_for(CPU, add=4, spoil=1, version="2"),
    }
    return link_firmware(application, modules.get(fault, lambda: module)(), KEY)


async def test_the_bridge_checks_package_and_linked_module_before_a_byte_goes_out(
    rig: Rig, board: VirtualBoard, application: Application
) -> None:
    """DO-EVID-002, DO-EVID-004, DO-BRIDGE-006: for both signatures, and the certificate of the module inside."""
    good = certified_for(CPU)
    cases = {
        "KEY_UNKNOWN": link_firmware(application, good, OTHER_KEY),
        "SIGNATURE_INVALID": _with_bad_signature_inside(application, good),
        Reason.CERTIFICATE_MISSING: link_firmware(application, module_for(CPU), KEY),
        Reason.DOES_NOT_FIT: link_firmware(application, certified_for(CPU, arena_bytes=260_000), KEY),
    }
    async with running(rig, board) as bridge:
        for name, (reason, image) in enumerate(cases.items()):
            assert failure([await install(rig, bridge, image, f"i-{name}")]) == (Step.FAILED, reason)
        assert not bridge.endpoint.packages.bytes_served


def _with_bad_signature_inside(application: Application, module: bytes) -> bytes:
    """The module's name is signed: another letter, and the signature is not of this module."""
    damaged = bytearray(module)
    damaged[64] ^= 1
    return link_firmware(application, bytes(damaged), KEY)


async def test_a_cancelled_download_empties_the_bank_and_the_next_package_is_taken(
    rig: Rig, board: VirtualBoard, application: Application
) -> None:
    """DO-FW-004."""
    package = link_firmware(application, certified_for(CPU, add=3), KEY)
    rig.artifacts.images[digest_of(package)] = package
    async with running(rig, board) as bridge:
        events = bridge.install(InstallRequest("i-1", "node-1", digest_of(package)))
        await until(events, Step.DOWNLOADING)
        await bridge.cancel_install("i-1")
        await until(events, Step.CANCELLED)
        assert board.slot(0).state is SlotState.EMPTY
        assert (await install(rig, bridge, package, "i-2")).step is Step.READY
        assert await computes(bridge) == 3


@pytest.mark.parametrize("operations", [40, 3_240, 3_310, 3_340])
async def test_power_cut_in_any_flash_operation_ends_with_the_package_running(
    rig: Rig, board: VirtualBoard, application: Application, operations: int
) -> None:
    """DO-FW-005, DO-ACT-005: in download, verification, switch and confirmation."""
    package = link_firmware(application, certified_for(CPU, add=3), KEY)
    async with running(rig, board) as bridge:
        board.cut_power_after(operations)
        last = await install(rig, bridge, package, "a")
        if last.step is not Step.READY:
            # Cut between the note that it switches and the switch: told as failed, and the next install does it.
            assert last.failure is not None
            assert last.failure.reason == Reason.INSTALL_FAILED
            assert (await install(rig, bridge, package, "b")).step is Step.READY
        assert await computes(bridge) == 3
        assert board.counters().reboots >= 2


def test_a_package_is_a_function_of_application_module_and_key(application: Application) -> None:
    """IM-FILE-004, IM-LINK-001: and brings the module byte for byte."""
    module = certified_for(CPU, add=3)
    package = link_firmware(application, module, KEY)
    assert package == link_firmware(build_application(MODEL), module, KEY)
    assert linked_module(parse(package)) == parse(module)
    assert module in package
