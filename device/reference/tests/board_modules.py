"""Small real modules for the board tests: payloads compiled for the board's CPU, packed and signed."""

import hashlib
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymlaas_module import (
    DType,
    Executor,
    Feature,
    Golden,
    GoldenVector,
    Isa,
    ModuleContents,
    Numerics,
    NumericsClass,
    PayloadKind,
    Tensor,
    TensorKind,
    pack,
    raw_public_key,
    sign,
)
from tinymlaas_simulator import cpu_named

KEY = Ed25519PrivateKey.from_private_bytes(b"\x11" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x22" * 32)
PUBLIC_KEY = raw_public_key(KEY)
WIDTH = 16
ISAS = {
    "armv6-m": Isa.ARMV6_M,
    "armv7e-m": Isa.ARMV7E_M,
    "armv8-m.main": Isa.ARMV8_M_MAIN,
    "rv32imc": Isa.RV32IMC,
}
SOURCE = """
typedef signed char i8;
__attribute__((noinline)) static int spoil(unsigned char *arena, int kind) {
    if (kind == 1) *(volatile int *)0x08000000 = 1;
    if (kind == 2) for (;;) __asm__ volatile ("");
    return 0;
}
int entry(unsigned char *arena) {
    const i8 *in = (const i8 *)arena;
    i8 *out = (i8 *)arena + 16;
    for (int i = 0; i < 16; i++) out[i] = (i8)(in[i] + ADD);
    if (SPOIL) return spoil(arena, SPOIL);
    return RETURN;
}
"""
SCRIPT = (
    "ENTRY(entry) SECTIONS { . = 0; .text : { KEEP(*(.text.entry)) *(.text*) *(.rodata*) }"
    " /DISCARD/ : { *(.ARM*) *(.comment) *(.eh_frame*) *(.riscv.attributes) } }"
)


@cache
def payload_for(cpu_name: str, add: int = 1, spoil: int = 0, returns: int = 0) -> bytes:
    """Compile the payload: outputs are inputs plus `add`; `spoil` 1 writes to flash, 2 hangs."""
    cpu = cpu_named(cpu_name)
    zig = [sys.executable, "-m", "ziglang"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "p.c").write_text(SOURCE)
        Path(folder, "s.ld").write_text(SCRIPT)
        defines = [f"-DADD={add}", f"-DSPOIL={spoil}", f"-DRETURN={returns}"]
        compile_flags = ["-Os", "-ffreestanding", "-fpie", "-ffunction-sections", "-fno-sanitize=all"]
        machine = ["-target", cpu.zig_target, f"-mcpu={cpu.zig_cpu}"]
        subprocess.run(
            [*zig, "cc", *machine, *compile_flags, *defines, "-c", f"{folder}/p.c", "-o", f"{folder}/p.o"], check=True
        )
        subprocess.run([*zig, "ld.lld", "-T", f"{folder}/s.ld", f"{folder}/p.o", "-o", f"{folder}/p.elf"], check=True)
        subprocess.run([*zig, "objcopy", "-O", "binary", f"{folder}/p.elf", f"{folder}/p.bin"], check=True)
        return Path(folder, "p.bin").read_bytes()


def module_for(
    cpu_name: str,
    *,
    add: int = 1,
    golden_add: int | None = None,
    spoil: int = 0,
    returns: int = 0,
    counter: int = 1,
    version: str = "1",
    name: str = "adder",
    arena_bytes: int = 64,
    stack_bytes: int = 64,
    key: Ed25519PrivateKey = KEY,
    isa: Isa | None = None,
    padding: int = 0,
    scores: bool = False,
) -> bytes:
    """Make a signed module whose golden vector expects inputs plus `golden_add` (default: what it computes).

    With `scores` its output is quantized as softmax is: from 0 to 1.
    """
    cpu = cpu_named(cpu_name)
    inputs = bytes(range(WIDTH))
    expected = bytes((value + (add if golden_add is None else golden_add)) & 0xFF for value in inputs)
    contents = ModuleContents(
        name=name,
        version=version,
        kind=PayloadKind.NATIVE,
        payload=payload_for(cpu_name, add, spoil, returns) + bytes(padding),
        tensors=(
            Tensor(TensorKind.INPUT, DType.INT8, (1, WIDTH), scale=0.5, arena_offset=0),
            Tensor(
                TensorKind.OUTPUT,
                DType.INT8,
                (1, WIDTH),
                scale=1 / 256 if scores else 0.5,
                zero_point=-128 if scores else 0,
                arena_offset=WIDTH,
            ),
        ),
        arena_bytes=arena_bytes,
        stack_bytes=stack_bytes,
        isa=isa or ISAS[cpu.isa],
        features=Feature(0),
        security_counter=counter,
        golden=Golden(Numerics(NumericsClass.BIT_EXACT, Executor.TFLITE), (GoldenVector((inputs,), (expected,)),)),
    )
    return sign(pack(contents), key)


def digest_of(image: bytes) -> bytes:
    """Give the sha256 of an image."""
    return hashlib.sha256(image).digest()
