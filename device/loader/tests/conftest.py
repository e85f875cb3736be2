"""The loader, built for this machine once per test run, and bound with cffi."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cffi
import pytest

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
