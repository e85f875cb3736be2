"""Maintenance windows: by the clock of their time zone, over midnight, and over a change of daylight saving time."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import rollouts_pb2
from tinymlaas_gateway.core.windows import ALWAYS, opening, window_of
from tinymlaas_servicekit import InvalidArgument

BERLIN = ZoneInfo("Europe/Berlin")
Day = rollouts_pb2.MaintenanceWindow.Day


def window(
    start: str = "22:00", hours: float = 4, zone: str = "", days: tuple[int, ...] = ()
) -> rollouts_pb2.MaintenanceWindow:
    seconds = int(hours * 3600)
    duration = duration_pb2.Duration(seconds=seconds)
    return rollouts_pb2.MaintenanceWindow(start=start, duration=duration, time_zone=zone, days=days)  # type: ignore[arg-type]


def at(text: str, zone: ZoneInfo | None = None) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC).timestamp()


def test_without_windows_it_is_always_open() -> None:
    assert opening([], 5.0) == ALWAYS


@pytest.mark.parametrize(
    ("now", "begin", "end"),
    [
        ("2026-03-04T12:00", "2026-03-04T22:00", "2026-03-05T02:00"),
        ("2026-03-04T22:00", "2026-03-04T22:00", "2026-03-05T02:00"),
        ("2026-03-05T01:59", "2026-03-04T22:00", "2026-03-05T02:00"),
        ("2026-03-05T02:00", "2026-03-05T22:00", "2026-03-06T02:00"),
    ],
)
def test_a_window_that_is_open_counts_else_the_next_one(now: str, begin: str, end: str) -> None:
    found = opening([window_of(window())], at(now))
    assert found is not None
    assert (found.begin, found.end) == (at(begin), at(end))


def test_days_are_those_of_the_time_zone() -> None:
    saturdays = window_of(window("00:30", 2, "Europe/Berlin", (Day.DAY_SATURDAY,)))
    found = opening([saturdays], at("2026-03-06T12:00"))
    assert found is not None
    assert found.begin == at("2026-03-07T00:30", BERLIN) == at("2026-03-06T23:30")


def test_daylight_saving_time_moves_the_opening_and_not_its_length() -> None:
    nightly = window_of(window("01:00", 4, "Europe/Berlin"))
    found = opening([nightly], at("2026-03-29T01:30", BERLIN))  # clocks go from 2:00 to 3:00
    assert found is not None
    assert found.end - found.begin == 4 * 3600
    assert found.end == at("2026-03-29T06:00", BERLIN)


@given(st.integers(0, 1439), st.integers(1, 7 * 1440), st.sets(st.sampled_from(list(range(1, 8)))), st.floats(1e6, 2e9))
def test_an_opening_lies_where_its_window_says_and_none_comes_before_it(
    minute: int, minutes: int, days: set[int], now: float
) -> None:
    message = window(f"{minute // 60:02}:{minute % 60:02}", minutes / 60, "", tuple(days))
    found = opening([window_of(message)], now)
    assert found is not None
    assert found.end > now
    begin = datetime.fromtimestamp(found.begin, UTC)
    assert (begin.hour * 60 + begin.minute, begin.second) == (minute, 0)
    assert not days or begin.weekday() + 1 in days
    if found.begin > now:
        assert found.begin - now <= 7 * 86400, "every window opens every week"


@pytest.mark.parametrize(
    "message",
    [
        window("24:00"),
        window("9:00"),
        window(""),
        window(hours=0),
        window(hours=24 * 8),
        window(zone="Mars/Olympus"),
        window(zone="../etc/passwd"),
        window(zone="x" * 100),
        window(days=(9,)),
    ],
)
def test_a_window_that_means_nothing_is_refused(message: rollouts_pb2.MaintenanceWindow) -> None:
    with pytest.raises(InvalidArgument) as caught:
        window_of(message)
    assert caught.value.reason == "WINDOW_INVALID"
    assert caught.value.metadata["field"].startswith("policy.windows.")
