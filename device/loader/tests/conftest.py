"""The loader, built for this machine once per test run, and bound with cffi."""

from __future__ import annotations

import importlib.util
import mmap
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cffi
import pytest

from tinymlaas_module import corpus as im_corpus

ROOT = Path(__file__).resolve().parents[1]
MAX_SLOTS = 4


def _tool(name: str) -> ModuleType:
    path = ROOT / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"loader_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _declarations() -> str:
    """Return the declarations of the public headers in the dialect that cffi reads."""
    text = "\n".join((ROOT / "include" / name).read_text() for name in ("tim.h", "tim_update.h"))
    constants = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)u", text)}
    constants["TIM_MAX_SLOTS"] = MAX_SLOTS
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r'^#.*$|^extern "C" \{$|^\}$', "", text, flags=re.M)
    for name, value in constants.items():
        text = re.sub(rf"\b{name}\b", str(value), text)
    return text


@pytest.fixture(scope="session")
def loader_tools() -> ModuleType:
    """device/loader/tools/build.py as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    return _tool("build")


@pytest.fixture(scope="session")
def loader_path(loader_tools: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library, by zig cc with UBSan traps: undefined behaviour ends the test run."""
    path: Path = loader_tools.build_library(tmp_path_factory.mktemp("loader") / "libtim.so")
    return path


class Loader:
    """cffi's view of the loader."""

    def __init__(self, path: Path) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(_declarations())
        self.lib: Any = self.ffi.dlopen(str(path))

    def status(self, status: int) -> str:
        """Return the name of a status."""
        return bytes(self.ffi.string(self.lib.tim_status_name(status))).decode()


@pytest.fixture(scope="session")
def loader(loader_path: Path) -> Loader:
    """The loader as functions."""
    return Loader(loader_path)


class Flash:
    """NOR flash: pages are erased to 0xFF, each unit is programmed once between erases. The power can be cut in the
    middle of any operation, which then is done partly, in a way that a seeded generator chooses; the unit or page is
    *weak* afterwards: it must be erased before it can be programmed, even when it reads as blank."""

    def __init__(self, size: int, page: int, unit: int) -> None:
        self.memory = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory[:] = bytes([0xFF]) * size
        self.page, self.unit = page, unit
        self.used: set[int] = set()
        self.operations = 0
        self.cut_at = 0
        self.dead = False
        self.offences: list[str] = []
        self.random = random.Random(0)
        self.failing_pages: set[int] = set()

    def _tick(self) -> bool:
        """Count an operation; returns whether the power is cut in it."""
        self.operations += 1
        if self.operations == self.cut_at:
            self.dead = True
        return self.operations == self.cut_at

    def erase(self, offset: int) -> int:
        if offset % self.page or offset + self.page > len(self.memory):
            self.offences.append(f"erase at {offset}")
        if self.dead or offset in self.failing_pages:
            return -1
        units = range(offset, offset + self.page, self.unit)
        if self._tick():
            before = self.memory[offset : offset + self.page]
            how = self.random.choice(["nothing", "some bits", "reads blank"])
            if how == "some bits":
                self.memory[offset : offset + self.page] = bytes(b | self.random.getrandbits(8) for b in before)
            elif how == "reads blank":
                self.memory[offset : offset + self.page] = bytes([0xFF]) * self.page
            self.used.update(units)
            return -1
        self.memory[offset : offset + self.page] = bytes([0xFF]) * self.page
        self.used.difference_update(units)
        return 0

    def program(self, offset: int, data: bytes) -> int:
        if offset % self.unit or len(data) % self.unit:
            self.offences.append(f"program {len(data)} bytes at {offset}")
        for at in range(0, len(data), self.unit):
            if self.dead or (offset + at) // self.page * self.page in self.failing_pages:
                return -1
            want = data[at : at + self.unit]
            where = slice(offset + at, offset + at + self.unit)
            if self._tick():
                how = self.random.choice(["nothing", "some bits", "all bits"])
                if how != "nothing":
                    keep = [0 if how == "all bits" else self.random.getrandbits(8) for _ in want]
                    old = self.memory[where]
                    self.memory[where] = bytes(o & (w | k) for o, w, k in zip(old, want, keep, strict=True))
                self.used.add(offset + at)
                return -1
            if offset + at in self.used:  # a second program without an erase: the result is not what was asked for
                self.memory[where] = bytes(o & w & 0x7E for o, w in zip(self.memory[where], want, strict=True))
                continue
            self.used.add(offset + at)
            self.memory[where] = want
        return 0

    def snapshot(self) -> tuple[bytes, frozenset[int]]:
        return self.memory[:], frozenset(self.used)

    def restore(self, state: tuple[bytes, frozenset[int]]) -> None:
        self.memory[:] = state[0]
        self.used = set(state[1])
        self.operations, self.cut_at, self.dead, self.offences = 0, 0, False, []


