"""`tinymlaas devices keys`: the pre-shared keys with which devices register over DTLS."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tinymlaas_client.cli._context import Session, run

app = typer.Typer(no_args_is_help=True, help="Make, list and take back the keys of devices for CoAP over DTLS.")


@app.command()
def create(
    context: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="Endpoint name.")],
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="For the bootstrap server: it stays when that hands out others.")
    ] = False,
) -> None:
    """Make a key for a device; its secret is told this once.

    A device that has a key is refused without it. A newer key takes over at its first use: make one, give it to the device,
    and the one before is retired when the device has registered with it.
    """
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            made = await client.create_device_key(endpoint, bootstrap=bootstrap)
            if session.as_json:
                session.print_json({"identity": made.key.identity, "endpoint": endpoint, "secret": made.secret.hex()})
                return
            session.console.print(f"identity  [bold]{made.key.identity}[/]\nkey (hex) [bold]{made.secret.hex()}[/]")
            session.console.print("Put both into the device now: the key is not told again.")

    run(work())


@app.command("list")
def list_(
    context: typer.Context, endpoint: Annotated[str, typer.Argument(help="Endpoint name; none: all devices.")] = ""
) -> None:
    """List keys, without their secrets."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            keys = await client.list_device_keys(endpoint)
            if session.as_json:
                session.print_json(keys)
                return
            table = Table("device", "identity", "made", "last used")
            for key in keys:
                used = key.use_time.ToJsonString() if key.HasField("use_time") else "never"
                table.add_row(key.endpoint, key.identity, key.create_time.ToJsonString(), used)
            session.console.print(table)

    run(work())


@app.command()
def delete(
    context: typer.Context, identity: Annotated[str, typer.Argument(help="Identity, as `list` shows it.")]
) -> None:
    """Take a key back; the device's open sessions end."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            await client.delete_device_key(identity)
            if session.as_json:
                session.print_json({"deleted": identity})
            else:
                session.console.print(f"{identity} is taken back")

    run(work())
