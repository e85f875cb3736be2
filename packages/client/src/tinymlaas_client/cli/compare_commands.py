"""`tinymlaas compare`: the race of all compilers on all targets, with the peer beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from tinymlaas_client import figures as _figures
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.cli.build_commands import OBJECTIVES, ModelArgument
from tinymlaas_client.comparison import Comparison, Entry, compare, entry_of, known_model, page, peer_method, peer_name
from tinymlaas_client.targets import named_target, target_names


def compare_(
    context: typer.Context,
    model: ModelArgument,
    target: Annotated[
        list[str] | None, typer.Option(help=f"Device class: {', '.join(target_names())}; default: all.")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help=f"Ask compilers that can choose for this: {', '.join(OBJECTIVES)}; default: all."),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(exists=True, help="npz with inputs for verification; with labels, for accuracy.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for compare.html and compare.json.")
    ] = None,
) -> None:
    """Let every compiler build for every target, and show figures, ratios to the peer and the Pareto front."""
    session: Session = context.obj
    targets = tuple(target or target_names())
    objectives = tuple(objective or OBJECTIVES)
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown:
        raise ValueError(f"unknown objective {unknown[0]!r}; known: {', '.join(OBJECTIVES)}")
    for name in targets:
        named_target(name)

    async def work() -> Comparison:
        async with session.connect() as client:
            digest = await client.write_artifact(samples.read_bytes()) if samples else ""
            with Progress(console=session.console, transient=True, disable=session.as_json) as progress:
                return await races(client, model, targets, objectives, digest, progress)

    found = run(work())
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "compare.html").write_text(page(found), encoding="utf-8")
        (output / "compare.json").write_text(json.dumps(found.document(), indent=1) + "\n", encoding="utf-8")
    if session.as_json:
        session.print_json(found.document())
        return
    session.console.print(table(found))
    if any(entry.ratios for entry in found.entries):
        session.console.print(
            f"×: ratio to {peer_name()} on the CPU named, its arena without its stack; {peer_method()}", style="dim"
        )
    if output is not None:
        session.console.print(f"[green]✓[/] {output / 'compare.html'} and compare.json")


async def races(
    client: AsyncClient,
    model: str,
    targets: tuple[str, ...],
    objectives: tuple[str, ...],
    samples_sha256: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Build for each target and objective; a plugin whose options have no objective takes part once a target."""
    version = await client.get_model_version(model)
    plugins = [
        plugin for plugin in await client.list_plugins() if plugin.compiler_option_schema or plugin.compiler.targets
    ]
    choosing = {p.name for p in plugins if '"objective"' in p.compiler_option_schema}
    short = {name: name.removeprefix("plugins/") for name in choosing}
    peer_model = known_model(version.sha256) or ""
    task = progress.add_task("racing", total=len(targets) * len(objectives)) if progress else None
    entries: list[Entry] = []
    for name in targets:
        wanted = named_target(name)
        for index, objective in enumerate(objectives):
            if progress is not None and task is not None:
                progress.update(task, description=f"{name}, {objective}")
            if index and not choosing:
                break
            started = await client.create_build(
                version.name,
                wanted,
                objective=OBJECTIVES[objective],
                plugins=sorted(short.values()) if index else (),
                options={plugin: {"objective": objective} for plugin in short.values()},
                samples_sha256=samples_sha256,
            )
            build = await client.wait_build(started.name)
            for candidate in build.candidates:
                asked = objective if candidate.plugin in choosing else ""
                entries.append(entry_of(name, wanted.cpu, candidate, asked, peer_model))
            if progress is not None and task is not None:
                progress.advance(task)
    return compare(version.name.split("/")[3], version.name, version.sha256, peer_model, entries)


def table(found: Comparison) -> Table:
    """One row an entry: figures with their methods, ratios to the peer, and a mark for the Pareto front."""
    shown = Table(
        "target", "compiler", "flash", "arena + stack", "instructions", "cycles", "accuracy", "fidelity",
        title=f"{found.model}: compilers compared", title_justify="left", caption="◆ not beaten by another for its target",
    )  # fmt: skip
    for name in found.targets():
        for entry in (each for each in found.entries if each.target == name):
            label = entry.label + (" [bold green]◆[/]" if entry.pareto else "")
            if entry.state != "sealed":
                shown.add_row(name, label, *["–"] * 5, f"[yellow]{entry.state}[/]: {entry.note}")
                continue
            cells = [_cell(entry, metric) for metric in ("flash", "ram", "instructions", "cycles", "accuracy")]
            shown.add_row(name, label, *cells, entry.fidelity)
        shown.add_section()
    return shown


def _cell(entry: Entry, metric: str) -> str:
    figure = entry.figures.get(metric)
    if figure is None:
        return "–"
    value = f"{figure.value:.1%}" if metric == "accuracy" else f"{figure.value:,.0f}"
    text = f"{value} [dim]{_figures.METHOD_NAMES.get(figure.method, '?')}[/]"
    if metric not in entry.ratios:
        return text
    ratio = entry.ratios[metric]
    where = "" if entry.peer_cpu == entry.target else f" {entry.peer_cpu.removeprefix('cortex-')}"
    return f"{text} [{'green' if ratio <= 1 else 'red'}]{ratio:.2f}×{where}[/]"
