"""A simulated microcontroller: a CPU, memory regions with exact sizes, memory-mapped devices, and exact observation."""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import unicorn
from unicorn import arm_const
from unicorn.unicorn_py3 import unicorn as binding
from unicorn.unicorn_py3.unicorn import Uc, UcError

from tinymlaas_simulator import _hook
from tinymlaas_simulator.cpus import Arch, Cpu, cpu_named
from tinymlaas_simulator.errors import Fault, FaultKind, SimulatorError
from tinymlaas_simulator.exceptions import ARM_INTERRUPTS, MEMORY_ERRORS, RV_INTERRUPTS
from tinymlaas_simulator.registers import Registers
from tinymlaas_simulator.scan import refused_instruction
from tinymlaas_simulator.values import PAGE, CallResult, Charged, Device, Region, Touched, Window, check_layout

DEFAULT_INSTRUCTION_LIMIT = 2_000_000_000
_OVERFLOW_REACH = 512
_TRANSLATION_BYTES = 32 << 20
# No block of code that the emulator translates at once is longer.
_BLOCK_REACH = 4096
_RETURN_STUB = 0x1FFF_0000
_STACK_ALIGN = {Arch.THUMB: 8, Arch.RISCV32: 16}
_PERMS = {"r": unicorn.UC_PROT_READ, "w": unicorn.UC_PROT_WRITE, "x": unicorn.UC_PROT_EXEC}
_NOTHING = 0xFFFF_FFFF_FFFF_FFFF


class _Closed:
    """Stands where the emulator was, so that a closed machine raises instead of touching freed memory."""

    def __getattr__(self, name: str) -> Any:
        raise SimulatorError("MACHINE_CLOSED", "the machine was closed", help="make a new one")


