"""Totals of outcomes by operator: JSON to keep, a table to print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.onnx_nodes.cases import LeftOut
from bench.onnx_nodes.run import Outcome

STATES = ("passed", "unsupported", "failed")


def by_operator(outcomes: Sequence[Outcome], form: str) -> list[dict[str, Any]]:
    """One row an operator: counts, how many passed within 1e-5, and the reasons of what did not pass."""
    rows = []
    for operator in sorted({outcome.operator for outcome in outcomes}):
        own = [outcome for outcome in outcomes if outcome.operator == operator]
        counts = Counter(outcome.state for outcome in own)
        reasons = Counter(f"{o.reason}: {o.detail}" for o in own if o.state != "passed")
        rows.append(
            {
                "operator": operator,
                "form": form,
                **{state: counts[state] for state in STATES},
                "within_1e_5": sum(outcome.fine for outcome in own),
                "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            }
        )
    return rows


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Sums over the rows."""
    return {key: sum(row[key] for row in rows) for key in (*STATES, "within_1e_5")}


def show(rows: Sequence[dict[str, Any]], left_out: Sequence[LeftOut], title: str) -> None:
    """Print a line an operator, the totals, and what was left out."""
    print(f"\n{title}\n{'operator':28}{'passed':>8}{'unsupported':>13}{'failed':>8}  first reason")
    for row in rows:
        reason = next(iter(row["reasons"]), "")
        print(f"{row['operator']:28}{row['passed']:8}{row['unsupported']:13}{row['failed']:8}  {reason[:110]}")
    sums = totals(rows)
    print(f"{'total':28}{sums['passed']:8}{sums['unsupported']:13}{sums['failed']:8}")
    print(f"{sums['within_1e_5']} of those that passed are within 1e-5 (relative; 1e-6 absolute near zero)")
    for why, count in Counter(each.why for each in left_out).most_common():
        print(f"left out: {count:4}  {why}")


def write(rows: Sequence[dict[str, Any]], path: Path, forms: Sequence[str], merge: bool) -> None:
    """Keep the rows as JSON in the order of the forms, then of operators; with `merge`, the kept ones of others stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if merge and path.is_file() else []
    merged = {(row["form"], row["operator"]): row for row in (*known, *rows)}
    ordered = sorted(merged.values(), key=lambda row: (forms.index(row["form"]), row["operator"]))
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
