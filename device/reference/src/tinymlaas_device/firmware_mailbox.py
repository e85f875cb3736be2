"""The firmware's mailbox protocol: commands, statuses, and what each refusal means for a caller.

Numbers are those of `device/firmware/include/firmware.h` and `device/loader/include/tim.h`.
"""

from enum import IntEnum

from tinymlaas_module import Reason

from .board import BoardError, BoardReason


class Command(IntEnum):
    """Commands of the mailbox."""

    INFO = 1
    SLOT = 2
    BEGIN = 3
    WRITE = 4
    VERIFY = 5
    TEST = 6
    ACTIVATE = 7
    DEACTIVATE = 8
    ERASE = 9
    ROLLBACK = 10
    INPUT = 11
    RUN = 12
    OUTPUT = 13


class Status(IntEnum):
    """Verdicts of the loader, the update core and the firmware beyond those on a module's bytes (`tinymlaas_module.Reason`)."""

    OK = 0
    MISALIGNED = 32
    TARGET_UNSUPPORTED = 33
    ARENA_TOO_SMALL = 34
    STACK_TOO_SMALL = 35
    NOT_STARTED = 36
    PAYLOAD_ERROR = 37
    GOLDEN_ABSENT = 38
    SELF_TEST_FAILED = 39
    KIND_NOT_EXECUTABLE = 40
    ARGUMENT_INVALID = 41
    FLASH_ERROR = 48
    SLOT_INVALID = 49
    STATE_INVALID = 50
    TOO_LARGE = 51
    OFFSET_MISMATCH = 52
    NOTHING_TO_ROLL_BACK = 53
    CONFIG_INVALID = 54
    NOT_CONFIRMED = 55
    NOT_ENOUGH_RAM = 128
    IMAGE_DIFFERS = 129
    NOTHING_ACTIVE = 130
    BAD_ARGUMENT = 131
    UNKNOWN_COMMAND = 132


_REASONS: dict[int, BoardReason] = {
    Reason.SIGNATURE_BLOCK_INVALID: BoardReason.BAD_SIGNATURE,
    Reason.SIGNATURE_MISSING: BoardReason.BAD_SIGNATURE,
    Reason.SIGNATURE_INVALID: BoardReason.BAD_SIGNATURE,
    Reason.KEY_UNKNOWN: BoardReason.UNKNOWN_KEY,
    Reason.DOWNGRADE: BoardReason.DOWNGRADE,
    Status.TARGET_UNSUPPORTED: BoardReason.UNSUPPORTED_ISA,
    Status.KIND_NOT_EXECUTABLE: BoardReason.UNSUPPORTED_KIND,
    Status.ARENA_TOO_SMALL: BoardReason.NOT_ENOUGH_RAM,
    Status.STACK_TOO_SMALL: BoardReason.NOT_ENOUGH_RAM,
    Status.NOT_ENOUGH_RAM: BoardReason.NOT_ENOUGH_RAM,
    Status.PAYLOAD_ERROR: BoardReason.INVOKE_FAILED,
    Status.NOT_STARTED: BoardReason.INVOKE_FAILED,
    Status.GOLDEN_ABSENT: BoardReason.SELF_TEST_FAILED,
    Status.SELF_TEST_FAILED: BoardReason.SELF_TEST_FAILED,
    Status.FLASH_ERROR: BoardReason.FLASH_ERROR,
    Status.CONFIG_INVALID: BoardReason.FLASH_ERROR,
    Status.SLOT_INVALID: BoardReason.NO_SUCH_SLOT,
    Status.STATE_INVALID: BoardReason.WRONG_STATE,
    Status.TOO_LARGE: BoardReason.NO_SPACE,
    Status.OFFSET_MISMATCH: BoardReason.WRONG_OFFSET,
    Status.NOTHING_TO_ROLL_BACK: BoardReason.NOTHING_TO_ROLL_BACK,
    Status.IMAGE_DIFFERS: BoardReason.DIGEST_MISMATCH,
    Status.NOTHING_ACTIVE: BoardReason.NOTHING_ACTIVE,
    Status.BAD_ARGUMENT: BoardReason.WRONG_INPUT_SIZE,
}


_NAMES: dict[int, str] = {int(verdict): verdict.name for verdict in (*Reason, *Status)}


def module_reason(status: int) -> str:
    """Give the verdict's name, such as SIGNATURE_INVALID."""
    return _NAMES.get(status, f"STATUS_{status}")


def refusal(status: int, result: tuple[int, int, int, int]) -> BoardError:
    """Make the error that a status means; `metadata["detail"]` is the verdict's own name."""
    name = module_reason(status)
    reason = _REASONS.get(status, BoardReason.BAD_IMAGE) if status in _NAMES else BoardReason.FIRMWARE_FAULT
    metadata = {"detail": name}
    if status == Status.NOT_ENOUGH_RAM:
        metadata |= {"need": str(result[0]), "have": str(result[1])}
    return BoardError(reason, name, metadata=metadata)
