"""Run microcontroller code on a simulated CPU: exact instruction counts, memory limits, faults."""

from tinymlaas_simulator._hook import cache_dir
from tinymlaas_simulator.cpus import CPUS, Arch, Cpu, cpu_named
from tinymlaas_simulator.cycles import CYCLE_ASSUMPTIONS, estimate_cycles
from tinymlaas_simulator.errors import DoesNotFit, Fault, FaultKind, SimulatorError
from tinymlaas_simulator.machine import DEFAULT_INSTRUCTION_LIMIT, Machine
from tinymlaas_simulator.native import (
    FLASH_BASE,
    RAM_BASE,
    CodeRange,
    Cost,
    NativeRun,
    Traffic,
    run_native,
    standard_machine,
)
from tinymlaas_simulator.qemu import PROGRAM as QEMU_PROGRAM
from tinymlaas_simulator.qemu import QEMU_CPUS, find_qemu, qemu_missing, qemu_release, run_native_in_qemu
from tinymlaas_simulator.values import CallResult, Device, Region, Touched, Window

__all__ = [
    "CPUS",
    "CYCLE_ASSUMPTIONS",
    "DEFAULT_INSTRUCTION_LIMIT",
    "FLASH_BASE",
    "QEMU_CPUS",
    "QEMU_PROGRAM",
    "RAM_BASE",
    "Arch",
    "CallResult",
    "CodeRange",
    "Cost",
    "Cpu",
    "Device",
    "DoesNotFit",
    "Fault",
    "FaultKind",
    "Machine",
    "NativeRun",
    "Region",
    "SimulatorError",
    "Touched",
    "Traffic",
    "Window",
    "cache_dir",
    "cpu_named",
    "estimate_cycles",
    "find_qemu",
    "qemu_missing",
    "qemu_release",
    "run_native",
    "run_native_in_qemu",
    "standard_machine",
]
