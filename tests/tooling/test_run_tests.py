"""The test runner itself: what is repeated, what is forgiven, and that nothing is lost on the way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = """
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


def test_good():
    pass


@pytest.mark.skip(reason="shown")
def test_left_out():
    pass


@pytest.mark.xdist_group("pair")
@pytest.mark.parametrize("at", ["a@b", "c::d"])
def test_flaky(at):
    seen = HERE / at.replace(":", "")
    if not seen.exists():
        seen.touch()
        raise AssertionError("first time")


@pytest.fixture
def breaks_at_its_end():
    yield
    raise RuntimeError("tear-down")


def test_bad(breaks_at_its_end):
    pass
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    import run_tests

    return run_tests


@pytest.mark.parametrize("workers", [[], ["-n", "1", "--dist", "loadgroup"]])
def test_failures_are_repeated_alone_and_only_what_passes_then_is_forgiven(
    runner: Any, tmp_path: Path, workers: list[str]
) -> None:
    (tmp_path / "test_sample.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    first = runner.run(Path(sys.executable), tmp_path, ["-q", "test_sample.py", *workers])
    assert (first.status, first.count("passed"), first.count("skipped"), len(first.failed)) == (1, 1, 1, 3)
    assert runner.may_repeat(first)
    verdict = runner.judge(first, runner.run(Path(sys.executable), tmp_path, ["-q", *first.failed]))
    assert (verdict.passed, verdict.failed, verdict.skipped, verdict.bad) == (3, 1, 1, True)
    assert sorted(verdict.flaky) == ["test_sample.py::test_flaky[a@b]", "test_sample.py::test_flaky[c::d]"]


def test_a_file_that_cannot_be_loaded_is_a_failure_that_nothing_forgives(runner: Any, tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text("import no_such_module\n")
    first = runner.run(Path(sys.executable), tmp_path, ["-q", "test_sample.py"])
    assert not runner.may_repeat(first)
    verdict = runner.judge(first, None)
    assert verdict.bad
    assert verdict.failed == 1


def test_a_process_that_dies_is_a_failure(runner: Any, tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text("import os\n\n\ndef test_end():\n    os._exit(0)\n")
    first = runner.run(Path(sys.executable), tmp_path, ["-q", "test_sample.py"])
    assert not runner.may_repeat(first)
    assert runner.judge(first, None).bad


@pytest.mark.parametrize(("failures", "left", "repeated"), [(0, 5, False), (5, 5, True), (6, 5, False), (2, 1, False)])
def test_at_most_five_failures_are_repeated(runner: Any, failures: int, left: int, repeated: bool) -> None:
    first = runner.Run(1 if failures else 0, {f"test_{index}": "failed" for index in range(failures)})
    assert runner.may_repeat(first, left) is repeated
    assert runner.judge(first, None).bad is (failures > 0)


def test_the_second_failure_counts(runner: Any) -> None:
    first = runner.Run(1, {"a": "failed", "b": "passed"})
    assert not runner.judge(first, runner.Run(0, {"a": "passed"})).bad
    assert runner.judge(first, runner.Run(1, {"a": "failed"})).bad
    assert runner.judge(first, runner.Run(5, {})).bad
