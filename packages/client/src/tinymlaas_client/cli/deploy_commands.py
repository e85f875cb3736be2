"""`tinymlaas deploy`: a model onto devices."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.cli.build_commands import ModelArgument, ObjectiveOption, OptimizeOption, objective_value
from tinymlaas_client.cli.optimize_commands import optimize_options

app = typer.Typer(no_args_is_help=True, help="Plan, run, watch, cancel and roll back deployments.")
END_STATES = {
    deployments_pb2.Deployment.STATE_SUCCEEDED,
    deployments_pb2.Deployment.STATE_FAILED,
    deployments_pb2.Deployment.STATE_CANCELLED,
    deployments_pb2.Deployment.STATE_ROLLED_BACK,
}
_COLOURS = {
    deployments_pb2.DeviceRollout.STATE_ACTIVE: "green",
    deployments_pb2.DeviceRollout.STATE_REJECTED: "yellow",
    deployments_pb2.DeviceRollout.STATE_FAILED: "red",
    deployments_pb2.DeviceRollout.STATE_ROLLED_BACK: "red",
    deployments_pb2.DeviceRollout.STATE_CANCELLED: "yellow",
}
NameArgument = Annotated[str, typer.Argument(help="Id of the deployment.")]


@app.command()
def create(
    context: typer.Context,
    model: ModelArgument,
    device: Annotated[
        list[str] | None, typer.Option(help="Endpoint name; default: every device of the project.")
    ] = None,
    objective: ObjectiveOption = "balanced",
    samples: Annotated[
        Path | None, typer.Option(exists=True, help="npz with inputs for verification and golden vectors.")
    ] = None,
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Quantize a float model to int8 first, calibrated with --samples.")
    ] = False,
    recipes: OptimizeOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done and do nothing.")] = False,
    concurrency: Annotated[int, typer.Option(min=0, help="Installs at once; 0: the service's default.")] = 0,
) -> None:
    """Put a model on devices: build what is missing, install, self-test, activate."""
    session: Session = context.obj
    optimize = optimize_options(quantize, recipes, samples)

    async def work() -> deployments_pb2.Deployment:
        async with session.connect() as client:
            digest = await client.write_artifact(samples.read_bytes()) if samples else ""
            started = await client.create_deployment(
                model,
                devices=device or (),
                objective=objective_value(objective),
                samples_sha256=digest,
                optimize=optimize,
                concurrency=concurrency,
                validate_only=plan,
            )
            return started if plan else await follow_deployment(session, client, started.name)

    finished = run(work())
    if session.as_json:
        session.print_json(finished)
    elif plan:
        session.console.print(rollout_table(finished))
    if not plan and finished.state != deployments_pb2.Deployment.STATE_SUCCEEDED:
        if not session.as_json:
            session.console.print(f"[red]✗[/] {state_name(finished)}: {finished.error.message}")
        sys.exit(1)


@app.command()
def watch(context: typer.Context, name: NameArgument) -> None:
    """Watch a deployment until it ends."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            finished = await follow_deployment(session, client, name)
            if session.as_json:
                session.print_json(finished)

    run(work())


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the deployments of the project, newest first."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            deployments = await client.list_deployments()
            if session.as_json:
                session.print_json(deployments)
                return
            table = Table("deployment", "model", "state", "devices active", "devices")
            for deployment in deployments:
                active = sum(
                    rollout.state == deployments_pb2.DeviceRollout.STATE_ACTIVE for rollout in deployment.rollouts
                )
                model = "/".join(deployment.model_version.split("/")[3:])
                table.add_row(
                    deployment.name.rsplit("/", 1)[-1],
                    model,
                    state_name(deployment),
                    str(active),
                    str(len(deployment.rollouts)),
                )
            session.console.print(table)

    run(work())


@app.command()
def cancel(context: typer.Context, name: NameArgument) -> None:
    """Stop a deployment; installs under way end at the next safe point, active modules stay."""
    _print_after(context.obj, lambda client: client.cancel_deployment(name))


@app.command()
def rollback(context: typer.Context, name: NameArgument) -> None:
    """Bring every device of a deployment back to the module that was active before."""
    _print_after(context.obj, lambda client: client.rollback_deployment(name))


async def follow_deployment(session: Session, client: AsyncClient, name: str) -> deployments_pb2.Deployment:
    """Show a deployment live until it ends, and return it."""
    if session.as_json:
        return await client.wait_deployment(name)
    latest = await client.get_deployment(name)
    with Live(rollout_table(latest), console=session.console, refresh_per_second=8) as live:
        async for latest in client.watch_deployment(name):
            live.update(rollout_table(latest))
    return latest


def rollout_table(deployment: deployments_pb2.Deployment) -> Table:
    """One row for each device."""
    table = Table(
        "device",
        "state",
        "progress",
        "module",
        "note",
        title=f"{deployment.name} {state_name(deployment)}",
        title_justify="left",
    )
    for rollout in deployment.rollouts:
        state = deployments_pb2.DeviceRollout.State.Name(rollout.state).removeprefix("STATE_").lower()
        bar = ProgressBar(total=rollout.bytes_total or 1, completed=rollout.bytes_done, width=16)
        note = rollout.error.message or (rollout.timeline[-1].detail if rollout.timeline else "")
        if rollout.state == deployments_pb2.DeviceRollout.STATE_REJECTED:
            note = "; ".join(
                objection.remedy or objection.message
                for verdict in rollout.verdicts
                for objection in verdict.objections
            )
        colour = _COLOURS.get(rollout.state, "cyan")
        table.add_row(
            rollout.device.rsplit("/", 1)[-1],
            f"[{colour}]{state}[/]",
            bar,
            rollout.module.rsplit("/", 1)[-1][:16],
            note,
        )
    return table


def state_name(deployment: deployments_pb2.Deployment) -> str:
    """State of a deployment as a word."""
    return deployments_pb2.Deployment.State.Name(deployment.state).removeprefix("STATE_").lower().replace("_", " ")


def _print_after(session: Session, action: Callable[[AsyncClient], Awaitable[deployments_pb2.Deployment]]) -> None:
    async def work() -> None:
        async with session.connect() as client:
            deployment = await action(client)
            if session.as_json:
                session.print_json(deployment)
            else:
                session.console.print(rollout_table(deployment))

    run(work())
