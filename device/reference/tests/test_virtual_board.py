"""A module is installed, tested, activated and run by real firmware on a simulated CPU, and nothing else gets through."""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinymlaas_device.board import Board, BoardError, BoardReason, SlotState
from tinymlaas_device.boards import board_models, make_board
from tinymlaas_device.firmware_build import RAM_BASE, STACK_BYTES
from tinymlaas_device.virtual_board import VirtualBoard
from tinymlaas_module import Isa

sys.path.insert(0, str(Path(__file__).parent))

from board_modules import OTHER_KEY, PUBLIC_KEY, WIDTH, digest_of, module_for

INPUT = bytes((7 * i) & 0x7F for i in range(WIDTH))


def cpu_of(name: str) -> str:
    return board_models()[name].spec.cpu


def board_named(name: str, state_file: Path | None = None) -> VirtualBoard:
    board = make_board(name, keys=[PUBLIC_KEY], state_file=state_file)
    assert isinstance(board, VirtualBoard)
    return board


@pytest.fixture
def board() -> Iterator[VirtualBoard]:
    made = board_named("node-m4f")
    yield made
    made.close()


def download(board: Board, slot: int, image: bytes, *, step: int = 700) -> None:
    board.begin(slot, len(image), digest_of(image))
    for start in range(board.bytes_written(slot), len(image), step):
        board.write(slot, start, image[start : start + step])


def install(board: Board, slot: int, image: bytes) -> None:
    download(board, slot, image)
    board.verify(slot)
    assert board.self_test(slot).passed
    board.activate(slot)


def plus(data: bytes, add: int) -> bytes:
    return bytes((value + add) & 0xFF for value in data)


def receive(board: Board, slot: int, image: bytes) -> None:
    download(board, slot, image)
    board.verify(slot)


def refusal_of(board: Board, image: bytes, slot: int = 0) -> BoardError:
    with pytest.raises(BoardError) as caught:
        receive(board, slot, image)
    assert board.slot(slot).state is SlotState.EMPTY
    return caught.value


@pytest.mark.parametrize("name", sorted(name for name, m in board_models().items() if not m.spec.static_firmware))
def test_a_module_is_installed_tested_activated_and_run_on_every_board(name: str) -> None:
    board = board_named(name)
    image = module_for(cpu_of(name))
    download(board, 0, image)
    assert board.slot(0).state is SlotState.RECEIVING
    assert board.slot(0).digest == hashlib.sha256(image).digest()
    board.verify(0)
    assert board.slot(0).state is SlotState.INSTALLED
    verdict = board.self_test(0)
    assert verdict.passed
    assert verdict.detail == "1 golden vectors passed"
    assert board.slot(0).state is SlotState.TESTED
    assert board.active_slot() is None
    board.activate(0)
    assert board.active_slot() == 0
    first, second = board.invoke(INPUT), board.invoke(INPUT)
    assert first.output == second.output == plus(INPUT, 1)
    assert second.latency > WIDTH * 4
    assert second.latency_unit == "instructions"
    counters = board.counters()
    assert (counters.invocations, counters.errors, counters.security_counter) == (2, 0, 1)
    status = board.slot(0)
    assert (status.name, status.version, status.security_counter) == ("adder", "1", 1)
    board.close()


def test_a_run_has_a_confidence_where_the_module_tells_scores(board: VirtualBoard) -> None:
    """DO-OBS-003."""
    install(board, 0, module_for("cortex-m4"))
    assert board.invoke(INPUT).confidence is None
    install(board, 1, module_for("cortex-m4", scores=True))
    signed = [value - 256 if value > 127 else value for value in plus(INPUT, 1)]
    assert board.invoke(INPUT).confidence == (max(signed) + 128) / 256
    board.close()


