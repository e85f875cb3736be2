"""Copy what a program in /opt/tinymlaas needs of the base image: `python root.py PACKAGE FOLDER`, with the image's own interpreter.

That is the interpreter, its standard library, the shared libraries that these and the installed packages are linked with, and
what the C library and TLS read: no shell and no package manager. FOLDER becomes the root of an image FROM scratch. Names are kept,
symbolic links included. Of dpkg's records those of packages that a file was taken from come along, for scanners and the bill of
materials.
"""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import cache_from_source
from pathlib import Path

from trim import imported

PROGRAM = Path("/opt/tinymlaas")
LIBRARY = Path(sysconfig.get_path("stdlib"))
NOT_IMPORTED = (
    *(
        "site-packages",
        "dist-packages",
        "__pycache__",
        "config-*",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "test",
        "turtledemo",
    ),
    *(
        "tkinter",
        "curses",
        "dbm",
        "_tkinter.*",
        "_curses*.so",
        "_dbm.*",
        "_gdbm.*",
        "nis.*",
        "readline.*",
        "_test*.so",
    ),  # of terminals and hosts
)
READ = (
    *(
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/ld.so.cache",
        "/etc/ssl/openssl.cnf",
        "/usr/lib/ssl/openssl.cnf",
    ),
    *("/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem", "/usr/lib/ssl/certs"),
)
DPKG = Path("/var/lib/dpkg")
LINKED = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)")


class Root:
    """A folder that files are copied to under the names that they have here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.taken: set[Path] = set()

    def at(self, path: Path) -> Path:
        """Where a path of here is in the folder."""
        return self._folder / path.relative_to("/")

    def take(self, path: Path) -> None:
        """Copy a file or make a folder, and every link on the way to it."""
        here = Path("/")
        for number, part in enumerate(path.parts[1:], 2):
            here /= part
            if here.is_symlink():
                self._link(here)
                self.take(Path(os.path.normpath(here.parent / here.readlink())).joinpath(*path.parts[number:]))
                return
        if path.is_dir():
            self.at(path).mkdir(parents=True, exist_ok=True)
        elif path not in self.taken:
            self.at(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, self.at(path))
            self.taken.add(path)

    def _link(self, link: Path) -> None:
        copy = self.at(link)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.is_symlink():
            copy.symlink_to(link.readlink())
        if not link.is_dir():
            self.taken.add(link)


def linked(file: Path) -> set[Path] | None:
    """Shared libraries that the loader finds for a file; None where one is missing here, so that the file is of no use."""
    told = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False).stdout
    return None if "not found" in told else {Path(found) for found in LINKED.findall(told)}


def standard_library() -> Iterator[Path]:
    """Files of the standard library that a service may import, without extensions whose libraries the base lacks."""
    for file in sorted(LIBRARY.rglob("*")):
        parts = [Path(part) for part in file.relative_to(LIBRARY).parts]
        if file.is_dir() or any(part.match(each) for part in parts for each in NOT_IMPORTED):
            continue
        if file.suffix != ".so" or linked(file) is not None:
            yield file


def records(taken: Iterable[Path]) -> tuple[str, list[Path]]:
    """dpkg's status of the packages that these files come from, and their licences."""
    if not (DPKG / "status").exists():
        return "", []
    wanted = {str(path) for path in taken}
    owners = {
        listing.name.removesuffix(".list").partition(":")[0]
        for listing in DPKG.glob("info/*.list")
        if any(line in wanted or f"/usr{line}" in wanted for line in listing.read_text("utf-8").splitlines())
    }
    entries = (DPKG / "status").read_text("utf-8").split("\n\n")
    kept = [each for each in entries if re.sub(r"(?s)^Package: (\S+).*", r"\1", each.strip()) in owners]
    licences = [Path("/usr/share/doc") / owner / "copyright" for owner in sorted(owners)]
    return "\n\n".join(each.strip() for each in kept) + "\n\n", [path for path in licences if path.exists()]


def main() -> None:
    """Command line."""
    package, folder = sys.argv[1], Path(sys.argv[2])
    root = Root(folder)
    for name in ("tmp", "proc", "sys", "dev", "etc", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    interpreter = PROGRAM / "bin" / "python"
    while PROGRAM in interpreter.parents:
        interpreter = interpreter.parent / interpreter.readlink()
    programs = [interpreter, *standard_library()]
    for file in programs:
        root.take(file)
    extensions = [file for file in (*programs, *PROGRAM.rglob("*.so*")) if file == interpreter or ".so" in file.name]
    for library in sorted({each for file in extensions for each in linked(file) or ()}):
        if PROGRAM not in library.parents:
            root.take(library)
    for name in READ:
        if Path(name).exists():
            root.take(Path(name))
    for source in sorted(path for path in imported(package) if LIBRARY in path.parents):
        compiled = root.at(Path(cache_from_source(str(source))))
        py_compile.compile(
            str(source),
            str(compiled),
            str(source),
            True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    status, licences = records(root.taken)
    for licence in licences:
        root.take(licence)
    (folder / "var/lib/dpkg").mkdir(parents=True)
    (folder / "var/lib/dpkg/status").write_text(status, encoding="utf-8")


if __name__ == "__main__":
    main()
