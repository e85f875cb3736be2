"""Rollout policies from what people write on the command line, and how a rollout looks there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from rich.console import Console

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2
from tinymlaas_client import rollout_policy
from tinymlaas_client.cli.rollout_view import MAX_ROWS, rollout_view, timeline_table
from tinymlaas_client.policies import duration, query, wave, window


def plain(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172_800)])
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert duration(text).ToNanoseconds() == seconds * 10**9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canary=1", {"name": "canary", "count": 1}),
        ("25%", {"percent": 25}),
        ("early birds=10%", {"name": "early birds", "percent": 10}),
        ("7", {"count": 7}),
    ],
)
def test_waves_are_counts_or_percentages_with_a_name_before_them(text: str, message: dict[str, Any]) -> None:
    assert plain(wave(text)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("22:00+4h", {"start": "22:00", "duration": "14400s"}),
        ("22:00+4h Europe/Berlin", {"start": "22:00", "duration": "14400s", "timeZone": "Europe/Berlin"}),
        (
            "08:30+30m sat,sunday UTC",
            {"start": "08:30", "duration": "1800s", "days": ["DAY_SATURDAY", "DAY_SUNDAY"], "timeZone": "UTC"},
        ),
    ],
)
def test_windows_have_a_start_a_length_days_and_a_time_zone(text: str, message: dict[str, Any]) -> None:
    assert plain(window(text)) == message


def test_conditions_become_a_query() -> None:
    made = query(["isa=armv7e-m", "isa=rv32imc", "payload=native", "ram=64k", "flash=1m", "name=meter-*"])
    assert plain(made) == {
        "isas": ["armv7e-m", "rv32imc"],
        "payloadKinds": ["PAYLOAD_KIND_NATIVE"],
        "minRamFreeBytes": "65536",
        "minFlashFreeBytes": "1048576",
        "names": ["meter-*"],
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda: duration("5"),
        lambda: wave("a lot"),
        lambda: wave("canary=-1"),
        lambda: window("22:00"),
        lambda: window(""),
        lambda: window("22:00+4h mon UTC extra"),
        lambda: query(["colour=red"]),
        lambda: query(["isa="]),
        lambda: query(["ram=lots"]),
        lambda: rollout_policy(on_failure="panic"),
    ],
)
def test_what_can_not_be_understood_says_what_to_write(call: Any) -> None:
    with pytest.raises(ValueError, match="write"):
        call()


def test_nothing_said_is_no_policy() -> None:
    assert rollout_policy() is None


def test_options_add_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(
        '{"waves": [{"name": "canary", "count": 1}], "startsPerMinute": 5, "onFailure": "ON_FAILURE_PAUSE"}'
    )
    made = rollout_policy(file=file, waves=["20%"], soak="10m", approve=True, max_failed=2, where=[], max_errors=0)
    assert made is not None
    assert plain(made) == {
        "waves": [
            {"name": "canary", "count": 1, "soak": "600s"},
            {"percent": 20, "soak": "600s", "approval": True},
            {"name": "rest", "soak": "600s", "approval": True},
        ],
        "startsPerMinute": 5,
        "onFailure": "ON_FAILURE_PAUSE",
        "thresholds": {"maxFailed": 2},
        "query": {},
        "feedback": {"maxErrorPercent": 0},
    }
    file.write_text('{"wave": 1}')
    with pytest.raises(ValueError, match="no rollout policy"):
        rollout_policy(file=file)


def text_of(thing: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=160, highlight=False).print(thing)
    return out.getvalue()


def test_a_rollout_shows_its_waves_what_it_waits_for_and_what_went_wrong_first() -> None:
    body = deployments_pb2.Deployment(name="projects/p/deployments/d", state=deployments_pb2.Deployment.STATE_RUNNING)
    body.waves.add(name="[canary]", state=rollouts_pb2.Wave.STATE_PASSED, devices=1, active=1)
    body.waves.add(name="rest", state=rollouts_pb2.Wave.STATE_AWAITING_APPROVAL, devices=60)
    body.waits_for = "approval of 'rest'"
    Rollout = deployments_pb2.DeviceRollout
    for index in range(MAX_ROWS + 20):
        body.rollouts.add(device=f"projects/p/devices/d{index}", wave=1, state=Rollout.STATE_PENDING)
    bad = body.rollouts.add(device="projects/p/devices/bad-one", state=Rollout.STATE_FAILED)
    bad.error.message = "it [broke]"
    bad.timeline.add(step="failed", detail="it broke")
    shown = text_of(rollout_view(body))
    for part in (
        "[canary]",
        "awaiting approval",
        "waits for approval of 'rest'",
        "bad-one",
        "it [broke]",
        "and 21 more",
    ):
        assert part in shown
    assert "failed" in text_of(timeline_table(bad))