def test_the_firmwares_own_ram_counts_against_the_board(board: VirtualBoard) -> None:
    free = board.ram_free()
    assert 0 < free < board.spec.ram_total - 4096
    fits = module_for("cortex-m4", arena_bytes=free - 64, stack_bytes=64)
    install(board, 0, fits)
    assert board.invoke(INPUT).output == plus(INPUT, 1)
    error = refusal_of(board, module_for("cortex-m4", arena_bytes=free, stack_bytes=64), slot=1)
    assert error.reason is BoardReason.NOT_ENOUGH_RAM
    assert (error.metadata["need"], error.metadata["have"]) == (str(free + 64), str(free))


@pytest.mark.parametrize("name", ["tiny-m0plus", "node-m4f", "riscv-node"])
def test_the_firmwares_stack_stays_in_the_part_of_ram_set_aside_for_it(name: str) -> None:
    board = board_named(name)
    arena_end = board._firmware.static_ram + 64 + 64
    machine = board._machine
    assert machine is not None
    marks = bytes((i * 7 + 3) & 0xFF for i in range(board.spec.ram_total - arena_end - 1024))
    machine.load(RAM_BASE + arena_end, marks)
    install(board, 0, module_for(cpu_of(name)))
    board.invoke(INPUT)
    left = machine.read(RAM_BASE + arena_end, len(marks))
    untouched = next(i for i in range(len(marks)) if left[i] != marks[i]) if left != marks else len(marks)
    depth = board.spec.ram_total - arena_end - untouched
    assert 1024 < depth <= STACK_BYTES
    board.close()


def test_a_module_larger_than_its_slot_is_refused_at_once(board: VirtualBoard) -> None:
    with pytest.raises(BoardError) as caught:
        board.begin(0, board.spec.slot_sizes[0] + 1, bytes(32))
    assert caught.value.reason is BoardReason.NO_SPACE
    with pytest.raises(BoardError) as caught:
        board.begin(9, 1000, bytes(32))
    assert caught.value.reason is BoardReason.NO_SUCH_SLOT


def test_wrong_keys_isa_and_bytes_are_refused_for_their_reason(board: VirtualBoard) -> None:
    assert refusal_of(board, module_for("cortex-m4", key=OTHER_KEY)).reason is BoardReason.UNKNOWN_KEY
    assert refusal_of(board, module_for("cortex-m4", isa=Isa.RV32IMC)).reason is BoardReason.UNSUPPORTED_ISA
    image = bytearray(module_for("cortex-m4"))
    image[60] ^= 1
    assert refusal_of(board, bytes(image)).reason in (BoardReason.BAD_SIGNATURE, BoardReason.BAD_IMAGE)
    late = bytearray(module_for("cortex-m4"))
    late[-20] ^= 1
    error = refusal_of(board, bytes(late))
    assert error.reason is BoardReason.BAD_IMAGE
    assert error.metadata["detail"] == "DIGEST_MISMATCH"


def test_bytes_that_are_not_the_announced_ones_are_refused(board: VirtualBoard) -> None:
    image = module_for("cortex-m4")
    board.begin(0, len(image), bytes(32))
    board.write(0, 0, image)
    with pytest.raises(BoardError) as caught:
        board.verify(0)
    assert caught.value.reason is BoardReason.DIGEST_MISMATCH


def test_only_a_tested_module_is_activated(board: VirtualBoard) -> None:
    download(board, 0, module_for("cortex-m4"))
    for use in (lambda: board.activate(0), lambda: board.self_test(0)):
        with pytest.raises(BoardError) as caught:
            use()
        assert caught.value.reason is BoardReason.WRONG_STATE
    board.verify(0)
    with pytest.raises(BoardError) as caught:
        board.activate(0)
    assert caught.value.reason is BoardReason.NOT_TESTED
    with pytest.raises(BoardError) as caught:
        board.invoke(INPUT)
    assert caught.value.reason is BoardReason.NOTHING_ACTIVE


