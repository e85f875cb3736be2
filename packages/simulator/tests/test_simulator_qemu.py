"""Payloads in QEMU: outputs, exact figures and faults as in the built-in emulator; MVE, which only QEMU has."""

from collections.abc import Callable

import numpy as np
import pytest

from tinymlaas_simulator import (
    CPUS,
    QEMU_CPUS,
    QEMU_PROGRAM,
    DoesNotFit,
    Fault,
    FaultKind,
    NativeRun,
    SimulatorError,
    find_qemu,
    run_native,
    run_native_in_qemu,
)

Builder = Callable[..., bytes]
needs_qemu = pytest.mark.skipif(find_qemu() is None, reason=f"{QEMU_PROGRAM} is not installed")
BOTH = sorted(set(QEMU_CPUS) & set(CPUS))

SUM = "int entry(unsigned char *a) { int s = 0; for (int i = 0; i < 16; i++) { a[16 + i] = a[i] * 3; s += a[i]; } return s; }"
# Conditional blocks, calls, a stack frame, every branch both ways.
BRANCHES = """
static int __attribute__((noinline)) fold(const volatile unsigned char *a, int n) {
  volatile int seen[8];
  int s = 0;
  for (int i = 0; i < 8; i++) seen[i] = 0;
  for (int i = 0; i < n; i++) { if (a[i] & 1) s += a[i]; else s -= 2; seen[i & 7] += s; }
  for (int i = 0; i < 8; i++) s += seen[i] > 9 ? seen[i] : 1;
  return s;
}
int entry(unsigned char *a) { return fold(a, 16) + fold(a, 13); }
"""
DOT = """
#include <arm_mve.h>
int entry(signed char *a) { return vmladavq_s8(vldrbq_s8(a), vldrbq_s8(a + 16)); }
"""


def run(image: bytes, cpu: str, *, where: Callable[..., NativeRun] = run_native_in_qemu, **options: int) -> NativeRun:
    settings = {
        "ram_bytes": 2048,
        "flash_bytes": 4096,
        "arena_bytes": 32,
        "stack_limit": 128,
        "instruction_limit": 10_000,
    }
    data = bytes(range(1, 33))[: options.get("arena_bytes", 32)]
    spans = [(16, 16)] if len(data) == 32 else []
    return where(image, cpu=cpu, entry_offset=0, inputs={0: data}, outputs=spans, **{**settings, **options})


def fault_of(image: bytes, cpu: str, **options: int) -> Fault:
    with pytest.raises(Fault) as caught:
        run(image, cpu, **options)
    return caught.value


@needs_qemu
@pytest.mark.parametrize("cpu", BOTH)
@pytest.mark.parametrize("source", [SUM, BRANCHES])
def test_both_emulators_agree_on_every_instruction(build: Builder, source: str, cpu: str) -> None:
    image = build(cpu, source)
    ours, theirs = run(image, cpu), run(image, cpu, where=run_native)
    assert ours.outputs == theirs.outputs
    assert ours.return_value == theirs.return_value
    assert ours.instructions == theirs.instructions
    assert (ours.stack_peak_bytes, ours.arena_high_water) == (theirs.stack_peak_bytes, theirs.arena_high_water)
    assert ours.estimated_cycles == theirs.estimated_cycles
    np.testing.assert_array_equal(ours.executed, theirs.executed)
    np.testing.assert_array_equal(ours.moved, theirs.moved)


@needs_qemu
def test_vector_instructions_run_on_cortex_m55_and_count_as_one(build: Builder) -> None:
    result = run(build("cortex-m55", DOT), "cortex-m55")
    assert result.return_value == sum((i + 1) * (i + 17) for i in range(16))
    assert result.instructions < 10


@needs_qemu
def test_vector_instructions_are_undefined_on_cortex_m33(build: Builder) -> None:
    fault = fault_of(build("cortex-m55", DOT), "cortex-m33")
    assert fault.kind in (FaultKind.UNSUPPORTED_INSTRUCTION, FaultKind.UNDEFINED_INSTRUCTION)


@needs_qemu
@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (FaultKind.WRITE_OUT_OF_BOUNDS, "int entry(volatile char *a) { for (int i = 0; ; i++) a[i] = 1; }"),
        (FaultKind.READ_OUT_OF_BOUNDS, "int entry(volatile char *a) { return a[33]; }"),
        (FaultKind.WRITE_PROTECTED, 'int entry(void *a) { __asm__ volatile("mov r1, pc; str r0, [r1]"); return 0; }'),
        (FaultKind.READ_UNMAPPED, "int entry(void *a) { return *(volatile int *)0xa8000000; }"),
        (FaultKind.WRITE_UNMAPPED, "int entry(void *a) { *(volatile int *)0xa8000000 = 1; return 0; }"),
        (FaultKind.FETCH_PROTECTED, "int entry(char *a) { return ((int (*)(void))((unsigned)a | 1))(); }"),
        (FaultKind.UNDEFINED_INSTRUCTION, "int entry(void *a) { __builtin_trap(); }"),
        (FaultKind.STALLED, 'int entry(void *a) { __asm__ volatile("wfi"); return 0; }'),
        (FaultKind.BREAKPOINT, 'int entry(void *a) { __asm__ volatile("bkpt 0xab"); return 0; }'),
        (FaultKind.SUPERVISOR_CALL, 'int entry(void *a) { __asm__ volatile("svc 0"); return 0; }'),
        (FaultKind.INSTRUCTION_LIMIT, 'int entry(void *a) { for (;;) __asm__ volatile(""); }'),
        (FaultKind.ABI_VIOLATION, 'int entry(void *a) { __asm__ volatile("movs r4, #1"); return 0; }'),
        (FaultKind.STACK_OVERFLOW, 'int entry(void *a) { for (;;) __asm__ volatile("push {r0-r3}"); }'),
    ],
)
def test_what_is_forbidden_stops_the_payload_with_its_kind(build: Builder, kind: FaultKind, source: str) -> None:
    image = build("cortex-m55", source, options=("-fno-builtin",))
    assert fault_of(image, "cortex-m55").kind is kind


@needs_qemu
def test_the_first_forbidden_byte_is_named(build: Builder) -> None:
    fault = fault_of(build("cortex-m55", DOT), "cortex-m55", arena_bytes=21)
    assert fault.kind is FaultKind.READ_OUT_OF_BOUNDS
    assert fault.address is not None
    assert fault.address % 16 == 21 % 16


@needs_qemu
def test_what_depends_on_its_address_is_told(build: Builder) -> None:
    image = build("cortex-m55", "int entry(char *a) { *(int *)(a + 16) = (int)a; return 0; }")
    assert fault_of(image, "cortex-m55").kind is FaultKind.POSITION_DEPENDENT


@needs_qemu
def test_what_does_not_fit_is_told_with_its_region(build: Builder) -> None:
    with pytest.raises(DoesNotFit) as caught:
        run(build("cortex-m55", SUM), "cortex-m55", ram_bytes=64)
    assert caught.value.metadata["region"] == "ram"


def test_without_qemu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SimulatorError) as caught:
        run(b"\x70\x47", "cortex-m55")
    assert caught.value.reason == "EMULATOR_MISSING"
    assert QEMU_PROGRAM in caught.value.help


def test_a_cpu_without_a_board_is_refused() -> None:
    with pytest.raises(SimulatorError) as caught:
        run(b"\x70\x47", "cortex-a53")
    assert caught.value.reason == "TARGET_UNSUPPORTED"
