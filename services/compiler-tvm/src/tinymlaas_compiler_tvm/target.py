"""Targets: what the product calls a CPU, and what code generation needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_compiler_tvm.errors import TargetUnsupported


@dataclass(frozen=True)
class TargetSpec:
    """A device class: CPU and ISA names as the contract has them, and the bytes of RAM and flash a module may use.

    `ram_bytes` counts arena and stack together; 0 means that no limit is checked.
    """

    cpu: str
    isa: str
    features: tuple[str, ...] = ()
    ram_bytes: int = 0
    flash_bytes: int = 0


@dataclass(frozen=True)
class Machine:
    """How to generate code for a CPU: clang's names, and the instruction sets that kernels may use."""

    cpu: str
    isa: str
    triple: str
    clang_flags: tuple[str, ...]
    arm: bool = True
    dsp: bool = False
    hard_float: bool = False
    long_multiply: bool = True
    mve: bool = False

    @property
    def mainline(self) -> bool:
        """Whether it is an Arm core with Thumb-2 and 64-bit multiply-accumulate (all but Armv6-M)."""
        return self.arm and self.isa != "armv6-m"


def _arm(cpu: str, isa: str, triple: str, *, dsp: bool, fpu: bool, long_multiply: bool = True) -> Machine:
    # The calling convention stays soft: arguments in integer registers whatever the FPU.
    flags = [f"-mcpu={cpu}" + ("" if dsp or cpu in ("cortex-m0plus", "cortex-m3") else "+nodsp"), "-mthumb"]
    flags.append("-mfloat-abi=softfp" if fpu else "-mfloat-abi=soft")
    if fpu:
        flags.append("-mfpu=fpv5-sp-d16" if cpu in ("cortex-m7", "cortex-m33") else "-mfpu=fpv4-sp-d16")
    else:
        flags.append("-mfpu=none")
    return Machine(cpu, isa, triple, tuple(flags), True, dsp, fpu, long_multiply)


def _cortex_m55(features: tuple[str, ...]) -> Machine:
    """The one Armv8.1-M core: MVE of integers, MVE of floats and the FPU are options of it; the DSP extension is not."""
    mve, fpu = "mve" in features, "fpu-sp" in features
    if mve:
        without = "" if fpu and "mve-fp" in features else "+nomve.fp"
        flags = ["-mcpu=cortex-m55" + without + ("+nofp.dp" if fpu else "+nofp"), "-mthumb", "-mfloat-abi=softfp"]
    else:
        flags = ["-mcpu=cortex-m55+nomve", "-mthumb", "-mfloat-abi=softfp" if fpu else "-mfloat-abi=soft"]
        flags.append("-mfpu=fpv5-sp-d16" if fpu else "-mfpu=none")
    # clang 22 makes an endless loop of a strided sum that it turns into gathers (a pool over planes, say).
    flags += ["-mllvm", "-enable-arm-maskedgatscat=false"] if mve else []
    return Machine(
        "cortex-m55", "armv8.1-m.main", "thumbv8.1m.main-none-eabi", tuple(flags), dsp=True, hard_float=fpu, mve=mve
    )


# CPU name: ISA, triple, whether it can have DSP instructions, whether it can have an FPU.
_ARM_CPUS = {
    "cortex-m0plus": ("armv6-m", "thumbv6m-none-eabi", False, False),
    "cortex-m3": ("armv7-m", "thumbv7m-none-eabi", False, False),
    "cortex-m4": ("armv7e-m", "thumbv7em-none-eabi", True, True),
    "cortex-m7": ("armv7e-m", "thumbv7em-none-eabi", True, True),
    "cortex-m33": ("armv8-m.main", "thumbv8m.main-none-eabi", True, True),
}
CPUS = (*_ARM_CPUS, "cortex-m55", "rv32imc")


def machine_for(target: TargetSpec) -> Machine:
    """The machine of a target; TargetUnsupported names the constraint that it misses."""
    if target.cpu == "rv32imc":
        if target.isa != "rv32imc":
            raise TargetUnsupported("ISA does not belong to the CPU", constraint="isa", value=target.isa)
        flags = ("-march=rv32imc", "-mabi=ilp32")
        return Machine("rv32imc", "rv32imc", "riscv32-unknown-elf", flags, arm=False)
    if target.cpu == "cortex-m55":
        if target.isa != "armv8.1-m.main":
            raise TargetUnsupported("ISA does not belong to the CPU", constraint="isa", value=target.isa)
        return _cortex_m55(target.features)
    if target.cpu not in _ARM_CPUS:
        raise TargetUnsupported("no code generation for this CPU", constraint="cpu", value=target.cpu)
    isa, triple, may_dsp, may_fpu = _ARM_CPUS[target.cpu]
    if target.isa != isa:
        raise TargetUnsupported("ISA does not belong to the CPU", constraint="isa", value=target.isa)
    # Every Cortex-M4 and M7 has the DSP extension; it is optional on the M33.
    dsp = may_dsp and (isa == "armv7e-m" or "dsp" in target.features)
    fpu = may_fpu and "fpu-sp" in target.features
    return _arm(target.cpu, isa, triple, dsp=dsp, fpu=fpu, long_multiply=isa != "armv6-m")
