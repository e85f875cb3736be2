"""Compile the reference firmware for a board, once per user, with the clang of the ziglang wheel.

Sources are `device/firmware` and `device/loader` of this tree (`TINYMLAAS_DEVICE_SOURCES` names another place) and
Monocypher, which the loader's own tool fetches by pinned hash. The result lies in the cache folder under a digest of all
sources, the compiler's version and the board's geometry.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tinymlaas_module import Application, Feature, Isa
from tinymlaas_simulator import Cpu, cache_dir, cpu_named

from .boards import BoardModel

FLASH_BASE = 0x0800_0000
RAM_BASE = 0x2000_0000
CONTROLLER_BASE = 0x4000_0000
DOORBELL_BASE = 0x4000_1000
# The deepest stack of the firmware itself, a signature check; a test measures it.
STACK_BYTES = 4096

_LOADER = ("journal.c", "parse.c", "run.c", "sha512.c", "tensors.c", "update.c", "verify.c")
_FIRMWARE = ("start.c", "mem.c", "flash.c", "sha256.c", "label.c", "device.c", "package.c", "commands.c", "main.c")
_FLAGS = (
    "-Os", "-std=c99", "-ffreestanding", "-fno-builtin", "-ffunction-sections", "-fdata-sections", "-fno-pic", "-fno-sanitize=all",
    "-fno-stack-protector", "-fno-unwind-tables", "-DBLAKE2_NO_UNROLLING", "-DTIM_NO_STATUS_NAMES",
)  # fmt: skip
_STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
_ISAS = {"armv6-m": 1, "armv7-m": 2, "armv7e-m": 3, "armv8-m.main": 4, "rv32imc": 6}
_ISA_COMPATIBLE = {
    "armv6-m": ("armv6-m",),
    "armv7-m": ("armv6-m", "armv7-m"),
    "armv7e-m": ("armv6-m", "armv7-m", "armv7e-m"),
    "armv8-m.main": ("armv6-m", "armv7-m", "armv7e-m", "armv8-m.main"),
    "rv32imc": ("rv32imc",),
}
_FEATURES = {"thumb2": 1, "dsp": 2, "fpu-sp": 4}


class FirmwareBuildError(Exception):
    """The firmware could not be compiled; the message ends with the compiler's words."""


@dataclass(frozen=True)
class Firmware:
    """A linked firmware: bytes from the start of flash, where its mailbox lies, the bytes of RAM that it always uses."""

    image: bytes
    entry: int
    mailbox: int
    static_ram: int


def device_sources() -> Path:
    """Give the folder with `firmware` and `loader`."""
    configured = os.environ.get("TINYMLAAS_DEVICE_SOURCES")
    return Path(configured) if configured else Path(__file__).resolve().parents[3]


def build_firmware(model: BoardModel) -> Firmware:
    """Give the firmware that lies at the start of the board's flash, compiled on first use. Raises FirmwareBuildError."""
    return _build(model, application=False)


def build_application(model: BoardModel) -> Application:
    """Give the application of a board with static firmware, into whose packages modules are linked.

    Its code runs from any address (ARM's read-only position independence). Raises FirmwareBuildError.
    """
    if not model.spec.static_firmware:
        raise FirmwareBuildError(f"{model.spec.name} takes modules alone: it needs no firmware package")
    made = _build(model, application=True)
    spec = model.spec
    return Application(
        spec.name, Isa.from_text(spec.isa), Feature.from_texts(list(spec.features)), made.image, made.entry
    )


def _build(model: BoardModel, *, application: bool) -> Firmware:
    root = device_sources()
    cpu = cpu_named(model.spec.cpu)
    defines = _defines(model, cpu, application=application)
    flags = tuple("-fropi" if application and flag == "-fno-pic" else flag for flag in _FLAGS)
    monocypher = _monocypher(root)
    files = [
        *(root / "loader/src" / name for name in _LOADER),
        *(root / "firmware/src" / name for name in _FIRMWARE),
        monocypher / "monocypher.c",
    ]
    headers = [*sorted((root / "loader").glob("*/*.h")), *sorted((root / "firmware/include").glob("*.h"))]
    digest = hashlib.sha256(repr((defines, flags, cpu.zig_target, cpu.zig_cpu)).encode())
    digest.update(importlib.metadata.version("ziglang").encode())
    for file in [*files, *headers, monocypher / "monocypher.h", root / "firmware/firmware.ld"]:
        digest.update(file.read_bytes())
    target = cache_dir() / f"firmware-{model.spec.name}-{digest.hexdigest()[:24]}.elf"
    if not target.exists():
        _compile(files, [*flags, *defines], cpu, root, monocypher, target, 0 if application else FLASH_BASE)
    return _read_elf(target)


