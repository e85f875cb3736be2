"""`tinymlaas up | down | status | logs`: the embedded suite on this machine."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import grpc
import grpc.aio
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.suite import Suite, SuiteError

READY_SECONDS = 90.0


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(logs)


def up(context: typer.Context) -> None:
    """Start the suite (what already runs is left alone) and wait until every part is ready."""
    session: Session = context.obj
    suite = session.suite()
    run(start_and_wait(suite, session))
    if session.as_json:
        session.print_json({"gateway": suite.gateway_address, "state": str(suite.state)})
    else:
        session.console.print(f"gateway on [bold]{suite.gateway_address}[/], state and token in {suite.state}")
        session.console.print("next: `tinymlaas demo`, `tinymlaas models import FILE`, `tinymlaas status`", style="dim")


def down(context: typer.Context) -> None:
    """Stop everything that `up` and `devices start` started. Data stays."""
    session: Session = context.obj
    stopped = session.suite().stop()
    if session.as_json:
        session.print_json({"stopped": stopped})
    else:
        session.console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def status(context: typer.Context) -> None:
    """Show every process of the suite: running, healthy, and where it listens."""
    session: Session = context.obj
    suite = session.suite()
    records = suite.records()
    health = run(
        _health({name: record.address for name, record in records.items() if record.running and record.address})
    )
    rows = [
        {
            "name": record.name,
            "role": record.role,
            "state": health.get(record.name, "running") if record.running else "stopped",
            "address": record.address,
            "pid": record.pid,
        }
        for record in records.values()
    ]
    if session.as_json:
        session.print_json(rows)
        return
    if not rows:
        session.console.print("nothing was started here yet: `tinymlaas up`")
        return
    table = Table("process", "role", "state", "address", "pid")
    for row in rows:
        colour = {"ready": "green", "running": "green", "stopped": "red"}.get(str(row["state"]), "yellow")
        table.add_row(
            str(row["name"]), str(row["role"]), f"[{colour}]{row['state']}[/]", str(row["address"]), str(row["pid"])
        )
    session.console.print(table)


def logs(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Process as `tinymlaas status` names it.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing as lines come.")] = False,
) -> None:
    """Print a process's log."""
    session: Session = context.obj
    suite = session.suite()
    path = suite.log_path(name)
    if not path.exists():
        known = ", ".join(sorted(suite.records())) or "none yet"
        raise typer.BadParameter(f"no log of {name!r}; processes: {known}")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file.readlines()[-lines:]:
            print(line, end="")
        while follow:
            line = file.readline()
            if line:
                print(line, end="", flush=True)
            else:
                time.sleep(0.2)


async def start_and_wait(suite: Suite, session: Session) -> None:
    """Start what is missing and wait for the health of every part, with a bar; SuiteError naming the part that fails."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(
        *columns, TimeElapsedColumn(), console=session.console, transient=True, disable=session.as_json
    ) as progress:
        names = [spec.name for spec in suite.manifest.processes]
        task = progress.add_task("starting", total=len(names))
        suite.start_missing()
        pending = set(names)
        deadline = time.monotonic() + READY_SECONDS
        while pending:
            records = suite.records()
            for name in sorted(pending):
                if not records[name].running:
                    raise SuiteError(f"{name} ended while starting; see `tinymlaas logs {name}`")
            states = await _health({name: records[name].address for name in pending})
            pending -= {name for name, state in states.items() if state == "ready"}
            progress.update(
                task, completed=len(names) - len(pending), description=f"waiting for {', '.join(sorted(pending))}"
            )
            if pending and time.monotonic() > deadline:
                slow = sorted(pending)
                raise SuiteError(
                    f"not ready after {READY_SECONDS:.0f} s: {', '.join(slow)}; see `tinymlaas logs {slow[0]}`"
                )
            if pending:
                await asyncio.sleep(0.1)


async def _health(addresses: dict[str, str]) -> dict[str, str]:
    async def check(address: str) -> str:
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                return "unreachable"
            return "ready" if answer.status == health_pb2.HealthCheckResponse.SERVING else "not serving"

    results = await asyncio.gather(*(check(address) for address in addresses.values()))
    return dict(zip(addresses, results, strict=True))
