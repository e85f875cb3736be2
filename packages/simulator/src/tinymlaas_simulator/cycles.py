"""ESTIMATED cycles from executed-instruction histograms and the documented cost of each instruction class.

Sources: Cortex-M0+ TRM (DDI 0484C, table 3-1), Cortex-M3 TRM (DDI 0337, table 18-1), Cortex-M4 TRM (DDI 0439,
tables 3-1 and 7-1); Ibex documentation (pipeline details) for RV32. These figures are estimates and are labelled so
wherever they are shown: no flash wait states, caches, branch prediction or dual issue.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_simulator.cpus import Arch, Cpu

CYCLE_ASSUMPTIONS: dict[str, str] = {
    "cortex-m0plus": "Cortex-M0+ TRM: load, store 2; multiple 1+N; taken branch 2; multiply 1; no wait states",
    "cortex-m3": "Cortex-M3 TRM: pipelined loads; multiple 1+N; taken branch 3; MLA 2; long multiply 4; divide 12; "
    "no wait states",
    "cortex-m4": "Cortex-M4 TRM: pipelined loads; multiple 1+N; taken branch 3; divide 12; FPU MAC 3, divide 14; "
    "no wait states",
    "cortex-m7": "costs of the Cortex-M4 TRM: an upper bound, as the M7 issues two at once; no wait states",
    "cortex-m33": "costs of the Cortex-M4 TRM, as none are published for the M33; no wait states",
    "rv32imc": "costs of the Ibex core: load, store 2; taken branch 3; jump 2; multiply 1; divide 37; no wait states",
}


@dataclass(frozen=True)
class _Cost:
    """Cycles when control falls through, extra ones when it goes elsewhere, whether it pipelines with its neighbour."""

    base: int
    taken: int = 0
    single_access: bool = False


def estimate_cycles(
    cpu: Cpu, code: bytes, executed: npt.NDArray[np.uint64], taken: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Give the estimated cycles spent in the instruction at each halfword of `code`, from histograms of that length.

    Their sum is the estimate of the whole run. `taken` counts how often control left the instruction elsewhere.
    """
    cycles = np.zeros_like(executed)
    padded = code + b"\0\0\0\0"
    decode = _riscv_cost if cpu.arch is Arch.RISCV32 else _thumb_cost
    previous_end, previous_single = -1, False
    for index in np.flatnonzero(executed):
        offset = 2 * int(index)
        first = int.from_bytes(padded[offset : offset + 2], "little")
        second = int.from_bytes(padded[offset + 2 : offset + 4], "little")
        cost, size = decode(cpu.name, first, second)
        base = cost.base
        pipelines = cpu.name not in ("cortex-m0plus", "rv32imc")
        if pipelines and cost.single_access and previous_single and previous_end == offset:
            base = 1
        cycles[index] = base * int(executed[index]) + cost.taken * int(taken[index])
        previous_end, previous_single = offset + size, cost.single_access
    return cycles


def _thumb_cost(cpu: str, first: int, second: int) -> tuple[_Cost, int]:
    if first & 0xF800 in (0xE800, 0xF000, 0xF800):
        return _thumb32_cost(cpu, first, second), 4
    return _thumb16_cost(cpu, first), 2


def _thumb16_cost(cpu: str, first: int) -> _Cost:
    small = cpu == "cortex-m0plus"
    branch = 1 if small else 2
    top = first >> 12
    if first & 0xFE00 == 0xB400:  # PUSH
        return _Cost(1 + (first & 0x1FF).bit_count())
    if first & 0xFE00 == 0xBC00:  # POP
        return _Cost(1 + (first & 0x1FF).bit_count(), taken=2 if small else branch)
    if top == 0xC:  # LDM, STM
        return _Cost(1 + (first & 0xFF).bit_count())
    if first & 0xF800 == 0x4800 or top in (0x5, 0x6, 0x7, 0x8, 0x9):
        load = first & 0xF800 == 0x4800 or (first & 0x0800 if top != 5 else first & 0x0E00 >= 0x0600)
        return _Cost(2 if load or small else 1, single_access=True)
    if first & 0xFF00 == 0x4700 or top == 0xD or first & 0xF800 == 0xE000 or first & 0xF500 == 0xB100:
        return _Cost(1, taken=branch)  # BX, BLX, B<cond>, B, CBZ, CBNZ
    return _Cost(1, taken=branch)  # a data-processing instruction that writes the PC branches too


