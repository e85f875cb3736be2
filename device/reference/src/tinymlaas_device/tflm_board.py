"""A board that hosts the real TFLite Micro interpreter with a fixed arena and takes TFLITE modules.

The interpreter runs in a child process, because it crashes on malformed models. Its arena figures are those of a 64-bit
host, so the child gets twice the board's arena (nothing in it more than doubles with the width of a pointer), while the
module's own 32-bit figure is held against the board's arena.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinymlaas_module import KeyRing, Module, ModuleError, PayloadKind, confidence, parse, verify

from .board import (
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
from .golden import outputs_match
from .tflm_runner import RunnerError, TflmRunner
from .tflm_state import SlotRecord, TflmState

ARENA_BYTES = 131_072
_HOST_FACTOR = 2
OPERATORS = (
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "FULLY_CONNECTED", "LOGISTIC",
    "MAX_POOL_2D", "MEAN", "MUL", "PAD", "QUANTIZE", "RELU", "RELU6", "RESHAPE", "SOFTMAX", "STRIDED_SLICE", "SUB", "TANH",
    "TRANSPOSE",
)  # fmt: skip
RUNTIME_VERSION = "2026.10"

TFLM_BOARDS: dict[str, BoardSpec] = {
    "tflm-m4f": BoardSpec(
        name="tflm-m4f",
        manufacturer="TinyMLaaS",
        model="tflm-m4f",
        serial="",
        hardware_version="1",
        cpu="cortex-m4",
        isa="armv7e-m",
        features=("dsp", "fpu-sp", "thumb2"),
        clock_hz=80_000_000,
        ram_total=262_144,
        flash_total=1_048_576,
        flash_page=4_096,
        slot_sizes=(393_216, 393_216),
        payload_kinds=("TFLITE",),
        loader_abi=0,
        firmware_version="1.0.0",
        runtimes=(RuntimeSpec("tflite-micro", RUNTIME_VERSION, OPERATORS),),
        peripherals=(PeripheralSpec(3324, "microphone"), PeripheralSpec(3313, "accelerometer")),
    )
}

_REASONS = {
    "SIGNATURE_MISSING": BoardReason.BAD_SIGNATURE,
    "SIGNATURE_INVALID": BoardReason.BAD_SIGNATURE,
    "SIGNATURE_BLOCK_INVALID": BoardReason.BAD_SIGNATURE,
    "KEY_UNKNOWN": BoardReason.UNKNOWN_KEY,
    "DOWNGRADE": BoardReason.DOWNGRADE,
}


class TflmBoard:
    """A board of `spec` that trusts `keys` (Ed25519 public keys); implements `Board`.

    `state_file` (JSON, with one file beside it for each slot's bytes) persists across processes.
    """

    def __init__(self, spec: BoardSpec, *, keys: Sequence[bytes] = (), state_file: Path | None = None) -> None:
        self.spec = spec
        self._keys = KeyRing.of(keys)
        self._state = TflmState(spec.slots, state_file)
        self._invocations = self._errors = self._last_latency = self._reboots = 0
        self._last_self_test: SelfTest | None = None
        self._runner: TflmRunner | None = None
        self._active: Module | None = None
        self._bind()

    def _bind(self) -> None:
        """Open the active module; one that no longer opens is taken out of use."""
        self.close()
        slot = self._state.active
        if slot is None:
            return
        try:
            self._active = self._open(slot)
            self._runner = self._start(self._active)
        except (BoardError, RunnerError):
            self._errors += 1
            self._active = None
            self._change(slot, SlotState.INSTALLED, active=None)

    def _open(self, slot: int) -> Module:
        """Parse and verify what a slot holds."""
        try:
            module = parse(self._state.data(slot))
            verify(module, self._keys, 0)
        except ModuleError as error:
            reason = _REASONS.get(error.reason, BoardReason.BAD_IMAGE)
            raise BoardError(reason, str(error), metadata={"detail": error.reason}) from error
        return module

    def _start(self, module: Module) -> TflmRunner:
        return TflmRunner(module.payload, ARENA_BYTES * _HOST_FACTOR, OPERATORS)

    def close(self) -> None:
        """End the interpreter's process. Repeatable."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        self._active = None

    def _record(self, slot: int) -> SlotRecord:
        if not 0 <= slot < self.spec.slots:
            raise BoardError(BoardReason.NO_SUCH_SLOT, f"slot {slot}")
        return self._state.slots[slot]

    def _change(self, slot: int, state: SlotState, *, active: int | None) -> None:
        self._state.slots[slot] = replace(self._state.slots[slot], state=int(state))
        self._state.active = active
        self._state.save()

    def _expect(self, slot: int, *states: SlotState) -> SlotRecord:
        record = self._record(slot)
        if record.state not in states:
            raise BoardError(BoardReason.WRONG_STATE, f"slot {slot} is {SlotState(record.state).name}")
        return record

    def ram_free(self) -> int:
        """Give the bytes of the fixed arena."""
        return ARENA_BYTES

    def flash_free(self) -> int:
        """Give the bytes of the empty slots."""
        pairs = zip(self._state.slots, self.spec.slot_sizes, strict=True)
        return sum(size for record, size in pairs if record.state == SlotState.EMPTY)

    def slot(self, slot: int) -> SlotStatus:
        """Give what slot `slot` holds."""
        record = self._record(slot)
        return SlotStatus(
            state=SlotState(record.state),
            digest=bytes.fromhex(record.digest) or None,
            bytes_written=self._state.written(slot),
            size=record.size,
            capacity=self.spec.slot_sizes[slot],
            security_counter=record.security_counter,
            name=record.name,
            version=record.version,
        )

    def begin(self, slot: int, size: int, digest: bytes) -> None:
        """Start a download, or go on with the same one."""
        record = self._record(slot)
        if record.state == SlotState.ACTIVE:
            raise BoardError(BoardReason.WRONG_STATE, f"slot {slot} is ACTIVE")
        if size > self.spec.slot_sizes[slot]:
            raise BoardError(BoardReason.NO_SPACE, f"{size} bytes for a slot of {self.spec.slot_sizes[slot]}")
        if size <= 0 or len(digest) != 32:
            raise BoardError(BoardReason.BAD_IMAGE, "a size is positive, a digest has 32 bytes")
        if record.state != SlotState.EMPTY and (record.size, record.digest) == (size, digest.hex()):
            return
        self._state.clear(slot)
        if self._state.previous == slot:
            self._state.previous = None
        self._state.slots[slot] = SlotRecord(state=int(SlotState.RECEIVING), size=size, digest=digest.hex())
        self._state.save()

    def write(self, slot: int, offset: int, data: bytes) -> None:
        """Append bytes."""
        record = self._expect(slot, SlotState.RECEIVING)
        if offset != self._state.written(slot):
            raise BoardError(BoardReason.WRONG_OFFSET, f"offset {offset}, not {self._state.written(slot)}")
        if offset + len(data) > record.size:
            raise BoardError(BoardReason.NO_SPACE, "more bytes than announced")
        self._state.append(slot, data)

    def bytes_written(self, slot: int) -> int:
        """Give how many bytes of the download are stored."""
        self._record(slot)
        return self._state.written(slot)

    def verify(self, slot: int) -> None:
        """Check the complete image; a refused one empties the slot."""
        record = self._record(slot)
        if record.state > SlotState.RECEIVING:
            return
        self._expect(slot, SlotState.RECEIVING)
        if self._state.written(slot) != record.size:
            raise BoardError(BoardReason.WRONG_STATE, f"{self._state.written(slot)} of {record.size} bytes are there")
        try:
            module = self._check(slot, record)
        except BoardError:
            self._empty(slot)
            raise
        self._state.slots[slot] = replace(
            record, state=int(SlotState.INSTALLED), security_counter=module.header.security_counter,
            name=module.header.name, version=module.header.version,
        )  # fmt: skip
        self._state.save()

    def _check(self, slot: int, record: SlotRecord) -> Module:
        if hashlib.sha256(self._state.data(slot)).hexdigest() != record.digest:
            raise BoardError(BoardReason.DIGEST_MISMATCH, "the image is not the announced one")
        module = self._open(slot)
        if module.header.security_counter < self._state.counter:
            raise BoardError(
                BoardReason.DOWNGRADE,
                f"counter {module.header.security_counter} < {self._state.counter}",
                metadata={"detail": "DOWNGRADE"},
            )
        if module.header.kind is not PayloadKind.TFLITE:
            raise BoardError(BoardReason.UNSUPPORTED_KIND, module.header.kind.name)
        need = module.header.arena_bytes + module.header.stack_bytes
        if need > ARENA_BYTES:
            raise BoardError(
                BoardReason.NOT_ENOUGH_RAM,
                f"{need} bytes for an arena of {ARENA_BYTES}",
                metadata={"need": str(need), "have": str(ARENA_BYTES)},
            )
        return module

    def _empty(self, slot: int) -> None:
        self._state.clear(slot)
        self._state.slots[slot] = SlotRecord()
        if self._state.previous == slot:
            self._state.previous = None
        self._state.save()

    def self_test(self, slot: int) -> SelfTest:
        """Run the module's golden vectors with the interpreter; a failed test empties a slot that is not ACTIVE."""
        record = self._expect(slot, SlotState.INSTALLED, SlotState.TESTED, SlotState.ACTIVE)
        verdict = self._run_golden(self._open(slot))
        self._last_self_test = verdict
        if verdict.passed and record.state == SlotState.INSTALLED:
            self._change(slot, SlotState.TESTED, active=self._state.active)
        elif not verdict.passed and record.state != SlotState.ACTIVE:
            self._empty(slot)
        return verdict

    def _run_golden(self, module: Module) -> SelfTest:
        if module.golden is None:
            return SelfTest(False, "GOLDEN_ABSENT")
        try:
            runner = self._start(module)
        except RunnerError as error:
            return SelfTest(False, f"the interpreter refuses the model: {error}")
        try:
            count = len(module.golden.vectors)
            for number, vector in enumerate(module.golden.vectors):
                outputs, _ = runner.run(b"".join(vector.inputs))
                if not outputs_match(module, vector.outputs, outputs):
                    return SelfTest(False, f"golden vector {number} of {count} differs")
        except RunnerError as error:
            return SelfTest(False, f"the interpreter failed: {error}")
        finally:
            runner.close()
        return SelfTest(True, f"{count} golden vectors passed")

    def activate(self, slot: int) -> None:
        """Make a TESTED slot the active one; the one before stays TESTED, to be rolled back to."""
        record = self._record(slot)
        if record.state == SlotState.ACTIVE:
            return
        if record.state == SlotState.INSTALLED:
            raise BoardError(BoardReason.NOT_TESTED, f"slot {slot} has not passed its self-test")
        self._expect(slot, SlotState.TESTED)
        before = self._state.active
        if before is not None:
            self._state.slots[before] = replace(self._state.slots[before], state=int(SlotState.TESTED))
            self._state.previous = before
        self._change(slot, SlotState.ACTIVE, active=slot)
        self._bind()

    def deactivate(self, slot: int) -> None:
        """Take an ACTIVE slot out of use."""
        self._expect(slot, SlotState.ACTIVE)
        self._change(slot, SlotState.TESTED, active=None)
        self._bind()

    def uninstall(self, slot: int) -> None:
        """Erase a slot that is not ACTIVE."""
        if self._record(slot).state == SlotState.ACTIVE:
            raise BoardError(BoardReason.WRONG_STATE, f"slot {slot} is ACTIVE")
        self._empty(slot)

    def rollback(self) -> int:
        """Make the slot active that was active before; the present one becomes EMPTY."""
        active, previous = self._state.active, self._state.previous
        if active is None:
            raise BoardError(BoardReason.NOTHING_ACTIVE, "no module is active")
        if previous is None or self._state.slots[previous].state != SlotState.TESTED:
            raise BoardError(BoardReason.NOTHING_TO_ROLL_BACK, "no module was active before")
        if self._state.slots[previous].security_counter < self._state.counter:
            raise BoardError(BoardReason.DOWNGRADE, "the module before is older than the device's security counter")
        self._state.previous = None
        self._change(previous, SlotState.ACTIVE, active=previous)
        self._empty(active)
        self._bind()
        return previous

    def active_slot(self) -> int | None:
        """Give the index of the active slot."""
        return self._state.active

    def invoke(self, data: bytes) -> Invocation:
        """Run one inference; the latency is the interpreter's time on this host, in microseconds."""
        if self._active is None or self._runner is None:
            raise BoardError(BoardReason.NOTHING_ACTIVE, "no module is active")
        need = sum(tensor.size for tensor in self._active.inputs)
        if len(data) != need:
            raise BoardError(
                BoardReason.WRONG_INPUT_SIZE,
                f"{len(data)} bytes instead of {need}",
                metadata={"need": str(need), "have": str(len(data))},
            )
        try:
            outputs, latency = self._runner.run(data)
        except RunnerError as error:
            self._errors += 1
            self._bind()
            raise BoardError(BoardReason.INVOKE_FAILED, str(error)) from error
        self._invocations += 1
        self._last_latency = latency
        if self._active.header.security_counter > self._state.counter:
            self._state.counter = self._active.header.security_counter
            self._state.save()
        return Invocation(outputs, latency, "us", confidence(self._active.outputs, outputs))

    def reboot(self) -> None:
        """Start anew from what is stored."""
        self._reboots += 1
        self._invocations = self._errors = self._last_latency = 0
        self._last_self_test = None
        self._bind()

    def counters(self) -> Counters:
        """Give the board's counters."""
        return Counters(
            invocations=self._invocations, errors=self._errors, last_latency=self._last_latency, latency_unit="us",
            last_self_test=self._last_self_test, security_counter=self._state.counter, reboots=self._reboots,
        )  # fmt: skip
