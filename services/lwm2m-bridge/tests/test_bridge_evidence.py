"""Evidence is checked before a byte goes out: certificate and fit, alone and with real modules on a virtual board."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_rig import install, running, signed_rig
from certified_modules import PUBLIC_KEY, Lie, certificate_of, certified_for, module_for, with_certificate
from hypothesis import given
from hypothesis import strategies as st
from lwm2m_rig import Rig, accept_any, within

from tinymlaas_device.boards import board_models
from tinymlaas_device.virtual_board import VirtualBoard
from tinymlaas_lwm2m import MlRes, SoftwareRes, UpdateState, Value, ml, software
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import (
    BridgeError,
    InstallEvent,
    Reason,
    SignedImages,
    Step,
)
from tinymlaas_lwm2m_bridge.core.evidence import check_fit, proven_requirement
from tinymlaas_lwm2m_bridge.core.install_plan import DeviceView, SlotView, read_view
from tinymlaas_lwm2m_bridge.core.install_record import Failure
from tinymlaas_module import (
    Access,
    CodeSection,
    MemoryCertificate,
    Requirement,
    SectionType,
    encode_certificate,
    pack,
    parse,
    strip,
)
from tinymlaas_module.corpus import tflite_contents

CPU = "cortex-m4"
INPUT = bytes(16)


def smaller_arena(certificate: MemoryCertificate) -> MemoryCertificate:
    return dataclasses.replace(certificate, arena_bytes=certificate.arena_bytes - 16)


def overlapping(certificate: MemoryCertificate) -> MemoryCertificate:
    scratch = certificate.buffers[2]
    scratch = dataclasses.replace(scratch, offset=scratch.offset - 16, size=scratch.size + 16)
    return dataclasses.replace(certificate, buffers=(*certificate.buffers[:2], scratch))


def reading_what_nobody_wrote(certificate: MemoryCertificate) -> MemoryCertificate:
    step = dataclasses.replace(certificate.steps[0], reads=(Access("out", 0, 16),), writes=certificate.steps[0].writes)
    return dataclasses.replace(certificate, steps=(step,))


def less_stack(certificate: MemoryCertificate) -> MemoryCertificate:
    frame = dataclasses.replace(certificate.frames[0], size=certificate.stack_bytes + 4)
    return dataclasses.replace(certificate, frames=(frame,))


def with_data(certificate: MemoryCertificate) -> MemoryCertificate:
    size = certificate.sections[0].size
    halves = (CodeSection(".text", 0, size - 4), CodeSection(".data", size - 4, 4))
    return dataclasses.replace(certificate, sections=halves)


LIES = [
    (smaller_arena, "IM-CERT-005"),
    (overlapping, "IM-CERT-008"),
    (reading_what_nobody_wrote, "IM-CERT-012"),
    (less_stack, "IM-CERT-017"),
    (with_data, "IM-CERT-004"),
]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[VirtualBoard]:
    made = VirtualBoard(board_models()["node-m4f"], keys=[PUBLIC_KEY], state_file=tmp_path / "flash")
    yield made
    made.close()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return signed_rig(tmp_path)


def refused(event: InstallEvent) -> Failure:
    assert event.step is Step.FAILED
    assert event.failure is not None
    return event.failure


async def test_native_code_without_its_certificate_never_leaves_the_bridge(rig: Rig, board: VirtualBoard) -> None:
    """DO-EVID-002: left out on the way, or never sealed in."""
    async with running(rig, board) as bridge:
        for name, image in (("cut", strip(certified_for(CPU), [SectionType.CERTIFICATE])), ("bare", module_for(CPU))):
            failure = refused(await install(rig, bridge, image, name))
            assert (failure.reason, failure.code) == (Reason.CERTIFICATE_MISSING, "FAILED_PRECONDITION")
        assert not bridge.endpoint.packages.bytes_served
        assert board.bytes_written(0) == board.bytes_written(1) == 0


async def test_a_certificate_that_lies_is_refused_with_the_rule_it_breaks(rig: Rig, board: VirtualBoard) -> None:
    """DO-EVID-003."""
    async with running(rig, board) as bridge:
        for lie, clause in LIES:
            failure = refused(await install(rig, bridge, certified_for(CPU, lie=lie), lie.__name__))
            assert (failure.reason, failure.metadata["clause"]) == (Reason.CERTIFICATE_INVALID, clause)
            assert failure.metadata["detail"]
            assert failure.error().metadata == failure.metadata
        assert not bridge.endpoint.packages.bytes_served
        assert board.bytes_written(0) == board.bytes_written(1) == 0


async def test_a_module_too_big_for_the_ram_is_refused_in_numbers_and_costs_the_device_nothing(
    rig: Rig, board: VirtualBoard
) -> None:
    """DO-EVID-004, DO-EVID-005: not even the inactive image in the slot that the module was meant for."""
    big = certified_for(CPU, arena_bytes=1 << 20, version="2")
    async with running(rig, board) as bridge:
        kept = await install(rig, bridge, certified_for(CPU), "kept")
        served = bridge.endpoint.packages.bytes_served
        failure = refused(await install(rig, bridge, big, "big", slot=kept.slot))
        assert failure.reason == Reason.DOES_NOT_FIT
        assert failure.metadata == {"region": "ram", "need": str((1 << 20) + 64), "have": str(board.ram_free())}
        assert bridge.endpoint.packages.bytes_served == served
        await within(bridge.activate("node-1", kept.slot or 0))
        assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0] == bytes([1]) * 16


async def test_a_device_refuses_for_itself_what_a_bridge_let_through(rig: Rig, board: VirtualBoard) -> None:
    """DO-EVID-006, DO-INST-010: the device's own check does not rely on the bridge's."""
    rig.check = accept_any
    async with running(rig, board) as bridge:
        failure = refused(await install(rig, bridge, certified_for(CPU, arena_bytes=1 << 20), "big"))
        assert failure.reason == Reason.DEVICE_OUT_OF_MEMORY
        assert failure.metadata["device_reason"] == "NOT_ENOUGH_RAM"


async def test_an_active_module_is_replaced_by_one_that_would_not_fit_beside_it(rig: Rig, board: VirtualBoard) -> None:
    """DO-CAP-006: RAM Free counts the arena of the active module, because modules take turns in it."""
    free = board.ram_free()
    arena = (free * 2 // 3) & ~15
    async with running(rig, board) as bridge:
        for name, add in (("a", 1), ("b", 2)):
            last = await install(rig, bridge, certified_for(CPU, add=add, arena_bytes=arena, version=name), name)
            assert last.step is Step.READY, last
            await within(bridge.activate("node-1", last.slot or 0))
            assert (await within(bridge.infer("node-1", (INPUT,)))).outputs[0] == bytes([add]) * 16
            assert board.ram_free() == free


@pytest.mark.parametrize(("lie", "clause"), LIES)
def test_each_lie_is_found_in_the_image_alone(lie: Lie, clause: str) -> None:
    with pytest.raises(BridgeError) as caught:
        SignedImages(PUBLIC_KEY.hex())(certified_for(CPU, lie=lie))
    assert caught.value.metadata["clause"] == clause


def test_bytes_that_are_no_certificate_are_refused_and_shown_in_safe_words() -> None:
    with pytest.raises(BridgeError) as caught:
        SignedImages(PUBLIC_KEY.hex())(with_certificate(module_for(CPU), b"\xff\x00\x1b[31m"))
    assert (caught.value.reason, caught.value.metadata["clause"]) == (Reason.CERTIFICATE_INVALID, "IM-SECT-010")
    assert caught.value.metadata["detail"].isprintable()


def test_an_honest_certificate_states_what_the_module_needs() -> None:
    image = certified_for(CPU, arena_bytes=4096, stack_bytes=256)
    assert SignedImages(PUBLIC_KEY.hex())(image) == Requirement(len(image), 4096, 16, 256)


def test_interpreted_payloads_need_no_certificate_but_may_not_bring_a_false_one() -> None:
    """DO-EVID-002, DO-EVID-003: the header's arena counts."""
    bare = dataclasses.replace(tflite_contents(), certificate=b"")
    need = proven_requirement(parse(pack(bare)))
    assert (need.arena_bytes, need.stack_bytes) == (bare.arena_bytes, bare.stack_bytes)
    false = certificate_of(parse(module_for(CPU)))
    with pytest.raises(BridgeError) as caught:
        proven_requirement(parse(pack(dataclasses.replace(bare, certificate=encode_certificate(false)))))
    assert caught.value.reason == Reason.CERTIFICATE_INVALID


