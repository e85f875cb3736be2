"""`tinymlaas devices` and `tinymlaas compilers`: who takes part."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tinymlaas.registry.v1 import devices_pb2, plugins_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_client import AsyncClient
from tinymlaas_client import figures as _figures
from tinymlaas_client.cli import key_commands
from tinymlaas_client.cli._context import Session, run
from tinymlaas_client.suite import ProcessRecord, SuiteError

app = typer.Typer(no_args_is_help=True, help="List, show and start devices.")
app.add_typer(key_commands.app, name="keys")
compilers = typer.Typer(
    no_args_is_help=True, help="List and show the plugins: compilers, optimizers, importers, profilers."
)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the devices of the project with what they are."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            devices = await client.list_devices()
            if session.as_json:
                session.print_json(devices)
            else:
                session.console.print(device_table(devices))

    run(work())


@app.command()
def show(context: typer.Context, name: Annotated[str, typer.Argument(help="Endpoint name.")]) -> None:
    """Show a device: capabilities and where each value came from, slots, the active module."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            device = await client.get_device(name)
            if session.as_json:
                session.print_json(device)
                return
            session.console.print(device_table([device]))
            capabilities = device.capabilities
            table = Table("value", "is", "source")
            for path, source in sorted(capabilities.sources.items()):
                label = devices_pb2.Source.Name(source).removeprefix("SOURCE_").lower().replace("_", " ")
                table.add_row(path, _value(capabilities, path), label)
            session.console.print(table)
            slots = Table("slot", "size", "state", "module")
            for slot in capabilities.slots:
                state = devices_pb2.Slot.State.Name(slot.state).removeprefix("STATE_").lower()
                slots.add_row(str(slot.index), _figures.size(slot.size_bytes), state, slot.module_sha256[:16])
            session.console.print(slots)

    run(work())


@app.command()
def start(
    context: typer.Context,
    board: Annotated[
        str, typer.Argument(help="Kind of board, such as node-m4f; `tinymlaas-device --help` lists them.")
    ],
    name: Annotated[str, typer.Option(help="Endpoint name; default: the kind of board.")] = "",
) -> None:
    """Start a virtual board on this machine; it registers with the local suite's bridge."""
    session: Session = context.obj
    endpoint = name or board
    record = start_board(session, board, endpoint)
    if session.as_json:
        session.print_json({"endpoint": endpoint, "pid": record.pid})
    else:
        session.console.print(f"[bold]{endpoint}[/] started; it appears in `tinymlaas devices list`")


@app.command()
def stop(context: typer.Context, name: Annotated[str, typer.Argument(help="Endpoint name.")]) -> None:
    """Stop a virtual board that `start` started. Its flash stays."""
    session: Session = context.obj
    if not session.suite().stop([f"device-{name}"]):
        raise LookupError(f"no running virtual board {name!r}; see `tinymlaas status`")


def start_board(session: Session, board: str, endpoint: str) -> ProcessRecord:
    """Start a virtual board as a process of the local suite, trusting the suite's signing key."""
    suite = session.suite()
    bridge = suite.records().get("lwm2m-bridge")
    if bridge is None:
        raise SuiteError(f"no suite in {suite.state}: start it with `tinymlaas up`")
    (suite.state / "devices").mkdir(exist_ok=True)
    arguments = ["-m", "tinymlaas_device", "--board", board, "--name", endpoint, "--server", f"coap://{bridge.address}"]
    arguments += [
        "--state",
        str(suite.state / "devices" / f"{endpoint}.flash"),
        "--trusted-key",
        suite.public_key.hex(),
    ]
    return suite.start_program(f"device-{endpoint}", "device", ".venv", arguments)


