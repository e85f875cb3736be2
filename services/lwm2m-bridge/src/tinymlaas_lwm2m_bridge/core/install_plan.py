"""What to do next in an install, as pure functions of what the device shows (spec/device-orchestration.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tinymlaas_lwm2m import (
    MlRes,
    Path,
    SelfTestResult,
    SlotState,
    SoftwareRes,
    UpdateResult,
    UpdateState,
    Value,
    ml,
    multiple,
    software,
)

from .errors import BridgeError, Reason, error_of_result
from .install_record import InstallRecord
from .targets import FIRMWARE_TARGET, Target, read_firmware, slot_target


@dataclass(frozen=True)
class SlotView:
    """What a device shows of one slot. `digest` is None for an empty slot, and where the device has no ML object."""

    index: int
    update_state: int
    update_result: int = 0
    active: bool = False
    status_reason: str = ""
    digest: bytes | None = None
    size: int | None = None
    received: int = 0
    self_test: int | None = None
    self_test_detail: str = ""
    knows_digests: bool = True
    firmware: bool = False
    deferred: bool = False

    @property
    def target(self) -> Target:
        """Where its image is written and installed."""
        return FIRMWARE_TARGET if self.firmware else slot_target(self.index)

    @property
    def busy(self) -> bool:
        """True while the device does something that can't be stopped: a self-test, an update of its firmware."""
        return self.self_test == SelfTestResult.RUNNING

    @property
    def past_cancelling(self) -> bool:
        """True while a device updates its firmware, and once it has: a cancel comes too late then (DO-FW-004)."""
        return self.firmware and self.update_state == UpdateState.INSTALLED and not self.deferred

    @property
    def empty(self) -> bool:
        """True where the slot holds nothing, not even part of an image."""
        return self.update_state == UpdateState.INITIAL and self.digest is None


@dataclass(frozen=True)
class DeviceView:
    """All slots of a device, the one that Rollback would activate, and the RAM in bytes that one module can use.

    `running` is the digest of the image whose module is in use, where the device shows it.
    """

    slots: tuple[SlotView, ...]
    previous_slot: int | None = None
    has_ml_object: bool = True
    ram_free: int | None = None
    running: bytes | None = None

    def slot(self, index: int) -> SlotView:
        """A slot by index; SLOT_UNKNOWN where the device has none such."""
        for slot in self.slots:
            if slot.index == index:
                return slot
        raise BridgeError(Reason.SLOT_UNKNOWN, f"the device has no slot {index}", slot=index, slots=len(self.slots))

    @property
    def active(self) -> SlotView | None:
        """The active slot, or None."""
        return next((slot for slot in self.slots if slot.active), None)


class Action(StrEnum):
    """The next thing to do for an install."""

    TRANSFER = "TRANSFER"
    WAIT = "WAIT"
    CLEAR = "CLEAR"
    INSTALL = "INSTALL"
    SELF_TEST = "SELF_TEST"
    READY = "READY"


def read_view(values: Mapping[Path, Value], slots: list[int]) -> DeviceView:
    """View of a device from resources of objects 9 and 42769; DEVICE_ANSWER_INVALID where states are missing."""
    has_ml = any(path.object_id == ml(MlRes.ISA).object_id for path in values)
    digests, sizes = multiple(values, ml(MlRes.MODULE_DIGEST)), multiple(values, ml(MlRes.SLOT_SIZE))
    received, tests = multiple(values, ml(MlRes.RECEIVED_BYTES)), multiple(values, ml(MlRes.SELF_TEST_RESULT))
    states, details = multiple(values, ml(MlRes.SLOT_STATE)), multiple(values, ml(MlRes.SELF_TEST_DETAIL))
    previous = values.get(ml(MlRes.PREVIOUS_SLOT))
    views = []
    for index in slots:
        update_state = _whole(values.get(software(index, SoftwareRes.UPDATE_STATE)))
        if update_state is None or update_state not in UpdateState.__members__.values():
            raise BridgeError(
                Reason.DEVICE_ANSWER_INVALID, f"slot {index} shows no update state of object 9", slot=index
            )
        digest = digests.get(index)
        views.append(
            SlotView(
                index=index,
                update_state=update_state,
                update_result=_whole(values.get(software(index, SoftwareRes.UPDATE_RESULT))) or 0,
                active=values.get(software(index, SoftwareRes.ACTIVATION_STATE)) is True
                or states.get(index) == SlotState.ACTIVE,
                status_reason=str(values.get(software(index, SoftwareRes.STATUS_REASON), ""))[:256],
                digest=digest if isinstance(digest, bytes) and len(digest) == 32 else None,
                size=_whole(sizes.get(index)),
                received=_whole(received.get(index)) or 0,
                self_test=_whole(tests.get(index)),
                self_test_detail=str(details.get(index, ""))[:256],
                knows_digests=has_ml,
            )
        )
    running = next((view.digest for view in views if view.active), None)
    return DeviceView(tuple(views), _whole(previous), has_ml, _ram_free(values), running)


