"""Rollout policies from what people write: `canary=1`, `25%`, `22:00+4h mon,tue Europe/Berlin`, `isa=armv7e-m`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from google.protobuf import duration_pb2, json_format, timestamp_pb2

from tinymlaas.gateway.v1 import rollouts_pb2
from tinymlaas.type.v1 import target_pb2

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20}
_Day = rollouts_pb2.MaintenanceWindow.Day
_DAYS = {name[4:7].lower(): _Day.Value(name) for name in _Day.keys() if name != "DAY_UNSPECIFIED"}  # noqa: SIM118
_LISTS = {
    "name": "names",
    "manufacturer": "manufacturers",
    "model": "models",
    "firmware": "firmware_versions",
    "isa": "isas",
    "cpu": "cpus",
    "feature": "features",
    "runtime": "runtimes",
    "peripheral": "peripherals",
    "rtos": "rtos",
}
_SIZES = {"ram": "min_ram_free_bytes", "flash": "min_flash_free_bytes"}


def duration(text: str) -> duration_pb2.Duration:
    """Return `90s`, `10m`, `1.5h` or `2d` as a message; ValueError for other texts."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no duration; write 90s, 10m, 1.5h or 2d")
    made = duration_pb2.Duration()
    made.FromNanoseconds(round(float(found[1]) * _UNITS[found[2]] * 1e9))
    return made


def wave(text: str) -> rollouts_pb2.WavePolicy:
    """Return `[NAME=]COUNT` or `[NAME=]PERCENT%` as a wave; ValueError for other texts."""
    name, _, size = text.rpartition("=")
    if not re.fullmatch(r"\d{1,9}%?", size):
        raise ValueError(f"{text!r} is no wave; write a number of devices or a percentage, such as canary=1 or 25%")
    if size.endswith("%"):
        return rollouts_pb2.WavePolicy(name=name, percent=int(size[:-1]))
    return rollouts_pb2.WavePolicy(name=name, count=int(size))


def window(text: str) -> rollouts_pb2.MaintenanceWindow:
    """Return `HH:MM+DURATION [DAYS] [ZONE]` as a window, such as `22:00+4h mon,tue Europe/Berlin`; ValueError for other texts."""
    parts = text.split()
    start, plus, length = parts[0].partition("+") if parts else ("", "", "")
    if not plus or len(parts) > 3:
        raise ValueError(f"{text!r} is no window; write HH:MM+DURATION, then days and time zone: 22:00+4h sat,sun UTC")
    made = rollouts_pb2.MaintenanceWindow(start=start, duration=duration(length))
    for part in parts[1:]:
        days = [day.strip().lower()[:3] for day in part.split(",")]
        if all(day in _DAYS for day in days) and not made.days:
            made.days.extend(_DAYS[day] for day in days)
        else:
            made.time_zone = part
    return made


def query(conditions: Iterable[str]) -> rollouts_pb2.DeviceQuery:
    """Return `KEY=VALUE` conditions as a query; a key may come several times. ValueError for an unknown key."""
    made = rollouts_pb2.DeviceQuery()
    for text in conditions:
        key, _, value = text.partition("=")
        if key in _LISTS and value:
            getattr(made, _LISTS[key]).append(value)
        elif key == "payload" and f"PAYLOAD_KIND_{value.upper()}" in target_pb2.PayloadKind.keys():  # noqa: SIM118
            made.payload_kinds.append(target_pb2.PayloadKind.Value(f"PAYLOAD_KIND_{value.upper()}"))
        elif key in _SIZES and (found := re.fullmatch(r"(\d+)([km]?)", value.lower())):
            setattr(made, _SIZES[key], int(found[1]) * _BYTES[found[2]])
        else:
            known = ", ".join([*_LISTS, "payload", *_SIZES])
            raise ValueError(f"{text!r} is no condition; write KEY=VALUE with a key of {known}")
    return made


def rollout_policy(
    *,
    file: Path | None = None,
    waves: Sequence[str] = (),
    soak: str = "",
    approve: bool = False,
    success: int | None = None,
    max_failed: int | None = None,
    on_failure: str = "",
    windows: Sequence[str] = (),
    jitter: str = "",
    rate: int = 0,
    where: Sequence[str] | None = None,
    open_until: float = 0.0,
    after: Sequence[str] = (),
    stuck_after: str = "",
    min_runs: int = 0,
    max_errors: int | None = None,
    max_latency: int | None = None,
    max_confidence_drop: int | None = None,
) -> rollouts_pb2.RolloutPolicy | None:
    """Return the policy that these say, on top of a file's (proto JSON); None when nothing is said.

    `soak` and `approve` go for all waves: each is watched, and each but the first is approved. `where`: None is no query, an
    empty one takes every device. `open_until` is in seconds since 1970. ValueError for what can't be understood.
    """
    made = rollouts_pb2.RolloutPolicy()
    if file is not None:
        try:
            json_format.Parse(file.read_text(encoding="utf-8"), made)
        except json_format.ParseError as error:
            raise ValueError(f"{file} is no rollout policy: {error}") from error
    made.waves.extend(wave(text) for text in waves)
    if (soak or approve) and made.waves and (made.waves[-1].WhichOneof("size") or made.waves[-1].HasField("query")):
        made.waves.add(name="rest")
    for index, item in enumerate(made.waves):
        if soak:
            item.soak.CopyFrom(duration(soak))
        item.approval = item.approval or (approve and index > 0)
    if success is not None:
        made.thresholds.success_percent = success
    if max_failed is not None:
        made.thresholds.max_failed = max_failed
    if on_failure:
        name = f"ON_FAILURE_{on_failure.upper().replace('-', '_')}"
        if name not in rollouts_pb2.RolloutPolicy.OnFailure.keys():  # noqa: SIM118 - an enum, no dict
            raise ValueError(f"{on_failure!r} is not known; write stop, pause or roll-back")
        made.on_failure = rollouts_pb2.RolloutPolicy.OnFailure.Value(name)
    made.windows.extend(window(text) for text in windows)
    if jitter:
        made.jitter.CopyFrom(duration(jitter))
    made.starts_per_minute = rate or made.starts_per_minute
    if where is not None:
        made.query.MergeFrom(query(where))
        made.query.SetInParent()
    if open_until:
        made.open_until.CopyFrom(timestamp_pb2.Timestamp(seconds=round(open_until)))
    made.after.extend(after)
    if stuck_after:
        made.stuck_after.CopyFrom(duration(stuck_after))
    made.feedback.min_invocations = min_runs or made.feedback.min_invocations
    if max_errors is not None:
        made.feedback.max_error_percent = max_errors
    if max_latency is not None:
        made.feedback.max_latency_increase_percent = max_latency
    if max_confidence_drop is not None:
        made.feedback.max_confidence_drop_percent = max_confidence_drop
    if made.feedback == rollouts_pb2.FeedbackPolicy():
        made.ClearField("feedback")
    return made if made.ListFields() or file is not None else None
