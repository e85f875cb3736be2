"""Fetch Monocypher's two C files from the source distribution of pymonocypher, by pinned hash, into build/.

Nothing is copied into the tree. pip downloads through whatever index the user has set up. Usage:
    python device/loader/tools/fetch_monocypher.py [FOLDER]
prints the folder that holds monocypher.c and monocypher.h. A second run needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "pymonocypher"
VERSION = "4.0.3.4"
SDIST_SHA256 = "5e56e3d3eb770a53e0b9f6274146663c11a11f3d0de5cd48e3be0428d1b07a4a"
FILES = ("monocypher.c", "monocypher.h")
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "build" / f"monocypher-{VERSION}"


def fetch(folder: Path = DEFAULT_FOLDER) -> Path:
    """Return ``folder`` with Monocypher's files in it; download them when they are not there yet.

    Raises ``RuntimeError`` when pip cannot download the package or its hash is not the pinned one. Safe when several
    processes call it at once: one downloads, the others wait for it, and the folder appears with a rename.
    """
    if all((folder / name).is_file() for name in FILES):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, also when this process dies
        return folder if all((folder / name).is_file() for name in FILES) else _fetch(folder)


def _fetch(folder: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        sdist = _download(Path(scratch))
        staged = Path(scratch) / "staged"
        staged.mkdir()
        with tarfile.open(sdist) as archive:
            for name in FILES:
                member = archive.extractfile(f"{PACKAGE}-{VERSION}/{name}")
                if member is None:
                    raise RuntimeError(f"{name} is not in {sdist.name}")
                (staged / name).write_bytes(member.read())
        staged.rename(folder)
    return folder


def _download(scratch: Path) -> Path:
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [*_pip(), "download", "--quiet", "--no-deps", "--no-binary", PACKAGE, "--require-hashes"]
    done = subprocess.run(
        [*command, "-r", str(requirement), "-d", str(scratch)], capture_output=True, text=True, check=False
    )
    sdist = scratch / f"{PACKAGE}-{VERSION}.tar.gz"
    if done.returncode != 0 or not sdist.is_file():
        raise RuntimeError(
            f"pip could not download {PACKAGE} {VERSION}: {done.stderr.strip() or done.stdout.strip()}\n"
            f"Check the connection to your package index, or put {' and '.join(FILES)} into {DEFAULT_FOLDER}."
        )
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise RuntimeError(f"{sdist.name} has SHA-256 {found}, pinned is {SDIST_SHA256}")
    return sdist


def _pip() -> list[str]:
    """Return a command that runs pip: this environment's, else that of the interpreter behind it, else on the path."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    for python in dict.fromkeys([sys.executable, base]):
        probe = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
        if probe.returncode == 0:
            return [python, "-m", "pip"]
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        raise RuntimeError("pip is needed to fetch Monocypher: install it, e.g. `python -m ensurepip`")
    return [pip]


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER))