def read_firmware_view(values: Mapping[Path, Value]) -> DeviceView:
    """View of a device that takes modules as firmware only (object 5): one place, number 0."""
    view = read_firmware(values)
    if view is None:
        raise BridgeError(Reason.DEVICE_ANSWER_INVALID, "the device shows no update state of object 5", slot=0)
    slot = SlotView(
        index=0,
        update_state=view.update_state,
        update_result=view.update_result,
        status_reason=view.reason,
        self_test=SelfTestResult.RUNNING if view.busy else None,
        knows_digests=False,
        firmware=True,
        deferred=view.deferred,
    )
    digest = multiple(values, ml(MlRes.MODULE_DIGEST)).get(0)
    running = digest if isinstance(digest, bytes) and len(digest) == 32 else None
    return DeviceView((slot,), has_ml_object=False, ram_free=_ram_free(values), running=running)


def _ram_free(values: Mapping[Path, Value]) -> int | None:
    """RAM Free as reported, at most RAM Total, which stands for it where it is missing (DO-CAP-004)."""
    given = (_whole(values.get(ml(resource))) for resource in (MlRes.RAM_FREE, MlRes.RAM_TOTAL))
    return min((size for size in given if size is not None and size >= 0), default=None)


def _whole(value: Value | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def choose_slot(view: DeviceView, digest: bytes, size: int, wanted: int | None) -> int:
    """Slot for an image of `size` bytes: the wanted one if it can be used, else the least harmful one.

    In this order: one that holds the image already (an install that goes on, or a repeat), an empty one, one that holds
    neither the active module nor its rollback copy, the rollback copy's. The last one costs no safety: the active
    module stays until the new one is activated, and then becomes the rollback copy.
    """
    if wanted is not None:
        slot = view.slot(wanted)
        if slot.active and slot.digest != digest:
            raise BridgeError(Reason.SLOT_ACTIVE, f"slot {wanted} is active", slot=wanted)
        if slot.size is not None and slot.size < size:
            raise BridgeError(
                Reason.DOES_NOT_FIT, f"slot {wanted} is too small", region=f"slot{wanted}", need=size, have=slot.size
            )
        return wanted
    holding = [slot for slot in view.slots if slot.digest == digest]
    if holding:
        return max(holding, key=lambda slot: (slot.active, slot.update_state, slot.received)).index
    fitting = [slot for slot in view.slots if not slot.active and (slot.size is None or slot.size >= size)]
    if fitting:
        return min(fitting, key=lambda s: (not s.empty, s.index == view.previous_slot, s.size or 0, s.index)).index
    largest = max((slot.size or 0 for slot in view.slots), default=0)
    if largest and largest < size:
        raise BridgeError(Reason.DOES_NOT_FIT, "no slot is big enough", region="slot", need=size, have=largest)
    raise BridgeError(Reason.NO_FREE_SLOT, "every slot that is big enough is active", slots=len(view.slots))


def holds(record: InstallRecord, slot: SlotView, digest: bytes) -> bool:
    """True where the slot holds, or receives, the image of this install; a device without digests is believed."""
    if slot.knows_digests:
        return slot.digest == digest
    return record.attempts > 0 and slot.update_state != UpdateState.INITIAL


def next_action(record: InstallRecord, slot: SlotView, digest: bytes) -> Action:
    """Next action for an install, from the slot's state; raises the error with which the install ends.

    Only the device's own state counts. The record is asked for what a device can't show: whether this install has sent
    something already, so that an old failure is not mistaken for its own, and a device without digests is believed.
    """
    ours = holds(record, slot, digest)
    state, result = slot.update_state, slot.update_result
    if slot.active and ours and slot.knows_digests:
        return Action.READY
    if state == UpdateState.INITIAL:
        if record.test_sent and slot.self_test == SelfTestResult.FAILED:
            # A device may drop an image that failed its test at once.
            raise _test_failed(slot)
        if record.attempts and result >= UpdateResult.NOT_ENOUGH_STORAGE:
            raise error_of_result(result, slot.status_reason, slot.index)
        return Action.TRANSFER
    if slot.firmware and state == UpdateState.INSTALLED and not slot.busy and not record.install_sent:
        # The success of an earlier update, which a device shows until the next download has begun.
        return Action.WAIT if record.attempts else Action.TRANSFER
    if not ours:
        return Action.CLEAR
    if state in (UpdateState.DOWNLOAD_STARTED, UpdateState.DOWNLOADED):
        return Action.WAIT
    if state == UpdateState.DELIVERED:
        if record.install_sent and result >= UpdateResult.NOT_ENOUGH_STORAGE:
            raise error_of_result(result, slot.status_reason, slot.index)
        return Action.INSTALL
    if slot.self_test is None:
        return Action.READY
    if slot.self_test == SelfTestResult.PASSED:
        return Action.READY
    if slot.self_test == SelfTestResult.RUNNING:
        return Action.WAIT
    if slot.self_test == SelfTestResult.FAILED and record.test_sent:
        raise _test_failed(slot)
    return Action.SELF_TEST


def _test_failed(slot: SlotView) -> BridgeError:
    detail = slot.self_test_detail or "golden vectors do not match"
    return BridgeError(Reason.SELF_TEST_FAILED, detail, slot=slot.index)
