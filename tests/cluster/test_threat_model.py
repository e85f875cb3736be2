"""The threat model names its proofs; a proof that is not there proves nothing."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_proof_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## Controls")[1].split("## ")[0].splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w./-]+/[\w./-]+)`", row.rsplit("|", 2)[-2])
        assert named, row
        assert not [path for path in named if not (ROOT / path).exists()], row
