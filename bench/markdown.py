"""`python -m bench.markdown`: the tables of docs/benchmarks.md out of bench/results, between the marks that name them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import optimizer
from bench import recipes as built
from bench.compilers import FLOAT_MODELS, MODELS, ORDER, Row
from bench.goals import ModelFacts, goals
from bench.peers import peer_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "bench" / "results"
NATIVE = "compiler-tvm"


def main() -> int:
    """Rewrite the marked parts whose results exist."""
    text = PAGE.read_text(encoding="utf-8")
    for name, (file, table) in TABLES.items():
        path = RESULTS / file
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if path.is_file() and begin in text:
            before, rest = text.split(begin, 1)
            text = before + begin + table(json.loads(path.read_text(encoding="utf-8"))) + end + rest.split(end, 1)[1]
    PAGE.write_text(text, encoding="utf-8")
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _rows(entries: list[dict[str, Any]]) -> list[Row]:
    rows = [Row(**entry) for entry in entries]
    models = (*MODELS, *FLOAT_MODELS)
    return sorted(rows, key=lambda row: (ORDER.index(row.target), models.index(row.model), row.compiler))


def compilers(entries: list[dict[str, Any]]) -> str:
    """Every figure with its ratio to the peer."""

    def with_ratio(row: Row, value: int | None, ratio: float | None) -> str:
        peer = peer_of(row.model, row.target)
        stand_in = f" {peer.cpu.removeprefix('cortex-')}" if peer is not None and peer.cpu != row.target else ""
        return _number(value) + ("" if ratio is None else f" ({ratio:.2f}{stand_in})")

    found = []
    for row in _rows(entries):
        beyond = None if row.flash_bytes is None else row.flash_bytes - row.weights_bytes
        accuracy = "–" if row.accuracy is None else f"{row.accuracy:.0%}"
        found.append(
            [
                row.target,
                row.model,
                row.compiler,
                with_ratio(row, row.flash_bytes, row.flash_ratio),
                _number(beyond),
                with_ratio(row, row.ram_bytes, row.ram_ratio),
                _number(row.stack_bytes),
                with_ratio(row, row.instructions, row.instructions_ratio),
                _number(row.estimated_cycles),
                accuracy,
                row.fidelity,
            ]
        )
    head = [
        "target",
        "model (int8 or float)",
        "compiler",
        "flash B",
        "– weights",
        "arena B",
        "stack B",
        "instructions",
    ]
    return _table([*head, "cycles est", "accuracy", "fidelity"], found)


def wanted(entries: list[dict[str, Any]]) -> str:
    """What compiler-tvm must reach, and should."""
    found = []
    for row in (row for row in _rows(entries) if row.compiler == NATIVE and row.model in MODELS):
        facts = ModelFacts(row.weights_bytes, row.live_bytes)
        figures = (row.flash_bytes, row.ram_bytes, row.stack_bytes, row.instructions)
        for goal in (goal for goal in goals(row.model, row.target, facts, *figures) if goal.must is not None):
            in_bytes = goal.name == "flash"
            shown = [
                "–" if value is None else f"{value:,.0f} B" if in_bytes else f"{value:.3f}"
                for value in (goal.value, goal.must, goal.aim)
            ]
            name = "flash – weights" if in_bytes else f"{goal.name} / peer"
            verdicts = goal.verdict(goal.must), goal.verdict(goal.aim)
            found.append([row.target, row.model, name, shown[0], shown[1], verdicts[0], shown[2], verdicts[1]])
    return _table(["target", "model", "figure", "reached", "must", "holds", "aim", "holds"], found)


def objectives(entries: list[dict[str, Any]]) -> str:
    """What each objective trades."""
    rows = sorted((Row(**entry) for entry in entries), key=lambda row: (MODELS.index(row.model), row.objective))
    head = ["model", "objective", "flash B", "arena B", "stack B", "instructions"]
    cells = [
        [row.model, row.objective, *map(_number, (row.flash_bytes, row.ram_bytes, row.stack_bytes, row.instructions))]
        for row in rows
    ]
    return _table(head, cells)


def cost(entries: dict[str, Any]) -> str:
    """Seconds and memory of compiling."""
    names = ("kws", "ic", "vww", "ad")
    parts = [("loading, and the first model", ("warm-up",), "–"), ("kws", ("kws",), "3 s")]
    parts += [(name, (name,), "–") for name in names[1:]]
    parts.append(("kws, ic, vww and ad", names, "20 s"))
    rows = [
        [
            title,
            *(f"{sum(entries[key][name] for name in own):.2f} s" for key in ("seconds", "processor_seconds")),
            limit,
        ]
        for title, own, limit in parts
    ]
    rows.append(["peak memory, with child processes", f"{entries['peak_bytes'] / 1e9:.2f} GB", "", "1.5 GB"])
    return _table(["compiling", "on the clock", "processor", "limit"], rows)


def nodes(entries: list[dict[str, Any]]) -> str:
    """Totals of the operator tests by form, and the operators of which nothing passed in that form nor in another."""
    rows = []
    served = {entry["operator"] for entry in entries if entry["passed"]}
    for form in dict.fromkeys(entry["form"] for entry in entries):
        own = [entry for entry in entries if entry["form"] == form]
        sums = [str(sum(entry[state] for entry in own)) for state in ("passed", "unsupported", "failed")]
        none = ", ".join(entry["operator"] for entry in own if entry["operator"] not in served)
        rows.append([form, str(len(own)), *sums, none or "none"])
    return _table(
        ["form", "operators", "passed", "unsupported", "failed", "operators of which no case passed in any form"], rows
    )


def recipes(entries: list[dict[str, Any]]) -> str:
    """What each recipe of the optimizer makes of each model."""
    return _table(optimizer.HEAD, [optimizer.cells(optimizer.Row(**entry)) for entry in entries])


def recipes_built(entries: list[dict[str, Any]]) -> str:
    """What the compilers make of what some recipes make."""
    return _table(built.HEAD, [built.cells(built.Row(**entry)) for entry in entries])


def cluster(entries: list[dict[str, Any]]) -> str:
    """What a release on a cluster survived."""
    return _table(["case", "value", "unit"], [[e["case"], f"{e['value']:,g}", e["unit"]] for e in entries])


def _figure(value: float | None) -> str:
    """Three digits at least; nothing where it was not measured."""
    return "–" if value is None else f"{value:,.3g}" if abs(value) < 10 else f"{value:,.0f}"


def lwm2m(entries: list[dict[str, Any]]) -> str:
    """Storms, a rollout and hostile input, beside Leshan's server where it was measured too."""
    parts = ("storm", "rollout", "fuzz")
    cells = [
        [entry["case"], _figure(entry["value"]), entry["unit"], _figure(entry["peer_value"]), entry["method"]]
        for entry in sorted(entries, key=lambda entry: parts.index(entry["part"]))
    ]
    return _table(["case", "value", "unit", "Leshan", "method"], cells)


def services(entries: list[dict[str, Any]]) -> str:
    """What calls of the suite cost."""
    cells = [[entry["case"], f"{entry['value']:,.1f}", entry["unit"], entry["method"]] for entry in entries]
    return _table(["case", "value", "unit", "method"], cells)


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "compilers": ("compilers.json", compilers),
    "goals": ("compilers.json", wanted),
    "objectives": ("objectives.json", objectives),
    "cost": ("compile-cost.json", cost),
    "nodes": ("onnx-node-tests.json", nodes),
    "optimizer": ("optimizer.json", recipes),
    "recipes": ("recipes.json", recipes_built),
    "services": ("services.json", services),
    "lwm2m": ("lwm2m.json", lwm2m),
    "cluster": ("cluster.json", cluster),
}

if __name__ == "__main__":
    sys.exit(main())