@compilers.command("list")
def list_plugins(context: typer.Context) -> None:
    """List the plugins, their roles and states."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            plugins = await client.list_plugins()
            if session.as_json:
                session.print_json(plugins)
                return
            table = Table("plugin", "version", "roles", "state", "address")
            for plugin in plugins:
                roles = " ".join(name.removeprefix("role.") for name in plugin.capabilities if name.startswith("role."))
                state = plugins_pb2.Plugin.State.Name(plugin.state).removeprefix("STATE_").lower()
                colour = "green" if plugin.state == plugins_pb2.Plugin.STATE_READY else "yellow"
                table.add_row(
                    plugin.info.name, plugin.info.vendor_version, roles, f"[{colour}]{state}[/]", plugin.address
                )
            session.console.print(table)

    run(work())


@compilers.command("show")
def show_plugin(
    context: typer.Context, name: Annotated[str, typer.Argument(help="Name of the plugin, or the end of it.")]
) -> None:
    """Show a plugin: the targets it serves, its options and limits."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            plugin = await _plugin(client, name)
            if session.as_json:
                session.print_json(plugin)
                return
            session.console.print(
                f"[bold]{plugin.info.name}[/] {plugin.info.vendor_version}  {plugin.info.display_name}"
            )
            table = Table("instruction sets", "features", "payload", "runtime")
            for constraint in plugin.compiler.targets:
                kind = target_pb2.PayloadKind.Name(constraint.payload_kind).removeprefix("PAYLOAD_KIND_").lower()
                isas = " ".join(constraint.isas) or "any"
                table.add_row(
                    isas, " ".join(constraint.required_features) or "none", kind, constraint.runtime or "none"
                )
            session.console.print(table)
            if plugin.compiler_option_schema:
                session.console.print("options (JSON Schema):", plugin.compiler_option_schema, markup=False)

    run(work())


@compilers.command()
def release(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the plugin, or the end of it.")],
    reason: Annotated[str, typer.Option(help="Why it may take part again; stands in the audit log.")],
) -> None:
    """Let a plugin out of quarantine: its claims were refuted in three builds, and you have looked at them."""
    session: Session = context.obj

    async def work() -> None:
        async with session.connect() as client:
            found = await _plugin(client, name)
            plugin = await client.release_plugin(found.name, found.info.vendor_version, reason)
            if session.as_json:
                session.print_json(plugin)
                return
            state = plugins_pb2.Plugin.State.Name(plugin.state).removeprefix("STATE_").lower()
            session.console.print(f"{plugin.info.name} {plugin.info.vendor_version}: {state}")

    run(work())


async def _plugin(client: AsyncClient, name: str) -> plugins_pb2.Plugin:
    """The only plugin whose name ends so."""
    matches = [plugin for plugin in await client.list_plugins() if plugin.info.name.endswith(name)]
    if len(matches) != 1:
        raise LookupError(f"{len(matches)} plugins end in {name!r}; see `tinymlaas compilers list`")
    return matches[0]


def device_table(devices: list[devices_pb2.Device]) -> Table:
    """Devices in one table."""
    table = Table("device", "state", "board", "cpu", "RAM free/total", "flash free/total", "active image")
    for device in devices:
        target = device.capabilities.target
        state = devices_pb2.Device.State.Name(device.state).removeprefix("STATE_").lower()
        table.add_row(
            device.name.rsplit("/", 1)[-1],
            state,
            f"{device.manufacturer} {device.model}".strip(),
            target.cpu,
            _memory(target, target_pb2.MemoryRegion.KIND_RAM),
            _memory(target, target_pb2.MemoryRegion.KIND_FLASH),
            _active(device)[:16],
        )
    return table


def _active(device: devices_pb2.Device) -> str:
    slots = device.capabilities.slots
    module = next((slot.module_sha256 for slot in slots if slot.state == devices_pb2.Slot.STATE_ACTIVE), "")
    return module or device.capabilities.firmware.package_sha256


def _memory(target: target_pb2.Target, kind: target_pb2.MemoryRegion.Kind.ValueType) -> str:
    regions = [region for region in target.memory_regions if region.kind == kind]
    if not regions:
        return "–"
    total = sum(region.total_bytes for region in regions)
    if not all(region.HasField("free_bytes") for region in regions):
        return f"? / {total // 1024} KB"
    return f"{sum(region.free_bytes for region in regions) / 1024:.1f} / {total // 1024} KB"


def _value(capabilities: devices_pb2.Capabilities, path: str) -> str:
    value: object = capabilities
    for part in path.split("."):
        value = getattr(value, part, "–")
    return str(list(value)) if hasattr(value, "__iter__") and not isinstance(value, str) else str(value)
