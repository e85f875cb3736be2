"""A rollout's policy, checked: what the engine may rely on. Durations are seconds, times seconds since 1970 (UTC). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf import duration_pb2

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2
from tinymlaas_servicekit import InvalidArgument

from .windows import Window, window_of

OnFailure = rollouts_pb2.RolloutPolicy.OnFailure
DEFAULT_CONCURRENCY = 4
MAX_CONCURRENCY = 256
MAX_WAVES = 32
MAX_WINDOWS = 64
MAX_AFTER = 16
MAX_QUERY_ITEMS = 64
MAX_SECONDS = 366 * 86400.0
STUCK_SECONDS = 26 * 3600.0
MIN_INVOCATIONS = 10


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a wave has failed: see rollouts.proto. None is no limit."""

    success_percent: int | None = None
    max_failed: int | None = None


@dataclass(frozen=True, slots=True)
class WavePolicy:
    """One wave: how many devices (`count`, or `percent` of all; neither: whatever is left), which, and on what terms."""

    name: str
    count: int | None = None
    percent: int | None = None
    query: rollouts_pb2.DeviceQuery | None = None
    soak: float = 0.0
    thresholds: Thresholds = Thresholds()
    approval: bool = False


@dataclass(frozen=True, slots=True)
class Feedback:
    """What active devices must go on to achieve. None: not judged."""

    min_invocations: int = MIN_INVOCATIONS
    max_error_percent: int | None = None
    max_latency_increase_percent: int | None = None
    max_confidence_drop_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How a deployment goes over its devices."""

    waves: tuple[WavePolicy, ...]
    on_failure: OnFailure.ValueType = OnFailure.ON_FAILURE_STOP
    windows: tuple[Window, ...] = ()
    jitter: float = 0.0
    starts_per_minute: int = 0
    concurrency: int = DEFAULT_CONCURRENCY
    query: rollouts_pb2.DeviceQuery | None = None
    open_until: float = 0.0
    after: tuple[str, ...] = ()
    stuck_after: float = STUCK_SECONDS
    feedback: Feedback | None = field(default=None)


def policy_of(deployment: deployments_pb2.Deployment) -> Policy:
    """Return a deployment's policy with its defaults; InvalidArgument where a value is out of range.

    The last wave takes whoever is left: one without size and query is added unless the policy ends with one.
    """
    given = deployment.policy
    _limit("waves", len(given.waves), MAX_WAVES)
    _limit("windows", len(given.windows), MAX_WINDOWS)
    _limit("after", len(given.after), MAX_AFTER)
    if given.on_failure not in OnFailure.values():
        raise _invalid("on_failure", str(int(given.on_failure)), "STOP, PAUSE or ROLL_BACK")
    if given.HasField("query"):
        _checked_query("query", given.query)
    common = _thresholds("thresholds", given.thresholds) if given.HasField("thresholds") else None
    waves = list(given.waves)
    if not waves or waves[-1].WhichOneof("size") or waves[-1].HasField("query"):
        waves.append(rollouts_pb2.WavePolicy(name="rest" if waves else "all"))
    made = tuple(_wave(item, index, index + 1 == len(waves), common) for index, item in enumerate(waves))
    if len({item.name for item in made}) != len(made):
        raise _invalid("waves.name", ", ".join(item.name for item in made)[:200], "a different name for each wave")
    return Policy(
        waves=made,
        on_failure=given.on_failure or OnFailure.ON_FAILURE_STOP,
        windows=tuple(window_of(item) for item in given.windows),
        jitter=_seconds("jitter", given.jitter),
        starts_per_minute=given.starts_per_minute,
        concurrency=min(deployment.concurrency or DEFAULT_CONCURRENCY, MAX_CONCURRENCY),
        query=given.query if given.HasField("query") else None,
        open_until=given.open_until.ToNanoseconds() / 1e9 if given.HasField("open_until") else 0.0,
        after=tuple(dict.fromkeys(given.after)),
        stuck_after=_seconds("stuck_after", given.stuck_after) or STUCK_SECONDS,
        feedback=_feedback(given.feedback) if given.HasField("feedback") else None,
    )


def _wave(message: rollouts_pb2.WavePolicy, index: int, last: bool, common: Thresholds | None) -> WavePolicy:
    where = f"waves[{index}]"
    size = message.WhichOneof("size")
    if size == "count" and not message.count:
        raise _invalid(f"{where}.count", "0", "at least 1")
    if size == "percent" and not 1 <= message.percent <= 100:
        raise _invalid(f"{where}.percent", str(message.percent), "1 to 100")
    if message.HasField("query"):
        _checked_query(f"{where}.query", message.query)
    elif size is None and not last:
        raise _invalid(where, "everybody", "a size or a query, for only the last wave takes all that are left")
    if len(message.name) > 64 or not message.name.isprintable():
        raise _invalid(f"{where}.name", message.name[:64], "at most 64 characters that can be printed")
    if message.HasField("thresholds"):
        thresholds = _thresholds(f"{where}.thresholds", message.thresholds)
    elif common is not None:
        thresholds = common
    else:
        thresholds = Thresholds() if last else Thresholds(success_percent=100)
    return WavePolicy(
        name=message.name or f"wave {index + 1}",
        count=message.count if size == "count" else None,
        percent=message.percent if size == "percent" else None,
        query=message.query if message.HasField("query") else None,
        soak=_seconds(f"{where}.soak", message.soak),
        thresholds=thresholds,
        approval=message.approval,
    )


def _thresholds(where: str, message: rollouts_pb2.Thresholds) -> Thresholds:
    share = message.success_percent if message.HasField("success_percent") else None
    if share is not None and not 1 <= share <= 100:
        raise _invalid(f"{where}.success_percent", str(share), "1 to 100")
    return Thresholds(share, message.max_failed if message.HasField("max_failed") else None)


def _feedback(message: rollouts_pb2.FeedbackPolicy) -> Feedback:
    def percent(name: str, value: int, at_most: int) -> int | None:
        if not message.HasField(name):  # type: ignore[arg-type]
            return None
        if value > at_most:
            raise _invalid(f"feedback.{name}", str(value), f"0 to {at_most}")
        return value

    return Feedback(
        message.min_invocations or MIN_INVOCATIONS,
        percent("max_error_percent", message.max_error_percent, 100),
        percent("max_latency_increase_percent", message.max_latency_increase_percent, 1_000_000),
        percent("max_confidence_drop_percent", message.max_confidence_drop_percent, 100),
    )


def _seconds(where: str, duration: duration_pb2.Duration) -> float:
    seconds = duration.ToNanoseconds() / 1e9
    if not 0 <= seconds <= MAX_SECONDS:
        raise _invalid(where, f"{seconds:g}s", "0 to 366 days")
    return seconds


def _checked_query(where: str, query: rollouts_pb2.DeviceQuery) -> None:
    for descriptor, value in query.ListFields():
        if descriptor.is_repeated:
            _limit(f"{where}.{descriptor.name}", len(value), MAX_QUERY_ITEMS)
            if any(isinstance(item, str) and not 0 < len(item) <= 256 for item in value):
                raise _invalid(f"{where}.{descriptor.name}", "a text of another length", "texts of 1 to 256 characters")


def _limit(where: str, have: int, limit: int) -> None:
    if have > limit:
        raise InvalidArgument(
            f"policy.{where} has {have} entries, at most {limit} are allowed",
            "LIMIT_EXCEEDED",
            {"field": f"policy.{where}", "limit": str(limit)},
            "Name fewer.",
        )


def _invalid(where: str, have: str, wanted: str) -> InvalidArgument:
    return InvalidArgument(
        f"policy.{where} is {have!r}, expected {wanted}",
        "POLICY_INVALID",
        {"field": f"policy.{where}"},
        "Correct the rollout policy.",
    )
