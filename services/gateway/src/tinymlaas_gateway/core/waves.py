"""What a rollout does next: which devices begin, which wave is where, when it stops by itself. Pure; time is given.

PENDING ──approval wanted──▶ AWAITING_APPROVAL ──▶ RUNNING ──every device ended──▶ SOAKING ──soak time──▶ PASSED
   └──────────────────────────────────────────────▶ ┘  └───────thresholds───────────┴──────────▶ FAILED
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2

from .policy import OnFailure, Policy, Thresholds
from .windows import Opening, opening

State = deployments_pb2.DeviceRollout.State
WaveState = rollouts_pb2.Wave.State
RATE_SECONDS = 60.0
DEPENDENCY_SECONDS = 5.0
SOMEBODY = "somebody to resume or cancel it"
ENDED = (
    State.STATE_REJECTED,
    State.STATE_ACTIVE,
    State.STATE_FAILED,
    State.STATE_ROLLED_BACK,
    State.STATE_CANCELLED,
)
BAD = (State.STATE_FAILED, State.STATE_ROLLED_BACK, State.STATE_CANCELLED)
MOVING = (State.STATE_INSTALLING, State.STATE_SELF_TESTING, State.STATE_ACTIVATING)
OVER = (WaveState.STATE_PASSED, WaveState.STATE_FAILED, WaveState.STATE_CANCELLED)


class Dependency(Enum):
    """Whether the deployments that a device has to wait for have reached it."""

    MET = "met"
    WAITING = "waiting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DeviceNow:
    """An admitted device. `start`: when it began (None: not yet); `moved`: its last progress; `draw`: its jitter, 0 to 1."""

    name: str
    wave: int
    state: State.ValueType = State.STATE_PENDING
    start: float | None = None
    moved: float = 0.0
    draw: float = 0.0
    stuck: bool = False
    degraded: bool = False
    dependency: Dependency = Dependency.MET

    @property
    def ended(self) -> bool:
        """Whether it has reached a state that it keeps."""
        return self.state in ENDED

    @property
    def waiting(self) -> bool:
        """Whether it has not begun."""
        return not self.ended and self.start is None

    @property
    def under_way(self) -> bool:
        """Whether it has begun and not ended."""
        return not self.ended and self.start is not None

    @property
    def failed(self) -> bool:
        """Whether it counts against its wave."""
        return self.state in BAD or self.stuck or self.degraded


@dataclass(frozen=True, slots=True)
class WaveNow:
    """A wave. `start`: when it began; `settled`: when its last device ended; `failure`: why it failed, empty: it did not."""

    state: WaveState.ValueType = WaveState.STATE_PENDING
    start: float = 0.0
    settled: float = 0.0
    approved: bool = False
    waived: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Now:
    """What holds beside devices and waves. `stopping`: a wave has failed for good."""

    time: float
    paused: bool = False
    cancelled: bool = False
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do. `begin`, `stuck`, `unmet` (a dependency failed) and `drop` (not begun, never will) name devices.

    `ended`: nothing is left to do or to wait for. `wake`: look again then at the latest; None: only when something changes.
    """

    waves: tuple[WaveNow, ...]
    begin: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    pause: bool = False
    stop: bool = False
    ended: bool = False
    wake: float | None = None
    waits_for: str = ""


