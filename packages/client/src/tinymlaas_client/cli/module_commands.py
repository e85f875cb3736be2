"""`tinymlaas modules`: sealed modules, in the catalogue or as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tinymlaas.module.v1 import manifest_pb2
from tinymlaas.registry.v1 import modules_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2
from tinymlaas_client import figures as _figures
from tinymlaas_client.cli._context import Session, run, to_plain
from tinymlaas_client.cli.build_commands import FIGURES
from tinymlaas_client.cli.profile_command import profile
from tinymlaas_module import KeyRing, ModuleError, SectionType, digest, identity, parse, verify

app = typer.Typer(no_args_is_help=True, help="List, show, verify and extract sealed modules.")
ModuleArgument = Annotated[str, typer.Argument(help="sha256 of a module (its beginning is enough), or a file.")]
app.command()(profile)


@app.command("list")
def list_(
    context: typer.Context, model: Annotated[str, typer.Option(help="Only modules of this model version.")] = ""
) -> None:
    """List the sealed modules of the project, newest first."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            wanted = (await client.get_model_version(model)).name if model else ""
            modules = await client.list_modules(model_version=wanted)
            if session.as_json:
                session.print_json(modules)
                return
            table = Table("module", "model", "compiler", "target", "payload", "size", *(title for title, _ in FIGURES))
            for module in modules:
                manifest = module.manifest
                table.add_row(
                    module.sha256[:16],
                    "/".join(module.model_version.split("/")[3:4]),
                    manifest.plugin_name,
                    manifest.target.name or manifest.target.cpu,
                    _kind(module.payload_kind),
                    _figures.size(module.size_bytes),
                    *(_figures.show_metric(manifest.measurements, metric) for _, metric in FIGURES),
                )
            session.console.print(table)

    run(work())


@app.command()
def show(context: typer.Context, module: ModuleArgument) -> None:
    """Show a module: header, sections, tensors, manifest, evidence."""
    session: Session = context.obj
    data = _read(session, module)
    parsed = parse(data)
    manifest = manifest_pb2.Manifest.FromString(parsed.manifest or b"")
    if session.as_json:
        session.print_json({"sha256": digest(data), "identity": identity(parsed), "manifest": to_plain(manifest)})
        return
    header = parsed.header
    table = Table.grid(padding=(0, 2))
    table.add_row("digest", digest(data))
    table.add_row("identity", f"{identity(parsed)} (the same for every image of this module)")
    table.add_row(
        "payload", f"{header.kind.name}, {header.isa.name}, entry at {header.entry_offset}, ABI {header.abi_version}"
    )
    table.add_row("memory", f"arena {_figures.size(header.arena_bytes)}, stack {_figures.size(header.stack_bytes)}")
    table.add_row("security counter", str(header.security_counter))
    table.add_row("compiler", f"{manifest.plugin_name} {manifest.plugin_version}")
    table.add_row("model", manifest.model_sha256)
    table.add_row("numerics", _figures.numerics(manifest.numerics))
    for tensor in parsed.tensors:
        table.add_row(
            tensor.kind.name.lower(),
            f"{tensor.dtype.name.lower()} {list(tensor.shape)} scale {tensor.scale:g} zero point {tensor.zero_point}",
        )
    session.console.print(table)
    sections = Table("section", "bytes", "in this image", "digest")
    for section in parsed.sections:
        sections.add_row(
            section.name.lower(),
            f"{section.size:,}",
            "yes" if section.data is not None else "left out",
            section.digest.hex()[:16],
        )
    session.console.print(sections)
    figures = Table("figure", "value", "tool")
    for measurement in manifest.measurements:
        name = measurement_pb2.Metric.Name(measurement.metric).removeprefix("METRIC_").lower().replace("_", " ")
        figures.add_row(name, _figures.show(measurement), f"{measurement.tool} {measurement.tool_version}")
    session.console.print(figures)


@app.command("verify")
def verify_(
    context: typer.Context,
    module: ModuleArgument,
    key: Annotated[
        str, typer.Option(help="Trusted Ed25519 public key, 64 hex digits; default: the local suite's.")
    ] = "",
) -> None:
    """Check a module's structure, digests and signature."""
    session: Session = context.obj
    data = _read(session, module)
    trusted = bytes.fromhex(key) if key else session.suite().public_key
    try:
        key_id = verify(parse(data), KeyRing.of([trusted]))
    except ModuleError as error:
        if session.as_json:
            session.print_json({"valid": False, "reason": error.reason, "detail": str(error)})
        else:
            session.console.print(f"[red]✗ {error.reason}[/]: {error}")
        sys.exit(1)
    if session.as_json:
        session.print_json({"valid": True, "sha256": digest(data), "key_id": key_id.hex()})
    else:
        session.console.print(f"[green]✓[/] {digest(data)} signed by {key_id.hex()}")


@app.command()
def extract(
    context: typer.Context,
    module: ModuleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File or, with --section, file for that section.")],
    section: Annotated[
        str, typer.Option(help=f"One section: {', '.join(kind.name.lower() for kind in SectionType)}.")
    ] = "",
) -> None:
    """Write a module, or one section of it, to a file."""
    session: Session = context.obj
    data = _read(session, module)
    if section:
        row = parse(data).section(SectionType[section.upper()])
        if row is None or row.data is None:
            raise LookupError(f"this module has no section {section}")
        data = row.data
    output.write_bytes(data)
    if not session.as_json:
        session.console.print(f"{len(data):,} B written to {output}")


def _read(session: Session, module: str) -> bytes:
    path = Path(module)
    if path.is_file():
        return path.read_bytes()

    async def work() -> bytes:
        async with session.connect() as client:
            found: modules_pb2.Module = await client.get_module(module)
            return await client.read_artifact(found.sha256)

    return run(work())


def _kind(kind: target_pb2.PayloadKind.ValueType) -> str:
    return target_pb2.PayloadKind.Name(kind).removeprefix("PAYLOAD_KIND_").lower()
