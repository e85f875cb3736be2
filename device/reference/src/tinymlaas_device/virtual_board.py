"""A virtual board: real firmware on a simulated microcontroller.

Every operation executes in the firmware (`device/firmware`, with the loader and the update core) instruction by
instruction; Python shuttles bytes through a mailbox in the board's RAM and plays the flash controller. A fault of the
firmware or of a module is a reset, as the hard fault handler of a real board would make it. The CPU, its instruction set,
memory map, flash and RAM sizes are true; unaligned accesses fault on Armv6-M only, as the machine runs without its observer
of single accesses (the profiler, which runs each payload before it is sealed, has it).
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinymlaas_module import ModuleError, Tensor, confidence, parse
from tinymlaas_simulator import Device, Fault, Machine, Region

from .board import (
    BoardError,
    BoardReason,
    Counters,
    Invocation,
    SelfTest,
    SlotState,
    SlotStatus,
)
from .board_flash import FlashArray, FlashController, FlashMisuse, PowerLost
from .boards import BoardModel
from .firmware_build import CONTROLLER_BASE, DOORBELL_BASE, FLASH_BASE, RAM_BASE, build_firmware
from .firmware_mailbox import Command, Status, module_reason, refusal

_PAGE = 4096
_SCS_BASE = 0xE000_E000
_AIRCR = 0xD0C
_RESET_REQUEST = 0x05FA_0004
# More than the boot loader grants a package that does not prove itself.
_STARTS = 16
_DATA_BYTES = 1024
_HEADER = struct.Struct("<16I")
_INFO = struct.Struct("<10I")
_SLOT = struct.Struct("<7I32s32s16s")
_MAGIC = 0x3142_4D46
_KEYS_MAGIC = 0x5359_454B
_MAX_KEYS = 4
_NO_SLOT = 0xFFFF_FFFF
# The watchdog: no command of a sound module takes longer, and a module that hangs ends here.
_WATCHDOG_INSTRUCTIONS = 3_000_000_000
_STATES = {
    0: SlotState.EMPTY,
    1: SlotState.RECEIVING,
    2: SlotState.RECEIVING,
    3: SlotState.INSTALLED,
    4: SlotState.TESTED,
    5: SlotState.ACTIVE,
    6: SlotState.TESTED,
}


@dataclass(frozen=True)
class _Answer:
    """What a command gave: status, four result words, the data area, the instructions that it took."""

    status: int
    result: tuple[int, int, int, int]
    data: bytes
    instructions: int


@dataclass(frozen=True)
class _Info:
    ram_free: int
    slot_count: int
    active: int
    counter: int
    invocations: int
    errors: int
    boot_status: int
    input_bytes: int
    output_bytes: int
    key_count: int


class VirtualBoard:
    """A board of `model` that trusts `keys` (Ed25519 public keys, at most 4); implements `Board`.

    `state_file` holds the flash: it persists across processes and reboots. Another firmware in it is replaced by the
    present one, as by a debug probe; slots and journal stay.
    """

    def __init__(self, model: BoardModel, *, keys: Sequence[bytes] = (), state_file: Path | None = None) -> None:
        if len(keys) > _MAX_KEYS or any(len(key) != 32 for key in keys):
            raise ValueError(f"at most {_MAX_KEYS} keys of 32 bytes")
        self.spec = model.spec
        self._layout = model.layout
        self._firmware = build_firmware(model)
        self._flash = FlashArray(model.spec.flash_total, state_file)
        self._provision(keys)
        self._controller = FlashController(
            self._flash, model.layout.page_bytes, model.layout.program_bytes, self._flash_changed
        )
        self._machine: Machine | None = None
        self._sequence = 0
        self._reboots = 0
        self._last_latency = 0
        self._parsed: tuple[bytes | None, tuple[Tensor, ...]] = (None, ())
        self._last_self_test: SelfTest | None = None
        self._faults = 0
        self._restarts = False
        self._boot()

    # --- power --------------------------------------------------------------------------------------------------

    def _provision(self, keys: Sequence[bytes]) -> None:
        """Put firmware and keys where a factory would."""
        image = self._firmware.image
        self._flash.put(0, image + b"\xff" * (self._layout.firmware_bytes - len(image)))
        page = bytearray(b"\xff" * 512)
        page[:8] = struct.pack("<II", _KEYS_MAGIC, len(keys))
        for index, key in enumerate(keys):
            place = 32 + 64 * index
            page[place : place + 40] = hashlib.sha512(key).digest()[:8] + key
        self._flash.put(self._layout.keys, bytes(page[: self._layout.labels - self._layout.keys]))

    def _boot(self) -> None:
        """Start the firmware; a package that faults or restarts the chip has some starts before it gives way."""
        for _ in range(_STARTS if self.spec.static_firmware else 1):
            self._restarts = False
            try:
                self._start()
            except BoardError as error:
                if error.reason is not BoardReason.FIRMWARE_FAULT or not self.spec.static_firmware:
                    raise
                self._faults += 1
                continue
            if not self._restarts:
                break
        if self._word(0) != _MAGIC:
            raise BoardError(BoardReason.FIRMWARE_FAULT, "the firmware did not come up")

    def _start(self) -> None:
        self._switch_off()
        devices = [
            Device("flash controller", CONTROLLER_BASE, _PAGE, self._controller.read, self._controller.write),
            Device("doorbell", DOORBELL_BASE, _PAGE, lambda offset, size: 0, self._ring),
        ]
        if "fpu-sp" in self.spec.features:
            devices.append(Device("system control", _SCS_BASE, _PAGE, lambda offset, size: 0, self._system_control))
        machine = Machine(
            self.spec.cpu,
            [
                Region("flash", FLASH_BASE, self.spec.flash_total, "rx"),
                Region("ram", RAM_BASE, self.spec.ram_total, "rw"),
            ],
            devices,
            check_accesses=False,
        )
        self._machine = machine
        machine.load(FLASH_BASE, self._flash.read(0, self.spec.flash_total))
        # RAM holds anything after power comes up; a fixed pattern keeps runs repeatable.
        leftovers = (np.arange(self.spec.ram_total, dtype=np.uint32) * 89 + 23).astype(np.uint8)
        machine.load(RAM_BASE, leftovers.tobytes())
        machine.start_at(self._firmware.entry, RAM_BASE + self.spec.ram_total)
        self._sequence = 0
        self._run_until_doorbell()

    def _switch_off(self) -> None:
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    def reboot(self) -> None:
        """Switch off and on: RAM is lost, flash stays."""
        self._reboots += 1
        self._last_self_test = None
        self._boot()

    def cut_power_after(self, operations: int | None) -> None:
        """Cut the power in the flash operation (page erase or unit program) after the next `operations`; None: never.

        That operation is left half done. The call in progress raises BoardError(POWER_LOST), and so does every other
        one until `reboot`.
        """
        self._controller.operations_until_cut = operations

    @property
    def flash_operations(self) -> int:
        """Flash operations finished since the board was made."""
        return self._controller.operations

    def close(self) -> None:
        """Switch off and let go of the state file. Repeatable."""
        self._switch_off()
        self._flash.close()

    # --- mailbox ------------------------------------------------------------------------------------------------

    def _flash_changed(self, offset: int, data: bytes) -> None:
        if self._machine is not None:
            self._machine.load(FLASH_BASE + offset, data)

    def _ring(self, offset: int, size: int, value: int) -> None:
        if self._machine is not None:
            self._machine.request_stop()

    def _system_control(self, offset: int, size: int, value: int) -> None:
        """The one register that does something here: a reset of the chip on request (AIRCR, ARMv7-M ARM B3.2.6)."""
        if (offset, value) == (_AIRCR, _RESET_REQUEST) and self._machine is not None:
            self._restarts = True
            self._machine.request_stop()

    def _on(self) -> Machine:
        if self._machine is None:
            raise BoardError(BoardReason.POWER_LOST, "the board is off")
        return self._machine

    def _word(self, index: int) -> int:
        return int.from_bytes(self._on().read(self._firmware.mailbox + 4 * index, 4), "little")

    def _run_until_doorbell(self) -> int:
        """Let the CPU run until the firmware waits; give the instructions. A fault resets the board."""
        try:
            return self._on().resume(instruction_limit=_WATCHDOG_INSTRUCTIONS).instructions
        except PowerLost as error:
            self._switch_off()
            raise BoardError(BoardReason.POWER_LOST, str(error)) from error
        except (Fault, FlashMisuse) as error:
            self._switch_off()
            kind = error.kind.value if isinstance(error, Fault) else "FLASH_MISUSE"
            raise BoardError(
                BoardReason.FIRMWARE_FAULT, str(error), metadata={"fault": kind, "detail": str(error)}
            ) from error

    def _command(self, command: Command, *arguments: int, data: bytes = b"") -> _Answer:
        """Execute one command in the firmware."""
        machine = self._on()
        self._sequence += 1
        words = [0] * 16
        words[0:4] = [_MAGIC, self._sequence, self._sequence - 1, int(command)]
        words[4 : 4 + len(arguments)] = arguments
        box = self._firmware.mailbox
        machine.load(box + _HEADER.size, data)
        machine.load(box, _HEADER.pack(*words))
        instructions = 0
        while True:
            try:
                instructions += self._run_until_doorbell()
            except BoardError as error:
                if error.reason is BoardReason.FIRMWARE_FAULT:
                    self._faults += 1
                    self.reboot()
                raise
            answer = _HEADER.unpack(machine.read(box, _HEADER.size))
            if answer[2] == self._sequence:
                data = machine.read(box + _HEADER.size, _DATA_BYTES)
                return _Answer(answer[8], answer[9:13], data, instructions)

    def _do(self, command: Command, *arguments: int, data: bytes = b"") -> _Answer:
        """Execute one command and raise BoardError when the firmware refused it."""
        answer = self._command(command, *arguments, data=data)
        if answer.status != Status.OK:
            raise refusal(answer.status, answer.result)
        return answer

    def _info(self) -> _Info:
        return _Info(*_INFO.unpack_from(self._command(Command.INFO).data))

    # --- Board --------------------------------------------------------------------------------------------------

    def ram_free(self) -> int:
        """Give the bytes of RAM that a module's arena and stack may use together, as the firmware computes them."""
        return self._info().ram_free

    def flash_free(self) -> int:
        """Give the bytes of the empty slots; with static firmware those of the bank that takes the next package."""
        if self.spec.static_firmware:
            active = self.active_slot()
            return max(size for slot, size in enumerate(self.spec.slot_sizes) if slot != active)
        return sum(size for slot, size in enumerate(self.spec.slot_sizes) if self.slot(slot).state is SlotState.EMPTY)

    def slot(self, slot: int) -> SlotStatus:
        """Give what slot `slot` holds."""
        answer = self._do(Command.SLOT, slot)
        state, size, received, counter, _error, _confirmed, known, digest, name, version = _SLOT.unpack_from(
            answer.data
        )
        return SlotStatus(
            state=_STATES[state],
            digest=digest if known else None,
            bytes_written=received,
            size=size,
            capacity=self.spec.slot_sizes[slot],
            security_counter=counter,
            name=name.rstrip(b"\0").decode("ascii", "replace"),
            version=version.rstrip(b"\0").decode("ascii", "replace"),
        )

    def begin(self, slot: int, size: int, digest: bytes) -> None:
        """Start or go on with a download; see `Board.begin`."""
        if len(digest) != 32 or not 0 <= size < 1 << 32:
            raise BoardError(BoardReason.BAD_IMAGE, "a digest has 32 bytes, a size 32 bits")
        self._do(Command.BEGIN, slot, size, data=digest)

    def write(self, slot: int, offset: int, data: bytes) -> None:
        """Append bytes; the firmware takes them 1 KiB at a time."""
        if not 0 <= offset < 1 << 32:
            raise BoardError(BoardReason.WRONG_OFFSET, f"offset {offset}")
        for start in range(0, len(data), _DATA_BYTES):
            part = data[start : start + _DATA_BYTES]
            self._do(Command.WRITE, slot, offset + start, len(part), data=part)

    def bytes_written(self, slot: int) -> int:
        """Give how many bytes of the download are safely in flash (a few more may wait for a whole unit in RAM)."""
        return self.slot(slot).bytes_written

    def verify(self, slot: int) -> None:
        """Check the complete image; a refused one empties the slot."""
        self._do(Command.VERIFY, slot)

    def self_test(self, slot: int) -> SelfTest:
        """Run the module's golden vectors on the simulated CPU. A fault in them is a failed test, and a reset."""
        try:
            answer = self._command(Command.TEST, slot)
        except BoardError as error:
            if error.reason is not BoardReason.FIRMWARE_FAULT:
                raise
            self._last_self_test = SelfTest(False, f"the module faulted: {error.metadata['detail']}")
            return self._last_self_test
        vectors, failing = answer.result[0], answer.result[1]
        if answer.status == Status.OK:
            self._last_self_test = SelfTest(True, f"{vectors} golden vectors passed")
        elif answer.status == Status.SELF_TEST_FAILED and vectors == 0:
            self._last_self_test = SelfTest(False, "the board was reset in every test of this module")
        elif answer.status == Status.SELF_TEST_FAILED:
            self._last_self_test = SelfTest(False, f"golden vector {failing} of {vectors} differs")
        elif answer.status in (Status.PAYLOAD_ERROR, Status.GOLDEN_ABSENT):
            self._last_self_test = SelfTest(False, module_reason(answer.status))
        else:
            raise refusal(answer.status, answer.result)
        return self._last_self_test

    def activate(self, slot: int) -> None:
        """Make a TESTED slot the active one."""
        if self.slot(slot).state is SlotState.INSTALLED:
            raise BoardError(BoardReason.NOT_TESTED, f"slot {slot} has not passed its self-test")
        self._do(Command.ACTIVATE, slot)

    def deactivate(self, slot: int) -> None:
        """Take an ACTIVE slot out of use."""
        self._do(Command.DEACTIVATE, slot)

    def uninstall(self, slot: int) -> None:
        """Erase a slot that is not ACTIVE."""
        self._do(Command.ERASE, slot)

    def rollback(self) -> int:
        """Make the slot active that was active before; the present one becomes EMPTY."""
        return self._do(Command.ROLLBACK).result[0]

    def active_slot(self) -> int | None:
        """Give the index of the active slot."""
        active = self._info().active
        return None if active == _NO_SLOT else active

    def invoke(self, data: bytes) -> Invocation:
        """Run one inference; the latency is the exact count of instructions from call to return, in the firmware."""
        info = self._info()
        if info.active == _NO_SLOT:
            raise BoardError(BoardReason.NOTHING_ACTIVE, "no module is active")
        if len(data) != info.input_bytes:
            raise BoardError(
                BoardReason.WRONG_INPUT_SIZE,
                f"{len(data)} bytes instead of {info.input_bytes}",
                metadata={"need": str(info.input_bytes), "have": str(len(data))},
            )
        for start in range(0, len(data), _DATA_BYTES):
            part = data[start : start + _DATA_BYTES]
            self._do(Command.INPUT, start, len(part), data=part)
        ran = self._do(Command.RUN)
        output = b"".join(
            self._do(Command.OUTPUT, start, min(_DATA_BYTES, info.output_bytes - start)).data[
                : min(_DATA_BYTES, info.output_bytes - start)
            ]
            for start in range(0, info.output_bytes, _DATA_BYTES)
        )
        self._last_latency = ran.instructions
        return Invocation(output, ran.instructions, "instructions", confidence(self._outputs(info.active), output))

    def _outputs(self, slot: int) -> tuple[Tensor, ...]:
        """Output tensors of the module in a slot, as its flash has them; none where it can't be read."""
        status = self.slot(slot)
        if self._parsed[0] != status.digest:
            try:
                outputs = parse(self._flash.read(self._layout.slots[slot][0], status.size)).outputs
            except ModuleError:
                outputs = ()
            self._parsed = (status.digest, outputs)
        return self._parsed[1]

    def counters(self) -> Counters:
        """Give the board's counters; faults that reset the board count as errors."""
        info = self._info()
        return Counters(
            invocations=info.invocations,
            errors=info.errors + self._faults,
            last_latency=self._last_latency,
            latency_unit="instructions",
            last_self_test=self._last_self_test,
            security_counter=info.counter,
            reboots=self._reboots,
        )


__all__ = ["VirtualBoard"]
