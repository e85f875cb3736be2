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


def _arm(name: str, isa: str, features: set[str], model: int) -> Cpu:
    alignment = _hook.ALIGN_THUMB2 if "thumb2" in features else _hook.ALIGN_NATURAL
    zig_target = "thumb-freestanding-eabihf" if "fpu-sp" in features else "thumb-freestanding-eabi"
    return Cpu(name, isa, Arch.THUMB, frozenset(features), alignment, model, zig_target, name.replace("-", "_"))


_M4_FEATURES = {"thumb2", "dsp", "fpu-sp"}

CPUS: dict[str, Cpu] = {
    cpu.name: cpu
    for cpu in (
        _arm("cortex-m0plus", "armv6-m", set(), arm_const.UC_CPU_ARM_CORTEX_M0),
        _arm("cortex-m3", "armv7-m", {"thumb2"}, arm_const.UC_CPU_ARM_CORTEX_M3),
        _arm("cortex-m4", "armv7e-m", _M4_FEATURES, arm_const.UC_CPU_ARM_CORTEX_M4),
        _arm("cortex-m7", "armv7e-m", _M4_FEATURES, arm_const.UC_CPU_ARM_CORTEX_M7),
        _arm("cortex-m33", "armv8-m.main", _M4_FEATURES, arm_const.UC_CPU_ARM_CORTEX_M33),
        Cpu(
            "rv32imc",
            "rv32imc",
            Arch.RISCV32,
            frozenset(),
            _hook.ALIGN_NATURAL,
            riscv_const.UC_CPU_RISCV32_SIFIVE_E31,
            "riscv32-freestanding-none",
            "generic_rv32+m+c",
        ),
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
