"""What real hardware, or the payload ABI, forbids stops the program with its kind, address and pc."""

import struct
from collections.abc import Callable

import pytest

from tinymlaas_simulator import CPUS, RAM_BASE, DoesNotFit, Fault, FaultKind, SimulatorError, run_native
from tinymlaas_simulator.cpus import cpu_named
from tinymlaas_simulator.scan import refused_instruction

Builder = Callable[..., bytes]
ARM = sorted(name for name in CPUS if name.startswith("cortex"))


def run(image: bytes, cpu: str, *, limit: int = 10_000, arena: int = 32, stack: int = 64, ram: int = 2048) -> int:
    return run_native(
        image,
        cpu=cpu,
        entry_offset=0,
        arena_bytes=arena,
        stack_limit=stack,
        inputs={},
        outputs=[],
        ram_bytes=ram,
        flash_bytes=4096,
        instruction_limit=limit,
    ).return_value


def thumb(*halves: int) -> bytes:
    return struct.pack(f"<{len(halves)}H", *halves)


def fault_of(image: bytes, cpu: str, **options: int) -> Fault:
    with pytest.raises(Fault) as caught:
        run(image, cpu, **options)
    assert caught.value.reason == caught.value.kind.value
    assert caught.value.metadata["kind"] == caught.value.kind.value
    return caught.value


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_a_write_past_the_arena_is_stopped_at_its_first_byte(build: Builder, cpu: str) -> None:
    image = build(cpu, "int entry(volatile unsigned char *a) { for (int i = 0; ; i++) a[i] = 1; }")
    fault = fault_of(image, cpu, arena=21)
    assert fault.kind is FaultKind.WRITE_OUT_OF_BOUNDS
    assert fault.address == RAM_BASE + 21


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_a_read_outside_payload_arena_and_stack_is_stopped(build: Builder, cpu: str) -> None:
    image = build(cpu, "int entry(volatile unsigned char *a) { return a[40]; }")
    fault = fault_of(image, cpu)
    assert fault.kind is FaultKind.READ_OUT_OF_BOUNDS
    assert fault.address == RAM_BASE + 40


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_an_unmapped_address_is_stopped(build: Builder, cpu: str) -> None:
    read = fault_of(build(cpu, "int entry(void *a) { return *(volatile int *)0x50000000; }"), cpu)
    assert (read.kind, read.address) == (FaultKind.READ_UNMAPPED, 0x5000_0000)
    write = fault_of(build(cpu, "int entry(void *a) { *(volatile int *)0x50000000 = 1; return 0; }"), cpu)
    assert (write.kind, write.address) == (FaultKind.WRITE_UNMAPPED, 0x5000_0000)
    jump = fault_of(build(cpu, "int entry(void *a) { return ((int (*)(void))0x50000001)(); }"), cpu)
    assert jump.kind in (FaultKind.FETCH_UNMAPPED, FaultKind.FETCH_PROTECTED, FaultKind.MISALIGNED)


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_a_write_to_flash_is_stopped(build: Builder, cpu: str) -> None:
    image = build(cpu, "int entry(void *a) { *(volatile int *)0x08000000 = 1; return 0; }")
    assert fault_of(image, cpu).kind is FaultKind.WRITE_PROTECTED


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_code_in_ram_is_not_executed(build: Builder, cpu: str) -> None:
    source = "int entry(unsigned char *a) { return ((int (*)(void))((unsigned)a | THUMB))(); }"
    image = build(cpu, source, options=("-DTHUMB=0" if cpu == "rv32imc" else "-DTHUMB=1",))
    assert fault_of(image, cpu).kind is FaultKind.FETCH_PROTECTED


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_a_stack_that_grows_past_its_bound_is_an_overflow(build: Builder, cpu: str) -> None:
    image = build(
        cpu,
        """
        __attribute__((noinline)) static int deep(volatile int n) {
            volatile int pad[8]; pad[0] = n; return n ? deep(n - 1) + pad[0] : 0;
        }
        int entry(void *a) { return deep(100); }""",
    )
    fault = fault_of(image, cpu, stack=256)
    assert fault.kind is FaultKind.STACK_OVERFLOW
    assert fault.address is not None
    assert fault.address < RAM_BASE + 2048 - 256


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_an_endless_loop_ends_at_the_instruction_limit(build: Builder, cpu: str) -> None:
    fault = fault_of(build(cpu, 'int entry(void *a) { for (;;) __asm__ volatile (""); }'), cpu, limit=12_345)
    assert fault.kind is FaultKind.INSTRUCTION_LIMIT
    assert fault.instructions == 12_345


