"""The race: digests, Pareto front, choice."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_gateway.core import race
from tinymlaas_gateway.core.race import Common, Entry

LATENCY, FLASH = builds_pb2.OBJECTIVE_LATENCY, builds_pb2.OBJECTIVE_FLASH
RAM, BALANCED = builds_pb2.OBJECTIVE_RAM, builds_pb2.OBJECTIVE_BALANCED
OBJECTIVES = [LATENCY, FLASH, RAM, BALANCED, builds_pb2.OBJECTIVE_UNSPECIFIED]

FAST = Entry("fast", 100, 900, 900)
SMALL = Entry("small", 900, 100, 800)
LEAN = Entry("lean", 800, 800, 100)
EVEN = Entry("even", 300, 300, 300)
UNMEASURED = Entry("unmeasured", None, 90, 90)


@pytest.mark.parametrize(
    ("objective", "winner"), [(LATENCY, "fast"), (FLASH, "small"), (RAM, "lean"), (BALANCED, "even")]
)
def test_the_winner_is_best_at_what_was_asked_for(objective: builds_pb2.Objective, winner: str) -> None:
    for order in permutations([FAST, SMALL, LEAN, EVEN]):
        assert race.choose(order, objective) == winner


def test_an_unmeasured_figure_wins_nothing_but_measured_ones_count() -> None:
    entries = [UNMEASURED, EVEN]
    assert race.choose(entries, LATENCY) == "even"
    assert race.choose(entries, BALANCED) == "even"
    assert race.choose(entries, FLASH) == "unmeasured"
    assert race.pareto(entries) == {"unmeasured", "even"}


def test_nobody_wins_an_empty_race() -> None:
    assert race.choose([], BALANCED) is None
    assert race.pareto([]) == set()


figures = st.integers(0, 5)
entries = st.lists(
    st.builds(Entry, st.uuids().map(str), st.one_of(st.none(), figures), figures, figures),
    min_size=1,
    max_size=8,
    unique_by=lambda entry: entry.key,
)


@given(entries, st.sampled_from(OBJECTIVES), st.randoms())
def test_the_winner_does_not_depend_on_the_order_and_is_on_the_front(
    items: list[Entry], objective: builds_pb2.Objective, rng: random.Random
) -> None:
    winner = race.choose(items, objective)
    front = race.pareto(items)
    shuffled = list(items)
    rng.shuffle(shuffled)
    assert race.choose(shuffled, objective) == winner
    assert race.pareto(shuffled) == front
    assert winner in front


def target(**fields: object) -> target_pb2.Target:
    return target_pb2.Target(cpu="cortex-m4", isa="armv7e-m", **fields)  # type: ignore[arg-type]


def test_equal_targets_have_equal_digests_whatever_their_name_and_order() -> None:
    one = target(name="a", features=["dsp", "thumb2"], payload_kinds=[1, 2])
    two = target(name="b", features=["thumb2", "dsp", "dsp"], payload_kinds=[2, 1])
    assert race.target_digest(one) == race.target_digest(two)
    assert race.target_digest(one) != race.target_digest(target(features=["thumb2"], payload_kinds=[1, 2]))


def test_every_part_of_a_request_changes_its_digest() -> None:
    def common(**fields: object) -> Common:
        values = {
            "project": "p",
            "model_version": "v",
            "model_sha256": "m",
            "target": target(),
            "samples_sha256": "s",
            "security_counter": 1,
            "key_id": "k",
        }
        return Common(**{**values, **fields})  # type: ignore[arg-type]

    variants = [
        common(),
        common(project="q"),
        common(model_version="w"),
        common(model_sha256="n"),
        common(target=target(clock_hz=1)),
        common(samples_sha256=""),
        common(security_counter=2),
        common(key_id="l"),
    ]
    digests = [race.candidate_digest(item, "plugins/x", "1", None) for item in variants]
    digests += [
        race.candidate_digest(common(), "plugins/y", "1", None),
        race.candidate_digest(common(), "plugins/x", "2", None),
    ]
    assert len(set(digests)) == len(digests)
    builds = [race.build_digest(common(), objective, {"a": "1", "b": "2"}) for objective in (1, 2)]
    assert builds[0] != builds[1]
    assert builds[0] == race.build_digest(common(), 1, {"b": "2", "a": "1"})


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_digests_of_different_lists_differ(one: list[str], two: list[str]) -> None:
    assert (race.digest("t", *one) == race.digest("t", *two)) == (one == two)
