"""Run every test in the environment that it belongs to, and print one summary.

The light environment runs the packages', light services', device's and cross-part tests; each heavy service's tests run in
its own environment.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from environments import ENVIRONMENTS, ROOT, Environment

COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)")


def test_folders(environment: Environment) -> list[str]:
    """Folders whose tests run in this environment."""
    if environment.name == "light":
        own = [part for part in environment.parts if (ROOT / part / "tests").is_dir()]
        return [
            *(f"{part}/tests" for part in own),
            *(f for f in ("device/loader/tests", "tests") if (ROOT / f).is_dir()),
        ]
    return [str((environment.folder / "tests").relative_to(ROOT))]


def run(environment: Environment, folders: list[str], extra: list[str]) -> tuple[int, dict[str, int]]:
    """Run pytest over the folders; its exit code and counts."""
    command = [str(environment.venv / "bin" / "python"), "-m", "pytest", *folders, *extra]
    print(f"\n== {environment.name}: {' '.join(folders)}", flush=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if COUNTS.search(line) and " in " in line else last
    counts = {"errors" if name.startswith("error") else name: int(count) for count, name in COUNTS.findall(last)}
    return process.wait(), counts


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("--only", help="one environment by name")
    arguments = parser.parse_args()
    extra = ["-m", "not slow"] if arguments.fast else []
    total: dict[str, int] = {}
    bad: list[str] = []
    began = time.monotonic()
    for environment in ENVIRONMENTS:
        if arguments.only and environment.name != arguments.only:
            continue
        workers = ["-n", "2", "--dist", "loadgroup"]
        code, counts = run(environment, test_folders(environment), [*extra, *workers])
        if code != 0:
            bad.append(environment.name)
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    failed = total.get("failed", 0) + total.get("errors", 0)
    print(f"\n{time.monotonic() - began:.0f} s" + (f"; failing: {', '.join(bad)}" if bad else ""))
    print(f"{total.get('passed', 0)} passed, {failed} failed, {total.get('skipped', 0)} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    raise SystemExit(main())
