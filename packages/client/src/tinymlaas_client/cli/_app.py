"""The application: global options, command groups, and what a person sees when something is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tinymlaas_client.cli import (
    access_commands,
    build_commands,
    compare_commands,
    demo,
    deploy_commands,
    device_commands,
    model_commands,
    module_commands,
    optimize_commands,
    suite_commands,
)
from tinymlaas_client.cli._context import Session
from tinymlaas_client.suite import SuiteError
from tinymlaas_servicekit.errors import ServiceError
from tinymlaas_servicekit.tls import TlsFiles

EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED, EXIT_UNREACHABLE = 1, 2, 3, 4
_UNREACHABLE_CODES = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}

app = typer.Typer(
    name="tinymlaas",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="From a model file to running microcontrollers.\n\nStart with `tinymlaas up`, then `tinymlaas demo`.",
)
app.add_typer(model_commands.app, name="models")
app.add_typer(device_commands.app, name="devices")
app.add_typer(device_commands.compilers, name="compilers")
app.add_typer(module_commands.app, name="modules")
app.add_typer(deploy_commands.app, name="deploy")
app.add_typer(access_commands.keys, name="api-keys")
app.add_typer(access_commands.projects, name="projects")
app.add_typer(access_commands.audit, name="audit")
suite_commands.register(app)
build_commands.register(app)
app.command()(optimize_commands.optimize)
app.command("compare")(compare_commands.compare_)
app.command("demo")(demo.demo)


@app.callback()
def _global_options(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(help="host:port of a gateway; default: the local suite's.", envvar="TINYMLAAS_ADDRESS")
    ] = "",
    token_file: Annotated[
        str, typer.Option(help="File with the token for --address.", envvar="TINYMLAAS_TOKEN_FILE")
    ] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS with --address.", envvar="TINYMLAAS_TLS")] = False,
    ca_file: Annotated[
        str,
        typer.Option(
            help="Certificate (PEM) of a private authority of --address; means --tls.", envvar="TINYMLAAS_CA_FILE"
        ),
    ] = "",
    project: Annotated[str, typer.Option(help="Project to work in.", envvar="TINYMLAAS_PROJECT")] = "default",
    state: Annotated[str, typer.Option(help="Folder of the local suite's state.", envvar="TINYMLAAS_STATE_DIR")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    context.obj = Session(
        address=address,
        token_file=Path(token_file) if token_file else None,
        project=project,
        state=Path(state) if state else default_state(),
        as_json=as_json,
        tls=TlsFiles(Path(ca_file) if ca_file else None) if tls or ca_file else None,
    )


def default_state() -> Path:
    """Folder of the local suite's state: $XDG_STATE_HOME/tinymlaas (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tinymlaas"


def main() -> None:
    """Entry point of the console script."""
    # --json may stand anywhere: people add it to the end of a line that they have already typed.
    arguments = sys.argv[1:]
    if "--json" in arguments:
        arguments = ["--json", *(argument for argument in arguments if argument != "--json")]
    try:
        app(args=arguments)
    except ServiceError as error:
        _explain(error, as_json="--json" in arguments)
        sys.exit(EXIT_UNREACHABLE if error.code in _UNREACHABLE_CODES else EXIT_REFUSED)
    except (SuiteError, FileNotFoundError) as error:
        Console(stderr=True).print(f"[bold red]Error[/]: {error}", highlight=False)
        sys.exit(EXIT_UNREACHABLE)
    except (ValueError, LookupError) as error:
        Console(stderr=True).print(f"[bold red]Error[/]: {error}", highlight=False)
        sys.exit(EXIT_USAGE)


def _explain(error: ServiceError, *, as_json: bool) -> None:
    if as_json:
        document = {
            "error": {
                "code": error.code,
                "reason": error.reason,
                "message": error.message,
                "metadata": dict(error.metadata),
                "help": error.help,
            }
        }
        print(json.dumps(document, indent=1), file=sys.stderr)
        return
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]{error.reason or error.code}[/]: {error.message}", markup=True)
    for key, value in sorted(error.metadata.items()):
        console.print(f"  {key}: {value}", markup=False)
    if error.help:
        console.print(f"  next step: {error.help}", markup=False, style="cyan")
