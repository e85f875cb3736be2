"""For tests of determinism (CP-DETERMINISM-001, -002): the same code in processes that are as unlike as two machines can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SURROUNDINGS = (
    {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1", "USER": "ann", "COLUMNS": "40"},
    {"TZ": "America/Anchorage", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "4242", "USER": "bob", "OMP_NUM_THREADS": "1"},
)
_UMASKS = (0o022, 0o077)


def in_unlike_processes(code: str, folder: Path, *, seconds: float = 300.0) -> tuple[str, ...]:
    """Run Python code in two new processes and return what each printed.

    They differ in working folder, home and temporary folder (made below `folder`, of unlike depth and name), time zone,
    locale, hash seed, user name and umask. Raises subprocess.CalledProcessError with the error output when one fails.
    """
    printed = []
    for number, (changes, umask) in enumerate(zip(SURROUNDINGS, _UMASKS, strict=True)):
        place = folder / ("a" if number == 0 else "another place/deeper below")
        home, temporary = place / "home", place / f"tmp{number}"
        for each in (home, temporary):
            each.mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=place,
            env={**os.environ, **changes, "HOME": str(home), "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            umask=umask,
            check=False,
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, "python", done.stdout, done.stderr[-4000:])
        printed.append(done.stdout)
    return tuple(printed)
