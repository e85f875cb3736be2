"""Who takes part in a rollout and in which wave; which policies are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gateway_fakes import PROJECT, toy_target
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import deployments_pb2, rollouts_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_gateway.core import cohort, rollout_view, waves
from tinymlaas_gateway.core.policy import policy_of
from tinymlaas_gateway.core.waves import Dependency
from tinymlaas_gateway.engine import planning
from tinymlaas_servicekit import InvalidArgument

Deployment = deployments_pb2.Deployment
Query = rollouts_pb2.DeviceQuery


def meter(name: str = "meter-7", **fields: Any) -> devices_pb2.Device:
    capabilities = devices_pb2.Capabilities(
        target=toy_target(),
        peripherals=[devices_pb2.Peripheral(object_id=3313, kind="accelerometer")],
        rtos="Zephyr 4.2",
    )
    return devices_pb2.Device(
        name=f"{PROJECT}/devices/{name}",
        manufacturer="Acme",
        model="M-100",
        firmware_version="1.2.3",
        capabilities=capabilities,
        **fields,
    )


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        (Query(), True),
        (Query(names=["meter-*"]), True),
        (Query(names=["METER-7", "x"]), True),
        (Query(names=["meter"]), False),
        (Query(manufacturers=["acme"], models=["M-*"]), True),
        (Query(manufacturers=["acme"], models=["N-*"]), False),
        (Query(firmware_versions=["1.2.*"]), True),
        (Query(isas=["armv7e-m", "rv32imc"]), True),
        (Query(isas=["rv32imc"]), False),
        (Query(cpus=["Cortex-M4"]), True),
        (Query(features=["dsp", "fpu-sp"]), True),
        (Query(features=["dsp", "mve"]), False),
        (Query(runtimes=["tflite-micro"]), True),
        (Query(payload_kinds=[target_pb2.PAYLOAD_KIND_NATIVE]), False),
        (Query(payload_kinds=[target_pb2.PAYLOAD_KIND_NATIVE, target_pb2.PAYLOAD_KIND_TFLITE]), True),
        (Query(peripherals=["accelerometer"]), True),
        (Query(peripherals=["3313"]), True),
        (Query(peripherals=["accelerometer", "microphone"]), False),
        (Query(rtos=["zephyr*"]), True),
        (Query(min_ram_free_bytes=65536), True),
        (Query(min_ram_free_bytes=65537), False),
        (Query(min_flash_free_bytes=1 << 21), False),
    ],
)
def test_a_query_asks_for_what_devices_say_of_themselves(query: rollouts_pb2.DeviceQuery, holds: bool) -> None:
    """DO-ROLL-010."""
    assert cohort.matches(query, meter()) is holds


async def test_a_device_joins_once_it_is_registered_and_was_read() -> None:
    """DO-ROLL-010: one that was not read yet is not judged by what it could not say."""
    here = devices_pb2.Device.STATE_REGISTERED
    known = [meter("ready", state=here), meter("lost", state=devices_pb2.Device.STATE_LOST)]
    known.append(devices_pb2.Device(name=f"{PROJECT}/devices/unread", state=here))

    class Catalogue:
        async def devices(self, project: str) -> list[devices_pb2.Device]:
            return known

    context: Any = SimpleNamespace(catalogue=Catalogue())
    found = await planning.matching(context, "default", policy(query={}))
    assert [item.name.rsplit("/", 1)[1] for item in found] == ["ready"]
    assert await planning.matching(context, "default", policy()) == known, "without a query, all that the project has"


def test_what_a_device_does_not_state_is_not_enough() -> None:
    assert not cohort.matches(Query(min_ram_free_bytes=1), devices_pb2.Device(name=f"{PROJECT}/devices/x"))


def policy(**fields: Any) -> Any:
    message = json_format.ParseDict(fields, rollouts_pb2.RolloutPolicy())
    return policy_of(Deployment(policy=message))


names = st.lists(st.integers(0, 10_000), unique=True, max_size=60)


@given(names, st.integers(1, 20), st.integers(1, 100), st.integers(1, 4))
def test_waves_have_the_sizes_that_were_asked_for_and_cover_the_kinds_of_targets_first(
    ids: list[int], count: int, percent: int, kinds: int
) -> None:
    """DO-ROLL-001: each device is in exactly one wave, the same whenever it is asked for."""
    targets = {f"d{i}": f"t{i % kinds}" for i in ids}
    made = policy(waves=[{"name": "canary", "count": count}, {"name": "some", "percent": percent}])
    ordered = cohort.order("x", targets)
    assert ordered == cohort.order("x", dict(reversed(targets.items())))
    placed = cohort.divide(made, ordered, lambda query, name: True)
    assert placed.keys() == targets.keys()
    sizes = [list(placed.values()).count(index) for index in range(3)]
    assert sizes[0] == min(count, len(targets))
    assert sizes[1] == min(-(-len(targets) * percent // 100), len(targets) - sizes[0])
    canaries = {targets[name] for name, wave in placed.items() if wave == 0}
    assert len(canaries) == min(len(set(targets.values())), sizes[0])


def test_a_wave_may_ask_for_certain_devices() -> None:
    made = policy(waves=[{"name": "lab", "query": {"names": ["lab-*"]}}, {"name": "first", "count": 1}])
    targets = dict.fromkeys(["lab-1", "lab-2", "f-1", "f-2"], "t")
    placed = cohort.divide(
        made,
        cohort.order("x", targets),
        lambda query, name: cohort.matches(query, devices_pb2.Device(name=f"{PROJECT}/devices/{name}")),
    )
    assert placed["lab-1"] == placed["lab-2"] == 0
    assert sorted((placed["f-1"], placed["f-2"])) == [1, 2]
    assert made.waves[2].name == "rest"


def test_other_deployments_have_other_canaries() -> None:
    targets = dict.fromkeys([f"d{i}" for i in range(20)], "t")
    assert len({cohort.order(f"deployment {i}", targets)[0] for i in range(20)}) > 5


def test_a_wave_before_another_must_be_wholly_active_unless_told_otherwise() -> None:
    """DO-ROLL-002."""
    made = policy(waves=[{"count": 1}, {"percent": 10, "thresholds": {"maxFailed": 3}}])
    assert [wave.thresholds.success_percent for wave in made.waves] == [100, None, None]
    assert [wave.name for wave in made.waves] == ["wave 1", "wave 2", "rest"]
    common = policy(waves=[{"count": 1}], thresholds={"successPercent": 90})
    assert [wave.thresholds.success_percent for wave in common.waves] == [90, 90]
    assert policy_of(Deployment()).waves[0].thresholds.success_percent is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"waves": [{"count": 0}]}, "waves[0].count"),
        ({"waves": [{"percent": 101}]}, "waves[0].percent"),
        ({"waves": [{"name": "a"}, {"count": 1}]}, "waves[0]"),
        ({"waves": [{"name": "a", "count": 1}, {"name": "a", "count": 1}]}, "waves.name"),
        ({"waves": [{"name": "a\nb", "count": 1}]}, "waves[0].name"),
        ({"waves": [{"count": 1, "soak": "-5s"}]}, "waves[0].soak"),
        ({"waves": [{"count": 1}] * 33}, "waves"),
        ({"thresholds": {"successPercent": 0}}, "thresholds.success_percent"),
        ({"jitter": "999999999s"}, "jitter"),
        ({"windows": [{"start": "25:00", "duration": "3600s"}]}, "windows.start"),
        ({"query": {"names": ["x" * 300]}}, "query.names"),
        ({"query": {"names": ["x"] * 65}}, "query.names"),
        ({"feedback": {"maxErrorPercent": 200}}, "feedback.max_error_percent"),
        ({"onFailure": 77}, "on_failure"),
        ({"after": ["projects/p/deployments/d"] * 17}, "after"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_the_name_of_its_field(fields: dict[str, Any], where: str) -> None:
    """DO-ROLL-011."""
    with pytest.raises(InvalidArgument) as caught:
        policy(**fields)
    assert caught.value.metadata["field"] == f"policy.{where}"
    assert caught.value.help


def test_the_example_of_the_guide_is_a_policy() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    text = (docs / "examples" / "rollout.json").read_text()
    assert text in (docs / "guide-rollouts.md").read_text(), "the guide shows the file"
    made = policy(**json.loads(text))
    assert [wave.name for wave in made.waves] == ["lab", "canary", "half", "rest"]
    assert made.waves[2].approval
    assert made.feedback is not None


Rollout = deployments_pb2.DeviceRollout


@pytest.mark.parametrize(
    ("state", "mine", "met"),
    [
        (Deployment.STATE_RUNNING, Rollout.STATE_ACTIVE, Dependency.MET),
        (Deployment.STATE_FAILED, Rollout.STATE_ACTIVE, Dependency.MET),
        (Deployment.STATE_RUNNING, Rollout.STATE_PENDING, Dependency.WAITING),
        (Deployment.STATE_RUNNING, Rollout.STATE_FAILED, Dependency.FAILED),
        (Deployment.STATE_ROLLED_BACK, Rollout.STATE_ROLLED_BACK, Dependency.FAILED),
        (Deployment.STATE_CANCELLED, Rollout.STATE_CANCELLED, Dependency.FAILED),
        (Deployment.STATE_PAUSED, None, Dependency.WAITING),
        (Deployment.STATE_SUCCEEDED, None, Dependency.MET),
        (Deployment.STATE_FAILED, None, Dependency.FAILED),
        (None, None, Dependency.FAILED),
    ],
)
def test_a_dependency_is_met_where_it_made_the_device_active_or_succeeded_without_it(
    state: Any, mine: Any, met: Dependency
) -> None:
    """DO-ROLL-008."""
    before = None if state is None else Deployment(state=state)
    if before is not None and mine is not None:
        before.rollouts.add(device="d", state=mine)
    assert rollout_view.Before(before).reached("d") is met
    assert rollout_view.together([Dependency.MET, met]) is met
    assert rollout_view.together([]) is Dependency.MET


def test_the_time_in_which_no_gateway_looked_makes_no_device_stuck() -> None:
    """DO-ROLL-009, 012: bridges go on with installs while the gateway is away."""
    body = Deployment(state=Deployment.STATE_RUNNING)
    body.waves.add(name="all", state=rollouts_pb2.Wave.STATE_RUNNING)
    item = body.rollouts.add(device="d", state=Rollout.STATE_INSTALLING, start_time=rollout_view.stamp(100.0))
    rollout_view.noted(item, 100.0, "install")
    made = policy(stuckAfter="600s")
    for since, stuck in ((0.0, ("d",)), (9_900.0, ())):
        devices = rollout_view.devices_now(body, {}, since)
        now = rollout_view.facts(body, 10_000.0, cancelled=False)
        assert waves.decide(made, rollout_view.waves_now(body), devices, now).stuck == stuck
