"""`tinymlaas modules profile`: what each operator of a module costs, as table, JSON and SVG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.comparison import Bar, bars, stacked, standalone

TRAFFIC = (
    ("arena read", "arena_read_bytes"),
    ("arena written", "arena_written_bytes"),
    ("constants read", "payload_read_bytes"),
    ("stack read", "stack_read_bytes"),
    ("stack written", "stack_written_bytes"),
)


@dataclass(frozen=True)
class Row:
    """One operator of a module, code and constants that operators share (bytes only), or what lies outside of all.

    Counts are of one inference; `moved` has bytes by the names of TRAFFIC, empty when they were not observed.
    """

    node: str
    operator: str
    instructions: int
    estimated_cycles: int
    flash_bytes: int
    moved: dict[str, int]


def profile(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="sha256 of a module (its beginning is enough).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for profile.svg and profile.json.")
    ] = None,
) -> None:
    """Show what each operator costs: instructions, estimated cycles, bytes moved in arena, flash and stack."""
    session: Session = context.obj

    async def work() -> builds_pb2.Candidate:
        async with session.connect() as client:
            return await _candidate(client, module)

    candidate = run(work())
    operators = rows(candidate)
    document = _document(candidate, operators)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "profile.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (output / "profile.svg").write_text(picture(operators, candidate.module.rsplit("/", 1)[-1]), encoding="utf-8")
    if session.as_json:
        session.print_json(document)
        return
    session.console.print(table(operators))
    session.console.print(
        "of one inference, shared code charged to its caller · instructions simulated · cycles estimated from documented "
        "costs · bytes of observed loads and stores, each access counted",
        style="dim",
    )
    if output is not None:
        session.console.print(f"[green]✓[/] {output / 'profile.svg'} and profile.json")


async def _candidate(client: AsyncClient, module: str) -> builds_pb2.Candidate:
    """The candidate of the newest build that sealed the module; LookupError when no build is known or it has no profile."""
    name = (await client.get_module(module)).name
    for build in await client.list_builds():
        for candidate in build.candidates:
            if candidate.module == name:
                if not candidate.operators:
                    raise LookupError(f"{candidate.plugin} told no operators of this module, so none were profiled")
                return candidate
    raise LookupError("no build of this project made that module; build its model again to profile it")


def rows(candidate: builds_pb2.Candidate) -> list[Row]:
    """The operators' costs as the profiler told them."""
    return [
        Row(
            item.node,
            item.operator,
            item.instructions,
            item.estimated_cycles,
            item.flash_bytes,
            {name: getattr(item.traffic, field) for name, field in TRAFFIC} if item.HasField("traffic") else {},
        )
        for item in candidate.operators
    ]


def table(operators: Sequence[Row]) -> Table:
    """One row an operator, and the sum."""
    shown = Table("operator", "node", "instructions", "", "cycles est", "flash B", *(name for name, _ in TRAFFIC))
    for column in shown.columns[2:]:
        column.justify = "right"
    total = sum(row.instructions for row in operators) or 1
    for row in operators:
        shown.add_row(
            row.operator,
            row.node,
            f"{row.instructions:,}",
            f"{row.instructions / total:.1%}",
            f"{row.estimated_cycles:,}",
            f"{row.flash_bytes:,}",
            *(f"{row.moved[name]:,}" if row.moved else "–" for name, _ in TRAFFIC),
        )
    shown.add_section()
    sums = [sum(row.moved.get(name, 0) for row in operators) for name, _ in TRAFFIC]
    shown.add_row(
        "[bold]total[/]",
        "",
        f"{sum(row.instructions for row in operators):,}",
        "100.0%",
        f"{sum(row.estimated_cycles for row in operators):,}",
        f"{sum(row.flash_bytes for row in operators):,}",
        *(f"{count:,}" for count in sums),
    )
    return shown


def picture(operators: Sequence[Row], module: str) -> str:
    """Two bar charts as one SVG file: instructions, and bytes moved by where they lie."""
    total = sum(row.instructions for row in operators) or 1
    operators = [row for row in operators if row.instructions]
    names = [f"{row.operator} {row.node}".strip() for row in operators]
    instructions = [
        Bar(name, (float(row.instructions),), f"{row.instructions:,} ({row.instructions / total:.1%})")
        for name, row in zip(names, operators, strict=True)
    ]
    moved = [
        Bar(name, tuple(float(row.moved[key]) for key, _ in TRAFFIC), f"{sum(row.moved.values()):,} B")
        for name, row in zip(names, operators, strict=True)
        if row.moved
    ]
    return standalone(
        stacked(
            [
                bars(instructions, ["instructions (simulated)"], f"Instructions per inference, module {module[:16]}"),
                bars(moved, [name for name, _ in TRAFFIC], "Bytes moved by loads and stores (simulated)"),
            ]
        )
    )


def _document(candidate: builds_pb2.Candidate, operators: Sequence[Row]) -> dict[str, Any]:
    return {
        "module": candidate.module,
        "compiler": candidate.plugin.removeprefix("plugins/"),
        "methods": {"instructions": "simulated", "estimated_cycles": "estimated", "moved_bytes": "simulated"},
        "operators": [
            {
                "node": row.node,
                "operator": row.operator,
                "instructions": row.instructions,
                "estimated_cycles": row.estimated_cycles,
                "flash_bytes": row.flash_bytes,
                "moved_bytes": {name.replace(" ", "_"): count for name, count in row.moved.items()},
            }
            for row in operators
        ],
        "total": {
            "instructions": sum(row.instructions for row in operators),
            "estimated_cycles": sum(row.estimated_cycles for row in operators),
        },
    }
