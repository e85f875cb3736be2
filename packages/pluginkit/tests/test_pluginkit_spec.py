"""The specification and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.rpc import code_pb2

from tinymlaas_pluginkit import Reason
from tinymlaas_pluginkit.reasons import PLATFORM_REASONS

ROOT = Path(__file__).resolve().parents[3]
SPEC = (ROOT / "spec" / "compiler-plugin.md").read_text(encoding="utf-8")
CODE = ROOT / "packages" / "pluginkit" / "src"
CLAUSE = re.compile(r"CP-[A-Z]+-\d{3}")


def _rows() -> dict[str, list[str]]:
    lines = [line for line in SPEC.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells if re.fullmatch(r"`[A-Z_]+`", row[0])}


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_every_reason_stands_in_the_specification_as_in_the_code(reason: Reason) -> None:
    row = reason.value
    assert _rows()[reason.name] == [row.code, row.condition, ", ".join(row.metadata) or "—", row.recovery]
    assert row.code in code_pb2.Code.keys()  # noqa: SIM118 (an enum wrapper, not a dict)


def test_the_specification_has_no_other_reasons() -> None:
    assert set(_rows()) == {reason.name for reason in Reason} | set(PLATFORM_REASONS)
    for name, code in PLATFORM_REASONS.items():
        assert _rows()[name][0] == code


def test_every_clause_is_defined_once() -> None:
    defined = re.findall(r"(?m)^\| (CP-[A-Z]+-\d{3}) \|", SPEC)
    assert len(defined) == len(set(defined)) > 50


def test_every_clause_that_the_code_names_is_defined() -> None:
    defined = set(re.findall(r"(?m)^\| (CP-[A-Z]+-\d{3}) \|", SPEC))
    named = {clause for path in CODE.rglob("*.py") for clause in CLAUSE.findall(path.read_text(encoding="utf-8"))}
    assert named
    assert named <= defined


def test_every_must_has_an_id() -> None:
    body = SPEC.split("## 1 ", 1)[1]
    without = [line for line in body.splitlines() if "MUST" in line and not line.startswith("| CP-")]
    assert without == []