def _thumb32_cost(cpu: str, first: int, second: int) -> _Cost:
    branch = 1 if cpu == "cortex-m0plus" else 2
    if first & 0xF800 == 0xF000 and second & 0x8000:  # B.W, BL, MSR, MRS, barriers
        return _Cost(1 if second & 0x5000 or cpu != "cortex-m0plus" else 3, taken=2 if second & 0x4000 else branch)
    if first & 0xFE40 == 0xE800:  # LDM, STM
        return _Cost(1 + second.bit_count(), taken=branch)
    if first & 0xFE40 == 0xE840:  # LDRD, STRD, exclusives, TBB, TBH
        return _Cost(2, taken=branch) if first & 0xFFF0 == 0xE8D0 else _Cost(3)
    if first & 0xFE00 == 0xF800:  # single loads and stores
        return _Cost(2 if first & 0x0010 else 1, taken=branch, single_access=True)
    if first & 0xFF80 == 0xFB00:
        accumulates = second & 0xF000 != 0xF000
        return _Cost(2 if accumulates and cpu == "cortex-m3" else 1)
    if first & 0xFF80 == 0xFB80:
        operation = (first >> 4) & 0x7
        if operation in (1, 3):
            return _Cost(12)
        return _Cost(4 if cpu == "cortex-m3" else 1)
    if first & 0xFE00 == 0xEC00:  # FPU loads and stores, two-register moves
        if first & 0x0120 == 0x0100:
            return _Cost(3 if second & 0x0100 else 2)
        if first & 0x01E0 == 0x0040:
            return _Cost(2)
        return _Cost(1 + (second & 0xFF))
    if first & 0xFF00 == 0xEE00 and not second & 0x0010:
        return _Cost(_fpu_cycles(first, second))
    return _Cost(1, taken=branch)


def _fpu_cycles(first: int, second: int) -> int:
    opcode = (first >> 4) & 0xB
    if opcode == 0x8:
        return 14  # VDIV
    if opcode in (0x0, 0x1, 0x9, 0xA):
        return 3  # VMLA, VMLS, VNMLA, VFNMA, VFMA
    if opcode == 0xB and first & 0xF == 1 and second & 0x00C0 == 0x00C0:
        return 14  # VSQRT
    return 1


def _riscv_cost(cpu: str, first: int, second: int) -> tuple[_Cost, int]:
    if first & 3 != 3:
        return _compressed_cost(first), 2
    opcode = first & 0x7F
    if opcode in (0x03, 0x23):
        return _Cost(2), 4
    if opcode == 0x63:
        return _Cost(1, taken=2), 4
    if opcode in (0x67, 0x6F):
        return _Cost(1, taken=1), 4
    if opcode == 0x33 and second >> 9 == 1:
        function = (first >> 12) & 7
        return _Cost(37 if function >= 4 else 2 if function else 1), 4
    return _Cost(1), 4


def _compressed_cost(first: int) -> _Cost:
    quadrant, function = first & 3, first >> 13
    if quadrant == 0 and function:
        return _Cost(2)
    if quadrant == 2 and function in (2, 6):
        return _Cost(2)
    if quadrant == 1 and function in (6, 7):
        return _Cost(1, taken=2)
    if (quadrant == 1 and function in (1, 5)) or (quadrant == 2 and function == 4):
        return _Cost(1, taken=1)
    return _Cost(1)
