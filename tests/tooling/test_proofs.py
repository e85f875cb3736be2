"""Documents name their proofs; a proof that is not there proves nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROOF = re.compile(r"`([\w./-]+/[\w./-]+)(?:::(\w+))?`")


@pytest.mark.parametrize(
    ("page", "section"), [("threat-model.md", "## Controls"), ("guide-operate.md", "## What is proved, and by what")]
)
def test_every_proof_that_a_page_names_is_there(page: str, section: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = [line for line in text.split(section)[1].split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        cell = row.rsplit("|", 2)[-2]
        named = PROOF.findall(cell)
        assert named or "`make " in cell, row
        for path, test in named:
            assert (ROOT / path).exists(), row
            assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
