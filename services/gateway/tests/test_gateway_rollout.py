"""What happens next on a device, who may take part, and how a deployment ends: tables and properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_gateway.core import rollout
from tinymlaas_gateway.core.rollout import Action, Outcome, Progress

Rollout = deployments_pb2.DeviceRollout
Deployment = deployments_pb2.Deployment
GOOD, FAILED, CANCELLED = Outcome.GOOD, Outcome.FAILED, Outcome.CANCELLED


@pytest.mark.parametrize(
    ("progress", "action", "state"),
    [
        (Progress(), Action.WAIT_FOR_BUILD, None),
        (Progress(build=GOOD), Action.INSTALL, None),
        (Progress(build=GOOD, install=GOOD), Action.ACTIVATE, None),
        (Progress(build=GOOD, install=GOOD, activate=GOOD), Action.END, Rollout.STATE_ACTIVE),
        (Progress(build=GOOD, install=GOOD, activate=GOOD, cancelled=True), Action.END, Rollout.STATE_ACTIVE),
        (Progress(build=FAILED), Action.END, Rollout.STATE_FAILED),
        (Progress(build=GOOD, install=FAILED), Action.END, Rollout.STATE_FAILED),
        (Progress(build=GOOD, install=CANCELLED), Action.END, Rollout.STATE_CANCELLED),
        (Progress(cancelled=True), Action.END, Rollout.STATE_CANCELLED),
        (Progress(build=GOOD, install=GOOD, cancelled=True), Action.END, Rollout.STATE_CANCELLED),
        (Progress(build=GOOD, install=GOOD, activate=FAILED), Action.ROLL_BACK, None),
        (Progress(build=GOOD, install=GOOD, activate=FAILED, cancelled=True), Action.ROLL_BACK, None),
        (Progress(build=GOOD, install=GOOD, activate=FAILED, ours_active=False), Action.END, Rollout.STATE_FAILED),
        (
            Progress(build=GOOD, install=GOOD, activate=FAILED, ours_active=True, roll_back=GOOD),
            Action.END,
            Rollout.STATE_ROLLED_BACK,
        ),
        (
            Progress(build=GOOD, install=GOOD, activate=FAILED, ours_active=True, roll_back=FAILED),
            Action.END,
            Rollout.STATE_FAILED,
        ),
    ],
)
def test_the_next_action_follows_from_what_is_known(
    progress: Progress, action: Action, state: Rollout.State.ValueType | None
) -> None:
    assert rollout.next_action(progress) is action
    if state is not None:
        assert rollout.end_state(progress) == state


outcomes = st.sampled_from([GOOD, FAILED, CANCELLED])


@given(st.lists(st.tuples(outcomes, st.booleans(), st.booleans()), min_size=8, max_size=8))
def test_every_run_ends_and_a_module_that_did_not_come_up_is_rolled_back(
    answers: list[tuple[Outcome, bool, bool]],
) -> None:
    progress, actions = Progress(), []
    for outcome, cancelled, ours in answers:
        progress = replace(progress, cancelled=progress.cancelled or cancelled)
        action = rollout.next_action(progress)
        actions.append(action)
        if action is Action.END:
            break
        field = {
            Action.WAIT_FOR_BUILD: "build",
            Action.INSTALL: "install",
            Action.ACTIVATE: "activate",
            Action.ROLL_BACK: "roll_back",
        }[action]
        if action in (Action.ACTIVATE, Action.ROLL_BACK) and outcome is CANCELLED:
            outcome = FAILED
        progress = replace(progress, **{field: outcome})
        if action is Action.ACTIVATE and outcome is FAILED:
            progress = replace(progress, ours_active=ours)
    assert actions[-1] is Action.END
    assert len(actions) == len(set(actions)), "no action is done twice"
    if progress.activate is FAILED and progress.ours_active:
        assert Action.ROLL_BACK in actions


ACTIVE, BAD, OUT = Rollout.STATE_ACTIVE, Rollout.STATE_FAILED, Rollout.STATE_REJECTED


@pytest.mark.parametrize(
    ("states", "cancelled", "end"),
    [
        ([ACTIVE, ACTIVE, OUT], False, Deployment.STATE_SUCCEEDED),
        ([ACTIVE, BAD], False, Deployment.STATE_FAILED),
        ([OUT, OUT], False, Deployment.STATE_FAILED),
        ([], False, Deployment.STATE_FAILED),
        ([ACTIVE, Rollout.STATE_CANCELLED], True, Deployment.STATE_CANCELLED),
        ([ACTIVE], True, Deployment.STATE_SUCCEEDED),
        ([Rollout.STATE_ROLLED_BACK], False, Deployment.STATE_FAILED),
    ],
)
def test_a_deployment_ends_as_its_devices_did(
    states: list[Rollout.State.ValueType], cancelled: bool, end: Deployment.State.ValueType
) -> None:
    assert rollout.deployment_state(states, cancelled=cancelled) == end


def device(**capabilities: object) -> devices_pb2.Device:
    slots = [devices_pb2.Slot(index=0, size_bytes=1000), devices_pb2.Slot(index=1, size_bytes=2000)]
    return devices_pb2.Device(
        name="projects/p/devices/d",
        state=devices_pb2.Device.STATE_REGISTERED,
        capabilities=devices_pb2.Capabilities(**{"slots": slots, **capabilities}),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("given_device", "reasons"),
    [
        (device(), []),
        (device(key_ids=["AB01"]), []),
        (device(key_ids=["ffff"]), ["KEY_UNTRUSTED"]),
        (device(security_counter=3), ["DOWNGRADE"]),
        (device(security_counter=2), []),
        (device(slots=[]), ["NO_SLOT"]),
        (devices_pb2.Device(state=devices_pb2.Device.STATE_LOST), ["DEVICE_LOST", "NO_SLOT"]),
    ],
)
def test_what_speaks_against_a_device_is_told_before_anything_is_built(
    given_device: devices_pb2.Device, reasons: list[str]
) -> None:
    found = rollout.device_objections(given_device, key_id="ab01", security_counter=2)
    assert [item.reason for item in found] == reasons
    assert all(item.remedy for item in found)


def test_an_image_fits_when_a_slot_that_is_not_active_holds_it() -> None:
    assert rollout.slot_objection(device(), 2000) is None
    objection = rollout.slot_objection(device(), 2001)
    assert objection is not None
    assert objection.remedy == "needs a module slot with 1 B more"
    busy = device()
    busy.capabilities.slots[1].state = devices_pb2.Slot.STATE_ACTIVE
    objection = rollout.slot_objection(busy, 1500)
    assert objection is not None
    assert objection.metadata["region"] == "slot 0"
