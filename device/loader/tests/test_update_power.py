"""Power cuts at every flash operation: the update core always comes back to a state from which work ends well.

IM-SLOT-011: each transition happens wholly or not at all. IM-SLOT-012: an active module survives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinymlaas_module import corpus as im_corpus
from tinymlaas_module import pack, sign

Make = Callable[..., Any]
GEOMETRIES = [
    {"page": 256, "unit": 8, "slot_pages": 4, "journal_pages": 4},
    {"page": 64, "unit": 4, "slot_pages": 16, "journal_pages": 12},
    {"page": 1024, "unit": 32, "slot_pages": 1, "journal_pages": 2},
]


def image(version: str, counter: int) -> bytes:
    """Return a module of a kind that the firmware tests itself, so that these tests run on every host."""
    made = im_corpus.tflite_contents()
    payload = made.payload + bytes([int(version)] * 100) + b"\xff" * 120
    return sign(
        pack(replace(made, name="power", version=version, security_counter=counter, payload=payload)), im_corpus.SIGNER
    )


OLD, NEW = image("1", 3), image("2", 5)


def drive(board: Any, *forgiven: str) -> bool:
    """Do what a server does that knows only the slots' states: bring NEW into slot 1 and confirm it.

    Returns False when the board died on the way. ``forgiven`` statuses do not end it.
    """
    steps: dict[str, Callable[[], str]] = {
        "EMPTY": lambda: str(board.download(1, NEW, 64)),
        "WRITING": lambda: str(board.download(1, NEW, 64)),
        "WRITTEN": lambda: str(board.call("verify", 1)),
        "VERIFIED": lambda: str(board.test_elsewhere(1)),
        "TESTED": lambda: str(board.call("activate", 1)),
    }
    for _ in range(20):
        state = board.state(1)
        if state == "ACTIVE":
            if board.update.slots[1].confirmed:
                return True
            status = board.call("confirm", 1)
        else:
            status = steps[state]()
        if board.flash.dead:
            return False
        assert status in ("OK", *forgiven), (state, status)
    raise AssertionError(f"no end in sight: {board.states()}")


def check(board: Any, counter_before: int) -> None:
    """What must hold after each reboot."""
    active = [slot for slot in range(2) if board.state(slot) == "ACTIVE"]
    assert len(active) == 1
    assert board.opens(active[0]) == "OK"
    assert board.update.counter >= counter_before
    assert board.update.counter == (5 if board.update.slots[1].confirmed else 3)
    if board.state(1) in ("VERIFIED", "TESTED", "ACTIVE"):
        assert board.opens(1) == "OK"
    assert board.state(0) in ("ACTIVE", "PREVIOUS", "EMPTY")


def prepared(make_board: Make, geometry: dict[str, int]) -> Any:
    board = make_board(slots=2, **geometry)
    board.install(0, OLD)
    return board


def cuts(total: int) -> Iterator[int]:
    yield from range(1, total + 1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["small pages", "tiny pages", "one page slots"])
def test_an_install_survives_a_power_cut_in_every_flash_operation(make_board: Make, geometry: dict[str, int]) -> None:
    board = prepared(make_board, geometry)
    start = board.flash.snapshot()
    board.flash.restore(start)
    assert board.reboot() == "OK"
    assert drive(board)
    total = board.flash.operations
    assert total > 60
    states = set()
    for cut in cuts(total):
        board.flash.restore(start)
        board.flash.random.seed(cut)
        assert board.reboot() == "OK"
        board.flash.cut_at = cut
        assert not drive(board)
        assert board.reboot() == "OK"
        check(board, 3)
        states.add(board.state(1))
        assert drive(board)
        assert board.states() == ["EMPTY", "ACTIVE"]
        assert board.update.counter == 5
        assert board.opens(1) == "OK"
        assert board.flash.offences == []
    assert states == {"EMPTY", "WRITING", "WRITTEN", "VERIFIED", "TESTED", "ACTIVE"}


def test_an_install_survives_power_cuts_while_it_recovers_from_power_cuts(make_board: Make) -> None:
    """Three cuts inside the self-test empty the slot; the server then starts anew."""
    board = prepared(make_board, GEOMETRIES[0])
    start = board.flash.snapshot()
    for seed in range(150):
        board.flash.restore(start)
        board.flash.random.seed(seed)
        assert board.reboot() == "OK"
        for _ in range(12):
            board.flash.operations = 0
            board.flash.cut_at = board.flash.random.randrange(1, 60)
            if drive(board, "SELF_TEST_FAILED"):
                break
            assert board.reboot() == "OK"
            check(board, 3)
        board.flash.cut_at = 0
        assert drive(board, "SELF_TEST_FAILED")
        assert board.states() == ["EMPTY", "ACTIVE"]
        assert board.flash.offences == []


def test_a_rollback_survives_a_power_cut_in_every_flash_operation(make_board: Make) -> None:
    """IM-SLOT-008."""
    board = prepared(make_board, GEOMETRIES[0])
    assert board.download(1, NEW) == "OK"
    assert board.call("verify", 1) == "OK"
    assert board.test_elsewhere(1) == "OK"
    assert board.call("activate", 1) == "OK"
    board.config.max_attempts = 200
    for _ in range(5):  # each boot adds a record, so that the journal changes halves at different places
        assert board.reboot() == "OK"
        start = board.flash.snapshot()
        board.flash.restore(start)
        ram = board.ffi.new("tim_update *", board.update[0])
        assert board.call("rollback", 1, 37) == "OK"
        total = board.flash.operations
        for cut in cuts(total):
            board.flash.restore(start)
            board.flash.random.seed(cut)
            board.update[0] = ram[0]
            board.flash.cut_at = cut
            board.call("rollback", 1, 37)
            assert board.flash.dead
            assert board.reboot() == "OK"
            assert board.states() in (["PREVIOUS", "ACTIVE"], ["ACTIVE", "EMPTY"])
            assert board.opens(board.states().index("ACTIVE")) == "OK"
            if board.states()[1] == "ACTIVE":
                assert board.call("rollback", 1, 37) == "OK"
            assert board.states() == ["ACTIVE", "EMPTY"]
            assert board.flash.offences == []
        board.flash.restore(start)


def test_power_cuts_in_every_boot_of_an_unconfirmed_module_end_in_rollback(make_board: Make) -> None:
    """IM-SLOT-007: counting boots writes flash too, and may be cut."""
    board = prepared(make_board, GEOMETRIES[0])
    assert board.download(1, NEW) == "OK"
    assert board.call("verify", 1) == "OK"
    assert board.test_elsewhere(1) == "OK"
    assert board.call("activate", 1) == "OK"
    start = board.flash.snapshot()
    for seed in range(40):
        board.flash.restore(start)
        board.flash.random.seed(seed)
        boots = 0
        while board.state(1) == "ACTIVE" or boots == 0:
            board.update = board.ffi.new("tim_update *")
            board.flash.dead, board.flash.operations = False, 0
            board.flash.cut_at = board.flash.random.choice([0, 0, board.flash.random.randrange(1, 30)])
            board.call("init", board.config)
            boots += 1
            assert boots < 60
        assert board.reboot() == "OK"
        assert board.states() == ["ACTIVE", "EMPTY"]
        assert board.opens(0) == "OK"
        assert board.flash.offences == []


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(
        st.tuples(
            st.sampled_from(
                ["begin", "write", "verify", "test", "activate", "confirm", "rollback", "erase", "deactivate"]
            ),
            st.integers(0, 2),
            st.one_of(st.just(0), st.integers(1, 40)),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_no_sequence_of_calls_and_power_cuts_breaks_the_invariants(make_board: Make, script: list[Any]) -> None:
    """At most one active module of a name; what is active opens; the counter never falls; flash rules are kept."""
    board = make_board(slots=3, **GEOMETRIES[0])
    images = [image(str(number), 3 + number) for number in (1, 2, 3)]
    counter = 0
    for step, (action, slot, cut) in enumerate(script):
        board.flash.operations, board.flash.cut_at = 0, cut
        made = images[(slot + step) % 3]
        if action == "begin":
            board.begin(slot, made)
        elif action == "write":
            board.download(slot, made)
        elif action == "test":
            board.test_elsewhere(slot, 0 if step % 5 else 39)
        elif action == "rollback":
            board.call("rollback", slot, 0)
        else:
            board.call(action, slot)
        if board.flash.dead:
            assert board.reboot() == "OK"
        active = [index for index in range(3) if board.state(index) == "ACTIVE"]
        assert len(active) <= 1
        assert all(board.opens(index) == "OK" for index in active)
        assert board.update.counter >= counter
        counter = board.update.counter
        assert board.flash.offences == []
