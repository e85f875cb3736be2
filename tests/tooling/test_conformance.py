"""Every test that docs/lwm2m-conformance.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "lwm2m-conformance.md").read_text(encoding="utf-8")
FOLDERS = dict(re.findall(r"\b([A-Z]): `([a-z0-9/-]+)`", TEXT))
NAMED = re.findall(r"\b([A-Z])/([\w/]+\.(?:py|go))::(\w+)", TEXT)


def test_each_phrase_names_tests_that_exist_or_a_command() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| phrase")]
    assert len(rows) > 50
    assert [row for row in rows if "::" not in row and "`make " not in row] == []
    missing = []
    for folder, file, name in NAMED:
        path = ROOT / FOLDERS[folder] / file
        if not path.is_file() or not re.search(rf"(?:def|func) {name}\(", path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{name}")
    assert missing == []
