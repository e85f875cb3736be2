"""What a rollout does next: tables for each rule, and properties of whole simulated rollouts under random policies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2
from tinymlaas_gateway.core import waves
from tinymlaas_gateway.core.policy import OnFailure, Policy, Thresholds, WavePolicy
from tinymlaas_gateway.core.waves import Decision, Dependency, DeviceNow, Now, WaveNow, decide
from tinymlaas_gateway.core.windows import Window, opening

State = deployments_pb2.DeviceRollout.State
WaveState = rollouts_pb2.Wave.State
STRICT = Thresholds(success_percent=100)
CANARY = Policy(
    waves=(WavePolicy("canary", count=1, soak=60.0, thresholds=STRICT), WavePolicy("rest", thresholds=Thresholds())),
    concurrency=2,
)
FRESH = (WaveNow(), WaveNow())
RUNNING = WaveNow(WaveState.STATE_RUNNING, start=100.0)


def device(name: str, wave: int = 0, state: State.ValueType = State.STATE_PENDING, **fields: object) -> DeviceNow:
    if state != State.STATE_PENDING:
        fields.setdefault("start", 100.0)
        fields.setdefault("moved", 100.0)
    return DeviceNow(name, wave, state, **fields)  # type: ignore[arg-type]


ACTIVE, FAILED, BUSY = State.STATE_ACTIVE, State.STATE_FAILED, State.STATE_INSTALLING
FOUR = [device("a"), device("b", 1), device("c", 1), device("d", 1)]


def states(decision: Decision) -> list[str]:
    return [WaveState.Name(wave.state).removeprefix("STATE_") for wave in decision.waves]


def test_the_canary_begins_alone_and_the_others_wait_for_it() -> None:
    """DO-ROLL-001: a wave begins only after the one before it has passed."""
    first = decide(CANARY, FRESH, FOUR, Now(100.0))
    assert first.begin == ("a",)
    assert states(first) == ["RUNNING", "PENDING"]
    again = decide(CANARY, first.waves, [device("a", state=BUSY), *FOUR[1:]], Now(130.0))
    assert again.begin == ()
    soaking = decide(CANARY, again.waves, [device("a", state=ACTIVE), *FOUR[1:]], Now(200.0))
    assert states(soaking) == ["SOAKING", "PENDING"]
    assert soaking.wake == 260.0
    assert soaking.waits_for == "the soak time of 'canary'"
    after = decide(CANARY, soaking.waves, [device("a", state=ACTIVE), *FOUR[1:]], Now(260.0))
    assert states(after) == ["PASSED", "RUNNING"]
    assert after.begin == ("b", "c"), "two at once"


@pytest.mark.parametrize(
    ("thresholds", "failed", "total", "fails"),
    [
        (Thresholds(), 9, 10, False),
        (Thresholds(success_percent=100), 0, 10, False),
        (Thresholds(success_percent=100), 1, 10, True),
        (Thresholds(success_percent=90), 1, 10, False),
        (Thresholds(success_percent=90), 2, 10, True),
        (Thresholds(success_percent=95), 1, 10, True),  # 10 of 10 are needed: shares are rounded up
        (Thresholds(max_failed=0), 1, 1000, True),
        (Thresholds(max_failed=2), 2, 1000, False),
        (Thresholds(success_percent=1, max_failed=2), 3, 1000, True),
    ],
)
def test_a_wave_fails_as_soon_as_its_thresholds_say(
    thresholds: Thresholds, failed: int, total: int, fails: bool
) -> None:
    """DO-ROLL-002: also while other devices of it have yet to end."""
    members = [device(f"bad{i}", state=FAILED) for i in range(failed)]
    members += [device(f"new{i}") for i in range(total - failed)]
    assert bool(waves.objection(thresholds, members)) is fails


@pytest.mark.parametrize(
    "bad",
    [
        device("a", state=FAILED),
        device("a", state=State.STATE_ROLLED_BACK),
        device("a", state=BUSY, stuck=True),
        device("a", state=ACTIVE, degraded=True),
    ],
)
def test_failed_rolled_back_stuck_and_degraded_devices_count_against_their_wave(bad: DeviceNow) -> None:
    """DO-ROLL-002, DO-ROLL-009."""
    decision = decide(CANARY, (RUNNING, WaveNow()), [bad, *FOUR[1:]], Now(110.0))
    assert decision.stop
    assert states(decision) == ["FAILED", "CANCELLED"]
    assert decision.drop == ("b", "c", "d")
    assert decision.begin == ()
    assert decision.ended is not bad.under_way, "one that is under way is waited for"


def test_a_drop_in_a_wave_that_has_passed_stops_the_next_one() -> None:
    passed = WaveNow(WaveState.STATE_PASSED, start=1.0, settled=2.0)
    devices = [device("a", state=ACTIVE, degraded=True), device("b", 1, BUSY), *FOUR[2:]]
    decision = decide(CANARY, (passed, RUNNING), devices, Now(110.0))
    assert decision.stop
    assert states(decision) == ["FAILED", "CANCELLED"]


def test_a_wave_that_fails_may_pause_until_somebody_accepts_it() -> None:
    """DO-ROLL-003."""
    policy = replace(CANARY, on_failure=OnFailure.ON_FAILURE_PAUSE)
    devices = [device("a", state=FAILED), *FOUR[1:]]
    failed = decide(policy, (RUNNING, WaveNow()), devices, Now(110.0))
    assert failed.pause
    assert not failed.stop
    assert failed.waves[0].failure
    held = decide(policy, failed.waves, devices, Now(1e6, paused=True))
    assert (held.begin, held.ended, held.waits_for) == ((), False, waves.SOMEBODY)
    waived = (replace(failed.waves[0], waived=True), failed.waves[1])
    resumed = decide(policy, waived, devices, Now(1e6))
    assert states(resumed) == ["SOAKING", "PENDING"]
    assert decide(policy, resumed.waves, devices, Now(1e6 + 60)).begin == ("b", "c")


def test_a_paused_rollout_begins_nothing_and_lets_what_is_under_way_end() -> None:
    """DO-ROLL-003."""
    devices = [device("a", state=ACTIVE), device("b", 1, BUSY), *FOUR[2:]]
    passed = WaveNow(WaveState.STATE_PASSED)
    decision = decide(CANARY, (passed, RUNNING), devices, Now(110.0, paused=True))
    assert (decision.begin, decision.drop, decision.ended) == ((), (), False)
    assert decide(CANARY, (passed, RUNNING), devices, Now(110.0)).begin == ("c",)


def test_an_aborted_rollout_drops_what_has_not_begun_and_ends_with_the_last_device() -> None:
    """DO-ROLL-004."""
    devices = [device("a", state=ACTIVE), device("b", 1, BUSY), *FOUR[2:]]
    decision = decide(CANARY, (WaveNow(WaveState.STATE_PASSED), RUNNING), devices, Now(110.0, cancelled=True))
    assert decision.drop == ("c", "d")
    assert not decision.ended
    assert states(decision) == ["PASSED", "CANCELLED"]
    devices = [device("a", state=ACTIVE), *(device(name, 1, State.STATE_CANCELLED) for name in "bcd")]
    assert decide(CANARY, decision.waves, devices, Now(120.0, cancelled=True)).ended


def test_a_wave_that_wants_approval_waits_for_it() -> None:
    """DO-ROLL-005."""
    policy = replace(CANARY, waves=(CANARY.waves[0], replace(CANARY.waves[1], approval=True)))
    devices = [device("a", state=ACTIVE), *FOUR[1:]]
    waiting = decide(policy, (WaveNow(WaveState.STATE_PASSED), WaveNow()), devices, Now(1e9))
    assert states(waiting) == ["PASSED", "AWAITING_APPROVAL"]
    assert (waiting.begin, waiting.ended, waiting.wake) == ((), False, None)
    approved = (waiting.waves[0], replace(waiting.waves[1], approved=True))
    assert decide(policy, approved, devices, Now(1e9)).begin == ("b", "c")


NIGHTLY = Window(time(22, 0), 4 * 3600.0, frozenset(range(7)), UTC)
NOON, TEN_PM = 12 * 3600.0, 22 * 3600.0


def test_devices_begin_inside_of_a_window_only_and_spread_by_their_jitter() -> None:
    """DO-ROLL-006."""
    policy = Policy(waves=(WavePolicy("all"),), windows=(NIGHTLY,), jitter=3600.0, concurrency=10)
    devices = [device("a", draw=0.0), device("b", draw=0.5), device("c", draw=0.99)]
    before = decide(policy, (WaveNow(),), devices, Now(NOON))
    assert (before.begin, before.wake, before.waits_for) == ((), TEN_PM, "its maintenance window")
    opened = decide(policy, before.waves, devices, Now(TEN_PM))
    assert (opened.begin, opened.wake) == (("a",), TEN_PM + 1800)
    later = decide(policy, before.waves, devices, Now(TEN_PM + 1800))
    assert later.begin == ("a", "b"), "in the order of their draws"
    assert decide(policy, before.waves, devices, Now(TEN_PM + 4 * 3600)).begin == (), "it has closed"
    late = decide(policy, (WaveNow(),), devices[2:], Now(TEN_PM + 4 * 3600 - 60))
    assert late.wake is not None
    assert late.wake < TEN_PM + 4 * 3600, "jitter leads no device beyond its window"


def test_no_more_devices_begin_in_a_minute_than_the_rate_says() -> None:
    """DO-ROLL-007."""
    policy = Policy(waves=(WavePolicy("all"),), starts_per_minute=3, concurrency=100)
    devices = [device(f"d{i}", state=ACTIVE, start=100.0 + 10 * i) for i in range(2)]
    devices += [device(f"n{i}") for i in range(5)]
    decision = decide(policy, (RUNNING,), devices, Now(120.0))
    assert decision.begin == ("n0",)
    begun = [*devices[:2], device("n0", state=BUSY, start=120.0), *devices[3:]]
    full = decide(policy, (RUNNING,), begun, Now(120.0))
    assert (full.begin, full.wake) == ((), 160.0)
    assert decide(policy, (RUNNING,), begun, Now(160.0)).begin == ("n1",)


def test_a_device_begins_once_the_deployments_before_it_reached_it() -> None:
    """DO-ROLL-008."""
    policy = Policy(waves=(WavePolicy("all"),), after=("x",), concurrency=9)
    devices = [
        device("met"),
        device("waits", dependency=Dependency.WAITING),
        device("never", dependency=Dependency.FAILED),
    ]
    first = decide(policy, (RUNNING,), devices, Now(100.0))
    assert (first.unmet, first.begin) == (("never",), ()), "a failure counts before others begin"
    devices[2] = device("never", state=FAILED)
    second = decide(policy, (RUNNING,), devices, Now(100.0))
    assert second.begin == ("met",)
    assert second.wake == 105.0


def test_a_device_without_progress_is_stuck_but_one_that_builds_is_not() -> None:
    """DO-ROLL-009."""
    policy = Policy(waves=(WavePolicy("all"),), stuck_after=600.0)
    devices = [
        device("stuck", state=BUSY, moved=0.0),
        device("moves", state=BUSY, moved=500.0),
        device("builds", state=State.STATE_BUILDING, moved=0.0),
    ]
    decision = decide(policy, (RUNNING,), devices, Now(600.0))
    assert decision.stuck == ("stuck",)
    assert decision.wake == 1100.0
    devices[0] = replace(devices[0], stuck=True)
    assert decide(policy, (RUNNING,), devices, Now(700.0)).stuck == ()


def test_the_last_wave_stays_open_for_devices_that_join() -> None:
    """DO-ROLL-010."""
    policy = Policy(waves=(WavePolicy("all"),), open_until=1000.0)
    nobody = decide(policy, (WaveNow(),), [], Now(100.0))
    assert (states(nobody), nobody.ended, nobody.wake) == (["RUNNING"], False, 1000.0)
    joined = decide(policy, nobody.waves, [device("a")], Now(200.0))
    assert joined.begin == ("a",)
    done = [device("a", state=ACTIVE)]
    assert not decide(policy, joined.waves, done, Now(999.0)).ended
    assert decide(policy, joined.waves, done, Now(1000.0)).ended


@dataclass
class Simulation:
    """Applies decisions as the engine does: devices that begin end after some time, as `fates` say."""

    policy: Policy
    devices: dict[str, DeviceNow]
    fates: dict[str, tuple[float, State.ValueType]]
    waves: tuple[WaveNow, ...] = ()
    now: float = 0.0
    stopping: bool = False
    begun: dict[str, float] = field(default_factory=dict)

    def run(self, cancel_at: float | None) -> None:
        self.waves = tuple(WaveNow(approved=True) for _ in self.policy.waves)
        for _ in range(10_000):
            cancelled = cancel_at is not None and self.now >= cancel_at
            decision = decide(
                self.policy,
                self.waves,
                tuple(self.devices.values()),
                Now(self.now, cancelled=cancelled, stopping=self.stopping),
            )
            self.take(decision, cancelled)
            if decision.ended:
                return
            ends = [self.begun[name] + self.fates[name][0] for name, item in self.devices.items() if item.under_way]
            later = [at for at in (*ends, decision.wake, cancel_at) if at is not None and at > self.now]
            if not (decision.begin or decision.drop or decision.stuck or decision.stop):
                assert later, "it waits for nothing"
            self.now = min(later, default=self.now)
            for name, item in self.devices.items():
                if item.under_way and self.begun[name] + self.fates[name][0] <= self.now:
                    self.devices[name] = replace(item, state=FAILED if item.stuck else self.fates[name][1])
        raise AssertionError("it never ends")

    def take(self, decision: Decision, cancelled: bool) -> None:
        if decision.begin:
            assert not cancelled
            assert not self.stopping
        self.check_order(decision)
        for name in decision.begin:
            assert name not in self.begun, "a device begins once"
            self.begun[name] = self.now
            self.devices[name] = replace(self.devices[name], state=BUSY, start=self.now, moved=self.now)
        for name in decision.drop:
            assert name not in self.begun
            self.devices[name] = replace(self.devices[name], state=State.STATE_CANCELLED)
        for name in decision.stuck:
            self.devices[name] = replace(self.devices[name], stuck=True)
        self.waves = decision.waves
        self.stopping = self.stopping or decision.stop
        assert sum(item.under_way for item in self.devices.values()) <= self.policy.concurrency
        if self.policy.starts_per_minute:
            recent = [at for at in self.begun.values() if at + 60 > self.now]
            assert len(recent) <= self.policy.starts_per_minute
        if decision.begin and self.policy.windows:
            window = opening(self.policy.windows, self.now)
            assert window is not None
            assert window.begin <= self.now < window.end

    def check_order(self, decision: Decision) -> None:
        for name in decision.begin:
            before = range(self.devices[name].wave)
            assert all(decision.waves[index].state == WaveState.STATE_PASSED for index in before)
            for index in before:
                wave = decision.waves[index]
                if any(item.wave == index for item in self.devices.values()):
                    assert self.now >= wave.settled + self.policy.waves[index].soak


thresholds = st.builds(
    Thresholds,
    success_percent=st.none() | st.integers(1, 100),
    max_failed=st.none() | st.integers(0, 4),
)
wave_policies = st.lists(
    st.builds(WavePolicy, name=st.just("w"), soak=st.sampled_from([0.0, 30.0, 4000.0]), thresholds=thresholds),
    min_size=1,
    max_size=4,
).map(tuple)
policies = st.builds(
    Policy,
    waves=wave_policies,
    on_failure=st.sampled_from([OnFailure.ON_FAILURE_STOP, OnFailure.ON_FAILURE_ROLL_BACK]),
    windows=st.sampled_from([(), (NIGHTLY,)]),
    jitter=st.sampled_from([0.0, 600.0, 1e6]),
    starts_per_minute=st.sampled_from([0, 1, 3]),
    concurrency=st.integers(1, 5),
    open_until=st.sampled_from([0.0, 5000.0]),
    stuck_after=st.sampled_from([50.0, 1e5]),
)
fates = st.tuples(
    st.floats(0.1, 300.0, allow_nan=False), st.sampled_from([ACTIVE, ACTIVE, FAILED, State.STATE_ROLLED_BACK])
)


@settings(max_examples=100, deadline=None)
@given(st.data(), policies, st.lists(st.tuples(fates, st.floats(0, 0.999)), max_size=12))
def test_every_rollout_ends_and_keeps_its_order_windows_rate_and_concurrency(
    data: st.DataObject, policy: Policy, members: list[tuple[tuple[float, State.ValueType], float]]
) -> None:
    """DO-ROLL-001 to 010: whatever the policy and however devices fare."""
    wave = st.integers(0, len(policy.waves) - 1)
    devices = {f"d{i}": DeviceNow(f"d{i}", data.draw(wave), draw=draw) for i, (_, draw) in enumerate(members)}
    simulation = Simulation(policy, devices, {f"d{i}": fate for i, (fate, _) in enumerate(members)})
    simulation.run(data.draw(st.none() | st.sampled_from([0.0, 100.0, 90_000.0])))
    assert all(item.ended for item in simulation.devices.values())
    assert all(item.state in waves.OVER for item in simulation.waves)
    for name, item in simulation.devices.items():
        dropped = item.state == State.STATE_CANCELLED
        assert dropped is (name not in simulation.begun)
