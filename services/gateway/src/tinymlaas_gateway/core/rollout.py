"""Decisions of a deployment: what happens next on a device, when a device may take part, and how it all ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.gateway.v1 import deployments_pb2, routing_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_module import DeviceMemory, Requirement, fit

from . import firmware
from .objections import bytes_text, objection

DeviceRollout = deployments_pb2.DeviceRollout
Deployment = deployments_pb2.Deployment


class Action(Enum):
    """What to do next on one device."""

    WAIT_FOR_BUILD = "wait for build"
    INSTALL = "install"
    ACTIVATE = "activate"
    ROLL_BACK = "roll back"
    END = "end"


class Outcome(Enum):
    """How an action on a device ended."""

    NOT_TRIED = "not tried"
    GOOD = "good"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of one device's rollout.

    ``ours_active``: after a failed activation, whether the device nevertheless runs our module (None: not asked).
    """

    build: Outcome = Outcome.NOT_TRIED
    install: Outcome = Outcome.NOT_TRIED
    activate: Outcome = Outcome.NOT_TRIED
    roll_back: Outcome = Outcome.NOT_TRIED
    ours_active: bool | None = None
    cancelled: bool = False


def next_action(progress: Progress) -> Action:
    """Return the next action; END when the device has reached a state that it keeps.

    A cancelled deployment starts nothing new, but a failed activation is rolled back all the same: no device is left
    running a module that did not come up. A device whose module became active is never touched by cancelling.
    """
    if progress.activate is Outcome.FAILED:
        wanted = progress.ours_active is not False and progress.roll_back is Outcome.NOT_TRIED
        return Action.ROLL_BACK if wanted else Action.END
    if progress.activate is not Outcome.NOT_TRIED:
        return Action.END
    if Outcome.FAILED in (progress.build, progress.install) or Outcome.CANCELLED in (progress.build, progress.install):
        return Action.END
    if progress.cancelled:
        return Action.END
    if progress.build is Outcome.NOT_TRIED:
        return Action.WAIT_FOR_BUILD
    return Action.INSTALL if progress.install is Outcome.NOT_TRIED else Action.ACTIVATE


def end_state(progress: Progress) -> deployments_pb2.DeviceRollout.State.ValueType:
    """Return the state of a device whose next action is END."""
    if progress.activate is Outcome.GOOD:
        return DeviceRollout.STATE_ACTIVE
    if progress.activate is Outcome.FAILED:
        return DeviceRollout.STATE_ROLLED_BACK if progress.roll_back is Outcome.GOOD else DeviceRollout.STATE_FAILED
    if Outcome.FAILED in (progress.build, progress.install):
        return DeviceRollout.STATE_FAILED
    return DeviceRollout.STATE_CANCELLED


def deployment_state(
    states: Iterable[deployments_pb2.DeviceRollout.State.ValueType], *, cancelled: bool
) -> deployments_pb2.Deployment.State.ValueType:
    """Return how a deployment ended, from the end states of its devices.

    Nothing admitted is a failure, not a success of nothing. Cancelling counts only where it kept a device from its end.
    """
    seen = set(states)
    seen.discard(DeviceRollout.STATE_REJECTED)
    if seen == {DeviceRollout.STATE_ACTIVE}:
        return Deployment.STATE_SUCCEEDED
    if cancelled and DeviceRollout.STATE_CANCELLED in seen:
        return Deployment.STATE_CANCELLED
    return Deployment.STATE_FAILED


def device_objections(device: devices_pb2.Device, *, key_id: str, security_counter: int) -> list[routing_pb2.Objection]:
    """Return what speaks against installing anything on a device, whatever the compiler: lost, key, counter, slots."""
    found: list[routing_pb2.Objection] = []
    capabilities = device.capabilities
    if device.state != devices_pb2.Device.STATE_REGISTERED:
        found.append(objection("DEVICE_LOST", "the device is not registered", "needs the device to register again"))
    if capabilities.key_ids and key_id not in {item.lower() for item in capabilities.key_ids}:
        found.append(
            objection(
                "KEY_UNTRUSTED",
                f"the device does not trust the signing key {key_id}",
                f"needs the public key {key_id} on the device",
                key_id=key_id,
            )
        )
    if capabilities.security_counter > security_counter:
        found.append(
            objection(
                "DOWNGRADE",
                f"the device has security counter {capabilities.security_counter}, the module would have {security_counter}",
                f"needs security_counter {capabilities.security_counter} or more in the deployment",
                need=capabilities.security_counter,
                have=security_counter,
            )
        )
    if not capabilities.slots and not firmware.is_static(device):
        found.append(objection("NO_SLOT", "the device shows no module slot", "needs firmware with a module slot"))
    return found


def slot_objection(device: devices_pb2.Device, image_bytes: int) -> routing_pb2.Objection | None:
    """Return DOES_NOT_FIT when a device image is bigger than every slot that could take it, else None."""
    largest = max(usable_slots(device.capabilities.slots), key=lambda slot: slot.size_bytes, default=None)
    if largest is None:
        return None
    flash, _ = fit(Requirement(image_bytes, 0, 1, 0), DeviceMemory(flash_free=largest.size_bytes, ram_free=0)).regions
    if not flash.missing:
        return None
    return objection(
        "DOES_NOT_FIT",
        f"the device image has {bytes_text(flash.need)}, slot {largest.index} holds {bytes_text(flash.have)}",
        f"needs a module slot with {bytes_text(flash.missing)} more",
        constraint="slot",
        region=f"slot {largest.index}",
        need=flash.need,
        have=flash.have,
        basis="verified",
    )


def step_name(event: bridge_pb2.InstallResponse) -> str:
    """Step of an install as timelines tell it; one of a later contract is told by its number."""
    known = event.step in bridge_pb2.InstallResponse.Step.values()
    name = bridge_pb2.InstallResponse.Step.Name(event.step) if known else str(int(event.step))
    return name.removeprefix("STEP_").lower()


def usable_slots(slots: Sequence[devices_pb2.Slot]) -> list[devices_pb2.Slot]:
    """Slots that a new module may go into: all but the active one, unless it is the only one."""
    free = [slot for slot in slots if slot.state != devices_pb2.Slot.STATE_ACTIVE]
    return free or list(slots)


def peripherals(device: devices_pb2.Device) -> tuple[str, ...]:
    """What the device has to offer as a model's input: kinds and OMA object ids."""
    items = device.capabilities.peripherals
    return tuple({text: None for item in items for text in (item.kind, str(item.object_id)) if text})


def active_image(device: devices_pb2.Device) -> str:
    """Digest (sha256 hex) of the device image, or firmware package, that is active; empty when none is or it is unknown."""
    for slot in device.capabilities.slots:
        if slot.state == devices_pb2.Slot.STATE_ACTIVE:
            return slot.module_sha256
    return device.capabilities.firmware.package_sha256
