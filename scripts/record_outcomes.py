"""pytest plugin that writes the outcome of every test, as JSON, to the file that TINYMLAAS_OUTCOMES names.

Loaded by `run_tests.py` with `-p record_outcomes`; without the variable it does nothing.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

# What pytest-xdist appends to a test's id under `--dist loadgroup`.
_GROUP = re.compile(r"@[^@\[\]/:]+$")
_RANK = {"passed": 0, "skipped": 1, "failed": 2}


class Recorder:
    """Keeps the worst report of each test: a test whose fixture breaks at its end has failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[str, str] = {}
        self._collection: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called once for set-up, call and tear-down of each test, in the main process also under xdist."""
        name = _GROUP.sub("", report.nodeid)
        outcome = "passed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
        if _RANK[outcome] >= _RANK[self._outcomes.get(name, "passed")]:
            self._outcomes[name] = outcome

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be loaded has no tests that could be run again."""
        if report.failed and report.nodeid not in self._collection:
            self._collection.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Writes the file."""
        self._path.write_text(json.dumps({"tests": self._outcomes, "collection": self._collection}), encoding="utf-8")


def pytest_configure(config: Any) -> None:
    """Registers the recorder in the process that sees all reports."""
    path = os.environ.get("TINYMLAAS_OUTCOMES")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)), "tinymlaas-outcomes")
