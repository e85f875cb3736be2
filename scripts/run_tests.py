"""Run every test in the environment that it belongs to, and print one summary.

The light environment runs the packages', light services', device's and cross-part tests; each heavy service's tests run in
its own environment. A test that failed is run once more, alone: one that passes then is listed as flaky and does not fail
the run, one that fails again does, and so do more than MAX_FLAKY failures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from environments import ENVIRONMENTS, ROOT, Environment

MAX_FLAKY = 5
SLOWEST = ("--durations", "15", "--durations-min", "5")
TESTS_FAILED = 1  # pytest's exit status where tests failed and nothing else went wrong


@dataclass(frozen=True)
class Run:
    """What one pytest process said: its exit status, the outcome of each test by id, files that could not be loaded."""

    status: int
    tests: dict[str, str]
    collection: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Ids of the tests that failed."""
        return [name for name, outcome in self.tests.items() if outcome == "failed"]

    def count(self, outcome: str) -> int:
        """How many tests had that outcome."""
        return sum(1 for each in self.tests.values() if each == outcome)


@dataclass(frozen=True)
class Verdict:
    """Outcome of an environment: tests that failed for good, tests that passed at the second try, and whether it is bad."""

    passed: int
    failed: int
    skipped: int
    flaky: tuple[str, ...]
    bad: bool


def may_repeat(first: Run, left: int = MAX_FLAKY) -> bool:
    """Whether the failures of a run are tests, and few enough, to be tried again."""
    return first.status == TESTS_FAILED and not first.collection and 0 < len(first.failed) <= left


def judge(first: Run, again: Run | None) -> Verdict:
    """What the first run and the second one of its failures (None: there was none) come to."""
    recovered = [] if again is None else [name for name in first.failed if again.tests.get(name) == "passed"]
    failed = len(first.failed) - len(recovered) + len(first.collection)
    bad = failed > 0 or (first.status != 0 and not recovered) or (again is not None and again.status != 0)
    return Verdict(first.count("passed") + len(recovered), failed, first.count("skipped"), tuple(recovered), bad)


def test_folders(environment: Environment) -> list[str]:
    """Folders whose tests run in this environment."""
    if environment.name == "light":
        own = [part for part in environment.parts if (ROOT / part / "tests").is_dir()]
        return [
            *(f"{part}/tests" for part in own),
            *(f for f in ("device/loader/tests", "tests") if (ROOT / f).is_dir()),
        ]
    return [str((environment.folder / "tests").relative_to(ROOT))]


def run(python: Path, root: Path, arguments: list[str]) -> Run:
    """Run pytest in a folder, showing what it says."""
    with tempfile.TemporaryDirectory(prefix="tinymlaas-tests-") as scratch:
        outcomes = Path(scratch) / "outcomes.json"
        here = str(Path(__file__).resolve().parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH", "")])]
        variables = {"COLUMNS": "120", "PYTHONPATH": os.pathsep.join(paths), "TINYMLAAS_OUTCOMES": str(outcomes)}
        command = [str(python), "-m", "pytest", "-p", "record_outcomes", *arguments]
        status = subprocess.run(command, cwd=root, env={**os.environ, **variables}, check=False).returncode
        if not outcomes.exists():
            return Run(status or 1, {}, ("pytest ended without a report",))
        told = json.loads(outcomes.read_text(encoding="utf-8"))
        return Run(status, told["tests"], tuple(told["collection"]))


def run_environment(environment: Environment, extra: list[str], left: int) -> Verdict:
    """All tests of an environment, and its failures once more; `left` failures may be repeated."""
    python, folders = environment.venv / "bin" / "python", test_folders(environment)
    print(f"\n== {environment.name}: {' '.join(folders)}", flush=True)
    began = time.monotonic()
    first = run(python, ROOT, [*folders, *extra, *SLOWEST, "-n", "2", "--dist", "loadgroup"])
    print(f"{environment.name}: {time.monotonic() - began:.0f} s", flush=True)
    if not may_repeat(first, left):
        return judge(first, None)
    print(f"\n== {environment.name}: {len(first.failed)} failed, once more and alone", flush=True)
    return judge(first, run(python, ROOT, first.failed))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("--only", help="one environment by name")
    arguments = parser.parse_args()
    extra = ["-m", "not slow"] if arguments.fast else []
    verdicts: dict[str, Verdict] = {}
    flaky: list[str] = []
    began = time.monotonic()
    for environment in ENVIRONMENTS:
        if arguments.only and environment.name != arguments.only:
            continue
        verdict = run_environment(environment, extra, MAX_FLAKY - len(flaky))
        verdicts[environment.name] = verdict
        flaky += verdict.flaky
    bad = [name for name, verdict in verdicts.items() if verdict.bad]
    if flaky:
        print("\nFLAKY: failed under load, passed alone (the first failure is shown above); mend these:")
        print("\n".join(f"  {name}" for name in flaky))
    print(f"\n{time.monotonic() - began:.0f} s" + (f"; failing: {', '.join(bad)}" if bad else ""))
    passed, failed, skipped = (
        sum(getattr(verdict, name) for verdict in verdicts.values()) for name in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    raise SystemExit(main())
