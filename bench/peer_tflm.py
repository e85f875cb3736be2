"""Measure the peer again: build a TFLite Micro checkout for a Cortex-M, run it on the simulator, count exactly.

    .venv/bin/python -m bench.peer_tflm CHECKOUT --cpu cortex-m4 --models kws ic vww ad

Needs arm-none-eabi-gcc with newlib, and a checkout with its third-party sources. Where the checkout has TFLite Micro's Makefile
its library is built by it (`OPTIMIZED_KERNEL_DIR=cmsis_nn`, release; it downloads CMSIS-NN and others on the first time); older
trees without it are compiled file by file, with the reference kernels. The output of a labelled sample is compared with the golden
one: a build that computes something else is told so, and its figures are worth nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tinymlaas_simulator import FLASH_BASE, RAM_BASE, Machine, Region

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bench" / "peer"
FLAGS = {
    "cortex-m0plus": ["-mcpu=cortex-m0plus", "-mfloat-abi=soft"],
    "cortex-m3": ["-mcpu=cortex-m3", "-mfloat-abi=soft"],
    "cortex-m4": ["-mcpu=cortex-m4", "-mfloat-abi=softfp", "-mfpu=fpv4-sp-d16"],
    "cortex-m7": ["-mcpu=cortex-m7", "-mfloat-abi=softfp", "-mfpu=fpv5-sp-d16"],
    "cortex-m33": ["-mcpu=cortex-m33", "-mfloat-abi=softfp", "-mfpu=fpv5-sp-d16"],
}
COMMON = [
    "-mthumb", "-O2", "-DTF_LITE_STATIC_MEMORY", "-DTF_LITE_MCU_DEBUG_LOG", "-DTF_LITE_STRIP_ERROR_STRINGS", "-DNDEBUG",
    "-DGEMMLOWP_ALLOW_SLOW_SCALAR_FALLBACK", "-ffunction-sections", "-fdata-sections", "-fno-exceptions",
    "-fno-unwind-tables", "-fno-short-enums", "-w",
]  # fmt: skip
CPP = ["-fno-rtti", "-fno-threadsafe-statics", "-fno-use-cxa-atexit", "-fpermissive"]
ARENA_BYTES = 256 * 1024
FLASH_BYTES, RAM_BYTES, STACK_BYTES = 4 << 20, 2 << 20, 64 * 1024
SOURCES = (
    "lite/micro/*.cc", "lite/micro/kernels/*.cc", "lite/micro/memory_planner/*.cc", "lite/core/api/*.cc", "lite/c/common.c",
    "lite/kernels/internal/quantization_util.cc", "lite/kernels/kernel_util.cc",
)  # fmt: skip
LEFT_OUT = ("test", "debug_log.cc", "optional_debug_tools", "benchmark", "python")


class PeerError(Exception):
    """The peer could not be built or run; the text says why and what to do."""


@dataclass(frozen=True)
class Row:
    """What one build of the peer needs for one model; `fidelity` compares its output with the golden one."""

    model: str
    target: str
    kernels: str
    flash_bytes: int
    arena_bytes: int
    stack_bytes: int
    instructions: int
    fidelity: str
    method: str = "instructions and stack simulated, flash linked, arena told by the interpreter"


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure a TFLite Micro checkout.")
    parser.add_argument("checkout", type=Path, help="folder that holds tensorflow/lite/micro, at any depth")
    parser.add_argument("--cpu", default="cortex-m4", choices=sorted(FLAGS))
    parser.add_argument("--models", nargs="*", default=["kws", "ic", "vww", "ad"])
    parser.add_argument("--kernels", default="cmsis_nn", choices=["cmsis_nn", "reference"])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peer", help="folder for objects")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    chosen = parser.parse_args(arguments)
    try:
        root = source_root(chosen.checkout)
        kernels, library, includes = build_library(root, chosen.cpu, chosen.kernels, chosen.work)
        rows = [measure(model, chosen.cpu, kernels, library, includes, chosen.work) for model in chosen.models]
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(rows)
    if chosen.output:
        chosen.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


def source_root(checkout: Path) -> Path:
    """The folder from which `tensorflow/lite/micro/...` is included; PeerError where there is none."""
    found = sorted(checkout.glob("**/tensorflow/lite/micro/micro_interpreter.h"), key=lambda path: len(path.parts))
    if not found:
        raise PeerError(f"{checkout} has no tensorflow/lite/micro: clone github.com/tensorflow/tflite-micro there")
    return found[0].parents[3].resolve()


def build_library(root: Path, cpu: str, kernels: str, work: Path) -> tuple[str, list[str], list[str]]:
    """The kernels that are really in it, what to link, and folders to include."""
    makefile = root / "tensorflow/lite/micro/tools/make/Makefile"
    downloads = root / "tensorflow/lite/micro/tools/make/downloads"
    if makefile.is_file():
        wanted = ["OPTIMIZED_KERNEL_DIR=cmsis_nn"] if kernels == "cmsis_nn" else []
        target = ["TARGET=cortex_m_generic", f"TARGET_ARCH={cpu}", "BUILD_TYPE=release", *wanted]
        call(["make", "-f", str(makefile.relative_to(root)), f"-j{os.cpu_count()}", *target, "microlite"], root)
        built = sorted(root.glob(f"gen/cortex_m_generic_{cpu}*release*/lib/libtensorflow-microlite.a"))
        if not built:
            raise PeerError("TFLite Micro's Makefile left no library under gen/")
        return kernels, [str(built[-1])], [str(root), *_third_party(downloads)]
    includes = [str(root), *_third_party(downloads)]
    folder = work / f"objects-{cpu}"
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(path for pattern in SOURCES for path in (root / "tensorflow").glob(pattern))
    sources = [path for path in sources if not any(word in path.name for word in LEFT_OUT)]
    objects = [folder / (str(path.relative_to(root)).replace("/", "-") + ".o") for path in sources]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda pair: compile_one(pair[0], pair[1], cpu, includes), zip(sources, objects, strict=True)))
    return "reference", [str(path) for path in objects], includes


def compile_one(source: Path, target: Path, cpu: str, includes: list[str], defines: list[str] | None = None) -> None:
    """Compile a file, unless its object is newer."""
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return
    plain = source.suffix in (".c", ".S")
    language = [] if plain else [*CPP, "-std=c++17"]
    compiler = "arm-none-eabi-gcc" if plain else "arm-none-eabi-g++"
    folders = [f"-I{folder}" for folder in includes]
    call([compiler, *FLAGS[cpu], *COMMON, *language, *(defines or []), *folders, "-c", str(source), "-o", str(target)])


def measure(model: str, cpu: str, kernels: str, library: list[str], includes: list[str], work: Path) -> Row:
    """Link the peer with a model of the zoo, and run one inference of its first sample on the simulator."""
    folder = work / f"{model}-{cpu}-{kernels}"
    folder.mkdir(parents=True, exist_ok=True)
    file = ROOT / "zoo" / model / f"{model}_int8.tflite"
    (folder / "model.S").write_text(
        f'.section .rodata.model\n.global peer_model\n.balign 16\npeer_model: .incbin "{file}"\n', encoding="ascii"
    )
    compile_one(folder / "model.S", folder / "model.o", cpu, [])
    runner = folder / "runner.o"
    runner.unlink(missing_ok=True)
    compile_one(HERE / "runner.cc", runner, cpu, includes, [f"-DPEER_ARENA_BYTES={ARENA_BYTES}"])
    image = folder / "peer.elf"
    kept = [f"-Wl,--undefined={name}" for name in ("peer_invoke", "peer_input", "peer_output", "peer_arena_used")]
    call(
        ["arm-none-eabi-g++", *FLAGS[cpu], "-mthumb", "--specs=nano.specs", "--specs=nosys.specs", "-nostartfiles",
         "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments", *kept, "-T", str(HERE / "link.ld"), str(runner),
         str(folder / "model.o"), "-Wl,--start-group", *library, "-lm", "-lc", "-Wl,--end-group", "-o", str(image)]
    )  # fmt: skip
    flat = folder / "peer.bin"
    call(["arm-none-eabi-objcopy", "-O", "binary", str(image), str(flat)])
    symbols = {}
    for line in call(["arm-none-eabi-nm", str(image)]).splitlines():
        parts = line.split()
        if len(parts) == 3:
            symbols[parts[2]] = int(parts[0], 16)
    return run(model, cpu, kernels, flat.read_bytes(), symbols)


def run(model: str, cpu: str, kernels: str, image: bytes, symbols: dict[str, int]) -> Row:
    """Boot, feed the first sample, count one inference, compare its output."""
    regions = [Region("flash", FLASH_BASE, FLASH_BYTES, "rx"), Region("ram", RAM_BASE, RAM_BYTES, "rw")]
    with np.load(ROOT / "zoo" / model / "samples.npz") as samples:
        given, golden = samples["input_int8"][0].tobytes(), samples["output_int8"][0]
    with Machine(cpu, regions) as machine:
        machine.load(FLASH_BASE, image)

        def call_peer(name: str) -> tuple[int, int, int]:
            done = machine.call(
                symbols[name] & ~1,
                stack_top=RAM_BASE + RAM_BYTES,
                stack_bytes=STACK_BYTES,
                instruction_limit=4_000_000_000,
            )
            return done.return_value, done.instructions, done.stack_peak_bytes

        if call_peer("peer_boot")[0] != 0:
            raise PeerError(f"the interpreter refuses {model}: an operator or {ARENA_BYTES} bytes of arena are missing")
        machine.load(call_peer("peer_input")[0], given)
        status, instructions, stack = call_peer("peer_invoke")
        if status != 0:
            raise PeerError(f"the inference of {model} failed")
        output = np.frombuffer(machine.read(call_peer("peer_output")[0], golden.size), dtype=np.int8)
        arena = call_peer("peer_arena_used")[0]
    apart = int(np.max(np.abs(output.astype(int) - golden.reshape(-1).astype(int))))
    fidelity = "equal to the golden output" if apart == 0 else f"within {apart} LSB of the golden output"
    return Row(model, cpu, kernels, len(image), arena, stack, instructions, fidelity)


def show(rows: list[Row]) -> None:
    """Print the rows."""
    table = Table("model", "target", "kernels", "flash B", "arena B", "stack B", "instructions", "fidelity", box=None)
    for row in rows:
        counts = (row.flash_bytes, row.arena_bytes, row.stack_bytes, row.instructions)
        table.add_row(row.model, row.target, row.kernels, *(f"{count:,}" for count in counts), row.fidelity)
    Console(width=160).print(table)


def call(command: list[str], folder: Path | None = None) -> str:
    """Run a program and return what it printed; PeerError with its last lines when it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        package = "gcc-arm-none-eabi libnewlib-arm-none-eabi libstdc++-arm-none-eabi-newlib make"
        raise PeerError(f"{command[0]} is not installed (Debian, Ubuntu: apt-get install {package})") from None
    if done.returncode != 0:
        raise PeerError(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _third_party(downloads: Path) -> list[str]:
    return [str(downloads / name) for name in ("flatbuffers/include", "gemmlowp", "ruy", "kissfft")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
