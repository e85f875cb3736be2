"""A native payload is measured as it runs, and its claims are compared with what was seen."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_profiler import Limits, ProfilerError, profile_native
from tinymlaas_profiler.native import supported_target
from tinymlaas_simulator import CPUS as BUILT_IN
from tinymlaas_simulator import QEMU_CPUS, QEMU_PROGRAM, find_qemu

CPUS = {**QEMU_CPUS, **BUILT_IN}

SOURCE = """
typedef signed char i8;
__attribute__((noinline)) static void scale(const i8 *in, i8 *out) { for (int i = 0; i < 16; i++) out[i] = (i8)(in[i] / 2); }
__attribute__((noinline)) static int deep(volatile int n) {
    volatile int pad[4]; pad[0] = n; return n ? deep(n - 1) + pad[0] : 0;
}
int entry(unsigned char *arena) {
    scale((const i8 *)arena, (i8 *)arena + 16);
    return BEHAVIOUR;
}
"""
SCRIPT = (
    "ENTRY(entry) SECTIONS { . = 0; .text : { KEEP(*(.text.entry)) *(.text*) *(.rodata*) }"
    " /DISCARD/ : { *(.ARM*) *(.comment) *(.eh_frame*) *(.riscv.attributes) } }"
)


def compiled(folder: Path, cpu: str, behaviour: str) -> bytes:
    (folder / "p.c").write_text(SOURCE)
    (folder / "s.ld").write_text(SCRIPT)
    zig = [sys.executable, "-m", "ziglang"]
    described = CPUS[cpu]
    subprocess.run(
        [
            *zig,
            "cc",
            "-target",
            described.zig_target,
            f"-mcpu={described.zig_cpu}",
            "-Os",
            "-ffreestanding",
            "-fpie",
            "-fno-sanitize=all",
            "-ffunction-sections",
            f"-DBEHAVIOUR={behaviour}",
            "-c",
            str(folder / "p.c"),
            "-o",
            str(folder / "p.o"),
        ],
        check=True,
    )
    subprocess.run(
        [*zig, "ld.lld", "-T", str(folder / "s.ld"), str(folder / "p.o"), "-o", str(folder / "p.elf")], check=True
    )
    subprocess.run([*zig, "objcopy", "-O", "binary", str(folder / "p.elf"), str(folder / "p.bin")], check=True)
    return (folder / "p.bin").read_bytes()


def described(payload: bytes, cpu: str, *, stack: int = 64, arena: int = 32) -> compiler_pb2.CompileResult:
    spec = {"dtype": tensor_pb2.DATA_TYPE_INT8, "shape": [1, 16], "scale": 0.5}
    return compiler_pb2.CompileResult(
        payload_kind=target_pb2.PAYLOAD_KIND_NATIVE,
        payload_sha256=hashlib.sha256(payload).digest(),
        payload_bytes=len(payload),
        isa=CPUS[cpu].isa,
        loader_abi=1,
        entry_offset=0,
        arena_bytes=arena,
        stack_bytes=stack,
        inputs=[tensor_pb2.TensorSpec(name="in", arena_offset=0, **spec)],
        outputs=[tensor_pb2.TensorSpec(name="out", arena_offset=16, **spec)],
        symbols=[compiler_pb2.SymbolRange(symbol="all", offset=0, bytes=len(payload), node="n0", operator="Mul")],
    )


def a_target(cpu: str, *, ram: int = 4096, flash: int = 65536) -> target_pb2.Target:
    region = target_pb2.MemoryRegion
    return target_pb2.Target(
        cpu=cpu,
        isa=CPUS[cpu].isa,
        clock_hz=64_000_000,
        memory_regions=[
            region(name="sram", kind=region.KIND_RAM, total_bytes=ram),
            region(name="flash", kind=region.KIND_FLASH, total_bytes=flash),
        ],
    )


SAMPLES = [[bytes((i * 11 + 7 * s) & 0xFF for i in range(16))] for s in range(3)]


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4", "rv32imc"])
def test_figures_and_outputs_of_a_payload_are_measured(tmp_path: Path, cpu: str) -> None:
    payload = compiled(tmp_path, cpu, "0")
    profile = profile_native(described(payload, cpu), payload, a_target(cpu), SAMPLES)
    for (got,), (given,) in zip(profile.outputs, SAMPLES, strict=True):
        assert struct.unpack("16b", got) == tuple(int(value / 2) for value in struct.unpack("16b", given))
    figures = {m.metric: m for m in profile.measurements}
    instructions = figures[measurement_pb2.METRIC_INSTRUCTIONS]
    assert instructions.method == measurement_pb2.METHOD_SIMULATED
    assert instructions.value > 16 * 4
    assert hashlib.sha256(payload).hexdigest() in instructions.subject_sha256s
    assert figures[measurement_pb2.METRIC_CYCLES].method == measurement_pb2.METHOD_ESTIMATED
    assert figures[measurement_pb2.METRIC_LATENCY_SECONDS].conditions["clock_hz"] == "64000000"
    assert figures[measurement_pb2.METRIC_ARENA_BYTES].value == 32
    assert 0 <= figures[measurement_pb2.METRIC_STACK_BYTES].value <= 64
    assert figures[measurement_pb2.METRIC_FLASH_BYTES].value == len(payload)
    (operator,) = profile.operators
    assert operator.instructions == instructions.value
    assert operator.estimated_cycles == figures[measurement_pb2.METRIC_CYCLES].value
    assert operator.traffic.arena_read_bytes == operator.traffic.arena_written_bytes == 16
    assert operator.traffic.payload_read_bytes == 0
    assert all(m.tool and m.tool_version and m.unit for m in profile.measurements)


def refused(payload: bytes, cpu: str, *, ram: int = 4096, **claims: int) -> ProfilerError:
    with pytest.raises(ProfilerError) as caught:
        profile_native(described(payload, cpu, **claims), payload, a_target(cpu, ram=ram), SAMPLES)
    return caught.value


def test_a_stack_claim_that_is_too_small_is_refuted_with_both_figures(tmp_path: Path) -> None:
    error = refused(compiled(tmp_path, "cortex-m4", "deep(20) & 0"), "cortex-m4", stack=128)
    assert error.reason == "CLAIM_REFUTED"
    assert error.metadata["claim"] == "stack_bytes"
    assert error.metadata["claimed"] == "128"
    assert int(error.metadata["measured"]) > 20 * 16


def test_a_payload_that_leaves_its_arena_is_a_fault_with_address_and_pc(tmp_path: Path) -> None:
    error = refused(compiled(tmp_path, "cortex-m4", "(arena[100] = 1) & 0"), "cortex-m4")
    assert error.reason == "PAYLOAD_FAULT"
    assert error.metadata["kind"] == "WRITE_OUT_OF_BOUNDS"
    assert error.metadata["address"] == hex(0x2000_0000 + 100)
    assert int(error.metadata["pc"], 16) > 0


def test_a_payload_that_reports_an_error_is_a_fault(tmp_path: Path) -> None:
    error = refused(compiled(tmp_path, "cortex-m4", "-5"), "cortex-m4")
    assert (error.reason, error.metadata["returned"]) == ("PAYLOAD_FAULT", "-5")


def test_a_payload_that_does_not_fit_is_told_with_numbers(tmp_path: Path) -> None:
    error = refused(compiled(tmp_path, "cortex-m4", "0"), "cortex-m4", ram=1024, arena=1000, stack=64)
    assert error.reason == "DOES_NOT_FIT"
    assert (error.metadata["need"], error.metadata["have"]) == ("1072", "1024")


def test_a_payload_that_is_not_the_described_one_is_refused(tmp_path: Path) -> None:
    payload = compiled(tmp_path, "cortex-m4", "0")
    parts = described(payload, "cortex-m4")
    with pytest.raises(ProfilerError) as caught:
        profile_native(parts, payload + b"\0", a_target("cortex-m4"), SAMPLES)
    assert caught.value.reason == "CLAIM_REFUTED"


def test_wrong_descriptions_and_inputs_are_refused_before_anything_runs(tmp_path: Path) -> None:
    payload = compiled(tmp_path, "cortex-m4", "0")
    parts = described(payload, "cortex-m4")

    def reason(parts: compiler_pb2.CompileResult, target: target_pb2.Target, samples: list[list[bytes]]) -> str:
        with pytest.raises(ProfilerError) as caught:
            profile_native(parts, payload, target, samples)
        return caught.value.reason

    assert reason(parts, a_target("cortex-m4"), [[b"short"]]) == "INPUT_INVALID"
    assert reason(parts, a_target("cortex-m4"), []) == "LIMIT_EXCEEDED"
    unknown = a_target("cortex-m4")
    unknown.cpu = "cortex-m55"
    assert reason(parts, unknown, SAMPLES) == "TARGET_UNSUPPORTED"
    outside = described(payload, "cortex-m4")
    outside.outputs[0].arena_offset = 20
    assert reason(outside, a_target("cortex-m4"), SAMPLES) == "PAYLOAD_INVALID"


def test_a_run_that_exceeds_its_cpu_time_is_ended(tmp_path: Path) -> None:
    payload = compiled(tmp_path, "cortex-m4", '({ for (;;) __asm__ volatile (""); 0; })')
    with pytest.raises(ProfilerError) as caught:
        profile_native(
            described(payload, "cortex-m4"), payload, a_target("cortex-m4"), SAMPLES, limits=Limits(cpu_seconds=2)
        )
    assert caught.value.reason == "DEADLINE_EXCEEDED"


@pytest.mark.skipif(find_qemu() is None, reason=f"{QEMU_PROGRAM} is not installed")
def test_a_cpu_that_only_qemu_has_is_measured_without_estimated_cycles(tmp_path: Path) -> None:
    payload = compiled(tmp_path, "cortex-m55", "0")
    profile = profile_native(described(payload, "cortex-m55"), payload, a_target("cortex-m55"), SAMPLES)
    assert profile.outputs[0][0] == struct.pack("16b", *(int(v / 2) for v in struct.unpack("16b", SAMPLES[0][0])))
    figures = {m.metric: m for m in profile.measurements}
    instructions = figures[measurement_pb2.METRIC_INSTRUCTIONS]
    assert instructions.method == measurement_pb2.METHOD_SIMULATED
    assert instructions.conditions["emulator"].startswith("qemu ")
    assert profile.operators[0].instructions == instructions.value > 0
    assert measurement_pb2.METRIC_CYCLES not in figures
    assert measurement_pb2.METRIC_LATENCY_SECONDS not in figures


def test_without_qemu_the_refusal_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not supported_target(a_target("cortex-m55"))
    error = refused(b"\x00\x20\x70\x47", "cortex-m55")
    assert error.reason == "TARGET_UNSUPPORTED"
    assert error.metadata == {"constraint": "emulator", "value": QEMU_PROGRAM}
    assert QEMU_PROGRAM in error.help
