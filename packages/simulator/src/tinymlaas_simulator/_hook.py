"""Build (once per user) and bind the native observers of `hook.c`.

The shared library is compiled on first use with `cc` or, where there is none, with the clang of the `ziglang` wheel,
into `$TINYMLAAS_CACHE_DIR`, `$XDG_CACHE_HOME/tinymlaas` or `~/.cache/tinymlaas`. Its name holds a digest of the source,
the compiler and the host, and it appears by an atomic rename, so concurrent first uses do not disturb each other.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from tinymlaas_simulator.errors import SimulatorError

MAX_RANGES = 16
MAX_SEGMENTS = 4
MOVED_RANGES = 4

STOP_NONE, STOP_LIMIT, STOP_RANGE, STOP_MISALIGNED, STOP_REQUESTED = range(5)
ALIGN_ANY, ALIGN_NATURAL, ALIGN_THUMB2 = range(3)

_FLAGS = ("-shared", "-fPIC", "-O2", "-std=c99")


class Range(ctypes.Structure):
    """A span of data addresses the code may touch, with the extremes that it did touch."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("lowest_write", ctypes.c_uint64),
        ("highest_write", ctypes.c_uint64),
        ("lowest_read", ctypes.c_uint64),
        ("highest_read", ctypes.c_uint64),
        ("perms", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


class Segment(ctypes.Structure):
    """A span of code addresses whose instructions are counted, one counter for each halfword."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("executed", ctypes.c_void_p),
        ("taken", ctypes.c_void_p),
        ("code", ctypes.c_void_p),
        ("moved", ctypes.c_void_p),
    ]


class Owners(ctypes.Structure):
    """Code whose cost is charged to owners; see `sim_owners` in `hook.c`."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("halves", ctypes.c_uint64),
        ("map", ctypes.c_void_p),
        ("executed", ctypes.c_void_p),
        ("taken", ctypes.c_void_p),
        ("moved", ctypes.c_void_p),
        ("current", ctypes.c_uint64),
    ]


class State(ctypes.Structure):
    """What the native observers share with Python; see `sim_state` in `hook.c`."""

    _fields_ = [
        ("instructions", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("accesses", ctypes.c_uint64),
        ("stop", ctypes.c_void_p),
        ("read_register", ctypes.c_void_p),
        ("write_register", ctypes.c_void_p),
        ("pc", ctypes.c_uint64),
        ("pc_size", ctypes.c_uint64),
        ("previous_pc", ctypes.c_uint64),
        ("previous_size", ctypes.c_uint64),
        ("fault_address", ctypes.c_uint64),
        ("fault_size", ctypes.c_uint64),
        ("reason", ctypes.c_uint32),
        ("fault_is_write", ctypes.c_uint32),
        ("alignment", ctypes.c_uint32),
        ("range_count", ctypes.c_uint32),
        ("segment_count", ctypes.c_uint32),
        ("first_half", ctypes.c_uint32),
        ("it_left", ctypes.c_uint32),
        ("xpsr", ctypes.c_int32),
        ("ranges", Range * MAX_RANGES),
        ("segments", Segment * MAX_SEGMENTS),
        ("owners", Owners),
    ]


def cache_dir() -> Path:
    """Give the folder for things compiled once per user; it is made on demand.

    Raises SimulatorError (CACHE_UNUSABLE) when it cannot be made or written.
    """
    configured = os.environ.get("TINYMLAAS_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = Path(configured) if configured else home / "tinymlaas"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SimulatorError(
            "CACHE_UNUSABLE",
            f"cannot make the cache folder: {error.strerror}",
            metadata={"path": str(base)},
            help="set TINYMLAAS_CACHE_DIR to a folder that this user can write",
        ) from error
    return base


def host_compiler() -> tuple[str, ...]:
    """Give the command of a C compiler for this host: `cc` when present, else zig's clang."""
    found = shutil.which("cc")
    return (found,) if found else (sys.executable, "-m", "ziglang", "cc")


def _compiler_identity(command: tuple[str, ...]) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=120, check=False)
    return " ".join(command) + done.stdout.splitlines()[0] if done.stdout else " ".join(command)


@functools.cache
def load() -> ctypes.CDLL:
    """Give the bound library of native observers, compiled on first use.

    Raises SimulatorError (HOOK_BUILD_FAILED) with the compiler's last lines when it cannot be built.
    """
    target = shared_library("hook.c", "simulator-hook")
    library = ctypes.CDLL(str(target))
    library.sim_state_bytes.restype = ctypes.c_uint64
    if library.sim_state_bytes() != ctypes.sizeof(State):
        raise SimulatorError("HOOK_BUILD_FAILED", "the native observers disagree with their Python layout")
    return library


def shared_library(source_name: str, prefix: str, options: tuple[str, ...] = ()) -> Path:
    """Give the shared library of a C file of this package, compiled on first use.

    Raises SimulatorError (HOOK_BUILD_FAILED) with the compiler's last lines when it cannot be built.
    """
    source = resources.files("tinymlaas_simulator").joinpath(source_name).read_bytes()
    command = (*host_compiler(), *options)
    identity = f"{_compiler_identity(command)}|{_FLAGS}|{platform.machine()}|{platform.libc_ver()}"
    digest = hashlib.sha256(source + identity.encode()).hexdigest()[:24]
    target = cache_dir() / f"{prefix}-{digest}.so"
    if not target.exists():
        _build(command, source, target)
    return target


def _build(command: tuple[str, ...], source: bytes, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="hook-") as folder:
        c_file = Path(folder, "hook.c")
        c_file.write_bytes(source)
        built = Path(folder, "hook.so")
        done = subprocess.run(
            [*command, *_FLAGS, "-o", str(built), str(c_file)], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise SimulatorError(
                "HOOK_BUILD_FAILED",
                "the native instruction counter could not be compiled",
                metadata={"compiler": command[0], "log": done.stderr[-2000:]},
                help="install a C compiler as `cc`, or the Python package ziglang",
            )
        os.replace(built, target)
