"""`tinymlaas models`: the catalogue of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tinymlaas.registry.v1 import models_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_client import figures as _figures
from tinymlaas_client._async_client import model_format
from tinymlaas_client.cli._context import Session, run

app = typer.Typer(no_args_is_help=True, help="Import, list and show models.")


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Model file: .onnx, .tflite, .keras or SavedModel .tar")
    ],
    name: Annotated[str, typer.Option(help="Id of the model; default: the file's name without its suffix.")] = "",
    licence: Annotated[str, typer.Option(help="SPDX expression, such as Apache-2.0.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="Name of a class, once for each in the order of the output.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Check the file and store nothing.")] = False,
) -> None:
    """Check a model file and add it to the catalogue. The same bytes give the same version."""
    session: Session = context.obj
    model_id = name or file.stem.lower().replace("_", "-")

    async def work() -> None:
        async with session.connect() as client:
            version = await client.import_model(
                file.read_bytes(),
                model_id,
                model_format(file),
                licence=licence,
                labels=label or (),
                tags=tag or (),
                validate_only=check_only,
            )
            if session.as_json:
                session.print_json(version)
            else:
                verb = "would be" if check_only else "is"
                session.console.print(f"[green]✓[/] {file.name} {verb} [bold]{version.name}[/]")
                _show_version(session, version)

    run(work())


@app.command("list")
def list_(context: typer.Context, tag: Annotated[str, typer.Option(help="Only models with this tag.")] = "") -> None:
    """List the models of the project."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            models = await client.list_models(tag=tag)
            if session.as_json:
                session.print_json(models)
                return
            table = Table("model", "title", "licence", "tags", "latest version")
            for model in models:
                latest = model.latest_version.rsplit("/", 1)[-1]
                table.add_row(
                    model.name.rsplit("/", 1)[-1], model.display_name, model.licence, " ".join(model.tags), latest
                )
            session.console.print(table)

    run(work())


@app.command()
def show(context: typer.Context, name: Annotated[str, typer.Argument(help="MODEL or MODEL/versions/VERSION.")]) -> None:
    """Show a version of a model: inputs, outputs, operators, lineage."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            version = await client.get_model_version(name)
            if session.as_json:
                session.print_json(version)
            else:
                session.console.print(f"[bold]{version.name}[/]")
                _show_version(session, version)

    run(work())


@app.command()
def delete(context: typer.Context, name: Annotated[str, typer.Argument(help="Id of the model.")]) -> None:
    """Delete a model and its versions; modules made from it stay."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            await client.delete_model(name)

    run(work())


def _show_version(session: Session, version: models_pb2.ModelVersion) -> None:
    table = Table.grid(padding=(0, 2))
    kind = "integer" if version.quantized else "float"
    table.add_row(
        "format",
        f"{tensor_pb2.ModelFormat.Name(version.format).removeprefix('MODEL_FORMAT_')}, {kind}, {_figures.size(version.size_bytes)}",
    )
    table.add_row("sha256", version.sha256)
    for title, specs in (("input", version.inputs), ("output", version.outputs)):
        for spec in specs:
            table.add_row(title, f"{spec.name}: {_figures.shape(spec)}")
    table.add_row("operators", ", ".join(f"{count} {name}" for name, count in sorted(version.operators.items())))
    if version.derived_from:
        table.add_row("derived from", f"{version.derived_from} by {version.derived_by}")
    for item in version.attachments:
        table.add_row("with it", f"{item.name}, {_figures.size(item.size_bytes)}, artifact {item.sha256}")
    session.console.print(table)
