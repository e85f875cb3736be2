"""The update core: states, refusals, rollback, counter, geometry (spec/inference-module.md section 12)."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tinymlaas_module import (
    DType,
    Executor,
    Golden,
    GoldenVector,
    Isa,
    ModuleContents,
    Numerics,
    NumericsClass,
    PayloadKind,
    SectionType,
    Tensor,
    TensorKind,
    pack,
    sign,
    strip,
)
from tinymlaas_module import corpus as im_corpus

Make = Callable[..., Any]

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="payloads of these tests are x86-64 machine code; this host is not"
)
# mov eax,[rdi]; add eax,0x01010101; mov [rdi+16],eax; xor eax,eax; ret
ADD_ONE = bytes.fromhex("8b07050101010189471031c0c3")


def image(name: str = "model-a", version: str = "1", counter: int = 3, want: bytes = bytes([2, 2, 2, 2])) -> bytes:
    """Return a signed native module for this host that adds one to four bytes."""
    tensors = (
        Tensor(TensorKind.INPUT, DType.UINT8, (4,), arena_offset=0),
        Tensor(TensorKind.OUTPUT, DType.UINT8, (4,), arena_offset=16),
    )
    vector = GoldenVector((bytes([1, 1, 1, 1]),), (want,))
    made = ModuleContents(
        name=name,
        version=version,
        kind=PayloadKind.NATIVE,
        payload=ADD_ONE + bytes(range(256)) + bytes(44),
        tensors=tensors,
        arena_bytes=48,
        isa=Isa.X86_64,
        stack_bytes=64,
        security_counter=counter,
        golden=Golden(Numerics(NumericsClass.BIT_EXACT, Executor.TFLITE), (vector,)),
        manifest=f"{name} {version} {counter}".encode(),
    )
    return sign(pack(made), im_corpus.SIGNER)


def test_a_fresh_board_has_empty_slots(make_board: Make) -> None:
    board = make_board(slots=3)
    assert board.states() == ["EMPTY"] * 3
    assert board.update.counter == 0


@needs_x86
def test_a_slot_goes_through_all_its_states(make_board: Make) -> None:
    """IM-SLOT-001, IM-SLOT-004, IM-PARS-003."""
    board, made = make_board(), image()
    assert board.begin(0, made) == ("OK", 0)
    assert board.state(0) == "WRITING"
    assert board.call("verify", 0) == "STATE_INVALID"
    assert board.download(0, made) == "OK"
    assert board.state(0) == "WRITTEN"
    assert board.opens(0) == "STATE_INVALID"
    assert board.call("activate", 0) == "STATE_INVALID"
    assert board.call("verify", 0) == "OK"
    assert board.state(0) == "VERIFIED"
    assert board.call("activate", 0) == "STATE_INVALID"
    assert board.test(0) == "OK"
    assert board.state(0) == "TESTED"
    assert board.call("activate", 0) == "OK"
    assert (board.state(0), board.update.slots[0].confirmed) == ("ACTIVE", 0)
    assert board.call("confirm", 0) == "OK"
    assert board.reboot() == "OK"
    assert (board.state(0), board.update.slots[0].confirmed) == ("ACTIVE", 1)
    assert board.update.counter == 3
    assert board.opens(0) == "OK"
    assert board.call("deactivate", 0) == "OK"
    assert board.call("erase", 0) == "OK"
    assert board.states() == ["EMPTY", "EMPTY"]
    assert board.flash.offences == []


@needs_x86
def test_a_module_whose_self_test_fails_empties_its_slot_and_the_active_one_stays(make_board: Make) -> None:
    """IM-SLOT-004, IM-SLOT-005."""
    board = make_board()
    board.install(0, image())
    bad = image(version="2", want=bytes(4))
    assert board.download(1, bad) == "OK"
    assert board.call("verify", 1) == "OK"
    assert board.test(1) == "SELF_TEST_FAILED"
    assert board.states() == ["ACTIVE", "EMPTY"]
    assert board.loader.status(board.update.slots[1].last_error) == "SELF_TEST_FAILED"
    assert board.reboot() == "OK"
    assert board.loader.status(board.update.slots[1].last_error) == "SELF_TEST_FAILED"


def test_a_module_without_golden_vectors_cannot_be_activated(make_board: Make) -> None:
    """IM-SLOT-004."""
    board = make_board()
    assert board.download(0, strip(image(), [SectionType.GOLDEN])) == "OK"
    assert board.call("verify", 0) == "OK"
    assert board.test(0) == "GOLDEN_ABSENT"
    assert board.state(0) == "VERIFIED"
    assert board.call("activate", 0) == "STATE_INVALID"


def test_a_small_arena_is_no_fault_of_the_module(make_board: Make) -> None:
    board = make_board()
    assert board.download(0, image()) == "OK"
    assert board.call("verify", 0) == "OK"
    assert board.call("test", 0, board.arena, 47) == "ARENA_TOO_SMALL"
    assert (board.state(0), board.update.slots[0].attempts) == ("VERIFIED", 0)


def test_a_newer_module_of_the_same_name_replaces_the_older_and_rollback_brings_it_back(make_board: Make) -> None:
    """IM-SLOT-006, IM-SLOT-008."""
    board = make_board(slots=3)
    board.install(0, image())
    board.install(1, image(version="2"))
    assert board.states() == ["PREVIOUS", "ACTIVE", "EMPTY"]
    board.install(2, image(version="3"))
    assert board.states() == ["EMPTY", "PREVIOUS", "ACTIVE"]
    assert board.call("rollback", 2, 37) == "OK"
    assert board.states() == ["EMPTY", "ACTIVE", "EMPTY"]
    assert board.loader.status(board.update.slots[2].last_error) == "PAYLOAD_ERROR"
    assert board.call("rollback", 1, 0) == "NOTHING_TO_ROLL_BACK"
    assert board.states() == ["EMPTY", "ACTIVE", "EMPTY"]


def test_modules_of_different_names_are_active_side_by_side(make_board: Make) -> None:
    """IM-SLOT-006."""
    board = make_board(slots=4)
    board.install(0, image("model-a"))
    board.install(1, image("model-b"))
    board.install(2, image("model-a", "2"))
    assert board.states() == ["PREVIOUS", "ACTIVE", "ACTIVE", "EMPTY"]
    assert board.call("rollback", 1, 0) == "NOTHING_TO_ROLL_BACK"


def test_an_unproven_module_does_not_push_out_the_proven_one_before_it(make_board: Make) -> None:
    board = make_board(slots=3)
    board.install(0, image())
    for slot, version in ((1, "2"), (2, "3")):
        assert board.download(slot, image(version=version)) == "OK"
        assert board.call("verify", slot) == "OK"
        assert board.test_elsewhere(slot) == "OK"
        assert board.call("activate", slot) == "OK"
    assert board.states() == ["PREVIOUS", "TESTED", "ACTIVE"]
    assert board.call("rollback", 2, 0) == "OK"
    assert board.states() == ["ACTIVE", "TESTED", "EMPTY"]


def test_a_module_that_never_confirms_is_rolled_back_after_three_boots(make_board: Make) -> None:
    """IM-SLOT-007."""
    board = make_board()
    board.install(0, image())
    assert board.download(1, image(version="2")) == "OK"
    assert board.call("verify", 1) == "OK"
    assert board.test_elsewhere(1) == "OK"
    assert board.call("activate", 1) == "OK"
    for _ in range(3):
        assert board.reboot() == "OK"
        assert board.states() == ["PREVIOUS", "ACTIVE"]
    assert board.reboot() == "OK"
    assert board.states() == ["ACTIVE", "EMPTY"]
    assert board.loader.status(board.update.slots[1].last_error) == "NOT_CONFIRMED"
    for _ in range(5):
        assert board.reboot() == "OK"
    assert board.states() == ["ACTIVE", "EMPTY"]


def test_the_first_module_that_never_confirms_is_given_up(make_board: Make) -> None:
    board = make_board()
    assert board.download(0, image()) == "OK"
    assert board.call("verify", 0) == "OK"
    assert board.test_elsewhere(0) == "OK"
    assert board.call("activate", 0) == "OK"
    for _ in range(4):
        assert board.reboot() == "OK"
    assert board.states() == ["EMPTY", "EMPTY"]


def test_a_self_test_that_resets_the_board_three_times_empties_the_slot(make_board: Make) -> None:
    """IM-SLOT-007."""
    board = make_board()
    assert board.download(0, image()) == "OK"
    assert board.call("verify", 0) == "OK"
    for attempt in range(3):
        module = board.ffi.new("tim_module *")
        assert board.call("test_begin", 0, module) == "OK"
        assert board.reboot() == "OK"
        assert board.update.slots[0].attempts == attempt + 1
    assert board.call("test_begin", 0, board.ffi.new("tim_module *")) == "SELF_TEST_FAILED"
    assert board.state(0) == "EMPTY"


def test_a_test_cannot_end_before_it_began(make_board: Make) -> None:
    board = make_board()
    assert board.download(0, image()) == "OK"
    assert board.call("verify", 0) == "OK"
    assert board.call("test_end", 0, 0) == "STATE_INVALID"
    assert board.state(0) == "VERIFIED"


def test_the_security_counter_only_rises_and_refuses_what_is_below(make_board: Make) -> None:
    """IM-SLOT-009."""
    board = make_board()
    board.install(0, image(counter=5))
    assert board.update.counter == 5
    assert board.download(1, image(version="0", counter=4)) == "DOWNGRADE"
    assert board.states() == ["ACTIVE", "EMPTY"]
    board.install(1, image(version="2", counter=7))
    assert (board.update.counter, board.states()) == (7, ["EMPTY", "ACTIVE"])
    assert board.loader.status(board.update.slots[0].last_error) == "DOWNGRADE"
    assert board.reboot() == "OK"
    assert board.update.counter == 7
    assert board.download(0, image(counter=6)) == "DOWNGRADE"


def test_the_counter_rises_with_confirmation_not_with_activation(make_board: Make) -> None:
    """IM-SLOT-009: an unproven module must not cut off the way back."""
    board = make_board()
    board.install(0, image(counter=5))
    assert board.download(1, image(version="2", counter=9)) == "OK"
    assert board.call("verify", 1) == "OK"
    assert board.test_elsewhere(1) == "OK"
    assert board.call("activate", 1) == "OK"
    assert board.update.counter == 5
    assert board.call("rollback", 1, 0) == "OK"
    assert (board.update.counter, board.states()) == (5, ["ACTIVE", "EMPTY"])


def test_a_module_tested_before_the_counter_rose_is_not_activated(make_board: Make) -> None:
    board = make_board(slots=3)
    assert board.download(0, image("model-b", counter=5)) == "OK"
    assert board.call("verify", 0) == "OK"
    assert board.test_elsewhere(0) == "OK"
    board.install(1, image(counter=6))
    assert board.call("activate", 0) == "DOWNGRADE"
    assert board.state(0) == "TESTED"


def test_the_firmware_can_set_a_floor_under_the_counter(make_board: Make) -> None:
    board = make_board()
    board.config.minimum_counter = 4
    assert board.reboot() == "OK"
    assert board.download(0, image(counter=3)) == "DOWNGRADE"
    assert board.download(0, image(counter=4)) == "OK"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:40] + b"\x02" + data[41:], "SIGNATURE_INVALID"),
        (lambda data: sign(pack(im_corpus.native_contents()), im_corpus.STRANGER), "KEY_UNKNOWN"),
        (lambda data: pack(im_corpus.native_contents()), "SIGNATURE_MISSING"),
        (lambda data: b"\x00" * len(data), "BAD_MAGIC"),
        (lambda data: data[:14] + b"\xff\xff" + data[16:], "SIGNATURE_BLOCK_INVALID"),
        (lambda data: data[:8] + b"\xff\xff" + data[10:], "SIZE_MISMATCH"),
        (lambda data: data[:-100], "SIZE_MISMATCH"),
        (lambda data: data + bytes(16), "SIZE_MISMATCH"),
        (lambda data: data[:300], "TRUNCATED"),
    ],
)
def test_a_head_that_is_not_trusted_stops_the_download(
    make_board: Make, change: Callable[[bytes], bytes], reason: str
) -> None:
    """IM-LOAD-002, IM-SLOT-003."""
    board = make_board()
    assert board.download(0, change(image())) == reason
    assert board.state(0) == "EMPTY"
    assert board.loader.status(board.update.slots[0].last_error) == reason


def test_tampered_payload_bytes_fail_verification(make_board: Make) -> None:
    """IM-SLOT-003."""
    board, made = make_board(), bytearray(image())
    made[500] ^= 1
    assert board.download(0, bytes(made)) == "OK"
    assert board.call("verify", 0) == "DIGEST_MISMATCH"
    assert board.state(0) == "EMPTY"


def test_flash_that_decays_is_found_when_the_module_is_opened(make_board: Make) -> None:
    board = make_board()
    board.install(0, image())
    made = image()
    at = bytes(board.flash.memory).index(made) + 500
    board.flash.memory[at] ^= 0x01
    assert board.opens(0) == "DIGEST_MISMATCH"


def test_a_rollback_target_that_decayed_is_not_activated(make_board: Make) -> None:
    board = make_board()
    board.install(0, image())
    board.install(1, image(version="2"))
    at = bytes(board.flash.memory).index(image())
    board.flash.memory[at + 500] ^= 0x01
    assert board.call("rollback", 1, 0) == "NOTHING_TO_ROLL_BACK"
    assert board.states() == ["PREVIOUS", "ACTIVE"]


def test_the_active_slot_is_never_written_nor_erased(make_board: Make) -> None:
    """IM-SLOT-002."""
    board = make_board()
    board.install(0, image())
    assert board.begin(0, image(version="2"))[0] == "STATE_INVALID"
    assert board.call("erase", 0) == "STATE_INVALID"
    assert board.call("write", 0, 0, b"x", 1) == "STATE_INVALID"
    assert board.opens(0) == "OK"


def test_a_lost_link_goes_on_where_it_stopped(make_board: Make) -> None:
    """IM-SLOT-010."""
    board, made = make_board(), image()
    assert board.begin(0, made) == ("OK", 0)
    assert board.call("write", 0, 0, made[:77], 77) == "OK"
    assert board.lib.tim_update_received(board.update, 0) == 77
    assert board.call("write", 0, 0, made[:10], 10) == "OFFSET_MISMATCH"
    assert board.call("write", 0, 78, made[78:80], 2) == "OFFSET_MISMATCH"
    assert board.begin(0, made) == ("OK", 77)
    assert board.download(0, made) == "OK"
    assert board.begin(0, made) == ("OK", len(made))
    assert board.call("verify", 0) == "OK"


def test_a_reboot_goes_on_at_a_page_and_other_bytes_start_anew(make_board: Make) -> None:
    """IM-SLOT-010."""
    board, made = make_board(), image()
    assert board.begin(0, made) == ("OK", 0)
    assert board.call("write", 0, 0, made[:600], 600) == "OK"
    assert board.reboot() == "OK"
    assert board.state(0) == "WRITING"
    assert board.call("write", 0, 0, made, 1) == "STATE_INVALID"
    assert board.begin(0, made) == ("OK", 512)
    assert board.reboot() == "OK"
    assert board.begin(0, made, b"other bytes here") == ("OK", 0)
    assert board.reboot() == "OK"
    assert board.download(0, made) == "OK"
    assert board.call("verify", 0) == "OK"
    assert board.flash.offences == []


def test_one_download_at_a_time(make_board: Make) -> None:
    board, made = make_board(), image()
    assert board.begin(0, made) == ("OK", 0)
    assert board.begin(1, made) == ("OK", 0)
    assert board.states() == ["EMPTY", "WRITING"]


def test_a_download_that_is_complete_need_not_be_sent_again(make_board: Make) -> None:
    board = make_board()
    board.install(0, image())
    board.install(1, image(version="2"))
    assert board.begin(0, image()) == ("OK", len(image()))
    assert board.states() == ["WRITTEN", "ACTIVE"]


def test_sizes_and_slots_out_of_range_are_refused(make_board: Make) -> None:
    board = make_board(slot_pages=4)
    assert board.begin(0, bytes(1025))[0] == "TOO_LARGE"
    assert board.begin(0, bytes(1024))[0] == "OK"
    assert board.call("write", 0, 0, bytes(1025), 1025) == "TOO_LARGE"
    assert board.begin(0, bytes(127))[0] == "TRUNCATED"
    assert board.begin(2, bytes(256))[0] == "SLOT_INVALID"
    module = board.ffi.new("tim_module *")
    for name, arguments in (
        ("verify", ()), ("activate", ()), ("confirm", ()), ("erase", ()), ("deactivate", ()), ("open", (module,)),
        ("test_begin", (module,)), ("test_end", (0,)), ("rollback", (0,)), ("write", (0, b"x", 1)),
    ):  # fmt: skip
        assert board.call(name, 2, *arguments) == "SLOT_INVALID"
    assert board.lib.tim_update_received(board.update, 2) == 0


def test_a_failing_page_is_an_error_and_no_more(make_board: Make) -> None:
    board, made = make_board(), image()
    board.install(0, image(version="0"))
    board.flash.failing_pages = {board.config.slots[1].offset + 256}
    assert board.download(1, made) == "FLASH_ERROR"
    assert board.states() == ["ACTIVE", "WRITING"]
    board.flash.failing_pages = set()
    assert board.download(1, made) == "OK"
    assert board.call("verify", 1) == "OK"


def test_a_journal_half_that_fails_never_costs_the_newest_record(make_board: Make) -> None:
    """IM-SLOT-011."""
    board = make_board(journal_pages=4)
    board.install(0, image())
    for half in (0, 2):
        board.flash.failing_pages = {half * 256, (half + 1) * 256}
        results = {board.begin(1, bytes(256), bytes([n] * 16))[0] for n in range(12)}
        assert "FLASH_ERROR" in results
        board.flash.failing_pages = set()
        assert board.reboot() == "OK"
        assert board.state(0) == "ACTIVE"
        assert board.opens(0) == "OK"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_bytes", 100), ("page_bytes", 32), ("program_bytes", 0), ("program_bytes", 3), ("program_bytes", 64),
    ],
)  # fmt: skip
def test_impossible_flash_geometry_is_refused(make_board: Make, field: str, value: int) -> None:
    board = make_board()
    setattr(board.config.flash, field, value)
    assert board.reboot() == "CONFIG_INVALID"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda config: setattr(config, "slot_count", 0),
        lambda config: setattr(config, "slot_count", 5),
        lambda config: setattr(config.slots[1], "offset", config.slots[0].offset),
        lambda config: setattr(config.slots[1], "offset", 0),
        lambda config: setattr(config.slots[0], "offset", config.slots[0].offset + 8),
        lambda config: setattr(config.slots[0], "bytes", 0),
        lambda config: setattr(config.slots[0], "bytes", 0xFFFFFF00),
        lambda config: setattr(config.journal, "bytes", 256),
        lambda config: setattr(config.journal, "bytes", 768),
    ],
)
def test_impossible_slot_tables_are_refused(make_board: Make, break_it: Callable[[Any], None]) -> None:
    board = make_board()
    break_it(board.config)
    assert board.reboot() == "CONFIG_INVALID"


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("page", [64, 256, 2048])
def test_every_program_unit_and_page_size_works(make_board: Make, unit: int, page: int) -> None:
    per_kib = max(1, 1024 // page)
    board = make_board(unit=unit, page=page, slot_pages=per_kib, journal_pages=2 * per_kib)
    for number in range(6):
        board.install(number % 2, image(version=str(number), counter=number))
        assert board.reboot() == "OK"
        assert board.state(number % 2) == "ACTIVE"
    assert board.flash.offences == []


def test_random_bytes_in_the_journal_are_no_state(make_board: Make) -> None:
    board = make_board()
    for at in range(1024):
        board.flash.memory[at] = board.flash.random.getrandbits(8)
    board.flash.used.update(range(0, 1024, 8))
    assert board.reboot() == "OK"
    assert board.states() == ["EMPTY", "EMPTY"]
    board.install(0, image())
    assert board.reboot() == "OK"
    assert board.state(0) == "ACTIVE"


def test_contents_differ_only_where_asked() -> None:
    """The modules of these tests are deterministic: same contents, same bytes (IM-FILE-004)."""
    assert image() == image()
    assert pack(im_corpus.native_contents()) == pack(replace(im_corpus.native_contents()))
