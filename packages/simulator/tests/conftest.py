"""Small programs for each simulated CPU, assembled or compiled by zig's clang."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tinymlaas_simulator import QEMU_CPUS, Cpu, cpu_named

LINKER_SCRIPT = """
ENTRY(entry)
SECTIONS {
  . = 0;
  .text : { KEEP(*(.text.entry)) *(.text*) *(.rodata*) }
  /DISCARD/ : { *(.ARM*) *(.comment) *(.eh_frame*) *(.riscv.attributes) }
}
"""

Builder = Callable[..., bytes]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Give a function that turns C or assembly source into a flat image with `entry` at offset 0."""

    def make(cpu_name: str, source: str, *, assembly: bool = False, options: tuple[str, ...] = ()) -> bytes:
        cpu: Cpu = QEMU_CPUS.get(cpu_name) or cpu_named(cpu_name)
        folder = tmp_path_factory.mktemp("program")
        text = Path(folder, "program.S" if assembly else "program.c")
        text.write_text(source)
        zig = [sys.executable, "-m", "ziglang"]
        Path(folder, "script.ld").write_text(LINKER_SCRIPT)
        subprocess.run(
            [
                *zig,
                "cc",
                "-target",
                cpu.zig_target,
                f"-mcpu={cpu.zig_cpu}",
                "-Os",
                "-ffreestanding",
                "-fpie",
                "-ffunction-sections",
                "-fno-sanitize=all",
                *options,
                "-c",
                str(text),
                "-o",
                f"{folder}/program.o",
            ],
            check=True,
        )
        subprocess.run(
            [
                *zig,
                "ld.lld",
                "-T",
                f"{folder}/script.ld",
                "-nostdlib",
                f"{folder}/program.o",
                "-o",
                f"{folder}/program.elf",
            ],
            check=True,
        )
        subprocess.run([*zig, "objcopy", "-O", "binary", f"{folder}/program.elf", f"{folder}/program.bin"], check=True)
        return Path(folder, "program.bin").read_bytes()

    return make
