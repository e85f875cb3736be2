"""Build the loader: a shared library for host tests, and sizes for microcontrollers.

    python device/loader/tools/build.py library OUT.so     for cffi, by zig cc with UBSan traps
    python device/loader/tools/build.py sizes              a table of code sizes (Markdown)

Needs the ziglang wheel; Monocypher is fetched by pinned hash (fetch_monocypher.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Symbol, SymbolTableSection
from fetch_monocypher import fetch

ROOT = Path(__file__).resolve().parents[1]
LOADER = ("names.c", "parse.c", "run.c", "sha512.c", "tensors.c", "verify.c")
UPDATE = ("journal.c", "update.c")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
UBSAN_TRAPS = ("-fsanitize=undefined", "-fsanitize-trap=undefined", "-fno-sanitize-recover=all")
# Cortex-M flags as a size-minded firmware would set them; BLAKE2b is not linked, the macro only shortens the compile.
EMBEDDED = (
    "-Os", "-ffreestanding", "-fno-builtin", "-ffunction-sections", "-fdata-sections", "-fno-pic", "-fno-sanitize=all",
    "-fno-stack-protector", "-fno-unwind-tables", "-DBLAKE2_NO_UNROLLING",
)  # fmt: skip
CPUS = {
    "cortex-m0plus": ("thumb-freestanding-eabi", "cortex_m0plus"),
    "cortex-m3": ("thumb-freestanding-eabi", "cortex_m3"),
    "cortex-m4": ("thumb-freestanding-eabihf", "cortex_m4"),
    "cortex-m33": ("thumb-freestanding-eabi", "cortex_m33"),
    "rv32imc": ("riscv32-freestanding-none", "generic_rv32+m+c"),
}


def zig_cc() -> list[str]:
    """Return the command of the C compiler inside the ziglang wheel."""
    return [sys.executable, "-m", "ziglang", "cc"]


def sources(update: bool = True) -> list[Path]:
    """Return the loader's C files, with or without the update core, without Monocypher."""
    return [ROOT / "src" / name for name in (*LOADER, *(UPDATE if update else ()))]


def build_library(out: Path, compiler: Sequence[str] | None = None, sanitize: Sequence[str] = UBSAN_TRAPS) -> Path:
    """Build loader, update core and Monocypher as the shared library ``out`` and return it.

    Monocypher is compiled without the strict warnings, which are for our code. Raises ``RuntimeError`` with the
    compiler's words.
    """
    return _build(out, [], ["-shared"], compiler, sanitize)


def build_program(
    out: Path, main_source: Path, compiler: Sequence[str] | None = None, sanitize: Sequence[str] = UBSAN_TRAPS
) -> Path:
    """Build a host program from ``main_source`` with loader, update core and Monocypher; raises ``RuntimeError``."""
    return _build(out, [main_source], [], compiler, sanitize)


def _build(
    out: Path, extra: Sequence[Path], link: Sequence[str], compiler: Sequence[str] | None, sanitize: Sequence[str]
) -> Path:
    monocypher = fetch()
    command = list(compiler or zig_cc())
    with tempfile.TemporaryDirectory() as scratch:
        objects: list[str] = []
        for source in [*sources(), *extra, monocypher / "monocypher.c"]:
            strict = (*STRICT, "-O1") if source.parent != monocypher else ("-w", "-O2")
            made = str(Path(scratch) / f"{source.stem}.o")
            includes = [f"-I{ROOT / 'include'}", f"-I{monocypher}"]
            run([*command, "-c", "-g", "-fPIC", *strict, *sanitize, *includes, str(source), "-o", made])
            objects.append(made)
        run([*command, *link, *sanitize, *objects, "-o", str(out)])
    return out


def run(command: Sequence[str]) -> str:
    """Run a tool and return its output; raises ``RuntimeError`` with what it printed when it fails."""
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Size:
    """Flash bytes of linked code and constants, and the functions that the firmware has to bring."""

    code: int
    imports: tuple[str, ...]


def linked_size(cpu: str, roots: Sequence[str], crypto: bool, update: bool, defines: Sequence[str] = ()) -> Size:
    """Return the flash bytes of what ``roots`` reach, linked with garbage collection for ``cpu``.

    Without ``crypto`` Monocypher's functions stay unresolved and count as nothing. Memory functions and compiler
    helpers (``__aeabi_…``) are listed, not counted: a firmware shares them with everything else in it.
    """
    target, mcpu = CPUS[cpu]
    monocypher = fetch()
    files = sources(update) + ([monocypher / "monocypher.c"] if crypto else [])
    with tempfile.TemporaryDirectory() as scratch:
        objects: list[str] = []
        for source in files:
            made = str(Path(scratch) / f"{source.stem}.o")
            flags = [*EMBEDDED, *defines, f"-I{ROOT / 'include'}", f"-I{monocypher}"]
            run([*zig_cc(), "-target", target, f"-mcpu={mcpu}", *flags, "-c", str(source), "-o", made])
            objects.append(made)
        image = Path(scratch) / "image.elf"
        keep = [flag for root in roots for flag in ("-u", root)]
        link = [sys.executable, "-m", "ziglang", "ld.lld", "--gc-sections", "--unresolved-symbols=ignore-all"]
        run([*link, "-e", roots[0], *keep, *objects, "-o", str(image)])
        with image.open("rb") as stream:
            elf = ELFFile(stream)
            code = sum(s["sh_size"] for s in elf.iter_sections() if s.name.startswith((".text", ".rodata")))
            writable = sum(s["sh_size"] for s in elf.iter_sections() if s.name in (".data", ".bss"))
        if writable:
            raise RuntimeError(f"{writable} bytes of writable data: the loader must have no globals")
        return Size(code, tuple(sorted(_undefined(image))))


