"""Reasons why an inference module is refused (spec/inference-module.md, section 8).

``Reason`` values are the numbers of ``enum tim_status`` in ``device/loader/include/tim.h``:
the two parsers give the same name for the same bytes.
"""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Verdict of a check; the number is the C loader's status."""

    OK = 0
    TRUNCATED = 1
    TRAILING_BYTES = 2
    BAD_MAGIC = 3
    VERSION_UNSUPPORTED = 4
    FLAGS_UNKNOWN = 5
    KIND_UNKNOWN = 6
    ISA_INVALID = 7
    FEATURES_INVALID = 8
    ABI_UNSUPPORTED = 9
    ENTRY_INVALID = 10
    ARENA_INVALID = 11
    STACK_INVALID = 12
    NAME_INVALID = 13
    RESERVED_NOT_ZERO = 14
    SECTION_TABLE_INVALID = 15
    SECTION_UNKNOWN = 16
    SECTION_MISSING = 17
    SIZE_MISMATCH = 18
    PADDING_NOT_ZERO = 19
    TENSORS_INVALID = 20
    GOLDEN_INVALID = 21
    SIGNATURE_BLOCK_INVALID = 22
    SIGNATURE_MISSING = 23
    KEY_UNKNOWN = 24
    SIGNATURE_INVALID = 25
    DIGEST_MISMATCH = 26
    DOWNGRADE = 27


_HELP: dict[Reason, str] = {
    Reason.TRUNCATED: "The file ends early: transfer it again and compare its digest.",
    Reason.TRAILING_BYTES: "Bytes follow the module's end: cut the file at image_size, or fetch it again.",
    Reason.BAD_MAGIC: "This is not an inference module: check which file was given.",
    Reason.VERSION_UNSUPPORTED: "Seal the module again in format version 1, or update this software.",
    Reason.FLAGS_UNKNOWN: "The module needs a feature of a newer format: update this software.",
    Reason.KIND_UNKNOWN: "The payload kind is not known here: build for another kind, or update this software.",
    Reason.ISA_INVALID: "NATIVE payloads name their instruction set; portable payloads use ANY. Build it again.",
    Reason.FEATURES_INVALID: "CPU features are unknown, or given without an instruction set: build it again.",
    Reason.ABI_UNSUPPORTED: "Build the payload for ABI 1 (NATIVE), or set ABI 0 (other kinds).",
    Reason.ENTRY_INVALID: "The entry must be an even offset inside the payload: build it again.",
    Reason.ARENA_INVALID: "Arena size or alignment is outside the format's limits: build it again.",
    Reason.STACK_INVALID: "The stack bound is missing or outside the format's limits: build it again.",
    Reason.NAME_INVALID: "Name and version are printable ASCII without blanks, 1 to 31 and 1 to 15 characters.",
    Reason.RESERVED_NOT_ZERO: "Reserved bytes are in use: the file is damaged or of a newer format.",
    Reason.SECTION_TABLE_INVALID: "The section table contradicts itself: the file is damaged; fetch it again.",
    Reason.SECTION_UNKNOWN: "A critical section is not known here: update this software.",
    Reason.SECTION_MISSING: "A section that may not be left out is missing: fetch the full module.",
    Reason.SIZE_MISMATCH: "Section sizes do not add up to the image size: the file is damaged; fetch it again.",
    Reason.PADDING_NOT_ZERO: "Bytes between sections are not zero: the file is damaged; fetch it again.",
    Reason.TENSORS_INVALID: "A tensor record contradicts itself or leaves the arena: build the module again.",
    Reason.GOLDEN_INVALID: "The golden section does not match the tensor table: seal the module again.",
    Reason.SIGNATURE_BLOCK_INVALID: "The signature block is malformed: sign the module again.",
    Reason.SIGNATURE_MISSING: "The module is not signed: sign it with a key that the device trusts.",
    Reason.KEY_UNKNOWN: "Signed by a key that is not trusted here: add the key, or sign with a trusted one.",
    Reason.SIGNATURE_INVALID: "The signature does not match: the module was altered; do not install it.",
    Reason.DIGEST_MISMATCH: "A section's bytes do not match their digest: fetch the module again.",
    Reason.DOWNGRADE: "The module's security counter is older than the device's: build a newer one.",
}

_CODES: dict[Reason, str] = {
    Reason.SIGNATURE_MISSING: "FAILED_PRECONDITION",
    Reason.KEY_UNKNOWN: "PERMISSION_DENIED",
    Reason.SIGNATURE_INVALID: "PERMISSION_DENIED",
    Reason.DIGEST_MISMATCH: "DATA_LOSS",
    Reason.DOWNGRADE: "FAILED_PRECONDITION",
}


class ModuleError(Exception):
    """A module was refused; ``code``, ``reason``, ``metadata`` and ``help`` say why and what to do."""

    def __init__(self, reason: Reason, detail: str, **metadata: str | int) -> None:
        self.verdict = reason
        self.code = _CODES.get(reason, "INVALID_ARGUMENT")
        self.reason = reason.name
        self.detail = detail
        self.metadata = {key: str(value) for key, value in metadata.items()}
        self.help = _HELP.get(reason, "")
        super().__init__(f"{reason.name}: {detail}")