@pytest.mark.parametrize("cpu", ARM)
def test_undefined_and_system_instructions_are_told_apart(cpu: str) -> None:
    assert fault_of(thumb(0xDE00), cpu).kind is FaultKind.UNDEFINED_INSTRUCTION
    assert fault_of(thumb(0xDF00, 0x4770), cpu).kind is FaultKind.SUPERVISOR_CALL
    assert fault_of(thumb(0xBE00, 0x4770), cpu).kind is FaultKind.BREAKPOINT
    assert fault_of(thumb(0xBF30, 0x4770), cpu).kind is FaultKind.STALLED


def test_riscv_system_and_missing_extensions_are_refused() -> None:
    def word(value: int) -> bytes:
        return struct.pack("<I", value) + struct.pack("<H", 0x8082)

    assert fault_of(word(0x0000_0073), "rv32imc").kind is FaultKind.SUPERVISOR_CALL
    assert fault_of(word(0x0000_0000), "rv32imc").kind is FaultKind.UNDEFINED_INSTRUCTION
    assert fault_of(word(0x00B5_7553), "rv32imc").kind is FaultKind.UNDEFINED_INSTRUCTION  # fadd.s
    assert fault_of(word(0x00A5_252F), "rv32imc").kind is FaultKind.UNSUPPORTED_INSTRUCTION  # amoadd.w
    assert fault_of(word(0xC000_2573), "rv32imc").kind is FaultKind.UNSUPPORTED_INSTRUCTION  # rdcycle


MISALIGNED_WORD = thumb(0x3001, 0x6801, 0x2000, 0x4770)  # adds r0,#1; ldr r1,[r0]; movs r0,#0; bx lr
MISALIGNED_MULTIPLE = thumb(0x3001, 0xC806, 0x2000, 0x4770)  # ldm r0!,{r1,r2}
MISALIGNED_DUAL = thumb(0x3001, 0xE9D0, 0x1200, 0x2000, 0x4770)  # ldrd r1,r2,[r0]
MISALIGNED_FPU = thumb(0x3001, 0xED90, 0x0A00, 0x2000, 0x4770)  # vldr s0,[r0]


@pytest.mark.parametrize("cpu", ARM)
def test_alignment_is_what_the_architecture_asks(cpu: str) -> None:
    if cpu == "cortex-m0plus":
        fault = fault_of(MISALIGNED_WORD, cpu)
        assert (fault.kind, fault.address) == (FaultKind.MISALIGNED, None)
    else:
        assert run(MISALIGNED_WORD, cpu) == 0
        assert fault_of(MISALIGNED_DUAL, cpu).kind is FaultKind.MISALIGNED
    assert fault_of(MISALIGNED_MULTIPLE, cpu).kind is FaultKind.MISALIGNED
    if CPUS[cpu].has_fpu:
        assert fault_of(MISALIGNED_FPU, cpu).kind is FaultKind.MISALIGNED


def test_riscv_loads_must_be_aligned(build: Builder) -> None:
    image = build("rv32imc", ".section .text.entry\n.global entry\nentry: lw a1, 1(a0)\n ret", assembly=True)
    assert fault_of(image, "rv32imc").kind is FaultKind.MISALIGNED


THUMB2 = thumb(0xEB00, 0x0001, 0x2000, 0x4770)  # add.w r0,r0,r1
DSP = {
    "smlad": (0xFB21, 0x3002),
    "smuad": (0xFB21, 0xF002),
    "smmla": (0xFB51, 0x3002),
    "smlalbb": (0xFBC1, 0x2083),
    "sxtb16": (0xFA2F, 0xF081),
    "sxtab": (0xFA41, 0xF082),
    "qadd": (0xFA81, 0xF082),
    "sadd16": (0xFA91, 0xF002),
    "sel": (0xFAA1, 0xF082),
    "pkhbt": (0xEAC1, 0x0002),
    "ssat16": (0xF321, 0x0007),
    "umaal": (0xFBE1, 0x2063),
}
NOT_DSP = {
    "mla": (0xFB01, 0x3002),
    "mls": (0xFB01, 0x3012),
    "mul": (0xFB01, 0xF002),
    "smull": (0xFB81, 0x2003),
    "umull": (0xFBA1, 0x2003),
    "smlal": (0xFBC1, 0x2003),
    "umlal": (0xFBE1, 0x2003),
    "sdiv": (0xFB91, 0xF0F2),
    "udiv": (0xFBB1, 0xF0F2),
    "sxtb.w": (0xFA4F, 0xF081),
    "uxth.w": (0xFA1F, 0xF081),
    "lsl.w": (0xFA01, 0xF002),
    "ror.w": (0xFA61, 0xF002),
    "clz": (0xFAB1, 0xF081),
    "rbit": (0xFA91, 0xF0A1),
    "rev.w": (0xFA91, 0xF081),
    "ssat asr": (0xF321, 0x1007),
    "usat": (0xF381, 0x0007),
    "bl": (0xF000, 0xF801),
    "orr.w": (0xEA41, 0x0002),
}
SINGLE = thumb(0xEE30, 0x0A00, 0x2000, 0x4770)  # vadd.f32 s0,s0,s0
DOUBLE = thumb(0xEE30, 0x0B00, 0x2000, 0x4770)  # vadd.f64 d0,d0,d0
MVE = thumb(0xEF20, 0x0840, 0x2000, 0x4770)  # vadd.i32 q0,q0,q0


