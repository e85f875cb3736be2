"""Lies that a certificate does not contradict by itself: the Profiler runs the payload with exactly what it claims.

These are the survivors of `packages/module/tests/test_module_certificate_mutations.py`: a frame or a call left out so that the
stack is understated, and accesses that are stated smaller than they are.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_profiler import ProfilerError, profile_native
from tinymlaas_simulator import CPUS

CPU = "cortex-m4"
ARENA, STACK = 32, 64
HEAD = """
typedef signed char i8; typedef unsigned char u8;
__attribute__((noinline)) static void copy(const i8 *in, i8 *out, int n) { for (int i = 0; i < n; i++) out[i] = (i8)(in[i] / 2); }
__attribute__((noinline)) static int use(volatile u8 *p, int n) {
    int s = 0;
    for (int i = 0; i < n; i++) { p[i] = (u8)i; s += p[i]; } return s & 0; }
"""
# What the payload does beyond its honest work, and what the Profiler must say.
LIES = {
    "a frame is deeper than stated": ("volatile u8 pad[256]; copy(in, out, 16); return use(pad, 256);", "CLAIM_REFUTED"),
    "a call that is not stated needs stack": (
        "int (*volatile f)(volatile u8 *, int) = use; volatile u8 pad[200]; copy(in, out, 16); return f(pad, 200);",
        "CLAIM_REFUTED",
    ),
    "a step writes beyond the arena": ("copy(in, out, 17); return 0;", "PAYLOAD_FAULT"),
    "a step reads beyond the arena": ("copy(in, out, 16); return *(volatile i8 *)(out + 16) & 0;", "PAYLOAD_FAULT"),
    "a step reads before the arena": ("copy(in, out, 16); return *(volatile i8 *)(in - 1) & 0;", "PAYLOAD_FAULT"),
    "a step reads what nobody wrote": ("copy(in, out, 15); return 0;", "PAYLOAD_FAULT"),
    "a step writes into the payload": ("copy(in, out, 16); *(volatile u8 *)(void *)&copy = 0; return 0;", "PAYLOAD_FAULT"),
    "a step touches a fixed address": ("copy(in, out, 16); return *(volatile int *)0x20000800 & 0;", "PAYLOAD_FAULT"),
}  # fmt: skip


def compiled(folder: Path, body: str) -> bytes:
    """A payload whose entry has this body, with `in` and `out` in the arena."""
    source = f"{HEAD} int entry(u8 *arena) {{ const i8 *in = (const i8 *)arena; i8 *out = (i8 *)arena + 16; {body} }}"
    (folder / "p.c").write_text(source.replace("static int use", "static __attribute__((used)) int use"))
    (folder / "s.ld").write_text(
        "ENTRY(entry) SECTIONS { . = 0; .text : { KEEP(*(.text.entry)) *(.text*) *(.rodata*) }"
        " /DISCARD/ : { *(.ARM*) *(.comment) *(.eh_frame*) } }"
    )
    zig, cpu = [sys.executable, "-m", "ziglang"], CPUS[CPU]
    flags = ["-Os", "-ffreestanding", "-fpie", "-fno-sanitize=all", "-ffunction-sections", "-fno-stack-protector"]
    for command in (
        [*zig, "cc", "-target", cpu.zig_target, f"-mcpu={cpu.zig_cpu}", *flags, "-c", "p.c", "-o", "p.o"],
        [*zig, "ld.lld", "-T", "s.ld", "p.o", "-o", "p.elf"],
        [*zig, "objcopy", "-O", "binary", "p.elf", "p.bin"],
    ):
        subprocess.run(command, check=True, cwd=folder)
    return (folder / "p.bin").read_bytes()


def profiled(payload: bytes) -> tuple[tuple[bytes, ...], ...]:
    """The outputs of an honest payload; ProfilerError otherwise."""
    spec = {"dtype": tensor_pb2.DATA_TYPE_INT8, "shape": [1, 16], "scale": 0.5}
    parts = compiler_pb2.CompileResult(
        payload_kind=target_pb2.PAYLOAD_KIND_NATIVE,
        payload_sha256=hashlib.sha256(payload).digest(),
        payload_bytes=len(payload),
        isa=CPUS[CPU].isa,
        loader_abi=1,
        arena_bytes=ARENA,
        stack_bytes=STACK,
        inputs=[tensor_pb2.TensorSpec(name="in", arena_offset=0, **spec)],
        outputs=[tensor_pb2.TensorSpec(name="out", arena_offset=16, **spec)],
    )
    region = target_pb2.MemoryRegion
    target = target_pb2.Target(
        cpu=CPU,
        isa=CPUS[CPU].isa,
        memory_regions=[
            region(name="sram", kind=region.KIND_RAM, total_bytes=4096),
            region(name="flash", kind=region.KIND_FLASH, total_bytes=65536),
        ],
    )
    return profile_native(parts, payload, target, [[bytes(range(16))]]).outputs


def test_the_honest_payload_is_believed(tmp_path: Path) -> None:
    (outputs,) = profiled(compiled(tmp_path, "copy(in, out, 16); return 0;"))
    assert outputs == (bytes(value // 2 for value in range(16)),)


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_lie_that_no_certificate_contradicts_is_seen(tmp_path: Path, lie: str) -> None:
    body, reason = LIES[lie]
    with pytest.raises(ProfilerError) as caught:
        profiled(compiled(tmp_path, body))
    assert caught.value.reason == reason
