"""Run a native payload (ABI 1) on a simulated microcontroller and measure it.

ABI 1: a position-independent blob with `int32_t entry(uint8_t *arena)`; it reads payload, arena and stack, writes arena
and stack, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_simulator.cpus import Cpu, cpu_named
from tinymlaas_simulator.cycles import estimate_cycles
from tinymlaas_simulator.errors import DoesNotFit, Fault, FaultKind, SimulatorError
from tinymlaas_simulator.machine import DEFAULT_INSTRUCTION_LIMIT, Machine
from tinymlaas_simulator.values import CallResult, Charged, Region, Window

RAM_BASE = 0x2000_0000
FLASH_BASE = 0x0800_0000
_ALIGN = 16
_SHIFTED_FLASH = FLASH_BASE + 0x0003_1000
_SHIFT = 0x50
_MAX_CHARGED = 1 << 26  # counters of 8 bytes, of which the system only provides those that are used


@dataclass(frozen=True)
class Traffic:
    """Bytes moved by loads and stores, every access counted; instruction fetches are not among them."""

    arena_read: int
    arena_written: int
    payload_read: int
    stack_read: int
    stack_written: int


@dataclass(frozen=True)
class CodeRange:
    """Payload offsets [begin, end) whose cost is charged to `owner` (from 0), or to the caller when it is None."""

    begin: int
    end: int
    owner: int | None


@dataclass(frozen=True)
class Cost:
    """What one owner's code took together with the shared code that it called; traffic None: not observed."""

    instructions: int
    estimated_cycles: int
    traffic: Traffic | None


@dataclass(frozen=True)
class NativeRun:
    """Outputs and figures of one inference of a native payload.

    `outputs` are the bytes at the asked spans, in order; `instructions` is exact; `estimated_cycles` follows documented
    instruction costs; `stack_peak_bytes` is the depth of the lowest stack byte written; `arena_high_water` is one past
    the highest arena byte touched; `executed` and `taken` count per halfword of the payload (see Machine.histogram),
    `cycles` are the estimated ones of each. `moved` has bytes read and written per halfword and window (stack, payload,
    arena); it is empty for a run without access checks. `costs` has one entry for each owner of the asked code ranges, and
    a last one for all other code.
    """

    outputs: tuple[bytes, ...]
    return_value: int
    instructions: int
    estimated_cycles: int
    stack_peak_bytes: int
    arena_high_water: int
    executed: npt.NDArray[np.uint64]
    taken: npt.NDArray[np.uint64]
    cycles: npt.NDArray[np.uint64]
    moved: npt.NDArray[np.uint64]
    costs: tuple[Cost, ...] = ()

    def instructions_in(self, begin: int, end: int) -> int:
        """Give the instructions executed in payload offsets [begin, end), such as one operator's function."""
        return int(self.executed[_halves(begin, end)].sum())

    def cycles_in(self, begin: int, end: int) -> int:
        """Give the estimated cycles spent in payload offsets [begin, end)."""
        return int(self.cycles[_halves(begin, end)].sum())

    def traffic_in(self, begin: int, end: int) -> Traffic | None:
        """Give the bytes that code in payload offsets [begin, end) moved; None for a run without access checks."""
        if not self.moved.size:
            return None
        return _traffic(self.moved[_halves(begin, end)].sum(axis=0))


def _traffic(moved: npt.NDArray[np.uint64]) -> Traffic:
    """Name what was read and written by window: stack, payload, arena."""
    stack, constants, arena = moved[:3].tolist()
    return Traffic(arena[0], arena[1], constants[0], stack[0], stack[1])


