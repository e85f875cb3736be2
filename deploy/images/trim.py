"""Leave in an image what its program needs: `python trim.py PACKAGE`, with the image's own interpreter, as the last change to it.

Tests that packages bring along, type stubs and headers go, and what extensions hold for debuggers. Compiled code stays only of
modules that the program imports, half of what pip compiles or less; it is marked as unchecked (PEP 552), so that the same sources
give the same bytes. What is imported besides still works: it is compiled in memory each time.
"""

from __future__ import annotations

import importlib
import pkgutil
import py_compile
import shutil
import struct
import sys
import sysconfig
from pathlib import Path

PACKAGES = Path(sysconfig.get_paths()["purelib"])
TESTS = (
    "numpy/**/tests",
    "onnx/backend/test",
    "Crypto/SelfTest",
    "sqlalchemy/testing",
    "alembic/testing",
    "greenlet/tests",
)
UNUSED = ("**/*.pyi", "**/*.h", "**/*.hpp", "**/*.pxd", "**/*.c", "**/*.cc", "**/*.a")


def imported(package: str) -> set[Path]:
    """Source files that a package's modules import, its own included; migrations are run by name and come as files."""
    top = importlib.import_module(package)
    for module in pkgutil.walk_packages(top.__path__, f"{package}."):
        if ".migrations." not in module.name:
            importlib.import_module(module.name)
    found = {Path(each.__file__) for each in list(sys.modules.values()) if getattr(each, "__file__", None)}
    return {path for path in found if path.suffix == ".py"} | set((Path(top.__path__[0]) / "migrations").rglob("*.py"))


def loaded_bytes(content: bytes) -> int:
    """How much of a 64-bit little-endian ELF file its program headers name (ELF-64, version 1.5); all of another file."""
    if content[:6] != b"\x7fELF\x02\x01":
        return len(content)
    (first,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    headers = [first + size * number for number in range(count)]
    ends = [sum(struct.unpack_from("<Q", content, at + field)[0] for field in (8, 32)) for at in headers]
    return max(first + size * count, *ends)


def strip(file: Path) -> None:
    """Cut off symbols and debugging records: what lies behind the last segment, and the section headers, which no loader reads."""
    content = bytearray(file.read_bytes())
    end = loaded_bytes(bytes(content))
    if end < len(content):
        struct.pack_into("<Q", content, 40, 0)  # e_shoff
        struct.pack_into("<HHH", content, 58, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
        file.write_bytes(content[:end])


def main() -> None:
    """Command line."""
    for pattern in TESTS:
        for folder in sorted(PACKAGES.glob(pattern)):
            shutil.rmtree(folder)
    for pattern in UNUSED:
        for file in sorted(PACKAGES.glob(pattern)):
            file.unlink()
    for library in sorted(PACKAGES.rglob("*.so*")):
        strip(library)
    needed = imported(sys.argv[1])  # after all that is gone: it shows that nothing needs it
    for folder in sorted(PACKAGES.rglob("__pycache__")):
        shutil.rmtree(folder)
    for source in sorted(path for path in needed if PACKAGES in path.parents):
        py_compile.compile(str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main()
