"""Rows of bench/results/lwm2m.json: a part that is measured again replaces its own rows and leaves the others."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure; `peer_value` is null where there is no peer in the same run."""

    case: str
    value: float
    unit: str
    peer_value: float | None = None
    method: str = ""
    part: str = ""


def merge(rows: list[Row], part: str, path: Path) -> list[Row]:
    """All rows of the file with those of `part` replaced; written there."""
    known = [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    kept = [row for row in known if row.part != part] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in kept], indent=1) + "\n", encoding="utf-8")
    return kept


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table("case", "value", "unit", "Leshan", "method", title="LwM2M bridge")
    for row in rows:
        peer = (
            ""
            if row.peer_value is None
            else f"{row.peer_value:,.3g}"
            if row.peer_value < 10
            else f"{row.peer_value:,.0f}"
        )
        value = f"{row.value:,.3g}" if row.value < 10 else f"{row.value:,.0f}"
        table.add_row(row.case, value, row.unit, peer, row.method)
    console.print(table)
