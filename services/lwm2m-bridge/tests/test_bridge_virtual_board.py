"""From the bridge down to instructions: signed modules onto virtual boards whose firmware really executes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from board_rig import board_of, install, running, signed_rig
from certified_modules import OTHER_KEY, PUBLIC_KEY, certified_for
from lwm2m_rig import Rig, accept_any, within

from tinymlaas_device.boards import board_models
from tinymlaas_device.virtual_board import VirtualBoard
from tinymlaas_lwm2m_bridge import (
    BridgeError,
    Reason,
    Step,
    Transfer,
)
from tinymlaas_module import key_id

CPU = "cortex-m4"
INPUT = bytes(range(0, 32, 2))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return signed_rig(tmp_path)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[VirtualBoard]:
    made = board_of("node-m4f", tmp_path / "flash")
    yield made
    made.close()


@pytest.mark.parametrize("transfer", [Transfer.PULL, Transfer.PUSH])
async def test_a_signed_module_is_installed_tested_activated_and_computes(
    rig: Rig, board: VirtualBoard, transfer: Transfer
) -> None:
    async with running(rig, board) as bridge:
        last = await install(rig, bridge, certified_for(CPU, add=3), "a", transfer)
        assert last.step is Step.READY, last
        await within(bridge.activate("node-1", last.slot or 0))
        result = await within(bridge.infer("node-1", (INPUT,)))
        assert result.outputs == (bytes((value + 3) & 0xFF for value in INPUT),)
        assert result.latency_unit == "instructions"
        assert result.latency > 0
        record = await within(bridge.read_capabilities("node-1"))
        assert record.capabilities.key_ids == [key_id(PUBLIC_KEY).hex()]
        with pytest.raises(BridgeError) as caught:
            await within(bridge.infer("node-1", (INPUT[:-1],)))
        assert caught.value.reason == Reason.ARGUMENT_INVALID


async def test_an_update_goes_to_the_other_slot_and_rollback_brings_the_first_back(
    rig: Rig, board: VirtualBoard
) -> None:
    """DO-ACT-003."""
    async with running(rig, board) as bridge:
        first = await install(rig, bridge, certified_for(CPU, add=1), "a")
        await within(bridge.activate("node-1", first.slot or 0))
        second = await install(rig, bridge, certified_for(CPU, add=2, version="2"), "b")
        assert second.slot != first.slot
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 1
        await within(bridge.activate("node-1", second.slot or 0))
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 2
        await within(bridge.rollback("node-1"))
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 1
        with pytest.raises(BridgeError) as caught:
            await within(bridge.rollback("node-1"))
        assert caught.value.reason == Reason.NO_PREVIOUS_MODULE


async def test_a_module_of_an_unknown_key_is_stopped_by_the_bridge_and_by_the_device(
    rig: Rig, board: VirtualBoard
) -> None:
    """DO-BRIDGE-006, DO-SEC-004."""
    image = certified_for(CPU, key=OTHER_KEY)
    async with running(rig, board) as bridge:
        last = await install(rig, bridge, image, "a")
        assert last.failure is not None
        assert (last.step, last.failure.reason, last.failure.code) == (Step.FAILED, "KEY_UNKNOWN", "PERMISSION_DENIED")
        assert not bridge.endpoint.packages.bytes_served
    rig.check = accept_any
    async with running(rig, board) as bridge:
        last = await install(rig, bridge, image, "b")
        assert last.failure is not None
        assert (last.failure.reason, last.failure.metadata["device_reason"]) == (Reason.INTEGRITY_FAILED, "UNKNOWN_KEY")


@pytest.mark.parametrize("offset", [40, 200, -30])
async def test_a_tampered_module_is_refused_by_the_device(rig: Rig, board: VirtualBoard, offset: int) -> None:
    image = bytearray(certified_for(CPU))
    image[offset] ^= 1
    rig.check = accept_any
    async with running(rig, board) as bridge:
        last = await install(rig, bridge, bytes(image), "a")
        assert last.failure is not None
        assert last.failure.reason in (Reason.INTEGRITY_FAILED, Reason.PACKAGE_UNSUPPORTED)
        record = await within(bridge.read_capabilities("node-1"))
        assert {slot.module_sha256 for slot in record.capabilities.slots} == {""}


async def test_downgrade_foreign_code_and_wrong_results_are_refused_with_their_reasons(
    rig: Rig, board: VirtualBoard
) -> None:
    async with running(rig, board) as bridge:
        good = await install(rig, bridge, certified_for(CPU, counter=5), "good")
        await within(bridge.activate("node-1", good.slot or 0))
        # The first run confirms the module, and only then does the device's security counter rise (IM-SLOT-009).
        await within(bridge.infer("node-1", (INPUT,)))
        expected = {
            "old": (certified_for(CPU, counter=4, add=9), Reason.INTEGRITY_FAILED, "DOWNGRADE"),
            "foreign": (certified_for("rv32imc", counter=5), Reason.PACKAGE_UNSUPPORTED, "UNSUPPORTED_ISA"),
            "wrong": (certified_for(CPU, counter=5, add=2, golden_add=3), Reason.SELF_TEST_FAILED, None),
            "faults": (certified_for(CPU, counter=5, add=4, spoil=1), Reason.SELF_TEST_FAILED, None),
        }
        for name, (image, reason, device_reason) in expected.items():
            last = await install(rig, bridge, image, name)
            assert last.failure is not None, name
            assert (last.failure.reason, last.failure.metadata.get("device_reason")) == (reason, device_reason), name
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 1


@pytest.mark.parametrize("operations", [0, 1, 5, 40, 200, 400])
async def test_power_cut_in_any_flash_operation_ends_with_the_module_ready(
    rig: Rig, board: VirtualBoard, operations: int
) -> None:
    """DO-INST-005, DO-ACT-005."""
    async with running(rig, board) as bridge:
        board.cut_power_after(operations)
        last = await install(rig, bridge, certified_for(CPU, padding=3000), "a")
        assert last.step is Step.READY, last
        await within(bridge.activate("node-1", last.slot or 0))
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 1


@pytest.mark.parametrize("operations", [0, 1, 2, 3])
async def test_power_cut_while_activating_leaves_a_module_active_and_activate_can_be_repeated(
    rig: Rig, board: VirtualBoard, operations: int
) -> None:
    """DO-ACT-005."""
    async with running(rig, board) as bridge:
        first = await install(rig, bridge, certified_for(CPU, add=1), "a")
        await within(bridge.activate("node-1", first.slot or 0))
        second = await install(rig, bridge, certified_for(CPU, add=2), "b")
        board.cut_power_after(operations)
        try:
            await within(bridge.activate("node-1", second.slot or 0))
        except BridgeError as error:
            assert error.reason == Reason.DEVICE_UNREACHABLE  # noqa: PT017
            await bridge.directory.wait_for_update("node-1", bridge.registration("node-1"))
        board.cut_power_after(None)
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] in (1, 2)
        await within(bridge.activate("node-1", second.slot or 0))
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 2


@pytest.mark.parametrize(
    "name", sorted(name for name, model in board_models().items() if not model.spec.static_firmware)
)
async def test_every_virtual_board_takes_a_module_and_says_what_it_is(rig: Rig, name: str) -> None:
    board = board_of(name)
    async with running(rig, board) as bridge:
        record = await within(bridge.read_capabilities("node-1"))
        target = record.capabilities.target
        assert (record.model, target.cpu, target.isa) == (name, board.spec.cpu, board.spec.isa)
        assert {region.name: region.total_bytes for region in target.memory_regions} == {
            "ram": board.spec.ram_total,
            "flash": board.spec.flash_total,
        }
        last = await install(rig, bridge, certified_for(board.spec.cpu), "a")
        assert last.step is Step.READY, last
        await within(bridge.activate("node-1", last.slot or 0))
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0][0] == 1
    board.close()