@pytest.mark.parametrize("cpu", ARM)
def test_instructions_that_the_cpu_lacks_are_refused(cpu: str) -> None:
    features = CPUS[cpu].features

    def admitted(image: bytes) -> bool:
        try:
            return run(image, cpu) == 0
        except Fault as fault:
            if fault.kind in (FaultKind.UNDEFINED_INSTRUCTION, FaultKind.UNSUPPORTED_INSTRUCTION):
                return False
            raise

    assert admitted(THUMB2) is ("thumb2" in features)
    assert admitted(SINGLE) is ("fpu-sp" in features)
    assert not admitted(DOUBLE)
    assert not admitted(MVE)
    for name in ("smlad", "sxtb16", "qadd", "pkhbt", "umaal"):
        assert admitted(thumb(*DSP[name], 0x2000, 0x4770)) is ("dsp" in features), name


@pytest.mark.parametrize("name", sorted(DSP))
def test_the_dsp_extension_is_recognized_on_cortex_m3(name: str) -> None:
    assert refused_instruction(cpu_named("cortex-m3"), thumb(*DSP[name]), 0) is not None
    assert refused_instruction(cpu_named("cortex-m4"), thumb(*DSP[name]), 0) is None


@pytest.mark.parametrize("name", sorted(NOT_DSP))
def test_base_thumb2_instructions_are_admitted_on_cortex_m3(name: str) -> None:
    assert refused_instruction(cpu_named("cortex-m3"), thumb(*NOT_DSP[name]), 0) is None


def test_a_callee_saved_register_that_is_not_restored_breaks_the_abi() -> None:
    assert fault_of(thumb(0x2400, 0x4770), "cortex-m4").kind is FaultKind.ABI_VIOLATION  # movs r4,#0
    assert fault_of(thumb(0xB082, 0x4770), "cortex-m4").kind is FaultKind.ABI_VIOLATION  # sub sp,#8


def test_a_payload_that_depends_on_its_address_is_refused() -> None:
    by_address = thumb(0x4678, 0x4770)  # mov r0, pc; bx lr
    assert fault_of(by_address, "cortex-m4").kind is FaultKind.POSITION_DEPENDENT
    by_leftovers = thumb(0x7800, 0x4770)  # ldrb r0,[r0]: an arena byte that nobody wrote
    assert fault_of(by_leftovers, "cortex-m4").kind is FaultKind.POSITION_DEPENDENT


def test_memory_that_is_too_small_is_told_with_numbers() -> None:
    with pytest.raises(DoesNotFit) as ram:
        run(thumb(0x4770), "cortex-m4", arena=2000, stack=64)
    assert ram.value.metadata == {"region": "ram", "need": "2064", "have": "2048"}
    with pytest.raises(DoesNotFit) as flash:
        run(bytes(4098), "cortex-m4")
    assert flash.value.metadata["region"] == "flash"


def test_an_unknown_cpu_is_named_with_the_known_ones() -> None:
    with pytest.raises(SimulatorError) as caught:
        run(thumb(0x4770), "cortex-m99")
    assert caught.value.reason == "TARGET_UNSUPPORTED"
    assert "cortex-m4" in caught.value.help


def test_arguments_outside_the_arena_are_refused() -> None:
    with pytest.raises(SimulatorError) as caught:
        run_native(
            thumb(0x4770),
            cpu="cortex-m4",
            entry_offset=0,
            arena_bytes=16,
            stack_limit=64,
            inputs={12: b"12345"},
            outputs=[],
            ram_bytes=2048,
            flash_bytes=4096,
        )
    assert caught.value.reason == "ARGUMENT_INVALID"
