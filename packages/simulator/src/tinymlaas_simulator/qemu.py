"""Run a native payload (ABI 1) on a Cortex-M of QEMU: for CPUs that the built-in emulator lacks, and as a second opinion.

QEMU is a program of the host (`qemu-system-arm`), not a package; `find_qemu` tells whether it is there. A small firmware
(`qemu_harness.s`) calls the payload, an observer inside QEMU (`qemu_plugin.c`) counts its instructions and checks every data
access to the byte: what is forbidden ends the emulator at once. The payload gets no semihosting, no monitor and no network;
its outputs come back through the board's UART after it has returned.
"""

import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from tinymlaas_simulator import _hook
from tinymlaas_simulator.cpus import CPUS, Arch, Cpu
from tinymlaas_simulator.cycles import CYCLE_ASSUMPTIONS, estimate_cycles
from tinymlaas_simulator.errors import DoesNotFit, Fault, FaultKind, SimulatorError
from tinymlaas_simulator.machine import DEFAULT_INSTRUCTION_LIMIT
from tinymlaas_simulator.native import NativeRun, background, check_arguments

PROGRAM = "qemu-system-arm"
_ALIGN = 16
_OVERFLOW_REACH = 512
_TIMEOUT_S = 300.0
_SHIFT = 0x3_1050
# Offsets in the harness, fixed by its source.
_RESET, _BACK, _FAULT, _DONE, _PARAMETERS, _REPORT = 0x40, 0xC0, 0x140, 0x240, 0x400, 0x800
_REPORT_WORDS = 27
_SAVED = [0x3C5A_0000 + 0x101 * index for index in range(24)]
_DONE_REASON, _LIMIT, _RANGE, _FETCH, _FAULTED, _SLEEP = range(1, 7)
_CFSR = {
    16: (FaultKind.UNDEFINED_INSTRUCTION, "undefined instruction"),
    17: (FaultKind.INVALID_STATE, "branch to an address without the Thumb bit, or a bad IT state"),
    18: (FaultKind.FETCH_UNMAPPED, "exception return without an exception"),
    19: (FaultKind.UNSUPPORTED_INSTRUCTION, "coprocessor, FPU or MVE instruction on a CPU without it"),
    24: (FaultKind.MISALIGNED, "unaligned access"),
    0: (FaultKind.FETCH_PROTECTED, "fetch from memory that is never executable"),
    8: (FaultKind.FETCH_UNMAPPED, "fetch from an unmapped address"),
}


@dataclass(frozen=True)
class Board:
    """A machine of QEMU: where its CPU starts, its UART, and memory that is free for payload, arena and stack."""

    machine: str
    reset_base: int
    uart: int
    memory: int
    memory_bytes: int


BOARDS: dict[str, Board] = {
    "cortex-m3": Board("mps2-an385", 0, 0x4000_4000, 0x2100_0000, 16 << 20),
    "cortex-m4": Board("mps2-an386", 0, 0x4000_4000, 0x2100_0000, 16 << 20),
    "cortex-m33": Board("mps2-an505", 0x1000_0000, 0x5020_0000, 0x8000_0000, 16 << 20),
    "cortex-m55": Board("mps3-an547", 0x1000_0000, 0x5930_3000, 0x6000_0000, 256 << 20),
}
_M55 = Cpu(
    "cortex-m55",
    "armv8.1-m.main",
    Arch.THUMB,
    frozenset({"thumb2", "dsp", "fpu-sp", "fpu-dp", "mve", "mve-fp"}),
    _hook.ALIGN_THUMB2,
    -1,
    "thumb-freestanding-eabihf",
    "cortex_m55+mve_fp",
)
QEMU_CPUS: dict[str, Cpu] = {name: CPUS.get(name, _M55) for name in BOARDS}


def find_qemu() -> str | None:
    """Give the path of QEMU for Arm systems, or None where it is not installed."""
    return shutil.which(PROGRAM)


