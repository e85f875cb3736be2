"""The CPUs that can be simulated, as data."""

from dataclasses import dataclass
from enum import StrEnum

from unicorn import arm_const, riscv_const

from tinymlaas_simulator import _hook
from tinymlaas_simulator.errors import SimulatorError


class Arch(StrEnum):
    """Instruction set family, which decides registers and calling convention."""

    THUMB = "thumb"
    RISCV32 = "riscv32"


@dataclass(frozen=True)
class Cpu:
    """A simulated CPU: name, ISA name, features, the alignment rule it enforces, and what the emulator calls it."""

    name: str
    isa: str
    arch: Arch
    features: frozenset[str]
    alignment: int
    model: int
    zig_target: str
    zig_cpu: str

    @property
    def has_fpu(self) -> bool:
        return "fpu-sp" in self.features


def _arm(name: str, isa: str, features: set[str], model: int, zig_cpu: str, zig_target: str, alignment: int) -> Cpu:
    return Cpu(name, isa, Arch.THUMB, frozenset(features), alignment, model, zig_target, zig_cpu)


_SOFT = "thumb-freestanding-eabi"
_HARD = "thumb-freestanding-eabihf"

CPUS: dict[str, Cpu] = {
    cpu.name: cpu
    for cpu in (
        _arm("cortex-m0plus", "armv6-m", set(), arm_const.UC_CPU_ARM_CORTEX_M0, "cortex_m0plus", _SOFT, _hook.ALIGN_NATURAL),
        _arm("cortex-m3", "armv7-m", {"thumb2"}, arm_const.UC_CPU_ARM_CORTEX_M3, "cortex_m3", _SOFT, _hook.ALIGN_THUMB2),
        _arm("cortex-m4", "armv7e-m", {"thumb2", "dsp", "fpu-sp"}, arm_const.UC_CPU_ARM_CORTEX_M4, "cortex_m4", _HARD,
             _hook.ALIGN_THUMB2),
        _arm("cortex-m7", "armv7e-m", {"thumb2", "dsp", "fpu-sp"}, arm_const.UC_CPU_ARM_CORTEX_M7, "cortex_m7", _HARD,
             _hook.ALIGN_THUMB2),
        _arm("cortex-m33", "armv8-m.main", {"thumb2", "dsp", "fpu-sp"}, arm_const.UC_CPU_ARM_CORTEX_M33, "cortex_m33", _HARD,
             _hook.ALIGN_THUMB2),
        Cpu("rv32imc", "rv32imc", Arch.RISCV32, frozenset(), _hook.ALIGN_NATURAL, riscv_const.UC_CPU_RISCV32_SIFIVE_E31,
            "riscv32-freestanding-none", "generic_rv32+m+c"),
    )
}


def cpu_named(name: str) -> Cpu:
    """Give the CPU of that name, or raise SimulatorError (TARGET_UNSUPPORTED) that lists the names there are."""
    cpu = CPUS.get(name)
    if cpu is None:
        raise SimulatorError(
            "TARGET_UNSUPPORTED",
            f"no simulated CPU is called {name!r}",
            metadata={"constraint": "cpu", "value": name},
            help="one of " + ", ".join(sorted(CPUS)),
        )
    return cpu
