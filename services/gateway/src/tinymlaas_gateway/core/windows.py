"""Maintenance windows: when one is open, and when the next one opens. Times are seconds since 1970 (UTC). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tinymlaas.gateway.v1 import rollouts_pb2
from tinymlaas_servicekit import InvalidArgument

MIN_SECONDS = 60.0
MAX_SECONDS = 7 * 86400.0
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_ZONE = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+)*")


@dataclass(frozen=True, slots=True)
class Window:
    """Opens at `start` by the clock of `zone` on `days` (0 is Monday), for `seconds`."""

    start: time
    seconds: float
    days: frozenset[int]
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of a window, from `begin` up to but not including `end`."""

    begin: float
    end: float


ALWAYS = Opening(0.0, float("inf"))


def window_of(message: rollouts_pb2.MaintenanceWindow) -> Window:
    """Return the window that a message means; InvalidArgument / WINDOW_INVALID where it means none."""
    clock = _CLOCK.fullmatch(message.start)
    if clock is None:
        raise _invalid("start", message.start, "HH:MM, from 00:00 to 23:59")
    seconds = message.duration.ToNanoseconds() / 1e9
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise _invalid("duration", f"{seconds:g}s", "one minute to seven days")
    if any(not 1 <= day <= 7 for day in message.days):
        raise _invalid("days", ", ".join(str(int(day)) for day in message.days), "DAY_MONDAY to DAY_SUNDAY")
    days = frozenset(int(day) - 1 for day in message.days) or frozenset(range(7))
    return Window(time(int(clock[1]), int(clock[2])), seconds, days, _zone(message.time_zone))


def _zone(name: str) -> tzinfo:
    if not name:
        return UTC
    try:
        if len(name) > 64 or _ZONE.fullmatch(name) is None:
            raise ZoneInfoNotFoundError(name[:64])
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise _invalid("time_zone", name[:64], "a name of the IANA database, such as Europe/Berlin") from error


def _invalid(field: str, have: str, wanted: str) -> InvalidArgument:
    return InvalidArgument(
        f"a maintenance window's {field} is {have!r}, expected {wanted}",
        "WINDOW_INVALID",
        {"field": f"policy.windows.{field}"},
        "Correct the window.",
    )


def opening(windows: Sequence[Window], now: float) -> Opening | None:
    """Return the opening that `now` lies in, else the next one; ALWAYS without windows.

    Of several that are open the one that is open longest counts. None when none opens within the next 8 days (never
    happens: each window opens every week).
    """
    found = [item for window in windows for item in _openings(window, now)]
    if not found:
        return ALWAYS if not windows else None
    open_now = [item for item in found if item.begin <= now < item.end]
    if open_now:
        return max(open_now, key=lambda item: item.end)
    return min((item for item in found if item.begin > now), key=lambda item: item.begin, default=None)


def _openings(window: Window, now: float) -> list[Opening]:
    """Openings that begin between 8 days before and 8 days after `now`."""
    today = datetime.fromtimestamp(now, window.zone).date()
    found = []
    for offset in range(-8, 9):
        day = today + timedelta(days=offset)
        if day.weekday() in window.days:
            begin = datetime.combine(day, window.start, window.zone).timestamp()
            found.append(Opening(begin, begin + window.seconds))
    return found
