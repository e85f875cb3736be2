"""Exceptions of the simulated CPUs, and errors of the emulator, as kinds of faults."""

import unicorn

from tinymlaas_simulator.errors import FaultKind

ARM_INTERRUPTS = {
    2: (FaultKind.SUPERVISOR_CALL, "SVC"),
    3: (FaultKind.FETCH_PROTECTED, "prefetch abort"),
    4: (FaultKind.MISALIGNED, "data abort: unaligned access"),
    7: (FaultKind.BREAKPOINT, "BKPT"),
    8: (FaultKind.FETCH_UNMAPPED, "exception return without an exception"),
    17: (FaultKind.UNSUPPORTED_INSTRUCTION, "coprocessor or FPU instruction on a CPU without it"),
    18: (FaultKind.INVALID_STATE, "branch to an address without the Thumb bit, or a bad IT state"),
}
RV_INTERRUPTS = {
    0: (FaultKind.MISALIGNED, "instruction address misaligned"),
    2: (FaultKind.UNDEFINED_INSTRUCTION, "illegal instruction"),
    3: (FaultKind.BREAKPOINT, "EBREAK"),
    4: (FaultKind.MISALIGNED, "load or atomic address misaligned"),
    6: (FaultKind.MISALIGNED, "store address misaligned"),
    8: (FaultKind.SUPERVISOR_CALL, "ECALL"),
    9: (FaultKind.SUPERVISOR_CALL, "ECALL"),
    11: (FaultKind.SUPERVISOR_CALL, "ECALL"),
}
MEMORY_ERRORS = {
    unicorn.UC_ERR_READ_UNMAPPED: FaultKind.READ_UNMAPPED,
    unicorn.UC_ERR_WRITE_UNMAPPED: FaultKind.WRITE_UNMAPPED,
    unicorn.UC_ERR_FETCH_UNMAPPED: FaultKind.FETCH_UNMAPPED,
    unicorn.UC_ERR_WRITE_PROT: FaultKind.WRITE_PROTECTED,
    unicorn.UC_ERR_READ_PROT: FaultKind.READ_UNMAPPED,
    unicorn.UC_ERR_FETCH_PROT: FaultKind.FETCH_PROTECTED,
    unicorn.UC_ERR_INSN_INVALID: FaultKind.UNDEFINED_INSTRUCTION,
}
