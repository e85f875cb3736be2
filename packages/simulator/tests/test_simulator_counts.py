"""Instruction counts, histograms, stack and outputs are exact, and the same every time."""

import struct
from collections.abc import Callable

import pytest

from tinymlaas_simulator import (
    CPUS,
    FLASH_BASE,
    RAM_BASE,
    CodeRange,
    SimulatorError,
    Traffic,
    run_native,
    standard_machine,
)

Builder = Callable[..., bytes]

THUMB_LOOP = """
.syntax unified
.thumb
.section .text.entry
.global entry
.thumb_func
entry:
    push {r4, r5, r6, lr}
    movs r1, #0
    movs r2, #10
loop:
    adds r1, r1, r2
    subs r2, r2, #1
    bne loop
    str r1, [r0]
    movs r0, #0
    pop {r4, r5, r6, pc}
"""
RISCV_LOOP = """
.section .text.entry
.global entry
entry:
    addi sp, sp, -16
    sw ra, 12(sp)
    li a1, 0
    li a2, 10
loop:
    add a1, a1, a2
    addi a2, a2, -1
    bnez a2, loop
    sw a1, 0(a0)
    li a0, 0
    lw ra, 12(sp)
    addi sp, sp, 16
    ret
"""
SUM = """
signed int entry(unsigned char *arena) {
    const signed char *values = (const signed char *)arena;
    int total = 0;
    for (int i = 0; i < 64; i++) total += values[i] * (i + 1);
    *(int *)(arena + 64) = total;
    return 7;
}
"""


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_every_instruction_of_a_loop_is_counted_once(build: Builder, cpu: str) -> None:
    riscv = cpu == "rv32imc"
    image = build(cpu, RISCV_LOOP if riscv else THUMB_LOOP, assembly=True)
    run = run_native(
        image,
        cpu=cpu,
        entry_offset=0,
        arena_bytes=16,
        stack_limit=64,
        inputs={},
        outputs=[(0, 4)],
        ram_bytes=1024,
        flash_bytes=4096,
    )
    assert run.outputs == (struct.pack("<i", 55),)
    assert run.instructions == (4 + 3 * 10 + 5 if riscv else 3 + 3 * 10 + 3)
    assert run.stack_peak_bytes == (4 if riscv else 16)
    assert run.arena_high_water == 4
    assert int(run.executed.sum()) == run.instructions
    loop = sorted(int(count) for count in run.executed if count)
    assert loop.count(10) == 3
    assert int(run.taken.max()) == 9


@pytest.mark.parametrize("cpu", sorted(CPUS))
def test_c_code_gives_the_same_output_and_count_on_every_run(build: Builder, cpu: str) -> None:
    image = build(cpu, SUM)
    values = bytes((i * 37) & 0xFF for i in range(64))
    expected = sum(struct.unpack("<64b", values)[i] * (i + 1) for i in range(64))
    runs = [
        run_native(
            image,
            cpu=cpu,
            entry_offset=0,
            arena_bytes=68,
            stack_limit=128,
            inputs={0: values},
            outputs=[(64, 4)],
            ram_bytes=2048,
            flash_bytes=4096,
        )
        for _ in range(2)
    ]
    assert runs[0].outputs == (struct.pack("<i", expected),)
    assert runs[0].return_value == 7
    assert runs[0].instructions == runs[1].instructions > 64 * 4
    assert runs[0].estimated_cycles == runs[1].estimated_cycles >= runs[0].instructions


def test_instructions_of_one_symbol_are_told_apart(build: Builder) -> None:
    source = """
    .syntax unified
    .thumb
    .section .text.entry
    .global entry
    .thumb_func
    entry:
        push {r4, lr}
        bl inner
        bl inner
        pop {r4, pc}
    .thumb_func
    inner:
        movs r0, #0
        nop
        bx lr
    """
    image = build("cortex-m0plus", source, assembly=True)
    run = run_native(
        image,
        cpu="cortex-m0plus",
        entry_offset=0,
        arena_bytes=0,
        stack_limit=32,
        inputs={},
        outputs=[],
        ram_bytes=1024,
        flash_bytes=4096,
    )
    assert run.instructions_in(0, 12) == 4
    assert run.instructions_in(12, 18) == 6


