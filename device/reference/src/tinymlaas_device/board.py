"""What a device does with modules, whatever stands behind it: the protocol that every board implements.

States of a slot and what moves it (anything else is refused with WRONG_STATE):

    EMPTY --begin--> RECEIVING --write..., verify--> INSTALLED --self_test--> TESTED --activate--> ACTIVE
      ^                  |                               |                    |   ^                   |
      +---- refused -----+-------- failed test ----------+---- uninstall -----+   +--- deactivate ----+

A module that is refused or fails its test empties its slot. One slot at most is ACTIVE. `rollback` makes the slot that was
active before active again and empties the present one. States and bytes lie in flash and survive power loss; an interrupted
download goes on at `bytes_written`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol, runtime_checkable


class BoardReason(StrEnum):
    """Why a board refused or could not do something."""

    NO_SUCH_SLOT = "NO_SUCH_SLOT"
    NO_SPACE = "NO_SPACE"
    NOT_ENOUGH_RAM = "NOT_ENOUGH_RAM"
    SLOT_BUSY = "SLOT_BUSY"
    WRONG_STATE = "WRONG_STATE"
    WRONG_OFFSET = "WRONG_OFFSET"
    INCOMPLETE = "INCOMPLETE"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    BAD_IMAGE = "BAD_IMAGE"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    DOWNGRADE = "DOWNGRADE"
    UNSUPPORTED_ISA = "UNSUPPORTED_ISA"
    UNSUPPORTED_KIND = "UNSUPPORTED_KIND"
    NOT_TESTED = "NOT_TESTED"
    SELF_TEST_FAILED = "SELF_TEST_FAILED"
    NOTHING_ACTIVE = "NOTHING_ACTIVE"
    NOTHING_TO_ROLL_BACK = "NOTHING_TO_ROLL_BACK"
    WRONG_INPUT_SIZE = "WRONG_INPUT_SIZE"
    INVOKE_FAILED = "INVOKE_FAILED"
    FLASH_ERROR = "FLASH_ERROR"
    FIRMWARE_FAULT = "FIRMWARE_FAULT"
    POWER_LOST = "POWER_LOST"


_PERMISSION = {BoardReason.BAD_SIGNATURE, BoardReason.UNKNOWN_KEY}
_INTERNAL = {BoardReason.FLASH_ERROR, BoardReason.FIRMWARE_FAULT, BoardReason.INVOKE_FAILED}

_HELP: dict[BoardReason, str] = {
    BoardReason.NO_SPACE: "the module is larger than the slot: use a smaller module or another slot",
    BoardReason.NOT_ENOUGH_RAM: "arena and stack do not fit the RAM that is left: use a smaller module",
    BoardReason.SLOT_BUSY: "deactivate or uninstall what is in the slot first",
    BoardReason.WRONG_OFFSET: "ask bytes_written and go on from there",
    BoardReason.INCOMPLETE: "write the remaining bytes, then verify again",
    BoardReason.DIGEST_MISMATCH: "transfer the module again",
    BoardReason.NOT_TESTED: "run the self-test first",
    BoardReason.POWER_LOST: "reboot the board; it goes on from what its flash holds",
}


class BoardError(Exception):
    """A board refused; {code, reason, metadata, help}. `metadata["detail"]` names the loader's own verdict if any."""

    def __init__(self, reason: BoardReason, message: str = "", *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{reason.value}: {message}" if message else reason.value)
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.help = _HELP.get(reason, "see the module that was sent and the board's specification")
        if reason in _PERMISSION:
            self.code = "PERMISSION_DENIED"
        elif reason is BoardReason.POWER_LOST:
            self.code = "UNAVAILABLE"
        else:
            self.code = "INTERNAL" if reason in _INTERNAL else "FAILED_PRECONDITION"


class SlotState(IntEnum):
    """State of a slot, as its flash says."""

    EMPTY = 0
    RECEIVING = 1
    INSTALLED = 2
    TESTED = 3
    ACTIVE = 4


@dataclass(frozen=True)
class RuntimeSpec:
    """An interpreter in the firmware; `operators` by the runtime's own names, empty when unknown."""

    name: str
    version: str
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeripheralSpec:
    """Something that a model may need as its input, as an IPSO/OMA object id."""

    object_id: int
    kind: str


@dataclass(frozen=True)
class BoardSpec:
    """What a board is. Sizes in bytes; `slot_sizes` has one entry for each slot; `key_ids` are trusted keys (bytes).

    With `static_firmware` slots hold whole firmware packages with a module linked in; one takes effect at the next reboot.
    """

    name: str
    manufacturer: str
    model: str
    serial: str
    hardware_version: str
    cpu: str
    isa: str
    features: tuple[str, ...]
    clock_hz: int
    ram_total: int
    flash_total: int
    flash_page: int
    slot_sizes: tuple[int, ...]
    payload_kinds: tuple[str, ...]
    loader_abi: int
    firmware_version: str
    key_ids: tuple[bytes, ...] = ()
    runtimes: tuple[RuntimeSpec, ...] = ()
    peripherals: tuple[PeripheralSpec, ...] = ()
    execute_in_place: bool = True
    rtos: str = "bare-metal"
    static_firmware: bool = False

    @property
    def slots(self) -> int:
        """Number of module slots."""
        return len(self.slot_sizes)


@dataclass(frozen=True)
class SlotStatus:
    """What a slot holds. `digest` is the sha256 told at `begin` (32 bytes, None when EMPTY); sizes in bytes."""

    state: SlotState
    digest: bytes | None
    bytes_written: int
    size: int
    capacity: int
    security_counter: int
    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class SelfTest:
    """Verdict of the golden vectors in a slot; `detail` says what differed, or how many vectors passed."""

    passed: bool
    detail: str


@dataclass(frozen=True)
class Invocation:
    """Outputs of one inference (tensors concatenated in table order) and its cost.

    `latency` is in `latency_unit`: "instructions" on a simulated CPU (exact), "us" on an interpreter. `confidence` is that of
    the run, 0 to 1, None where the module's output holds no scores.
    """

    output: bytes
    latency: int
    latency_unit: str
    confidence: float | None = None


@dataclass(frozen=True)
class Counters:
    """What the board counts since its last reboot, and the persistent security counter."""

    invocations: int = 0
    errors: int = 0
    last_latency: int = 0
    latency_unit: str = "instructions"
    last_self_test: SelfTest | None = field(default=None)
    security_counter: int = 0
    reboots: int = 0


@runtime_checkable
class Board(Protocol):
    """A device that takes modules. Every call may raise BoardError; after POWER_LOST only `reboot` is answered."""

    spec: BoardSpec

    def ram_free(self) -> int:
        """Give the bytes of RAM that a module's arena and stack may use together."""

    def flash_free(self) -> int:
        """Give the bytes of the empty slots."""

    def slot(self, slot: int) -> SlotStatus:
        """Give what slot `slot` holds."""

    def begin(self, slot: int, size: int, digest: bytes) -> None:
        """Start a download of `size` bytes whose sha256 is `digest`: erases the slot, unless the same download goes on.

        With the size and digest of an interrupted download the bytes already there stay; see `bytes_written`.
        """

    def write(self, slot: int, offset: int, data: bytes) -> None:
        """Append bytes; `offset` must equal `bytes_written`. Any length up to the announced size."""

    def bytes_written(self, slot: int) -> int:
        """Give how many bytes of the download are safely in flash."""

    def verify(self, slot: int) -> None:
        """Check the complete image: digest, format, signature, counter, ISA, RAM; then the slot is INSTALLED."""

    def self_test(self, slot: int) -> SelfTest:
        """Run the module's golden vectors; the slot is TESTED when they pass and EMPTY when not."""

    def activate(self, slot: int) -> None:
        """Make a TESTED slot the active one; the one active before stays installed as the one to roll back to."""

    def deactivate(self, slot: int) -> None:
        """Take an ACTIVE slot out of use; it stays TESTED."""

    def uninstall(self, slot: int) -> None:
        """Erase a slot that is not ACTIVE."""

    def rollback(self) -> int:
        """Make the slot active that was active before the present one; give its index."""

    def active_slot(self) -> int | None:
        """Give the index of the active slot."""

    def invoke(self, data: bytes) -> Invocation:
        """Run one inference of the active module: input tensors concatenated in table order."""

    def reboot(self) -> None:
        """Switch off and on: RAM is lost, flash stays."""

    def counters(self) -> Counters:
        """Give the board's counters."""
