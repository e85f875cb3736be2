"""`tinymlaas api-keys`, `tinymlaas projects` and `tinymlaas audit`: who may do what, how much, and who did."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

import typer
from rich.table import Table

from tinymlaas.registry.v1 import access_pb2
from tinymlaas_client.cli._context import Session, run
from tinymlaas_servicekit.access import role_name

keys = typer.Typer(no_args_is_help=True, help="Make, list and delete the keys with which programs call the gateway.")
projects = typer.Typer(no_args_is_help=True, help="Show what a project uses, and bound it.")
audit = typer.Typer(no_args_is_help=True, help="Look who changed what.")

_DURATION = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
ROLES = "viewer, operator, admin, vendor or device-admin"


def duration(text: str) -> datetime.timedelta:
    """A length of time such as "30m", "12h", "90d"; ValueError for other texts."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no length of time: write a number with s, m, h or d, such as 90d")
    return datetime.timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _ago(text: str) -> datetime.datetime | None:
    return datetime.datetime.now(datetime.UTC) - duration(text) if text else None


@keys.command("create")
def create(
    context: typer.Context,
    roles: Annotated[
        list[str], typer.Option("--role", help=f"{ROLES}, in this project; or PROJECT:ROLE, `-` for all.")
    ],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    expires: Annotated[str, typer.Option(help="When it ends: 30m, 12h, 90d, or never.")] = "90d",
) -> None:
    """Make a key; its secret is told this once."""
    session: Session = context.obj
    wanted: dict[str, list[str]] = {}
    for text in roles:
        project, _, role = text.rpartition(":")
        wanted.setdefault(project or session.project, []).append(role)
    end = None if expires == "never" else datetime.datetime.now(datetime.UTC) + duration(expires)

    async def work() -> None:
        async with session.connect() as client:
            made = await client.create_api_key(wanted, display_name=name, expires=end)
            if session.as_json:
                session.print_json(made)
                return
            session.console.print(f"id   [bold]{_id(made.api_key)}[/]\nkey  [bold]{made.secret}[/]", soft_wrap=True)
            session.console.print("Store it now, in a file that --token-file names: it is not told again.")

    run(work())


@keys.command("list")
def list_keys(context: typer.Context) -> None:
    """List the project's keys, without their secrets."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            found = await client.list_api_keys()
            if session.as_json:
                session.print_json(found)
                return
            table = Table("id", "name", "roles", "made by", "ends")
            for key in found:
                roles = [
                    f"{grant.project.removeprefix('projects/')}:{role_name(role)}"
                    for grant in key.grants
                    for role in grant.roles
                ]
                ends = key.expire_time.ToJsonString() if key.HasField("expire_time") else "never"
                table.add_row(_id(key), key.display_name, "\n".join(roles), key.creator, ends)
            session.console.print(table)

    run(work())


@keys.command("delete")
def delete(context: typer.Context, ident: Annotated[str, typer.Argument(help="Id, as `list` shows it.")]) -> None:
    """Take a key back; gateways refuse it after some seconds."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            await client.delete_api_key(ident)
            if session.as_json:
                session.print_json({"deleted": ident})
            else:
                session.console.print(f"{ident} is taken back")

    run(work())


@projects.command("show")
def show(context: typer.Context) -> None:
    """Show the project's quotas and what it uses of them."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            _print(session, await client.get_project())

    run(work())


@projects.command("quota")
def quota(
    context: typer.Context,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes stored; none: the installation's default.")] = None,
    max_builds: Annotated[int | None, typer.Option(help="Builds at once.")] = None,
    max_devices: Annotated[int | None, typer.Option(help="Devices.")] = None,
) -> None:
    """Replace the project's quotas; needs the role admin in the whole installation."""
    session: Session = context.obj

    async def work() -> None:
        quotas = access_pb2.Quotas(max_bytes=max_bytes, max_builds=max_builds, max_devices=max_devices)
        async with session.connect() as client:
            _print(session, await client.set_quotas(quotas))

    run(work())


def _print(session: Session, project: access_pb2.Project) -> None:
    if session.as_json:
        session.print_json(project)
        return
    table = Table("", "used", "quota")
    bounds, usage = project.effective_quotas, project.usage
    for what, used, field in (
        ("bytes", f"{usage.bytes:,}", "max_bytes"),
        ("devices", f"{usage.devices:,}", "max_devices"),
        ("builds at once", "", "max_builds"),
    ):
        bound = f"{getattr(bounds, field):,}" if bounds.HasField(field) else "none"  # type: ignore[arg-type]
        table.add_row(what, used, bound)
    session.console.print(table)


@audit.command("list")
def list_audit(
    context: typer.Context,
    subject: Annotated[str, typer.Option(help="Only of this caller, as the list shows it.")] = "",
    method: Annotated[str, typer.Option(help="Only of this method, as the list shows it.")] = "",
    since: Annotated[str, typer.Option(help="Only of the last 30m, 12h, 7d.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 50,
    everywhere: Annotated[bool, typer.Option("--all-projects", help="Of the whole installation.")] = False,
) -> None:
    """List who changed what, newest first, and how it ended."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            found = await client.list_audit_entries(
                everywhere=everywhere, subject=subject, method=method, since=_ago(since), limit=limit
            )
            if session.as_json:
                session.print_json(found)
                return
            table = Table()
            for column in ("time", "who", "method", "what", "outcome"):
                table.add_column(column, overflow="fold")
            for entry in found:
                outcome = entry.code if entry.code == "OK" else f"{entry.code} {entry.reason}"
                table.add_row(
                    entry.time.ToJsonString(), entry.subject, entry.method, "\n".join(entry.resources), outcome
                )
            session.console.print(table)

    run(work())


def _id(key: access_pb2.ApiKey) -> str:
    return key.name.rsplit("/", 1)[-1]