def _defines(model: BoardModel, cpu: Cpu, *, application: bool) -> list[str]:
    layout = model.layout
    slots = ",".join(f"{{{offset}u,{size}u}}" for offset, size in layout.slots)
    isas = sum(1 << _ISAS[isa] for isa in _ISA_COMPATIBLE[cpu.isa])
    values = {
        "FW_FLASH": f"{FLASH_BASE}u",
        "FW_CONTROLLER": f"{CONTROLLER_BASE}u",
        "FW_DOORBELL": f"{DOORBELL_BASE}u",
        "FW_PAGE_BYTES": f"{layout.page_bytes}u",
        "FW_PROGRAM_BYTES": f"{layout.program_bytes}u",
        "FW_KEYS": f"{layout.keys}u",
        "FW_LABELS": f"{layout.labels}u",
        "FW_JOURNAL": f"{layout.journal}u",
        "FW_JOURNAL_BYTES": f"{layout.journal_bytes}u",
        "FW_SLOTS": f"{{{slots}}}",
        "FW_ISAS": f"{isas}u",
        "FW_FEATURES": f"{sum(_FEATURES[feature] for feature in cpu.features)}u",
        "FW_RAM_BYTES": f"{model.spec.ram_total}u",
        "FW_STACK_BYTES": f"{STACK_BYTES}u",
    }
    made = [f"-D{name}={value}" for name, value in values.items()]
    if model.spec.static_firmware:
        made.append(f'-DFW_BOARD="{model.spec.name}"')
    if application:
        made.append("-DFW_APPLICATION")
    return [*made, "-DFW_HAS_FPU"] if cpu.has_fpu else made


def _monocypher(root: Path) -> Path:
    """Run the loader's own fetcher, which downloads by pinned hash the first time."""
    spec = importlib.util.spec_from_file_location("fetch_monocypher", root / "loader/tools/fetch_monocypher.py")
    if spec is None or spec.loader is None:
        raise FirmwareBuildError(f"no loader sources in {root}: set TINYMLAAS_DEVICE_SOURCES")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return Path(module.fetch())
    except RuntimeError as error:
        raise FirmwareBuildError(str(error)) from error


def _compile(
    files: list[Path], flags: list[str], cpu: Cpu, root: Path, monocypher: Path, target: Path, linked_at: int
) -> None:
    zig = [sys.executable, "-m", "ziglang"]
    machine = ["-target", cpu.zig_target, f"-mcpu={cpu.zig_cpu}"]
    includes = [f"-I{root / 'loader/include'}", f"-I{root / 'firmware/include'}", f"-I{monocypher}"]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="firmware-") as folder:
        objects = []
        for file in files:
            made = f"{folder}/{file.parent.parent.name}-{file.stem}.o"
            strict = ("-w",) if file.name == "monocypher.c" else _STRICT
            _run([*zig, "cc", *machine, *flags, *strict, *includes, "-c", str(file), "-o", made])
            objects.append(made)
        script = Path(folder, "firmware.ld")
        script.write_text(
            f"fw_flash = {linked_at};\nfw_flash_bytes = {_value(flags, 'FW_KEYS')};\n"
            f"fw_ram = {RAM_BASE};\nfw_ram_bytes = {_value(flags, 'FW_RAM_BYTES')};\n"
            + (root / "firmware/firmware.ld").read_text()
        )
        built = f"{folder}/firmware.elf"
        link = ["-nostdlib", "-Wl,--gc-sections", "-T", str(script), *objects, "-lcompiler_rt", "-o", built]
        _run([*zig, "cc", *machine, *link])
        os.replace(built, target)


def _value(defines: list[str], name: str) -> str:
    return next(item.split("=", 1)[1].rstrip("u") for item in defines if item.startswith(f"-D{name}="))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise FirmwareBuildError(f"{' '.join(command[:6])} … failed:\n{done.stderr[-3000:]}")


def _read_elf(path: Path) -> Firmware:
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        text = elf.get_section_by_name(".text")
        table = elf.get_section_by_name(".symtab")
        if text is None or not isinstance(table, SymbolTableSection):
            raise FirmwareBuildError(f"{path.name} has no code or no symbols: remove it and try again")
        values = {symbol.name: int(symbol["st_value"]) for symbol in table.iter_symbols()}
        return Firmware(
            image=bytes(text.data()),
            entry=values["fw_reset"] & ~1,
            mailbox=values["fw_box"],
            static_ram=values["fw_bss_end"] - RAM_BASE,
        )