def qemu_missing() -> SimulatorError:
    """Give the error of a run that needs QEMU where there is none."""
    error = SimulatorError(
        "EMULATOR_MISSING",
        f"{PROGRAM} is not installed",
        metadata={"constraint": "emulator", "value": PROGRAM},
        help=f"install {PROGRAM} (Debian, Ubuntu: apt-get install {PROGRAM})",
    )
    error.code = "FAILED_PRECONDITION"
    return error


@functools.cache
def qemu_version(path: str) -> tuple[int, int]:
    """Give major and minor version of that QEMU, or raise SimulatorError (EMULATOR_FAILED)."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise SimulatorError(
            "EMULATOR_FAILED", f"{path} does not tell its version", metadata={"log": done.stderr[-500:]}
        )
    return int(found[1]), int(found[2])


def qemu_release() -> str:
    """Give the version of the QEMU that is installed as text; SimulatorError (EMULATOR_MISSING) where there is none."""
    path = find_qemu()
    if path is None:
        raise qemu_missing()
    return ".".join(map(str, qemu_version(path)))


@dataclass(frozen=True)
class _Job:
    """One start of QEMU: board, payload and where things lie; `fill` seeds what memory holds before."""

    cpu: Cpu
    board: Board
    payload: bytes
    entry_offset: int
    at: int
    arena: int
    arena_bytes: int
    stack_top: int
    stack_bytes: int
    instruction_limit: int
    fill: int
    timeout_s: float

    @property
    def memory_begin(self) -> int:
        return min(self.arena, self.stack_top - self.stack_bytes)

    @property
    def memory_end(self) -> int:
        return max(self.arena + self.arena_bytes, self.stack_top) + _ALIGN


def run_native_in_qemu(
    payload: bytes,
    *,
    cpu: str,
    entry_offset: int,
    arena_bytes: int,
    stack_limit: int,
    inputs: Mapping[int, bytes],
    outputs: Sequence[tuple[int, int]],
    ram_bytes: int,
    flash_bytes: int,
    instruction_limit: int = DEFAULT_INSTRUCTION_LIMIT,
    check_relocation: bool = True,
    timeout_s: float = _TIMEOUT_S,
) -> NativeRun:
    """Do what `run_native` does, in QEMU; every access is checked to the byte in each run.

    Cycles are estimated where costs are documented, else 0. Raises as `run_native` does, and SimulatorError:
    EMULATOR_MISSING, EMULATOR_FAILED (it ended without a result), DEADLINE_EXCEEDED.
    """
    described = QEMU_CPUS.get(cpu)
    if described is None:
        raise SimulatorError(
            "TARGET_UNSUPPORTED",
            f"no board of QEMU stands for {cpu!r}",
            metadata={"constraint": "cpu", "value": cpu},
            help="one of " + ", ".join(sorted(QEMU_CPUS)),
        )
    if find_qemu() is None:
        raise qemu_missing()
    check_arguments(len(payload), entry_offset, arena_bytes, stack_limit, inputs, outputs)
    board = BOARDS[cpu]
    stack_bytes = -(-stack_limit // _ALIGN) * _ALIGN
    arena_span = -(-arena_bytes // _ALIGN) * _ALIGN
    if len(payload) > flash_bytes:
        raise DoesNotFit("flash", len(payload), flash_bytes)
    if arena_span + stack_bytes > ram_bytes:
        raise DoesNotFit("ram", arena_span + stack_bytes, ram_bytes)
    code_span = -(-(len(payload) + 2 * _SHIFT) // 4096) * 4096
    if code_span + arena_span + stack_bytes + 8192 > board.memory_bytes:
        raise DoesNotFit("memory of the emulated board", code_span + arena_span + stack_bytes, board.memory_bytes)
    base = board.memory
    ram = base + code_span
    rest = (instruction_limit, 0x5A, timeout_s)
    first = _Job(
        described, board, payload, entry_offset, base, ram + 4096, arena_bytes,
        ram + 8192 + arena_span + stack_bytes, stack_bytes, *rest,
    )  # fmt: skip
    run = _run(first, inputs, outputs)
    if check_relocation:
        second = _Job(
            described, board, payload, entry_offset, base + _SHIFT // _ALIGN * _ALIGN, ram + 2048 + stack_bytes,
            arena_bytes, ram + 2048 + stack_bytes, stack_bytes, instruction_limit, 0xA7, timeout_s,
        )  # fmt: skip
        again = _run(second, inputs, outputs)
        if again.outputs != run.outputs or again.return_value != run.return_value:
            raise Fault(
                FaultKind.POSITION_DEPENDENT,
                "outputs differ between two placements: the payload depends on its address or on uninitialized memory",
            )
    return run


@functools.cache
def _harness() -> bytes:
    """Give the harness as a flat image, assembled once per user by the clang of the `ziglang` wheel."""
    source = resources.files("tinymlaas_simulator").joinpath("qemu_harness.s").read_bytes()
    target = _hook.cache_dir() / f"qemu-harness-{hashlib.sha256(source).hexdigest()[:24]}.bin"
    if not target.exists():
        zig = [sys.executable, "-m", "ziglang"]
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="harness-") as folder:
            Path(folder, "harness.s").write_bytes(source)
            for command in (
                [*zig, "cc", "-target", "thumb-freestanding-eabi", "-c", "harness.s", "-o", "harness.o"],
                [*zig, "objcopy", "-O", "binary", "harness.o", "harness.bin"],
            ):
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
                if done.returncode != 0:
                    raise SimulatorError(
                        "HOOK_BUILD_FAILED",
                        "the harness for QEMU could not be assembled",
                        metadata={"log": done.stderr[-2000:]},
                        help="install the Python package ziglang",
                    )
            os.replace(Path(folder, "harness.bin"), target)
    return target.read_bytes()


def _firmware(job: _Job, spans: Sequence[tuple[int, int]]) -> bytes:
    """Give the image that starts the board: vectors, harness, parameters; sends the report and then `spans`."""
    base = job.board.reset_base
    harness = _harness()
    vectors = struct.pack("<16I", job.stack_top, base + _RESET | 1, *[base + _FAULT | 1] * 14)
    fpu = int("fpu-sp" in job.cpu.features)
    sent = [(base + _REPORT, 4 * _REPORT_WORDS), *spans, (0, 0)]
    parameters = [fpu, job.board.uart, job.arena, job.at + job.entry_offset | 1, job.stack_top]
    parameters += [word for span in sent for word in span]
    image = bytearray(_REPORT + 4 * _REPORT_WORDS)
    image[: len(harness)] = harness
    image[:64] = vectors
    if 4 * len(parameters) > 0x280:
        raise SimulatorError("ARGUMENT_INVALID", "too many outputs", help="at most 70 outputs can be read in QEMU")
    struct.pack_into(f"<{len(parameters)}I", image, _PARAMETERS, *parameters)
    struct.pack_into("<24I", image, _PARAMETERS + 0x2C0, *_SAVED)
    return bytes(image)


def _run(job: _Job, inputs: Mapping[int, bytes], outputs: Sequence[tuple[int, int]]) -> NativeRun:
    path = find_qemu()
    if path is None:
        raise qemu_missing()
    version = 1 if qemu_version(path)[0] < 9 else 2
    plugin = _hook.shared_library("qemu_plugin.c", "qemu-plugin", (f"-DPLUGIN_VERSION={version}",))
    with tempfile.TemporaryDirectory(prefix="qemu-") as folder:
        root = Path(folder)
        spans = [(job.arena + offset, size) for offset, size in outputs if size]
        (root / "firmware.bin").write_bytes(_firmware(job, spans))
        (root / "payload.bin").write_bytes(job.payload)
        memory = bytearray(background(job.memory_end - job.memory_begin, job.fill))
        for offset, data in inputs.items():
            at = job.arena - job.memory_begin + offset
            memory[at : at + len(data)] = data
        (root / "memory.bin").write_bytes(memory)
        log = _start(path, plugin, job, root)
        return _result(job, root, outputs, log)


def _start(path: str, plugin: Path, job: _Job, root: Path) -> str:
    base = job.board.reset_base
    end = job.at + len(job.payload)
    observed = {
        "payload": f"{job.at:#x}", "size": len(job.payload), "back": base + _BACK, "handler": base + _FAULT,
        "done": base + _DONE, "limit": job.instruction_limit, "image": "payload.bin", "out": "result.bin",
        "stack": f"{job.stack_top - job.stack_bytes}:{job.stack_top}", "ro": f"{job.at}:{end}",
        "arena": f"{job.arena}:{job.arena + job.arena_bytes}",
    }  # fmt: skip
    loads = [("firmware.bin", base), ("payload.bin", job.at), ("memory.bin", job.memory_begin)]
    command = [
        path, "-machine", job.board.machine, "-nodefaults", "-display", "none", "-monitor", "none", "-nic", "none",
        "-chardev", "file,id=uart,path=uart.bin", "-serial", "chardev:uart", "-accel", "tcg,tb-size=32",
        *(part for file, at in loads for part in ("-device", f"loader,file={file},addr={at:#x},force-raw=on")),
        "-plugin", ",".join([str(plugin), *(f"{name}={value}" for name, value in observed.items())]),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=job.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        late = SimulatorError(
            "DEADLINE_EXCEEDED",
            f"the run in QEMU took longer than {job.timeout_s:g} s",
            metadata={"deadline_s": f"{job.timeout_s:g}"},
            help="a smaller instruction limit, or more time",
        )
        late.code = "DEADLINE_EXCEEDED"
        raise late from error
    return done.stderr.decode("utf-8", "replace")[-2000:]


def _result(job: _Job, root: Path, outputs: Sequence[tuple[int, int]], log: str) -> NativeRun:
    halves = (len(job.payload) + 1) // 2
    result = root / "result.bin"
    if not result.exists() or result.stat().st_size != 96 + 64 * halves:
        if "Lockup" in log:
            raise Fault(FaultKind.INVALID_STATE, "the CPU locked up: a fault on a stack that cannot hold its frame")
        raise SimulatorError(
            "EMULATOR_FAILED",
            "QEMU ended without a result",
            metadata={"log": log},
            help=f"{PROGRAM} must be built with TCG plugins (Debian's is)",
        )
    data = np.fromfile(result, dtype=np.uint64)
    reason, pc, address, size, store, instructions, lowest, arena_end, returned = (int(value) for value in data[:9])
    sent = (root / "uart.bin").read_bytes() if (root / "uart.bin").exists() else b""
    report = struct.unpack(f"<{_REPORT_WORDS}I", sent[: 4 * _REPORT_WORDS].ljust(4 * _REPORT_WORDS, b"\0"))
    if reason != _DONE_REASON or not returned:
        raise _fault(job, reason, pc, address, size, bool(store), instructions, report)
    _check_saved(job, report, pc)
    executed, taken = data[12 : 12 + halves].copy(), data[12 + halves : 12 + 2 * halves].copy()
    moved = data[12 + 2 * halves :].reshape(halves, 3, 2).copy()
    known = job.cpu.name in CYCLE_ASSUMPTIONS
    cycles = estimate_cycles(job.cpu, job.payload, executed, taken) if known else np.zeros_like(executed)
    values, position = [], 4 * _REPORT_WORDS
    for _, length in outputs:
        values.append(sent[position : position + length])
        position += length
    if position != len(sent):
        raise SimulatorError("EMULATOR_FAILED", "the harness sent less or more than was asked", metadata={"log": log})
    value = report[1]
    return NativeRun(
        outputs=tuple(values),
        return_value=value - (1 << 32) if value >> 31 else value,
        instructions=instructions,
        estimated_cycles=int(cycles.sum()),
        stack_peak_bytes=job.stack_top - lowest,
        arena_high_water=max(arena_end - job.arena, 0) if arena_end else 0,
        executed=executed,
        taken=taken,
        cycles=cycles,
        moved=moved,
    )


def _check_saved(job: _Job, report: Sequence[int], pc: int) -> None:
    stack, saved = report[2], report[3:27]
    count = 24 if "fpu-sp" in job.cpu.features else 8
    wrong = [index for index in range(count) if saved[index] != _SAVED[index]]
    if stack != job.stack_top or wrong:
        what = "the stack pointer" if stack != job.stack_top else f"callee-saved register number {wrong[0]}"
        raise Fault(FaultKind.ABI_VIOLATION, f"{what} was not restored", pc=pc)


def _fault(
    job: _Job, reason: int, pc: int, address: int, size: int, store: bool, instructions: int, report: Sequence[int]
) -> Fault:
    if reason == _LIMIT:
        kind, detail = FaultKind.INSTRUCTION_LIMIT, f"still running after {instructions} instructions"
        return Fault(kind, detail, pc=pc, instructions=instructions)
    if reason == _SLEEP:
        kind, detail = FaultKind.STALLED, "waits for an interrupt that never comes"
        return Fault(kind, detail, pc=pc, instructions=instructions)
    if reason == _FETCH:
        in_ram = job.memory_begin <= address < job.memory_end
        kind = FaultKind.FETCH_PROTECTED if in_ram else FaultKind.FETCH_UNMAPPED
        return Fault(kind, "instruction outside the payload", pc=pc, address=address, instructions=instructions)
    if reason == _RANGE:
        return Fault(
            _range_kind(job, address, store), f"{size} bytes", pc=pc, address=address, instructions=instructions
        )
    exception, cfsr, _, _, bfar = report[1:6]
    code = job.payload[pc - job.at : pc - job.at + 2].ljust(2, b"\0")
    first = int.from_bytes(code, "little")
    if exception == 11 or first >> 8 == 0xDF:
        return Fault(FaultKind.SUPERVISOR_CALL, "SVC", pc=pc, instructions=instructions)
    if first >> 8 == 0xBE:
        return Fault(FaultKind.BREAKPOINT, "BKPT", pc=pc, instructions=instructions)
    for bit, (kind, detail) in _CFSR.items():
        if cfsr >> bit & 1:
            return Fault(kind, detail, pc=pc, instructions=instructions)
    if cfsr >> 9 & 1:
        kind = _range_kind(job, bfar, not _loads(first))
        return Fault(kind, "bus fault", pc=pc, address=bfar, instructions=instructions)
    detail = f"exception {exception}, fault status {cfsr:#x}"
    return Fault(FaultKind.INVALID_STATE, detail, pc=pc, instructions=instructions)


def _range_kind(job: _Job, address: int, store: bool) -> FaultKind:
    stack_low = job.stack_top - job.stack_bytes
    if stack_low - _OVERFLOW_REACH <= address < stack_low:
        return FaultKind.STACK_OVERFLOW
    if job.at <= address < job.at + len(job.payload) and store:
        return FaultKind.WRITE_PROTECTED
    if job.board.memory <= address < job.board.memory + job.board.memory_bytes:
        return FaultKind.WRITE_OUT_OF_BOUNDS if store else FaultKind.READ_OUT_OF_BOUNDS
    return FaultKind.WRITE_UNMAPPED if store else FaultKind.READ_UNMAPPED


def _loads(first: int) -> bool:
    """Tell whether a load-store instruction, by its first halfword, loads (bit L of its encoding)."""
    if first >> 13 == 7 and first >> 11 != 0x1C:
        return bool(first & 0x10)
    if first >> 12 == 5:
        return first >> 9 & 7 >= 3
    return bool(first & 0x0800)