@pytest.mark.parametrize(
    ("module", "detail"),
    [
        (module_for("cortex-m4", golden_add=2), "golden vector 0 of 1 differs"),
        (module_for("cortex-m4", returns=-3), "PAYLOAD_ERROR"),
    ],
)
def test_a_module_that_computes_something_else_fails_its_self_test(
    board: VirtualBoard, module: bytes, detail: str
) -> None:
    download(board, 0, module)
    board.verify(0)
    verdict = board.self_test(0)
    assert not verdict.passed
    assert verdict.detail == detail
    assert board.slot(0).state is SlotState.EMPTY


def test_a_module_that_faults_resets_the_board_which_lives_on(board: VirtualBoard) -> None:
    install(board, 0, module_for("cortex-m4"))
    download(board, 1, module_for("cortex-m4", spoil=1, version="2"))
    board.verify(1)
    verdict = board.self_test(1)
    assert not verdict.passed
    assert "WRITE_PROTECTED" in verdict.detail
    assert board.counters().errors == 1
    assert board.invoke(INPUT).output == plus(INPUT, 1)
    for _ in range(2):
        assert not board.self_test(1).passed
    assert board.self_test(1).detail == "the board was reset in every test of this module"
    assert board.slot(1).state is SlotState.EMPTY


def test_the_module_before_comes_back_by_rollback(board: VirtualBoard) -> None:
    install(board, 0, module_for("cortex-m4", add=1))
    assert board.invoke(INPUT).output == plus(INPUT, 1)
    install(board, 1, module_for("cortex-m4", add=5, version="2"))
    assert board.active_slot() == 1
    assert board.invoke(INPUT).output == plus(INPUT, 5)
    assert board.rollback() == 0
    assert board.invoke(INPUT).output == plus(INPUT, 1)
    assert board.slot(1).state is SlotState.EMPTY
    with pytest.raises(BoardError) as caught:
        board.rollback()
    assert caught.value.reason is BoardReason.NOTHING_TO_ROLL_BACK


def test_an_older_module_is_a_downgrade_once_the_newer_one_has_run(board: VirtualBoard) -> None:
    install(board, 0, module_for("cortex-m4", counter=5))
    board.invoke(INPUT)
    assert board.counters().security_counter == 5
    error = refusal_of(board, module_for("cortex-m4", counter=4, version="0"), slot=1)
    assert error.reason is BoardReason.DOWNGRADE


def test_one_module_is_active_whatever_its_name(board: VirtualBoard) -> None:
    install(board, 0, module_for("cortex-m4", name="first", add=1))
    install(board, 1, module_for("cortex-m4", name="second", add=9))
    assert board.active_slot() == 1
    assert board.slot(0).state is SlotState.TESTED
    board.activate(0)
    assert board.active_slot() == 0
    assert board.slot(1).state is SlotState.TESTED
    assert board.invoke(INPUT).output == plus(INPUT, 1)
    board.deactivate(0)
    assert board.active_slot() is None
    board.uninstall(0)
    assert board.slot(0).state is SlotState.EMPTY
    assert board.flash_free() == board.spec.slot_sizes[0]


def test_an_active_slot_is_neither_erased_nor_overwritten(board: VirtualBoard) -> None:
    image = module_for("cortex-m4")
    install(board, 0, image)
    for use in (lambda: board.uninstall(0), lambda: board.begin(0, len(image), digest_of(image))):
        with pytest.raises(BoardError) as caught:
            use()
        assert caught.value.reason is BoardReason.WRONG_STATE
    assert board.invoke(INPUT).output == plus(INPUT, 1)


def test_input_of_the_wrong_size_is_refused(board: VirtualBoard) -> None:
    install(board, 0, module_for("cortex-m4"))
    with pytest.raises(BoardError) as caught:
        board.invoke(INPUT[:-1])
    assert caught.value.reason is BoardReason.WRONG_INPUT_SIZE
    assert caught.value.metadata == {"need": "16", "have": "15"}


