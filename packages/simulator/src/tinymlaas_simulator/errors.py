"""Errors of the simulator.

SimulatorError            {code, reason, metadata, help}
├── DoesNotFit            the memory that was asked for is more than the machine has
└── Fault                 the simulated program did what the hardware, or its contract, forbids
"""

from collections.abc import Mapping
from enum import StrEnum


class SimulatorError(Exception):
    """Base of all errors of this package: a status code, an UPPER_SNAKE reason, metadata, and what to do next."""

    code = "INTERNAL"

    def __init__(self, reason: str, message: str, *, metadata: Mapping[str, str] | None = None, help: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.help = help


class DoesNotFit(SimulatorError):
    """The program needs more of a memory region than the machine has; metadata: region, need, have (bytes)."""

    code = "FAILED_PRECONDITION"

    def __init__(self, region: str, need: int, have: int) -> None:
        super().__init__(
            "DOES_NOT_FIT",
            f"{region}: {need} bytes needed, {have} there",
            metadata={"region": region, "need": str(need), "have": str(have)},
            help=f"{need - have} more bytes of {region} would admit it",
        )


class FaultKind(StrEnum):
    """What the simulated program did wrong."""

    READ_UNMAPPED = "READ_UNMAPPED"
    WRITE_UNMAPPED = "WRITE_UNMAPPED"
    FETCH_UNMAPPED = "FETCH_UNMAPPED"
    WRITE_PROTECTED = "WRITE_PROTECTED"
    FETCH_PROTECTED = "FETCH_PROTECTED"
    READ_OUT_OF_BOUNDS = "READ_OUT_OF_BOUNDS"
    WRITE_OUT_OF_BOUNDS = "WRITE_OUT_OF_BOUNDS"
    STACK_OVERFLOW = "STACK_OVERFLOW"
    MISALIGNED = "MISALIGNED"
    UNDEFINED_INSTRUCTION = "UNDEFINED_INSTRUCTION"
    UNSUPPORTED_INSTRUCTION = "UNSUPPORTED_INSTRUCTION"
    INVALID_STATE = "INVALID_STATE"
    SUPERVISOR_CALL = "SUPERVISOR_CALL"
    BREAKPOINT = "BREAKPOINT"
    STALLED = "STALLED"
    INSTRUCTION_LIMIT = "INSTRUCTION_LIMIT"
    DEVICE_FAULT = "DEVICE_FAULT"
    ABI_VIOLATION = "ABI_VIOLATION"
    POSITION_DEPENDENT = "POSITION_DEPENDENT"


class Fault(SimulatorError):
    """The simulated program was stopped: `kind`, `pc`, `address` (None where unknown), `instructions` run so far."""

    code = "FAILED_PRECONDITION"

    def __init__(
        self, kind: FaultKind, detail: str, *, pc: int = 0, address: int | None = None, instructions: int = 0
    ) -> None:
        where = f" at {address:#010x}" if address is not None else ""
        super().__init__(
            kind.value,
            f"{kind.value}{where}, pc {pc:#010x}: {detail}",
            metadata={
                "kind": kind.value,
                "pc": f"{pc:#x}",
                "instructions": str(instructions),
                "detail": detail,
                **({"address": f"{address:#x}"} if address is not None else {}),
            },
            help="the program is wrong for this CPU or its memory map; the address and pc say where",
        )
        self.kind = kind
        self.detail = detail
        self.pc = pc
        self.address = address
        self.instructions = instructions