def test_estimated_cycles_follow_the_documented_costs(build: Builder) -> None:
    source = """
    .syntax unified
    .thumb
    .section .text.entry
    .global entry
    .thumb_func
    entry:
        ldr r1, [r0]
        ldr r2, [r0, #4]
        adds r1, r1, r2
        ldm r0!, {r1, r2, r3}
        movs r0, #0
        bx lr
    """
    figures = {}
    for cpu in ("cortex-m0plus", "cortex-m4"):
        image = build(cpu, source, assembly=True)
        figures[cpu] = run_native(
            image,
            cpu=cpu,
            entry_offset=0,
            arena_bytes=16,
            stack_limit=32,
            inputs={0: bytes(16)},
            outputs=[],
            ram_bytes=1024,
            flash_bytes=4096,
        ).estimated_cycles
    # The return leaves the payload, so it counts as not taken: its branch belongs to the caller.
    assert figures["cortex-m0plus"] == 2 + 2 + 1 + 4 + 1 + 1
    assert figures["cortex-m4"] == 2 + 1 + 1 + 4 + 1 + 1


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4"])
def test_bytes_moved_are_booked_to_the_instruction_and_the_place(build: Builder, cpu: str) -> None:
    source = """
    .syntax unified
    .thumb
    .section .text.entry
    .global entry
    .thumb_func
    entry:
        push {r4, lr}
        bl inner
        ldrb r1, [r0]
        movs r0, #0
        pop {r4, pc}
    .thumb_func
    inner:
        ldr r2, constant
        ldm r0!, {r1, r3}
        strh r1, [r0]
        subs r0, #8
        bx lr
    .align 2
    constant: .word 42
    """
    image = build(cpu, source, assembly=True)
    run = run_native(
        image, cpu=cpu, entry_offset=0, arena_bytes=12, stack_limit=64, inputs={0: bytes(12)}, outputs=[],
        ram_bytes=1024, flash_bytes=4096,
    )  # fmt: skip
    assert run.traffic_in(0, 12) == Traffic(
        arena_read=1, arena_written=0, payload_read=0, stack_read=8, stack_written=8
    )
    assert run.traffic_in(12, len(image)) == Traffic(
        arena_read=8, arena_written=2, payload_read=4, stack_read=0, stack_written=0
    )
    assert run.cycles_in(0, 12) + run.cycles_in(12, len(image)) == run.estimated_cycles


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4"])
def test_shared_code_is_charged_to_whoever_called_it(build: Builder, cpu: str) -> None:
    source = """
    .syntax unified
    .thumb
    .section .text.entry
    .global entry
    .thumb_func
    entry:
        push {r4, lr}
        bl first
        bl second
        movs r0, #0
        pop {r4, pc}
    .thumb_func
    first:
        push {lr}
        bl shared
        pop {pc}
    .thumb_func
    second:
        push {lr}
        bl shared
        bl shared
        pop {pc}
    .thumb_func
    shared:
        ldrb r1, [r0]
        strb r1, [r0]
        bx lr
    """
    image = build(cpu, source, assembly=True)
    first, second, shared = 14, 22, 34
    ranges = [CodeRange(first, second, 0), CodeRange(second, shared, 1), CodeRange(shared, shared + 6, None)]
    run = run_native(
        image, cpu=cpu, entry_offset=0, arena_bytes=4, stack_limit=32, inputs={}, outputs=[],
        ram_bytes=1024, flash_bytes=4096, ranges=ranges,
    )  # fmt: skip
    assert [cost.instructions for cost in run.costs] == [3 + 3, 4 + 6, 5]
    assert sum(cost.estimated_cycles for cost in run.costs) == run.estimated_cycles
    moved = [cost.traffic for cost in run.costs]
    assert [(item.arena_read, item.arena_written, item.stack_written) for item in moved if item] == [
        (1, 1, 4),
        (2, 2, 4),
        (0, 0, 8),
    ]


def test_more_owners_of_code_than_can_be_counted_are_refused(build: Builder) -> None:
    ranges = [CodeRange(0, 2, 70_000)]
    with pytest.raises(SimulatorError) as caught:
        run_native(
            build("cortex-m4", SUM), cpu="cortex-m4", entry_offset=0, arena_bytes=68, stack_limit=128, inputs={},
            outputs=[], ram_bytes=2048, flash_bytes=4096, ranges=ranges,
        )  # fmt: skip
    assert caught.value.reason == "LIMIT_EXCEEDED"


def test_a_run_without_access_checks_saw_no_bytes_move(build: Builder) -> None:
    image = build("cortex-m4", SUM)
    run = run_native(
        image, cpu="cortex-m4", entry_offset=0, arena_bytes=68, stack_limit=128, inputs={}, outputs=[],
        ram_bytes=2048, flash_bytes=4096, check_accesses=False,
    )  # fmt: skip
    assert run.traffic_in(0, len(image)) is None


def test_memory_of_a_machine_is_read_back_as_loaded() -> None:
    machine = standard_machine("cortex-m3", 4096, 8192)
    machine.load(RAM_BASE + 5, b"abc")
    machine.load(FLASH_BASE, b"\x70\x47")
    assert machine.read(RAM_BASE + 5, 3) == b"abc"
    assert machine.call(FLASH_BASE, [41], stack_top=RAM_BASE + 4096, stack_bytes=64).return_value == 41


def test_code_that_is_loaded_again_runs_as_the_new_code() -> None:
    machine = standard_machine("cortex-m3", 4096, 8192)
    for value in (1, 2):
        machine.load(FLASH_BASE, struct.pack("<HH", 0x2000 | value, 0x4770))
        assert machine.call(FLASH_BASE, stack_top=RAM_BASE + 4096, stack_bytes=64).return_value == value


def test_a_closed_machine_refuses_to_run_and_to_be_read() -> None:
    with standard_machine("cortex-m4", 4096, 8192) as machine:
        machine.load(FLASH_BASE, b"\x70\x47")
    for use in (lambda: machine.read(RAM_BASE, 4), lambda: machine.call(FLASH_BASE, stack_top=RAM_BASE + 64)):
        with pytest.raises(SimulatorError) as caught:
            use()
        assert caught.value.reason == "MACHINE_CLOSED"
    machine.close()


def test_a_conditional_load_does_not_make_later_instructions_conditional(build: Builder) -> None:
    source = """
    .syntax unified
    .thumb
    .section .text.entry
    .global entry
    .thumb_func
    entry:
        push {r4, lr}
        movs r1, #5
        bl pick
        mov r2, r0
        movs r3, #40
        adds r3, r3, r2
        str r3, [r4]
        movs r0, #0
        pop {r4, pc}
    .thumb_func
    pick:
        mov r4, r0
        cmp r1, #5
        ite eq
        ldreq r0, [r4]
        movne r0, #4
        bx lr
    """
    image = build("cortex-m4", source, assembly=True)
    run = run_native(
        image,
        cpu="cortex-m4",
        entry_offset=0,
        arena_bytes=16,
        stack_limit=64,
        inputs={0: struct.pack("<i", 2)},
        outputs=[(0, 4)],
        ram_bytes=1024,
        flash_bytes=4096,
    )
    assert run.outputs == (struct.pack("<i", 42),)
    assert run.instructions == 9 + 6
