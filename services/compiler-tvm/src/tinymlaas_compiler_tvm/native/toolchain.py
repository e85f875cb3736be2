"""clang and ld.lld out of the `ziglang` package, run in a private temporary folder.

Nothing of that folder, the host or the clock reaches the output: inputs have fixed relative names, no debug information is made.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tinymlaas_compiler_tvm.errors import CompilerFault
from tinymlaas_compiler_tvm.target import Machine

_TIMEOUT_S = 120
_C_FLAGS = (
    "-std=c11", "-fpie", "-ffreestanding", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections",
    "-fomit-frame-pointer", "-fno-builtin", "-fno-math-errno", "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables", "-fno-exceptions", "-fstack-usage", "-fno-stack-protector", "-fno-jump-tables",
    "-fno-ident", "-nostdinc", "-Wall", "-Wno-unused-function", "-Wno-unused-parameter",
)  # fmt: skip

LINKER_SCRIPT = """\
SECTIONS
{
  . = 0;
  .payload : ALIGN(16)
  {
    tim_code_start = .;
    *(.text.tim_entry) *(.text .text.*)
    . = ALIGN(16);
    tim_constants_start = .;
    *(.rodata .rodata.* .srodata .srodata.* .rodata.cst*)
    . = ALIGN(4);
    tim_payload_end = .;
  }
  .dynsym : { *(.dynsym) }
  .gnu.hash : { *(.gnu.hash) }
  .hash : { *(.hash) }
  .dynstr : { *(.dynstr) }
  .dynamic : { *(.dynamic) }
  .rel.dyn : { *(.rel.dyn) }
  .rela.dyn : { *(.rela.dyn) }
  .data : { *(.data .data.* .sdata .sdata.*) }
  .bss : { *(.bss .bss.* .sbss .sbss.* COMMON) }
  .got : { *(.got .got.*) }
  ASSERT(SIZEOF(.data) == 0, "initialized data in a payload")
  ASSERT(SIZEOF(.bss) == 0, "zeroed data in a payload")
  ASSERT(SIZEOF(.got) == 0, "global offset table in a payload")
  /DISCARD/ : { *(.ARM.exidx* .ARM.extab* .eh_frame* .comment .note* .ARM.attributes .riscv.attributes .llvm_addrsig) }
}
"""


@cache
def _zig() -> str:
    spec = find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise CompilerFault("the package ziglang is not installed", detail="ziglang")
    return str(Path(next(iter(spec.submodule_search_locations))) / "zig")


def _run(arguments: Sequence[str], folder: Path) -> str:
    # A bare environment: no user's CPATH or locale; zig keeps its caches here if it wants any.
    environment: Mapping[str, str] = {
        "PATH": os.defpath,
        "LC_ALL": "C",
        "HOME": str(folder),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "cache"),
        "ZIG_GLOBAL_CACHE_DIR": str(folder / "cache"),
    }
    try:
        done = subprocess.run(
            [_zig(), *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompilerFault("a compiler tool did not end in time", detail=arguments[0]) from error
    if done.returncode != 0:
        raise CompilerFault(
            f"{arguments[0]} failed: {done.stderr.strip()[:2000]}", exit=done.returncode, detail=done.stderr[:200]
        )
    return done.stderr


@dataclass(frozen=True)
class Linked:
    """What linking gives: the ELF image, objects with relocations, and clang's stack figures by function."""

    elf: bytes
    objects: tuple[bytes, ...]
    stack_usage: Mapping[str, int]


def _stack_usage(text: str) -> dict[str, int]:
    figures: dict[str, int] = {}
    for line in text.splitlines():
        place, size, qualifier = line.split("\t")
        if qualifier != "static":
            raise CompilerFault("a function's stack is not bounded", detail=place)
        figures[place.rsplit(":", 1)[1]] = int(size)
    return figures


def build(
    machine: Machine,
    folder: Path,
    c_text: str,
    asm_text: str,
    constants: bytes,
    objects: Sequence[bytes],
    optimize: str,
    entry: str,
) -> Linked:
    """Compile, assemble and link in `folder`; CompilerFault carries the tool's message."""
    (folder / "module.c").write_text(c_text)
    (folder / "module.s").write_text(asm_text)
    (folder / "constants.bin").write_bytes(constants)
    (folder / "module.ld").write_text(LINKER_SCRIPT)
    target = [f"--target={machine.triple}", *machine.clang_flags]
    _run(["clang", *target, *_C_FLAGS, optimize, "-c", "module.c", "-o", "module_c.o"], folder)
    _run(["clang", *target, "-c", "module.s", "-o", "module_s.o"], folder)
    names = ["module_c.o", "module_s.o"]
    for number, data in enumerate(objects):
        name = f"extra_{number}.o"
        (folder / name).write_bytes(data)
        names.append(name)
    _run(
        ["ld.lld", "-T", "module.ld", "-pie", "--no-dynamic-linker", "-z", "text", "--gc-sections", "-nostdlib",
         "--build-id=none", "-e", entry, "-o", "module.elf", *names],
        folder,
    )  # fmt: skip
    return Linked(
        (folder / "module.elf").read_bytes(),
        tuple((folder / name).read_bytes() for name in names),
        _stack_usage((folder / "module_c.su").read_text()),
    )
