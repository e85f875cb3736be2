"""Instructions that the emulator executes although the CPU does not have them.

The emulator itself refuses Thumb-2 on Armv6-M, the FPU on Cortex-M3, double precision on M4 and M33, MVE, and the
F and D extensions. What it lets through is found here, in the instructions that were really executed (never in data).
"""

from tinymlaas_simulator.cpus import Arch, Cpu

_COUNTER_CSRS = {0xC00: "cycle", 0xC01: "time", 0xC02: "instret", 0xC80: "cycleh", 0xC81: "timeh", 0xC82: "instreth"}


def refused_instruction(cpu: Cpu, code: bytes, offset: int) -> str | None:
    """Say why `cpu` would refuse the instruction at `offset` of `code`, or give None when it would not."""
    first = int.from_bytes(code[offset : offset + 2], "little")
    second = int.from_bytes(code[offset + 2 : offset + 4], "little")
    if cpu.arch is Arch.RISCV32:
        return _riscv(first | second << 16)
    if first & 0xF800 in (0xE800, 0xF000, 0xF800):
        if "dsp" not in cpu.features and is_dsp(first, second):
            return f"DSP extension instruction on {cpu.name}"
        if first & 0xEF00 == 0xEE00 and second & 0x0F10 == 0x0B00 and "fpu-dp" not in cpu.features:
            return f"double-precision arithmetic on the single-precision FPU of {cpu.name}"
    return None


def is_dsp(first: int, second: int) -> bool:
    """Tell whether a 32-bit Thumb encoding belongs to the DSP extension of Armv7E-M (DDI 0403E A5.3.13 to A5.3.17)."""
    if first & 0xFFE0 == 0xEAC0:  # PKHBT, PKHTB
        return True
    if first & 0xFFF0 in (0xF320, 0xF3A0):  # SSAT16, USAT16 share the opcode of SSAT/USAT ASR with shift 0
        return second & 0xF0C0 == 0
    if first & 0xFF80 == 0xFA00:  # shifts (base) and extend-and-add
        if second & 0xF0F0 == 0xF000 or not second & 0x0080:
            return False
        plain = first & 0xF == 0xF
        return not plain or (first >> 4) & 0x7 in (2, 3)  # SXTB16/UXTB16 are DSP even without an addend
    if first & 0xFF80 == 0xFA80:  # parallel add/subtract, saturating
        if second & 0xF000 != 0xF000:
            return False
        if not second & 0x0080:
            return True
        return (first >> 4) & 0x7 in (0, 2)  # QADD family, SEL
    if first & 0xFF80 == 0xFB00:  # multiplies
        op1 = (first >> 4) & 0x7
        op2 = (second >> 4) & 0x3
        return op1 != 0 or op2 not in (0, 1)
    if first & 0xFF80 == 0xFB80:  # long multiplies and divides
        op1 = (first >> 4) & 0x7
        op2 = (second >> 4) & 0xF
        if op1 in (1, 3):
            return op2 != 0xF
        if op1 == 4:
            return op2 != 0
        if op1 == 6:
            return op2 != 0
        return op1 == 5
    return False


def _riscv(word: int) -> str | None:
    if word & 3 != 3:
        return None
    opcode = word & 0x7F
    if opcode == 0x2F:
        return "atomic (A extension) instruction on rv32imc"
    if opcode == 0x73 and (word >> 12) & 7 and (word >> 20) in _COUNTER_CSRS:
        return f"reads the counter {_COUNTER_CSRS[word >> 20]}, which is not simulated"
    return None
