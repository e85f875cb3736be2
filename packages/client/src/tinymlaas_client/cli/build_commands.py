"""`tinymlaas explain` and `tinymlaas build`: who could compile it, and the race."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from tinymlaas.gateway.v1 import builds_pb2, routing_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2
from tinymlaas_client import figures as _figures
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.cli.optimize_commands import optimize_options
from tinymlaas_client.targets import named_target, target_names

OBJECTIVES = {
    "balanced": builds_pb2.OBJECTIVE_BALANCED,
    "latency": builds_pb2.OBJECTIVE_LATENCY,
    "flash": builds_pb2.OBJECTIVE_FLASH,
    "ram": builds_pb2.OBJECTIVE_RAM,
}
END_STATES = {builds_pb2.Build.STATE_SUCCEEDED, builds_pb2.Build.STATE_FAILED, builds_pb2.Build.STATE_CANCELLED}
FIGURES = (
    ("flash", measurement_pb2.METRIC_FLASH_BYTES),
    ("arena", measurement_pb2.METRIC_ARENA_BYTES),
    ("stack", measurement_pb2.METRIC_STACK_BYTES),
    ("instructions", measurement_pb2.METRIC_INSTRUCTIONS),
)
_COLOURS = {
    builds_pb2.Candidate.STATE_SEALED: "green",
    builds_pb2.Candidate.STATE_FAILED: "red",
    builds_pb2.Candidate.STATE_REJECTED: "yellow",
}

ModelArgument = Annotated[str, typer.Argument(help="MODEL or MODEL/versions/VERSION.")]
OptimizeOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--optimize", exists=True, dir_okay=False, help="JSON file with a recipe to follow first; repeatable."
    ),
]
ObjectiveOption = Annotated[str, typer.Option(help=f"What the winner is best at: {', '.join(OBJECTIVES)}.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(explain)
    app.command()(build)


def objective_value(name: str) -> builds_pb2.Objective.ValueType:
    """The objective of that name; ValueError naming the known ones."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def explain(
    context: typer.Context,
    model: ModelArgument,
    device: Annotated[
        list[str] | None, typer.Option(help="Endpoint name; default: every device of the project.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help=f"Device class: {', '.join(target_names())}.")] = None,
) -> None:
    """Show for each device and compiler: admitted or not, why not, and the smallest change that would admit it."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            answer = await client.explain(
                model, devices=device or (), targets=[named_target(name) for name in target or ()]
            )
            if session.as_json:
                session.print_json(answer)
            else:
                session.console.print(verdict_table(answer))

    run(work())


def build(
    context: typer.Context,
    model: ModelArgument,
    target: Annotated[str, typer.Option(help=f"Device class: {', '.join(target_names())}.")] = "cortex-m4",
    device: Annotated[str, typer.Option(help="Build for what this device says it is, instead of --target.")] = "",
    objective: ObjectiveOption = "balanced",
    compiler: Annotated[list[str] | None, typer.Option(help="Only these plugins; default: all.")] = None,
    samples: Annotated[
        Path | None, typer.Option(exists=True, help="npz with inputs for verification and golden vectors.")
    ] = None,
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Quantize a float model to int8 first, calibrated with --samples.")
    ] = False,
    recipes: OptimizeOption = None,
) -> None:
    """Let the compilers race for one target; the winner is measured, verified, sealed and stored."""
    session: Session = context.obj
    optimize = optimize_options(quantize, recipes, samples)

    async def work() -> builds_pb2.Build:
        async with session.connect() as client:
            wanted = (await client.get_device(device)).capabilities.target if device else named_target(target)
            digest = await client.write_artifact(samples.read_bytes()) if samples else ""
            started = await client.create_build(
                model,
                wanted,
                objective=objective_value(objective),
                plugins=compiler or (),
                samples_sha256=digest,
                optimize=optimize,
            )
            return await follow_build(session, client, started.name)

    finished = run(work())
    if session.as_json:
        session.print_json(finished)
    else:
        session.console.print(outcome(finished))
    if finished.state != builds_pb2.Build.STATE_SUCCEEDED:
        sys.exit(1)


async def follow_build(session: Session, client: AsyncClient, name: str) -> builds_pb2.Build:
    """Show a build live until it ends, and return it."""
    if session.as_json:
        return await client.wait_build(name)
    latest = await client.get_build(name)
    with Live(candidate_table(latest), console=session.console, refresh_per_second=8) as live:
        async for latest in client.watch_build(name):
            live.update(candidate_table(latest))
    return latest


def candidate_table(build: builds_pb2.Build) -> Table:
    """One row for each candidate: where it is, or its figures with their methods."""
    table = Table(
        "compiler", "state", *(title for title, _ in FIGURES), "fidelity", title=f"{build.name}", title_justify="left"
    )
    for candidate in build.candidates:
        state = builds_pb2.Candidate.State.Name(candidate.state).removeprefix("STATE_").lower()
        state = "waiting" if state == "unspecified" else state
        colour = _COLOURS.get(candidate.state, "cyan")
        name = candidate.plugin.removeprefix("plugins/")
        winner = " [bold green]★[/]" if candidate.module and candidate.module == build.module else ""
        pareto = " ◆" if candidate.pareto else ""
        running = candidate.state not in _COLOURS
        cell: Any = Table.grid() if running else f"[{colour}]{state}[/]{pareto}"
        if running:
            cell.add_row(
                f"[{colour}]{state}[/] {candidate.step} ",
                ProgressBar(total=1.0, completed=max(candidate.fraction, 0.0), width=12),
            )
        figures = [_figures.show_metric(candidate.measurements, metric) for _, metric in FIGURES]
        note = _figures.numerics(candidate.numerics)
        if candidate.state == builds_pb2.Candidate.STATE_FAILED:
            note = f"[red]{candidate.error.message}[/]"
        elif candidate.state == builds_pb2.Candidate.STATE_REJECTED:
            note = "; ".join(objection.remedy or objection.message for objection in candidate.verdict.objections)
        table.add_row(name + winner, cell, *figures, note)
    return table


def outcome(build: builds_pb2.Build) -> str:
    """How a build ended, in one line."""
    if build.state == builds_pb2.Build.STATE_SUCCEEDED:
        known = " (known already)" if build.cached else ""
        quantized = f" from {build.optimized_model_version}" if build.optimized_model_version else ""
        return f"[green]✓[/] sealed [bold]{build.module}[/]{quantized}{known}"
    state = builds_pb2.Build.State.Name(build.state).removeprefix("STATE_").lower()
    return f"[red]✗[/] {state}: {build.error.message}"


def verdict_table(answer: routing_pb2.ExplainResponse) -> Table:
    """Every pair of destination and compiler."""
    table = Table("destination", "compiler", "", "why not", "smallest change that would admit it", show_lines=True)
    for verdict in answer.verdicts:
        table.add_row(
            destination_name(answer.destinations[verdict.destination], answer.targets[verdict.destination]),
            verdict.plugin.removeprefix("plugins/"),
            "[green]admitted[/]" if verdict.admitted else "[yellow]no[/]",
            "\n".join(f"{objection.reason}: {objection.message}" for objection in verdict.objections),
            "\n".join(objection.remedy for objection in verdict.objections),
        )
    return table


def destination_name(destination: routing_pb2.Destination, target: target_pb2.Target) -> str:
    """A destination in short."""
    return destination.device.rsplit("/", 1)[-1] if destination.device else target.name or target.cpu