class Machine:
    """A simulated microcontroller whose regions, devices and CPU refuse what the hardware would.

    Enforced: unmapped and protected accesses to the byte, instruction set and FPU of the CPU, alignment (all accesses
    on Armv6-M and RV32; multiple, dual, exclusive and FPU accesses elsewhere; the fault address is not known on
    Armv6-M), the instruction limit. Not modelled: time, interrupts, caches, the MPU, TrustZone, privilege.
    Without `check_accesses` the machine runs many times faster, and only whole pages protect memory: accesses inside them,
    alignment and the deepest stack write go unseen. It is for code that was seen to behave with the checks on.
    With `count_traffic` (and checks) the bytes that each instruction moves are counted, see `traffic`.

    After a Fault the machine is dead: further runs raise the same.
    """

    def __init__(
        self,
        cpu: str | Cpu,
        regions: Sequence[Region],
        devices: Sequence[Device] = (),
        *,
        check_accesses: bool = True,
        count_traffic: bool = False,
    ) -> None:
        self.cpu = cpu_named(cpu) if isinstance(cpu, str) else cpu
        self.regions = tuple(regions)
        self.devices = tuple(devices)
        self._fault: Fault | None = None
        self._pending: BaseException | None = None
        self._interrupt: int | None = None
        self._invalid_address: int | None = None
        self._native = _hook.load()
        thumb = self.cpu.arch is Arch.THUMB
        self._engine: Any = Uc(
            unicorn.UC_ARCH_ARM if thumb else unicorn.UC_ARCH_RISCV,
            unicorn.UC_MODE_THUMB if thumb else unicorn.UC_MODE_RISCV32,
            cpu=self.cpu.model,
        )
        self._registers = Registers(self.cpu, self._engine)
        self._engine.ctl_set_tcg_buffer_size(_TRANSLATION_BYTES)
        self._memory: dict[str, tuple[mmap.mmap, int]] = {}
        self._map_memory()
        self._state = _hook.State()
        self._state.alignment = self.cpu.alignment
        self._state.stop = ctypes.cast(binding.uclib.uc_emu_stop, ctypes.c_void_p).value
        self._state.read_register = ctypes.cast(binding.uclib.uc_reg_read, ctypes.c_void_p).value
        self._state.write_register = ctypes.cast(binding.uclib.uc_reg_write, ctypes.c_void_p).value
        self._state.xpsr = arm_const.UC_ARM_REG_XPSR if "thumb2" in self.cpu.features else 0
        self._moved: dict[str, npt.NDArray[np.uint64]] = {}
        self._counts = self._make_segments()
        if count_traffic:
            self._count_traffic()
        self._hook_ids: list[ctypes.c_size_t] = []
        self._install(unicorn.UC_HOOK_CODE, self._native.sim_on_code)
        if check_accesses:
            self._install(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, self._native.sim_on_memory)
        self._engine.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)
        self._engine.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid_access)

    def close(self) -> None:
        """Free the emulator's memory; the machine cannot be used afterwards. Repeatable.

        The emulator and its callbacks refer to each other from native code, so nothing else frees it in time.
        """
        if not isinstance(self._engine, _Closed):
            self._engine._Uc__finalizer()
            self._engine = _Closed()
            self._registers = Registers(self.cpu, self._engine)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- memory -----------------------------------------------------------------------------------------------

    def _map_memory(self) -> None:
        check_layout(self.regions, self.devices, Region("return stub", _RETURN_STUB, PAGE, "rx"))
        for region in self.regions:
            perms = sum(_PERMS[letter] for letter in region.perms)
            size = -(-region.size // PAGE) * PAGE
            memory = mmap.mmap(-1, size)
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self._engine.mem_map_ptr(region.base, size, perms, address)
            self._memory[region.name] = (memory, address)
        self._engine.mem_map(_RETURN_STUB, PAGE, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        for device in self.devices:
            self._engine.mmio_map(device.base, device.size, self._reader(device), None, self._writer(device), None)

    def _reader(self, device: Device) -> Callable[[object, int, int, object], int]:
        def read(_engine: object, offset: int, size: int, _user: object) -> int:
            if self._pending is not None:
                return 0
            try:
                return device.read(offset, size)
            except BaseException as error:
                self._abandon(error)
                return 0

        return read

    def _writer(self, device: Device) -> Callable[[object, int, int, int, object], None]:
        def write(_engine: object, offset: int, size: int, value: int, _user: object) -> None:
            if self._pending is not None:
                return
            try:
                device.write(offset, size, value)
            except BaseException as error:
                self._abandon(error)

        return write

    def _abandon(self, error: BaseException) -> None:
        """Stop at once: the state's reason keeps any further instruction from running."""
        self._pending = error
        self.request_stop()

    def request_stop(self) -> None:
        """Stop the run after the present instruction; only from a device callback.

        The native observer stops the CPU when the next instruction comes: stopping it right here would leave the
        program counter on the present one, which would then run twice.
        """
        if self._state.reason == _hook.STOP_NONE:
            self._state.reason = _hook.STOP_REQUESTED

    def load(self, address: int, data: bytes) -> None:
        """Put bytes into memory as a programmer or debug probe would: permissions do not apply, bounds do."""
        region = self._region_of(address, len(data))
        self._alive()
        offset = address - region.base
        self._memory[region.name][0][offset : offset + len(data)] = data
        if region.name in self._counts and data:
            self._forget_code(region, offset, len(data))

    def _forget_code(self, region: Region, offset: int, size: int) -> None:
        """Drop what the emulator translated from replaced code. It is costly, so only where something near by ran."""
        _, executed, _ = self._counts[region.name]
        checked = self._checked[region.name]
        replaced = slice(offset // 2, (offset + size + 1) // 2)
        near = slice(max(0, offset - _BLOCK_REACH) // 2, replaced.stop)
        if executed[near].any() or checked[near].any():
            self._engine.ctl_remove_cache(region.base + max(0, offset - _BLOCK_REACH), region.base + offset + size)
        checked[replaced] = False

    def _alive(self) -> None:
        if isinstance(self._engine, _Closed):
            raise SimulatorError("MACHINE_CLOSED", "the machine was closed", help="make a new one")

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes of memory from `address`; they must lie in one region."""
        region = self._region_of(address, size)
        self._alive()
        offset = address - region.base
        return self._memory[region.name][0][offset : offset + size]

    def _region_of(self, address: int, size: int) -> Region:
        for region in self.regions:
            if region.base <= address and size >= 0 and address + size <= region.end:
                return region
        raise SimulatorError(
            "ADDRESS_INVALID",
            f"{size} bytes at {address:#x} lie in no region",
            metadata={"address": f"{address:#x}", "size": str(size)},
            help="see Machine.regions",
        )

    # --- counting ---------------------------------------------------------------------------------------------

    def _make_segments(self) -> dict[str, tuple[Region, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]:
        code = [region for region in self.regions if "x" in region.perms]
        if len(code) > _hook.MAX_SEGMENTS:
            raise SimulatorError("REGION_INVALID", f"more than {_hook.MAX_SEGMENTS} executable regions")
        made: dict[str, tuple[Region, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = {}
        for index, region in enumerate(code):
            executed = np.zeros((region.size + 1) // 2 + 1, dtype=np.uint64)
            taken = np.zeros_like(executed)
            segment = self._state.segments[index]
            segment.base, segment.end = region.base, region.end
            segment.executed, segment.taken = executed.ctypes.data, taken.ctypes.data
            segment.code = self._memory[region.name][1]
            made[region.name] = (region, executed, taken)
        self._state.segment_count = len(code)
        self._checked = {name: np.zeros(len(entry[1]), dtype=bool) for name, entry in made.items()}
        return made

    def _count_traffic(self) -> None:
        for index, (name, (_, executed, _)) in enumerate(self._counts.items()):
            moved = np.zeros((len(executed), _hook.MOVED_RANGES, 2), dtype=np.uint64)
            self._state.segments[index].moved = moved.ctypes.data
            self._moved[name] = moved

    def traffic(self, region: str, window: int) -> npt.NDArray[np.uint64]:
        """Give bytes read and written (columns) by the instruction at each halfword (rows) of an executable region.

        `window` is the place of the accessed window in the run: 0 is the stack of a `call` that has one, the given
        windows follow; the first four are counted, since the machine was made.
        """
        return self._moved[region][:, window].copy()

    def charge(self, base: int, owners: npt.NDArray[np.uint16], count: int) -> "Charged":
        """Charge what runs from `base` on to owners 0 to `count` - 1, and give the live counters.

        `owners` has for each halfword the owner plus one, or 0 for code that several share: that is charged to the owner
        that ran last, thus to its caller.
        """
        halves = len(owners)
        charged = Charged(
            owners,
            np.zeros((count, halves), dtype=np.uint64),
            np.zeros((count, halves), dtype=np.uint64),
            np.zeros((count, _hook.MOVED_RANGES, 2), dtype=np.uint64),
        )
        self._charged = charged
        self._state.owners = _hook.Owners(
            base,
            base + 2 * halves,
            halves,
            charged.owners.ctypes.data,
            charged.executed.ctypes.data,
            charged.taken.ctypes.data,
            charged.moved.ctypes.data,
            count - 1,
        )
        return charged

    def histogram(self, region: str) -> npt.NDArray[np.uint64]:
        """Give how often the instruction at each halfword of an executable region ran since the last `reset_counts`."""
        return self._counts[region][1].copy()

    def taken(self, region: str) -> npt.NDArray[np.uint64]:
        """Give how often control left the instruction at each halfword elsewhere than to the one after it."""
        return self._counts[region][2].copy()

    def reset_counts(self) -> None:
        """Set histograms to zero."""
        for _, executed, taken in self._counts.values():
            executed[:] = 0
            taken[:] = 0

    def instructions_in(self, begin: int, end: int) -> int:
        """Give the exact number of instructions executed in [begin, end), for instance the range of a symbol."""
        total = 0
        for region, executed, _ in self._counts.values():
            first, last = max(begin, region.base), min(end, region.end)
            if first < last:
                total += int(executed[(first - region.base + 1) // 2 : (last - region.base + 1) // 2].sum())
        return total

    def _install(self, kind: int, function: object) -> None:
        handle = ctypes.c_size_t()
        status = binding.uclib.uc_hook_add(
            self._engine._uch,
            ctypes.byref(handle),
            kind,
            ctypes.cast(function, ctypes.c_void_p),  # type: ignore[arg-type]
            ctypes.cast(ctypes.pointer(self._state), ctypes.c_void_p),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        if status != unicorn.UC_ERR_OK:
            raise SimulatorError("HOOK_BUILD_FAILED", f"the emulator refused a hook: {status}")
        self._hook_ids.append(handle)

    # --- running ----------------------------------------------------------------------------------------------

    def call(
        self,
        address: int,
        args: Sequence[int] = (),
        *,
        stack_top: int,
        stack_bytes: int | None = None,
        windows: Sequence[Window] | None = None,
        instruction_limit: int = DEFAULT_INSTRUCTION_LIMIT,
        check_abi: bool = True,
    ) -> CallResult:
        """Call the function at `address` (no Thumb bit) with up to four 32-bit arguments and run until it returns.

        `windows` are the data addresses that it may touch beside its stack [stack_top - stack_bytes, stack_top); by
        default every region by its permissions. Raises Fault, also ABI_VIOLATION when a callee-saved register or the
        stack pointer differs afterwards.
        """
        if len(args) > 4:
            raise SimulatorError("ARGUMENT_INVALID", "at most four arguments in registers")
        if stack_top % _STACK_ALIGN[self.cpu.arch]:
            raise SimulatorError("ARGUMENT_INVALID", f"stack top {stack_top:#x} is not aligned")
        stack = Window(stack_top - stack_bytes, stack_bytes, "rw") if stack_bytes is not None else None
        spans = [*(self._default_windows() if windows is None else windows)]
        if stack is not None:
            spans.insert(0, stack)
        marks = self._registers.enter(list(args), _RETURN_STUB, stack_top)
        before = self._run(address, spans, stack, instruction_limit)
        if self._state.reason != _hook.STOP_REQUESTED and check_abi:
            self._registers.check_left(marks, stack_top, int(self._state.pc))
        return self._result(before, spans, stack, stack_top)

    def resume(
        self, *, windows: Sequence[Window] | None = None, instruction_limit: int = DEFAULT_INSTRUCTION_LIMIT
    ) -> CallResult:
        """Run on from the program counter until a device requests a stop; `stopped` is then True."""
        spans = [*(self._default_windows() if windows is None else windows)]
        before = self._run(self.program_counter, spans, None, instruction_limit)
        return self._result(before, spans, None, 0)

    def _default_windows(self) -> list[Window]:
        perms = {region: "".join(letter for letter in region.perms if letter in "rw") for region in self.regions}
        return [Window(region.base, region.size, perms[region]) for region in self.regions if perms[region]]

    def _run(self, address: int, spans: Sequence[Window], stack: Window | None, limit: int) -> int:
        if self._fault is not None:
            raise self._fault
        self._alive()
        state = self._state
        device_spans = [Window(device.base, device.size, "rw") for device in self.devices]
        every = [*spans, *device_spans]
        if len(every) > _hook.MAX_RANGES:
            raise SimulatorError("ARGUMENT_INVALID", f"more than {_hook.MAX_RANGES} windows")
        for index, window in enumerate(every):
            state.ranges[index] = _hook.Range(
                window.base,
                window.base + window.size,
                _NOTHING,
                0,
                _NOTHING,
                0,
                int("r" in window.perms) | 2 * int("w" in window.perms),
                0,
            )
        state.range_count = len(every)
        before = int(state.instructions)
        state.limit = before + limit
        state.reason = _hook.STOP_NONE
        state.pc = state.pc_size = state.it_left = 0
        self._interrupt = None
        self._invalid_address = None
        self._pending = None
        error: UcError | None = None
        try:
            self._engine.emu_start(address | int(self.cpu.arch is Arch.THUMB), _RETURN_STUB)
        except UcError as raised:
            error = raised
        self._raise_if_faulted(error, stack, before)
        return before

    def _raise_if_faulted(self, error: UcError | None, stack: Window | None, before: int) -> None:
        state = self._state
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._fault = Fault(FaultKind.DEVICE_FAULT, str(pending), pc=state.pc)
            raise pending
        ran = int(state.instructions) - before
        kind: FaultKind | None = None
        detail, address = "", None
        if state.reason == _hook.STOP_LIMIT:
            kind, detail = FaultKind.INSTRUCTION_LIMIT, f"still running after {ran} instructions"
        elif state.reason == _hook.STOP_MISALIGNED:
            address = int(state.fault_address)
            kind, detail = FaultKind.MISALIGNED, f"{state.fault_size}-byte access on {self.cpu.name}"
        elif state.reason == _hook.STOP_RANGE:
            address = int(state.fault_address)
            kind = self._classify_access(address, bool(state.fault_is_write), stack)
            detail = f"{state.fault_size} bytes"
        elif self._interrupt is not None:
            table = ARM_INTERRUPTS if self.cpu.arch is Arch.THUMB else RV_INTERRUPTS
            kind, detail = table.get(self._interrupt, (FaultKind.INVALID_STATE, f"exception {self._interrupt}"))
        elif error is not None:
            kind = MEMORY_ERRORS.get(error.errno, FaultKind.INVALID_STATE)
            detail = str(error)
            address = self._invalid_address
            if address is not None and kind in (FaultKind.READ_UNMAPPED, FaultKind.WRITE_UNMAPPED):
                kind = self._classify_access(address, kind is FaultKind.WRITE_UNMAPPED, stack)
        elif state.reason == _hook.STOP_NONE and self.program_counter != _RETURN_STUB:
            kind, detail = FaultKind.STALLED, "waits for an interrupt that never comes"
        refused = self._first_refused()
        if refused is not None:
            self._fault = Fault(FaultKind.UNSUPPORTED_INSTRUCTION, refused[1], pc=refused[0], instructions=ran)
        elif kind is not None:
            self._fault = Fault(kind, detail, pc=int(state.pc), address=address, instructions=ran)
        if self._fault is not None:
            raise self._fault

    def _classify_access(self, address: int, is_write: bool, stack: Window | None) -> FaultKind:
        below = stack is not None and address < stack.base and self.stack_pointer < stack.base + _OVERFLOW_REACH
        if below and address >= self.stack_pointer - _OVERFLOW_REACH:
            return FaultKind.STACK_OVERFLOW
        region = next((r for r in self.regions if r.base <= address < r.end), None)
        if region is None:
            return FaultKind.WRITE_UNMAPPED if is_write else FaultKind.READ_UNMAPPED
        if is_write and "w" not in region.perms:
            return FaultKind.WRITE_PROTECTED
        return FaultKind.WRITE_OUT_OF_BOUNDS if is_write else FaultKind.READ_OUT_OF_BOUNDS

    def _first_refused(self) -> tuple[int, str] | None:
        """Look at each newly executed instruction for what the emulator lets through but this CPU would not."""
        for name, (region, executed, _) in self._counts.items():
            checked = self._checked[name]
            fresh = np.flatnonzero((executed > 0) & ~checked)
            if not fresh.size:
                continue
            checked[fresh] = True
            code = self._memory[region.name][0][: region.size] + b"\0\0\0\0"
            for index in fresh:
                reason = refused_instruction(self.cpu, code, 2 * int(index))
                if reason is not None:
                    return region.base + 2 * int(index), reason
        return None

    def _on_invalid_access(
        self, _engine: object, _access: int, address: int, _size: int, _value: int, _user: object
    ) -> bool:
        if self._invalid_address is None:
            self._invalid_address = address
        return False

    def _on_interrupt(self, _engine: object, number: int, _user: object) -> None:
        if self._interrupt is None:
            self._interrupt = number
        self.request_stop()
        self._engine.emu_stop()

    def _result(self, before: int, spans: Sequence[Window], stack: Window | None, stack_top: int) -> CallResult:
        state = self._state
        touched = []
        for index, window in enumerate(spans):
            span = state.ranges[index]
            written = (span.lowest_write, span.highest_write) if span.highest_write else None
            read = (span.lowest_read, span.highest_read) if span.highest_read else None
            touched.append(Touched(window, written, read))
        peak = stack_top - touched[0].written[0] if stack is not None and touched[0].written else 0
        return CallResult(
            return_value=self._registers.result,
            instructions=int(state.instructions) - before,
            stack_peak_bytes=peak,
            touched=tuple(touched),
            stopped=state.reason == _hook.STOP_REQUESTED,
        )

    # --- registers --------------------------------------------------------------------------------------------

    @property
    def program_counter(self) -> int:
        """The address of the next instruction."""
        return self._registers.program_counter

    def start_at(self, address: int, stack_pointer: int) -> None:
        """Set program counter and stack pointer, as a reset does; `resume` then runs."""
        self.stack_pointer = stack_pointer
        self._registers.program_counter = address

    @property
    def stack_pointer(self) -> int:
        """The stack pointer."""
        return self._registers.stack_pointer

    @stack_pointer.setter
    def stack_pointer(self, value: int) -> None:
        self._registers.stack_pointer = value