def slot_of(size: int | None) -> SlotView:
    return SlotView(1, UpdateState.INITIAL, size=size)


@given(
    image=st.integers(1, 1 << 20),
    arena=st.integers(0, 1 << 20),
    stack=st.integers(0, 1 << 16),
    size=st.none() | st.integers(0, 1 << 20),
    ram=st.none() | st.integers(0, 1 << 21),
)
def test_a_refusal_names_a_region_that_is_too_small_and_there_is_none_without(
    image: int, arena: int, stack: int, size: int | None, ram: int | None
) -> None:
    """DO-EVID-004: what the device does not report is not held against the module."""
    slot = slot_of(size)
    too_small = {
        name: (need, have)
        for name, need, have in (("slot1", image, size), ("ram", arena + stack, ram))
        if have is not None and have < need
    }
    try:
        check_fit(Requirement(image, arena, 64, stack), DeviceView((slot,), ram_free=ram), slot)
    except BridgeError as error:
        assert error.reason == Reason.DOES_NOT_FIT  # noqa: PT017
        shown = error.metadata
        assert too_small[shown["region"]] == (int(shown["need"]), int(shown["have"]))
    else:
        assert not too_small


@pytest.mark.parametrize(
    ("free", "total", "seen"),
    [(100, 400, 100), (500, 400, 400), (-1, 400, 400), (None, 400, 400), (100, None, 100), (None, None, None)],
)
def test_ram_is_what_the_device_reports_and_never_more_than_it_has(
    free: int | None, total: int | None, seen: int | None
) -> None:
    """DO-CAP-004."""
    values: dict[LwPath, Value] = {software(0, SoftwareRes.UPDATE_STATE): 0}
    values |= {ml(MlRes.RAM_FREE): free} if free is not None else {}
    values |= {ml(MlRes.RAM_TOTAL): total} if total is not None else {}
    assert read_view(values, [0]).ram_free == seen