def _symbols(elf: ELFFile) -> list[Symbol]:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        raise RuntimeError("the linked file has no symbol table")
    return list(table.iter_symbols())


def _undefined(path: Path) -> set[str]:
    """Return the names that ``path`` uses and does not define."""
    with path.open("rb") as stream:
        symbols = _symbols(ELFFile(stream))
        return {symbol.name for symbol in symbols if symbol.name and symbol["st_shndx"] == "SHN_UNDEF"}


LINKER_SCRIPT = """
SECTIONS {
  . = 0x08000000;
  .text : { *(.text .text.*) *(.rodata .rodata.*) }
  .data : { *(.data .data.* .got .got.* .bss .bss.* COMMON .sdata .sdata.* .sbss .sbss.*) }
  ASSERT(SIZEOF(.data) == 0, "the loader must have no globals")
  /DISCARD/ : { *(.ARM.*) *(.comment) *(.eh_frame*) *(.riscv.attributes) *(.note*) *(.llvm_addrsig) }
}
"""


def build_on_target(cpu: str, main_source: Path, roots: Sequence[str], folder: Path) -> tuple[bytes, dict[str, int]]:
    """Link loader, Monocypher, compiler helpers and ``main_source`` for ``cpu`` at 0x08000000.

    Returns the flat image and the addresses of its functions (without Thumb bit). Raises ``RuntimeError``.
    """
    target, mcpu = CPUS[cpu]
    monocypher = fetch()
    script = folder / "image.ld"
    script.write_text(LINKER_SCRIPT)
    objects: list[str] = []
    machine = ["-target", target, f"-mcpu={mcpu}"]
    for source in [*sources(), monocypher / "monocypher.c", main_source]:
        made = str(folder / f"{source.stem}.o")
        run([*zig_cc(), *machine, *EMBEDDED, f"-I{ROOT / 'include'}", f"-I{monocypher}", "-c", str(source), "-o", made])
        objects.append(made)
    image = folder / "image.elf"
    keep = [f"-Wl,-u,{root}" for root in roots]
    link = ["-nostdlib", "-Wl,--gc-sections", f"-Wl,-e,{roots[0]}", *keep, "-T", str(script), *objects, "-lcompiler_rt"]
    run([*zig_cc(), *machine, *link, "-o", str(image)])
    with image.open("rb") as stream:
        elf = ELFFile(stream)
        addresses = {symbol.name: int(symbol["st_value"]) & ~1 for symbol in _symbols(elf)}
        text = elf.get_section_by_name(".text")
        if text is None:
            raise RuntimeError(f"{image} has no code")
        return bytes(text.data()), addresses


LOADER_ROOTS = ("tim_open", "tim_start", "tim_input", "tim_output", "tim_invoke", "tim_self_test")
UPDATE_ROOTS = (
    "tim_update_init", "tim_update_begin", "tim_update_write", "tim_update_verify", "tim_update_test",
    "tim_update_activate", "tim_update_confirm", "tim_update_rollback", "tim_update_erase", "tim_update_open",
)  # fmt: skip


def size_table() -> str:
    """Return a Markdown table of linked sizes for every CPU."""
    lines = [
        "| CPU | loader without crypto | with Ed25519 | with update core too | firmware brings |",
        "|---|---:|---:|---:|---|",
    ]
    for cpu in CPUS:
        plain = linked_size(cpu, LOADER_ROOTS, crypto=False, update=False)
        signed = linked_size(cpu, LOADER_ROOTS, crypto=True, update=False)
        whole = linked_size(cpu, (*LOADER_ROOTS, *UPDATE_ROOTS), crypto=True, update=True)
        brings = ", ".join(f"`{name}`" for name in whole.imports)
        lines.append(f"| {cpu} | {plain.code:,} | {signed.code:,} | {whole.code:,} | {brings} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    if arguments[:1] == ["library"] and len(arguments) == 2:
        print(build_library(Path(arguments[1])))
    elif list(arguments) == ["sizes"]:
        print(size_table())
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