def test_a_write_elsewhere_than_where_the_download_stands_is_refused(board: VirtualBoard) -> None:
    image = module_for("cortex-m4")
    board.begin(0, len(image), digest_of(image))
    board.write(0, 0, image[:100])
    with pytest.raises(BoardError) as caught:
        board.write(0, 200, image[200:300])
    assert caught.value.reason is BoardReason.WRONG_OFFSET
    assert board.bytes_written(0) == 100


def test_the_active_module_survives_reboots_and_restarts_of_the_process(tmp_path: Path) -> None:
    state = tmp_path / "flash.bin"
    board = board_named("node-m4f", state)
    install(board, 0, module_for("cortex-m4"))
    board.reboot()
    assert board.invoke(INPUT).output == plus(INPUT, 1)
    with pytest.raises(BlockingIOError):
        board_named("node-m4f", state)
    board.close()
    again = board_named("node-m4f", state)
    assert again.active_slot() == 0
    assert again.invoke(INPUT).output == plus(INPUT, 1)
    again.close()


def test_an_interrupted_download_goes_on_after_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "flash.bin"
    image = module_for("cortex-m4", padding=20_000)
    board = board_named("node-m4f", state)
    board.begin(0, len(image), digest_of(image))
    board.write(0, 0, image[:15_000])
    board.close()
    again = board_named("node-m4f", state)
    assert again.slot(0).state is SlotState.RECEIVING
    assert again.slot(0).digest == digest_of(image)
    again.begin(0, len(image), digest_of(image))
    there = again.bytes_written(0)
    assert 8_192 <= there <= 15_000
    again.write(0, there, image[there:])
    again.verify(0)
    assert again.self_test(0).passed
    again.close()


def test_a_state_file_of_another_board_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "flash.bin"
    board_named("node-m4f", state).close()
    with pytest.raises(ValueError, match="holds"):
        board_named("tiny-m0plus", state)


def coarse_board(state_file: Path) -> VirtualBoard:
    """A board whose flash is programmed 32 bytes at a time, so that an update has few enough operations to cut each."""
    model = board_models()["node-m4f"]
    layout = dataclasses.replace(model.layout, program_bytes=32)
    return VirtualBoard(dataclasses.replace(model, layout=layout), keys=[PUBLIC_KEY], state_file=state_file)


@pytest.mark.slow
def test_power_cut_at_every_flash_operation_of_an_update_leaves_a_working_board(tmp_path: Path) -> None:
    old, new = module_for("cortex-m4", add=1), module_for("cortex-m4", add=5, version="2")
    state = tmp_path / "flash.bin"
    board = coarse_board(state)
    install(board, 0, old)
    board.invoke(INPUT)
    board.close()
    before = state.read_bytes()

    def update(target: VirtualBoard) -> None:
        install(target, 1, new)
        target.invoke(INPUT)

    whole = coarse_board(state)
    start = whole.flash_operations
    update(whole)
    operations = whole.flash_operations - start
    whole.close()
    assert operations > 40
    for cut in range(operations):
        state.write_bytes(before)
        hurt = coarse_board(state)
        hurt.cut_power_after(cut)
        with pytest.raises(BoardError) as caught:
            update(hurt)
        assert caught.value.reason is BoardReason.POWER_LOST, cut
        with pytest.raises(BoardError) as still_off:
            hurt.slot(0)
        assert still_off.value.reason is BoardReason.POWER_LOST
        hurt.reboot()
        active = hurt.active_slot()
        assert active is not None, cut
        assert hurt.invoke(INPUT).output == plus(INPUT, 1 if active == 0 else 5), cut
        if active == 0:
            update(hurt)
        assert hurt.active_slot() == 1
        assert hurt.invoke(INPUT).output == plus(INPUT, 5)
        hurt.close()


def test_an_unknown_board_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tiny-m0plus"):
        make_board("toaster")
