"""`tinymlaas deploy`: a model onto devices."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.cli.build_commands import ModelArgument, ObjectiveOption, OptimizeOption, objective_value
from tinymlaas_client.cli.optimize_commands import optimize_options
from tinymlaas_client.cli.rollout_view import rollout_view, state_name, timeline_table
from tinymlaas_client.policies import duration, rollout_policy

app = typer.Typer(
    no_args_is_help=True, help="Plan, run, watch, pause, resume, approve, cancel and roll back deployments."
)
END_STATES = {
    deployments_pb2.Deployment.STATE_SUCCEEDED,
    deployments_pb2.Deployment.STATE_FAILED,
    deployments_pb2.Deployment.STATE_CANCELLED,
    deployments_pb2.Deployment.STATE_ROLLED_BACK,
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
    concurrency: Annotated[int, typer.Option(min=0, help="Devices at once; 0: the service's default.")] = 0,
    policy: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Rollout policy as proto JSON; options add to it.")
    ] = None,
    wave: Annotated[
        list[str] | None, typer.Option(help="[NAME=]COUNT or [NAME=]PERCENT%, one after the other; the rest follows.")
    ] = None,
    soak: Annotated[str, typer.Option(help="How long each wave is watched: 90s, 10m, 2h, 1d.")] = "",
    approve: Annotated[bool, typer.Option("--approve", help="Every wave but the first waits for approval.")] = False,
    success: Annotated[int | None, typer.Option(help="Per cent of a wave's devices that must become active.")] = None,
    max_failed: Annotated[int | None, typer.Option(help="Devices of a wave that may fail.")] = None,
    on_failure: Annotated[str, typer.Option(help="When a wave fails: stop, pause or roll-back.")] = "",
    window: Annotated[
        list[str] | None, typer.Option(help="When devices may begin: 'HH:MM+DURATION [sat,sun] [Europe/Berlin]'.")
    ] = None,
    jitter: Annotated[str, typer.Option(help="Spread the begin of devices over this time.")] = "",
    rate: Annotated[int, typer.Option(min=0, help="Devices that begin in a minute; 0: no limit.")] = 0,
    where: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that devices must have, such as isa=armv7e-m or ram=64k.")
    ] = None,
    join_for: Annotated[str, typer.Option(help="Take in devices that register within this time.")] = "",
    after: Annotated[
        list[str] | None, typer.Option(help="Id of a deployment that has to reach a device first.")
    ] = None,
    stuck_after: Annotated[str, typer.Option(help="A device without progress for this time has failed.")] = "",
    min_runs: Annotated[int, typer.Option(min=0, help="Runs before a device's feedback is judged.")] = 0,
    max_errors: Annotated[int | None, typer.Option(help="Per cent of a device's runs that may fail.")] = None,
    max_latency: Annotated[int | None, typer.Option(help="Per cent above the verified latency.")] = None,
    max_confidence_drop: Annotated[
        int | None, typer.Option(help="Points below the golden vectors' confidence.")
    ] = None,
    firmware: Annotated[
        list[Path] | None,
        typer.Option(help="Base firmware (tinymlaas-firmware --base) of a board that takes no module alone."),
    ] = None,
) -> None:
    """Put a model on devices: build what is missing, install, self-test, activate; wave by wave where a policy says so."""
    session: Session = context.obj
    optimize = optimize_options(quantize, recipes, samples)
    try:
        wanted = rollout_policy(
            file=policy,
            waves=wave or (),
            soak=soak,
            approve=approve,
            success=success,
            max_failed=max_failed,
            on_failure=on_failure,
            windows=window or (),
            jitter=jitter,
            rate=rate,
            where=where or ([] if join_for else None),
            open_until=time.time() + duration(join_for).ToSeconds() if join_for else 0.0,
            after=[_deployment_name(session, name) for name in after or ()],
            stuck_after=stuck_after,
            min_runs=min_runs,
            max_errors=max_errors,
            max_latency=max_latency,
            max_confidence_drop=max_confidence_drop,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    async def work() -> deployments_pb2.Deployment:
        async with session.connect() as client:
            digest = await client.write_artifact(samples.read_bytes()) if samples else ""
            bases = [await client.write_artifact(path.read_bytes()) for path in firmware or ()]
            started = await client.create_deployment(
                model,
                devices=device or (),
                objective=objective_value(objective),
                samples_sha256=digest,
                optimize=optimize,
                concurrency=concurrency,
                policy=wanted,
                firmware_sha256s=bases,
                validate_only=plan,
            )
            return started if plan else await follow_deployment(session, client, started.name)

    finished = run(work())
    if session.as_json:
        session.print_json(finished)
    elif plan:
        session.console.print(rollout_view(finished))
    if not plan and finished.state != deployments_pb2.Deployment.STATE_SUCCEEDED:
        if not session.as_json:
            session.console.print(f"[red]✗[/] {state_name(finished)}: {finished.error.message}")
        sys.exit(1)


@app.command()
def watch(context: typer.Context, name: NameArgument) -> None:
    """Watch a deployment's waves and devices until it ends; with --json one line of JSON at each change."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            if not session.as_json:
                await follow_deployment(session, client, name)
                return
            async for latest in client.watch_deployment(name):
                session.print_json_line(latest)

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
def pause(context: typer.Context, name: NameArgument) -> None:
    """Begin no device until the deployment is resumed; devices under way go on."""
    _print_after(context.obj, lambda client: client.pause_deployment(name))


@app.command()
def resume(context: typer.Context, name: NameArgument) -> None:
    """Go on with a paused deployment; where a wave's failures paused it, they are accepted."""
    _print_after(context.obj, lambda client: client.resume_deployment(name))


@app.command()
def approve(
    context: typer.Context,
    name: NameArgument,
    wave: Annotated[str, typer.Option(help="Name of the wave; default: the one that waits.")] = "",
) -> None:
    """Let a wave begin that waits for approval."""
    _print_after(context.obj, lambda client: client.approve_deployment(name, wave))


@app.command()
def timeline(
    context: typer.Context,
    name: NameArgument,
    device: Annotated[str, typer.Argument(help="Endpoint name of the device.")],
) -> None:
    """Show what happened on one device, step by step."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            deployment, full = await client.get_deployment(name), client.device_name(device)
        found = next((item for item in deployment.rollouts if item.device == full), None)
        if found is None:
            raise typer.BadParameter(f"{device} takes no part in {deployment.name}")
        if session.as_json:
            session.print_json(found)
        else:
            session.console.print(timeline_table(found))

    run(work())


@app.command()
def cancel(context: typer.Context, name: NameArgument) -> None:
    """Abort a deployment; installs under way end at the next safe point, active modules stay."""
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
    with Live(rollout_view(latest), console=session.console, refresh_per_second=8) as live:
        async for latest in client.watch_deployment(name):
            live.update(rollout_view(latest))
    return latest


def _deployment_name(session: Session, name: str) -> str:
    return name if name.startswith("projects/") else f"projects/{session.project}/deployments/{name}"


def _print_after(session: Session, action: Callable[[AsyncClient], Awaitable[deployments_pb2.Deployment]]) -> None:
    async def work() -> None:
        async with session.connect() as client:
            deployment = await action(client)
            if session.as_json:
                session.print_json(deployment)
            else:
                session.console.print(rollout_view(deployment))

    run(work())
