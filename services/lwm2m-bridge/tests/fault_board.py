"""An in-memory board whose calls can be made to fail: for faults that a real board can't be made to show on demand."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace

from tinymlaas_device.board import (
    BoardError,
    BoardReason,
    BoardSpec,
    Counters,
    Invocation,
    PeripheralSpec,
    RuntimeSpec,
    SelfTest,
    SlotState,
    SlotStatus,
)

SPEC = BoardSpec(
    name="node-m4f",
    manufacturer="TinyMLaaS",
    model="node-m4f",
    serial="0001",
    hardware_version="1",
    cpu="cortex-m4",
    isa="armv7e-m",
    features=("thumb2", "dsp", "fpu-sp"),
    clock_hz=80_000_000,
    ram_total=262_144,
    flash_total=1_048_576,
    flash_page=4096,
    slot_sizes=(131_072, 131_072),
    payload_kinds=("NATIVE",),
    loader_abi=1,
    firmware_version="1.0.0",
    key_ids=(b"\x01" * 8,),
    runtimes=(RuntimeSpec("tflite-micro", "2026.10", ("CONV_2D", "SOFTMAX")),),
    peripherals=(PeripheralSpec(3324, "microphone"), PeripheralSpec(3313, "accelerometer")),
)


@dataclass
class _Slot:
    state: SlotState = SlotState.EMPTY
    digest: bytes | None = None
    size: int = 0
    data: bytearray = field(default_factory=bytearray)


class FaultBoard:
    """Follows the state machine of `Board`. `fail[name]` makes the call of that name raise, once unless `sticky`.

    `written` counts all bytes ever written, so that a test can tell a resumed transfer from a repeated one. `hold` blocks
    the call of a name until its event is set. `cut_after` loses power once that many bytes were written.
    """

    def __init__(self, spec: BoardSpec = SPEC, **changes: object) -> None:
        self.spec = replace(spec, **changes)  # type: ignore[arg-type]
        self._slots = [_Slot() for _ in self.spec.slot_sizes]
        self._active: int | None = None
        self._previous: int | None = None
        self._counters = Counters()
        self._powered = True
        self.fail: dict[str, BoardReason] = {}
        self.sticky = False
        self.hold: dict[str, threading.Event] = {}
        self.calls: list[str] = []
        self.written = 0
        self.cut_after: int | None = None
        self.self_test_passes = True
        self.fail_install = False
        self.confidence: float | None = None
        self._looks = 0

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if not self._powered:
            raise BoardError(BoardReason.POWER_LOST)
        if name in self.hold:
            assert self.hold[name].wait(30)
        if name in self.fail:
            reason = self.fail[name] if self.sticky else self.fail.pop(name)
            raise BoardError(reason, f"made to fail in {name}")

    def ram_free(self) -> int:
        return self.spec.ram_total - 16_384

    def flash_free(self) -> int:
        return sum(
            size for size, slot in zip(self.spec.slot_sizes, self._slots, strict=True) if slot.state is SlotState.EMPTY
        )

    def slot(self, slot: int) -> SlotStatus:
        held = self._slots[slot]
        if self.fail_install and held.state is SlotState.INSTALLED:
            # The first look after verify is the snapshot, the second one is Install's.
            self._looks += 1
            if self._looks == 2:
                raise BoardError(BoardReason.FLASH_ERROR, "the slot can't be read")
        name = "kws" if held.state not in (SlotState.EMPTY, SlotState.RECEIVING) else ""
        return SlotStatus(
            held.state,
            held.digest,
            len(held.data),
            held.size,
            self.spec.slot_sizes[slot],
            0,
            name,
            "1.0" if name else "",
        )

    def begin(self, slot: int, size: int, digest: bytes) -> None:
        self._enter("begin")
        held = self._slots[slot]
        if held.state is SlotState.ACTIVE:
            raise BoardError(BoardReason.SLOT_BUSY)
        if size > self.spec.slot_sizes[slot]:
            raise BoardError(BoardReason.NO_SPACE, f"{size} bytes into {self.spec.slot_sizes[slot]}")
        if held.state is not SlotState.RECEIVING or (held.digest, held.size) != (digest, size):
            self._slots[slot] = _Slot(SlotState.RECEIVING, digest, size)

    def write(self, slot: int, offset: int, data: bytes) -> None:
        self._enter("write")
        held = self._slots[slot]
        if held.state is not SlotState.RECEIVING:
            raise BoardError(BoardReason.WRONG_STATE)
        if offset != len(held.data) or offset + len(data) > held.size:
            raise BoardError(BoardReason.WRONG_OFFSET)
        held.data += data
        self.written += len(data)
        if self.cut_after is not None and self.written >= self.cut_after:
            self.cut_after = None
            self._powered = False
            raise BoardError(BoardReason.POWER_LOST)

    def bytes_written(self, slot: int) -> int:
        return len(self._slots[slot].data)

    def verify(self, slot: int) -> None:
        self._enter("verify")
        held = self._slots[slot]
        if len(held.data) != held.size:
            raise BoardError(BoardReason.INCOMPLETE)
        if hashlib.sha256(held.data).digest() != held.digest:
            raise BoardError(BoardReason.DIGEST_MISMATCH)
        held.state = SlotState.INSTALLED

    def self_test(self, slot: int) -> SelfTest:
        self._enter("self_test")
        if not self.self_test_passes:
            self._counters = replace(self._counters, errors=self._counters.errors + 1)
            return SelfTest(False, "vector 0: output 3 is 7, expected 9")
        self._slots[slot].state = SlotState.TESTED
        return SelfTest(True, "1 vector")

    def activate(self, slot: int) -> None:
        self._enter("activate")
        if self._slots[slot].state is not SlotState.TESTED:
            raise BoardError(BoardReason.NOT_TESTED)
        if self._active is not None:
            self._slots[self._active].state = SlotState.TESTED
            self._previous = self._active
        self._slots[slot].state = SlotState.ACTIVE
        self._active = slot

    def deactivate(self, slot: int) -> None:
        self._enter("deactivate")
        self._slots[slot].state = SlotState.TESTED
        self._active = None

    def uninstall(self, slot: int) -> None:
        self._enter("uninstall")
        if self._slots[slot].state is SlotState.ACTIVE:
            raise BoardError(BoardReason.SLOT_BUSY)
        self._slots[slot] = _Slot()
        if self._previous == slot:
            self._previous = None

    def rollback(self) -> int:
        self._enter("rollback")
        if self._previous is None or self._active is None:
            raise BoardError(BoardReason.NOTHING_TO_ROLL_BACK)
        self._slots[self._active].state = SlotState.TESTED
        self._slots[self._previous].state = SlotState.ACTIVE
        self._active, self._previous = self._previous, None
        return self._active

    def active_slot(self) -> int | None:
        return self._active

    def invoke(self, data: bytes) -> Invocation:
        self._enter("invoke")
        if self._active is None:
            raise BoardError(BoardReason.NOTHING_ACTIVE)
        self._counters = replace(
            self._counters, invocations=self._counters.invocations + 1, last_latency=len(data) * 10
        )
        return Invocation(hashlib.sha256(data).digest()[:12], len(data) * 10, "instructions", self.confidence)

    def reboot(self) -> None:
        self.calls.append("reboot")
        self._powered = True
        self._counters = replace(self._counters, invocations=0, errors=0, reboots=self._counters.reboots + 1)

    def counters(self) -> Counters:
        return self._counters