class FlashBoard:
    """A board with flash, slots and the update core; ``reboot`` forgets the RAM."""

    STATES = ("EMPTY", "WRITING", "WRITTEN", "VERIFIED", "TESTED", "ACTIVE", "PREVIOUS")

    def __init__(
        self,
        loader: Loader,
        slots: int = 2,
        page: int = 256,
        unit: int = 8,
        slot_pages: int = 8,
        journal_pages: int = 4,
    ) -> None:
        self.loader, self.ffi, self.lib = loader, loader.ffi, loader.lib
        self.flash = Flash((journal_pages + slots * slot_pages) * page, page, unit)
        ffi = self.ffi
        self._erase = ffi.callback("int(void *, uint32_t)", lambda _, offset: self.flash.erase(offset))
        self._program = ffi.callback(
            "int(void *, uint32_t, uint8_t *, uint32_t)",
            lambda _, offset, data, size: self.flash.program(offset, bytes(ffi.buffer(data, size))),
        )
        (key_id, public_key) = next(iter(im_corpus.TRUSTED.keys.items()))
        self._key = ffi.new("tim_key *", {"id": key_id, "public_key": public_key})
        self._platform = ffi.new(
            "tim_platform *", {"keys": self._key, "key_count": 1, "kinds": 0x7E, "isas": 0x3FF, "features": 63}
        )
        self._base = ffi.from_buffer("uint8_t[]", self.flash.memory)
        config: dict[str, Any] = {
            "flash": {
                "base": self._base,
                "page_bytes": page,
                "program_bytes": unit,
                "erase": ffi.cast("int(*)(void *, uint32_t)", self._erase),
                "program": ffi.cast("int(*)(void *, uint32_t, const uint8_t *, uint32_t)", self._program),
            },
            "platform": self._platform,
            "journal": {"offset": 0, "bytes": journal_pages * page},
            "slots": [
                {"offset": (journal_pages + i * slot_pages) * page, "bytes": slot_pages * page} for i in range(slots)
            ],
            "slot_count": slots,
        }
        self.config = ffi.new("tim_update_config *", config)
        self.update = ffi.new("tim_update *")
        block = ffi.new("uint8_t[]", 8192)
        self._block = block
        self.arena = block + (-int(ffi.cast("uintptr_t", block)) % 4096)

    def call(self, name: str, *arguments: Any) -> str:
        """Call ``tim_update_<name>`` and return the status's name."""
        return self.loader.status(getattr(self.lib, f"tim_update_{name}")(self.update, *arguments))

    def reboot(self) -> str:
        """Power on again: RAM is lost, flash stays."""
        self.flash.dead = False
        self.flash.cut_at = 0
        self.update = self.ffi.new("tim_update *")
        return self.call("init", self.config)

    def state(self, slot: int) -> str:
        return self.STATES[self.update.slots[slot].state]

    def states(self) -> list[str]:
        return [self.state(slot) for slot in range(self.config.slot_count)]

    def begin(self, slot: int, image: bytes, download_id: bytes | None = None) -> tuple[str, int]:
        resume = self.ffi.new("uint32_t *")
        identity = download_id or image[-64:].ljust(64, b"x")[:16]
        return self.call("begin", slot, len(image), identity, resume), int(resume[0])

    def download(self, slot: int, image: bytes, chunk: int = 100) -> str:
        """Send ``image`` from where the slot's download stands; returns the last status."""
        status, offset = self.begin(slot, image)
        while status == "OK" and offset < len(image):
            part = image[offset : offset + chunk]
            status = self.call("write", slot, offset, part, len(part))
            offset += len(part)
        return status

    def test(self, slot: int) -> str:
        return self.call("test", slot, self.arena, 4096)

    def test_elsewhere(self, slot: int, verdict: int = 0) -> str:
        """A self-test that the firmware does itself, as for payloads that its own runtime executes."""
        module = self.ffi.new("tim_module *")
        status = self.call("test_begin", slot, module)
        return status if status != "OK" else self.call("test_end", slot, verdict)

    def install(self, slot: int, image: bytes) -> None:
        """Download, verify, test elsewhere, activate, confirm; every step must succeed."""
        assert self.download(slot, image) == "OK"
        assert self.call("verify", slot) == "OK"
        assert self.test_elsewhere(slot) == "OK"
        assert self.call("activate", slot) == "OK"
        assert self.call("confirm", slot) == "OK"

    def opens(self, slot: int) -> str:
        module = self.ffi.new("tim_module *")
        return self.call("open", slot, module)


@pytest.fixture
def make_board(loader: Loader) -> Callable[..., FlashBoard]:
    """Make a board that was booted for the first time."""

    def make(**geometry: int) -> FlashBoard:
        board = FlashBoard(loader, **geometry)
        assert board.reboot() == "OK"
        return board

    return make