def objection(thresholds: Thresholds, members: Sequence[DeviceNow]) -> str:
    """Return why a wave with these devices has failed; empty while it has not."""
    failed = sum(device.failed for device in members)
    if thresholds.max_failed is not None and failed > thresholds.max_failed:
        return f"{failed} of {len(members)} devices failed, at most {thresholds.max_failed} may"
    if thresholds.success_percent is not None:
        needed = -(-len(members) * thresholds.success_percent // 100)
        if len(members) - failed < needed:
            return f"{failed} of {len(members)} devices failed, {thresholds.success_percent} % must become active"
    return ""


def decide(policy: Policy, waves: Sequence[WaveNow], devices: Sequence[DeviceNow], now: Now) -> Decision:
    """Return what a rollout does next. Applying a decision and deciding again at the same time begins nothing twice."""
    return _Decider(policy, list(waves), tuple(devices), now).decide()


@dataclass(slots=True)
class _Decider:
    policy: Policy
    waves: list[WaveNow]
    devices: tuple[DeviceNow, ...]
    now: Now
    wakes: list[float] = field(default_factory=list)

    def decide(self) -> Decision:
        stuck = self._stuck()
        gone = frozenset(stuck)
        self.devices = tuple(replace(item, stuck=True) if item.name in gone else item for item in self.devices)
        if self.now.cancelled or self.now.stopping:
            return self._wind_down(stuck, stop=self.now.stopping)
        failing = self._judge()
        if failing and self.policy.on_failure != OnFailure.ON_FAILURE_PAUSE:
            return self._wind_down(stuck, stop=True)
        if failing:
            return self._result(stuck=stuck, pause=True, waits_for=SOMEBODY)
        return self._go_on(stuck)

    def _members(self, index: int) -> list[DeviceNow]:
        return [device for device in self.devices if device.wave == index]

    def _stuck(self) -> tuple[str, ...]:
        found = []
        for device in self.devices:
            if device.under_way and device.state in MOVING and not device.stuck:
                limit = device.moved + self.policy.stuck_after
                if self.now.time >= limit:
                    found.append(device.name)
                else:
                    self.wakes.append(limit)
        return tuple(found)

    def _judge(self) -> bool:
        """Note the failure of each wave that has begun; tell whether one has failed anew."""
        anew = False
        for index, wave in enumerate(self.waves):
            begun = wave.state in (WaveState.STATE_RUNNING, WaveState.STATE_SOAKING, WaveState.STATE_PASSED)
            if not begun or wave.waived or (wave.failure and self.now.paused):
                continue
            failure = objection(self.policy.waves[index].thresholds, self._members(index))
            if failure:
                anew = True
                stays = self.policy.on_failure == OnFailure.ON_FAILURE_PAUSE
                state = wave.state if stays else WaveState.STATE_FAILED
                self.waves[index] = replace(wave, failure=failure, state=state)
        return anew

    def _wind_down(self, stuck: tuple[str, ...], *, stop: bool) -> Decision:
        """Nothing new begins; what is under way is stopped by those who work on it."""
        for index, wave in enumerate(self.waves):
            if wave.state not in OVER:
                self.waves[index] = replace(wave, state=WaveState.STATE_CANCELLED)
        ended = not any(device.under_way for device in self.devices)
        drop = tuple(device.name for device in self.devices if device.waiting)
        return self._result(
            stuck=stuck, drop=drop, stop=stop, ended=ended, waits_for="" if ended else "devices to stop at a safe point"
        )

    def _go_on(self, stuck: tuple[str, ...]) -> Decision:
        """Bring waves as far as they come at this time; devices begin in the one that runs."""
        if self.now.paused and any(wave.failure and not wave.waived for wave in self.waves):
            return self._result(stuck=stuck, waits_for=SOMEBODY)
        for index, wave in enumerate(self.waves):
            if wave.state == WaveState.STATE_PASSED:
                continue
            members = self._members(index)
            open_until = self.policy.open_until if index + 1 == len(self.waves) else 0.0
            is_open = open_until > self.now.time
            if not members and not is_open:
                self.waves[index] = replace(wave, state=WaveState.STATE_PASSED)
                continue
            if wave.state in (WaveState.STATE_PENDING, WaveState.STATE_AWAITING_APPROVAL):
                if self.policy.waves[index].approval and not wave.approved:
                    self.waves[index] = replace(wave, state=WaveState.STATE_AWAITING_APPROVAL)
                    return self._result(stuck=stuck, waits_for=f"approval of {self.policy.waves[index].name!r}")
                if self.now.paused:
                    return self._result(stuck=stuck, waits_for="somebody to resume it")
                self.waves[index] = wave = replace(wave, state=WaveState.STATE_RUNNING, start=self.now.time)
            unmet = tuple(item.name for item in members if item.waiting and item.dependency is Dependency.FAILED)
            if unmet:  # they fail first, and count in the next decision
                return self._result(stuck=stuck, unmet=unmet)
            if any(not item.ended for item in members):
                if wave.state == WaveState.STATE_SOAKING:  # a device has joined
                    self.waves[index] = wave = replace(wave, state=WaveState.STATE_RUNNING, settled=0.0)
                begin, waits_for = self._begin(wave, members)
                return self._result(stuck=stuck, begin=begin, waits_for=waits_for)
            if is_open:
                self.wakes.append(open_until)
                return self._result(stuck=stuck, waits_for="devices that join")
            if wave.state == WaveState.STATE_RUNNING:
                wave = replace(wave, state=WaveState.STATE_SOAKING, settled=self.now.time)
                self.waves[index] = wave
            passes = wave.settled + self.policy.waves[index].soak
            if self.now.time < passes:
                self.wakes.append(passes)
                return self._result(stuck=stuck, waits_for=f"the soak time of {self.policy.waves[index].name!r}")
            self.waves[index] = replace(wave, state=WaveState.STATE_PASSED)
        return self._result(stuck=stuck, ended=True)

    def _begin(self, wave: WaveNow, members: Sequence[DeviceNow]) -> tuple[tuple[str, ...], str]:
        """Devices of a wave that begin now, and in words what keeps the others."""
        waiting = [device for device in members if device.waiting]
        under_way = sum(device.under_way for device in self.devices)
        if not waiting:
            return (), ""
        if self.now.paused:
            return (), "" if under_way else "somebody to resume it"
        ready = [device for device in waiting if device.dependency is Dependency.MET]
        if len(ready) < len(waiting):
            self.wakes.append(self.now.time + DEPENDENCY_SECONDS)
        if not ready:
            return (), "the deployments before it" if not under_way else ""
        window = opening(self.policy.windows, self.now.time)
        assert window is not None, "each window opens every week"
        if self.now.time < window.begin:
            self.wakes.append(window.begin)
            return (), "its maintenance window"
        times = {device.name: self._ready_at(device, wave, window) for device in ready}
        ready = sorted((device for device in ready if times[device.name] <= self.now.time), key=lambda d: times[d.name])
        self.wakes.extend(at for at in times.values() if at > self.now.time)
        room = min(self.policy.concurrency - under_way, self._rate_room(len(ready)))
        begin = tuple(device.name for device in ready[: max(0, room)])
        if begin or under_way:
            return begin, ""
        return (), "its rate" if ready else "its jitter"

    def _ready_at(self, device: DeviceNow, wave: WaveNow, window: Opening) -> float:
        """When a device may begin: a part of the jitter after wave and window have begun, and before the window closes."""
        earliest = max(wave.start, window.begin)
        return earliest + device.draw * min(self.policy.jitter, window.end - earliest)

    def _rate_room(self, wanted: int) -> int:
        limit = self.policy.starts_per_minute
        if not limit:
            return wanted
        starts = sorted(device.start for device in self.devices if device.start is not None)
        recent = [start for start in starts if start + RATE_SECONDS > self.now.time]
        room = max(0, limit - len(recent))
        if room < wanted and recent:
            # Room comes when the oldest of the last `limit` starts is a minute old.
            self.wakes.append(recent[-limit:][0] + RATE_SECONDS)
        elif room < wanted:
            self.wakes.append(self.now.time + RATE_SECONDS)
        return room

    def _result(
        self,
        *,
        begin: tuple[str, ...] = (),
        stuck: tuple[str, ...] = (),
        unmet: tuple[str, ...] = (),
        drop: tuple[str, ...] = (),
        pause: bool = False,
        stop: bool = False,
        ended: bool = False,
        waits_for: str = "",
    ) -> Decision:
        return Decision(
            waves=tuple(self.waves),
            begin=begin,
            stuck=stuck,
            unmet=unmet,
            drop=drop,
            pause=pause,
            stop=stop,
            ended=ended,
            wake=min(self.wakes, default=None),
            waits_for=waits_for,
        )