def _halves(begin: int, end: int) -> slice:
    return slice((begin + 1) // 2, (end + 1) // 2)


def standard_machine(cpu: str, ram_bytes: int, flash_bytes: int) -> Machine:
    """Make a machine with flash (r-x) at 0x08000000 and RAM (rw-, never executable) at 0x20000000."""
    return Machine(cpu, [Region("flash", FLASH_BASE, flash_bytes, "rx"), Region("ram", RAM_BASE, ram_bytes, "rw")])


@dataclass(frozen=True)
class _Layout:
    """Where one run puts things; `fill` seeds the bytes that RAM holds before the run."""

    flash_base: int
    payload: int
    arena: int
    stack_top: int
    fill: int


def run_native(
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
    check_accesses: bool = True,
    ranges: Sequence[CodeRange] = (),
) -> NativeRun:
    """Run a payload once, and once more elsewhere, and give its outputs and exact figures.

    `inputs` maps arena offsets to bytes, `outputs` are (arena offset, size) spans; all sizes in bytes. Every data
    access is checked to the byte: payload readable, arena and stack writable, everything else a Fault. The second run
    has the payload and the arena at other addresses and other bytes in uninitialized memory; outputs that differ raise
    Fault(POSITION_DEPENDENT). Raises DoesNotFit when RAM or flash cannot hold it. Without `check_accesses` it runs many times
    faster; memory outside arena and stack is still compared afterwards, but stack and arena use are given as 0.
    `ranges` asks for the costs of owners of code, which must be numbered from 0 without gaps.
    """
    described = cpu_named(cpu)
    check_arguments(len(payload), entry_offset, arena_bytes, stack_limit, inputs, outputs)
    stack_bytes = -(-stack_limit // _ALIGN) * _ALIGN
    arena_span = -(-arena_bytes // _ALIGN) * _ALIGN
    if len(payload) > flash_bytes:
        raise DoesNotFit("flash", len(payload), flash_bytes)
    if arena_span + stack_bytes > ram_bytes:
        raise DoesNotFit("ram", arena_span + stack_bytes, ram_bytes)
    ram_end = RAM_BASE + ram_bytes // _ALIGN * _ALIGN
    first = _Layout(FLASH_BASE, FLASH_BASE, RAM_BASE, ram_end, 0x5A)
    run = _run_once(
        described,
        payload,
        first,
        entry_offset,
        arena_bytes,
        stack_bytes,
        inputs,
        outputs,
        ram_bytes,
        flash_bytes,
        instruction_limit,
        check_accesses,
        ranges,
    )
    if check_relocation:
        second = _Layout(_SHIFTED_FLASH, _SHIFTED_FLASH + _SHIFT, RAM_BASE + stack_bytes, RAM_BASE + stack_bytes, 0xA7)
        again = _run_once(
            described,
            payload,
            second,
            entry_offset,
            arena_bytes,
            stack_bytes,
            inputs,
            outputs,
            ram_bytes,
            flash_bytes + _SHIFT,
            instruction_limit,
            check_accesses,
            (),
        )
        if again.outputs != run.outputs or again.return_value != run.return_value:
            raise Fault(
                FaultKind.POSITION_DEPENDENT,
                "outputs differ between two placements: the payload depends on its address or on uninitialized memory",
            )
    return run


def check_arguments(
    payload_size: int,
    entry_offset: int,
    arena_bytes: int,
    stack_limit: int,
    inputs: Mapping[int, bytes],
    outputs: Sequence[tuple[int, int]],
) -> None:
    """Raise SimulatorError (ARGUMENT_INVALID) unless entry and tensors lie in payload and arena."""
    if payload_size == 0 or not 0 <= entry_offset < payload_size or entry_offset % 2:
        raise SimulatorError(
            "ARGUMENT_INVALID",
            f"entry offset {entry_offset} in a payload of {payload_size} bytes",
            help="the entry offset is even, inside the payload, without the Thumb bit",
        )
    if arena_bytes < 0 or stack_limit <= 0:
        raise SimulatorError("ARGUMENT_INVALID", "arena must not be negative and the stack must have room")
    spans = [(offset, len(data)) for offset, data in inputs.items()] + list(outputs)
    for offset, size in spans:
        if offset < 0 or size < 0 or offset + size > arena_bytes:
            raise SimulatorError(
                "ARGUMENT_INVALID",
                f"tensor at {offset}, {size} bytes, not in {arena_bytes}",
                metadata={"offset": str(offset), "size": str(size)},
                help="tensor offsets and sizes must lie inside the arena",
            )


def _run_once(
    cpu: Cpu,
    payload: bytes,
    layout: _Layout,
    entry_offset: int,
    arena_bytes: int,
    stack_bytes: int,
    inputs: Mapping[int, bytes],
    outputs: Sequence[tuple[int, int]],
    ram_bytes: int,
    flash_bytes: int,
    instruction_limit: int,
    check_accesses: bool,
    ranges: Sequence[CodeRange],
) -> NativeRun:
    regions = [Region("flash", layout.flash_base, flash_bytes, "rx"), Region("ram", RAM_BASE, ram_bytes, "rw")]
    with Machine(cpu, regions, check_accesses=check_accesses, count_traffic=check_accesses) as machine:
        machine.load(layout.payload, payload)
        before = background(ram_bytes, layout.fill)
        machine.load(RAM_BASE, before)
        for offset, data in inputs.items():
            machine.load(layout.arena + offset, data)
        charged = _charge(machine, layout.payload, len(payload), ranges) if ranges else None
        result = machine.call(
            layout.payload + entry_offset,
            [layout.arena],
            stack_top=layout.stack_top,
            stack_bytes=stack_bytes,
            windows=[Window(layout.payload, len(payload), "r"), Window(layout.arena, arena_bytes, "rw")],
            instruction_limit=instruction_limit,
        )
        _check_untouched(machine, before, layout, arena_bytes, stack_bytes, payload)
        base = (layout.payload - layout.flash_base) // 2
        halves = (len(payload) + 1) // 2
        executed = machine.histogram("flash")[base : base + halves]
        taken = machine.taken("flash")[base : base + halves]
        cycles = estimate_cycles(cpu, payload, executed, taken)
        rows = slice(base, base + halves)
        moved = [machine.traffic("flash", window)[rows] for window in range(3)] if check_accesses else []
        return NativeRun(
            outputs=tuple(machine.read(layout.arena + offset, size) for offset, size in outputs),
            return_value=result.return_value - (1 << 32) if result.return_value >> 31 else result.return_value,
            instructions=result.instructions,
            estimated_cycles=int(cycles.sum()),
            stack_peak_bytes=result.stack_peak_bytes,
            arena_high_water=_high_water(result, layout.arena),
            executed=executed,
            taken=taken,
            cycles=cycles,
            moved=np.stack(moved, axis=1) if moved else np.zeros((0, 3, 2), dtype=np.uint64),
            costs=_costs(cpu, payload, charged, executed, check_accesses) if charged is not None else (),
        )


def _charge(machine: Machine, base: int, size: int, ranges: Sequence[CodeRange]) -> Charged:
    count = 1 + max((item.owner + 1 for item in ranges if item.owner is not None), default=0)
    halves = (size + 1) // 2
    if count * halves > _MAX_CHARGED or count > 0xFFFF:
        raise SimulatorError(
            "LIMIT_EXCEEDED",
            f"{count} owners of code in a payload of {size} bytes are too many to tell apart",
            metadata={"limit": "code_owners", "value": str(_MAX_CHARGED // halves)},
            help="charge fewer functions, or several of them together",
        )
    owners = np.full(halves, count, dtype=np.uint16)
    for item in ranges:
        owners[_halves(item.begin, item.end)] = 0 if item.owner is None else item.owner + 1
    return machine.charge(base, owners, count)


def _costs(
    cpu: Cpu, payload: bytes, charged: Charged, executed: npt.NDArray[np.uint64], observed: bool
) -> tuple[Cost, ...]:
    hot = np.flatnonzero(executed)
    costs = []
    for owner in range(len(charged.executed)):
        own, taken = np.zeros_like(executed), np.zeros_like(executed)
        own[hot], taken[hot] = charged.executed[owner][hot], charged.taken[owner][hot]
        cycles = int(estimate_cycles(cpu, payload, own, taken).sum())
        costs.append(Cost(int(own.sum()), cycles, _traffic(charged.moved[owner]) if observed else None))
    return tuple(costs)


def background(size: int, seed: int) -> bytes:
    """Bytes that RAM holds before a run: they vary with position, so that no constant fill can hide among them."""
    return ((np.arange(size, dtype=np.uint32) * 167 + seed) & 0xFF).astype(np.uint8).tobytes()


def _check_untouched(
    machine: Machine, before: bytes, layout: _Layout, arena_bytes: int, stack_bytes: int, payload: bytes
) -> None:
    """Compare memory outside arena and stack with what was there: a second witness beside the access check."""
    now = machine.read(RAM_BASE, len(before))
    spans = sorted([(layout.arena, layout.arena + arena_bytes), (layout.stack_top - stack_bytes, layout.stack_top)])
    position = RAM_BASE
    for begin, end in [*spans, (RAM_BASE + len(before), 0)]:
        low, high = position - RAM_BASE, begin - RAM_BASE
        if now[low:high] != before[low:high]:
            raise Fault(FaultKind.WRITE_OUT_OF_BOUNDS, "memory outside arena and stack changed", address=position)
        position = end
    if machine.read(layout.payload, len(payload)) != payload:
        raise Fault(FaultKind.WRITE_PROTECTED, "the payload changed", address=layout.payload)


def _high_water(result: CallResult, arena: int) -> int:
    ends = [
        span[1]
        for touched in result.touched
        if touched.window.base == arena
        for span in (touched.written, touched.read)
        if span is not None
    ]
    return max(ends, default=arena) - arena
