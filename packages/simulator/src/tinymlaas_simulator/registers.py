"""The registers of a simulated CPU that a call sets and checks."""

from typing import Any

from unicorn import arm_const, riscv_const

from tinymlaas_simulator.cpus import Arch, Cpu
from tinymlaas_simulator.errors import Fault, FaultKind

_ARM_R = [getattr(arm_const, f"UC_ARM_REG_R{i}") for i in range(13)]
_RV_A = [getattr(riscv_const, f"UC_RISCV_REG_A{i}") for i in range(8)]
_ARM_SAVED = _ARM_R[4:12]
_ARM_SAVED_FPU = [getattr(arm_const, f"UC_ARM_REG_S{i}") for i in range(16, 32)]
_RV_SAVED = [getattr(riscv_const, f"UC_RISCV_REG_S{i}") for i in range(12)]


class Registers:
    """Registers by role, whatever the architecture; values are 32 bits."""

    def __init__(self, cpu: Cpu, engine: Any) -> None:
        self._engine = engine
        thumb = self._thumb = cpu.arch is Arch.THUMB
        self._pc = arm_const.UC_ARM_REG_PC if thumb else riscv_const.UC_RISCV_REG_PC
        self._sp = arm_const.UC_ARM_REG_SP if thumb else riscv_const.UC_RISCV_REG_SP
        self._link = arm_const.UC_ARM_REG_LR if thumb else riscv_const.UC_RISCV_REG_RA
        self._arguments = _ARM_R if thumb else _RV_A
        self._saved = _ARM_SAVED + (_ARM_SAVED_FPU if cpu.has_fpu else []) if thumb else _RV_SAVED

    @property
    def program_counter(self) -> int:
        """The address of the next instruction."""
        return int(self._engine.reg_read(self._pc))

    @program_counter.setter
    def program_counter(self, address: int) -> None:
        self._engine.reg_write(self._pc, address | int(self._thumb))

    @property
    def stack_pointer(self) -> int:
        """The stack pointer."""
        return int(self._engine.reg_read(self._sp))

    @stack_pointer.setter
    def stack_pointer(self, value: int) -> None:
        self._engine.reg_write(self._sp, value)

    @property
    def result(self) -> int:
        """What the last call returned."""
        return int(self._engine.reg_read(self._arguments[0])) & 0xFFFF_FFFF

    def enter(self, arguments: list[int], return_to: int, stack_top: int) -> list[tuple[int, int]]:
        """Set what a call finds, and mark the callee-saved registers; gives the marks."""
        for register, value in zip(self._arguments, arguments, strict=False):
            self._engine.reg_write(register, value & 0xFFFF_FFFF)
        marks = [(register, 0x3C5A_0000 + 0x101 * index) for index, register in enumerate(self._saved)]
        for register, value in marks:
            self._engine.reg_write(register, value)
        self._engine.reg_write(self._link, return_to | int(self._thumb))
        self.stack_pointer = stack_top
        return marks

    def check_left(self, marks: list[tuple[int, int]], stack_top: int, pc: int) -> None:
        """Raise ABI_VIOLATION if a callee-saved register or the stack pointer is another than before the call."""
        wrong = [index for index, (register, value) in enumerate(marks) if self._engine.reg_read(register) != value]
        moved = self.stack_pointer != stack_top
        if moved or wrong:
            what = "the stack pointer" if moved else f"callee-saved register number {wrong[0]}"
            raise Fault(FaultKind.ABI_VIOLATION, f"{what} was not restored", pc=pc)
