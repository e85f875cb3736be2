"""Replicas of one plugin behind the name of a service: known once, called in turn, left only when idle."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas_gateway.adapters.manifest import Manifest
from tinymlaas_gateway.adapters.plugins import PluginDirectory
from tinymlaas_pluginkit import Compiler, Plugin, PluginUnavailable
from tinymlaas_servicekit import ServiceSettings

NAME = "plugins/io.example.fast"


class Recorder:
    """A catalogue that notes what is written of plugins."""

    def __init__(self) -> None:
        self.written: list[plugins_pb2.Plugin] = []

    async def upsert_plugin(self, plugin: plugins_pb2.Plugin, patience: float) -> None:
        """Note a plugin as it is now."""
        kept = plugins_pb2.Plugin()
        kept.CopyFrom(plugin)
        self.written.append(kept)


class NoneRefuted:
    """No claim was ever refuted."""

    away = False

    def counts(self) -> dict[tuple[str, str], int]:
        """Nothing, or a database that is away."""
        if self.away:
            raise OperationalError("SELECT", {}, ConnectionError("away"))
        return {}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of two real replicas, at 127.0.0.1 and 127.0.0.2."""
    plugin = Plugin("io.example.fast", "1.0", compiler=Compiler("json:loads", "json:loads", [], []))
    async with plugin.server(ServiceSettings(listen="127.0.0.1:0")) as first:
        chosen = first.address.rsplit(":", 1)[-1]
        async with plugin.server(ServiceSettings(listen=f"127.0.0.2:{chosen}")):
            yield int(chosen)


async def recorded(directory: PluginDirectory) -> None:
    """Wait until the registry was told what the last look found."""
    assert directory._recording is not None
    await directory._recording


async def test_replicas_are_one_plugin_whose_calls_are_shared_and_none_is_cut(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.json").write_text(json.dumps([{"service": f"fast.test:{port}"}]), encoding="ascii")
    there = ["127.0.0.1", "127.0.0.2"]
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
        if host != "fast.test":
            return await resolve(host, port, **options)
        if not there:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return [(None, None, None, "", (address, port)) for address in there]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    catalogue: Any = Recorder()
    refutations: Any = NoneRefuted()
    directory = PluginDirectory(Manifest([], tmp_path), catalogue, refutations)
    async with asyncio.timeout(60):
        while [seat.known.plugin.state for seat in directory._named(NAME) if seat.known] != [
            plugins_pb2.Plugin.STATE_READY
        ] * 2:
            await directory.look()
    assert [known.plugin.name for known in directory.known()] == [NAME]
    await recorded(directory)
    assert {plugin.address for plugin in catalogue.written} == {f"fast.test:{port}"}

    first, client = directory._seat(NAME)
    first.busy += 1
    second, _ = directory._seat(NAME)
    assert {first.address, second.address} == {f"127.0.0.1:{port}", f"127.0.0.2:{port}"}

    there.remove(str(first.address).rsplit(":", 1)[0])
    await directory.look()
    assert directory._seat(NAME)[0] is second
    assert await client.info()  # a call under way on the one that left goes on
    first.busy -= 1
    await directory.look()
    assert first not in directory._leaving
    assert [known.plugin.name for known in directory.known()] == [NAME]

    known = directory.known()
    refutations.away = True  # plugins are looked at all the same
    await directory.look()
    assert directory.known() is known, "nothing has changed"

    (tmp_path / "own.json").write_text("[]", encoding="ascii")
    await directory.look()
    await recorded(directory)
    assert catalogue.written[-1].state == plugins_pb2.Plugin.STATE_UNREACHABLE
    with pytest.raises(PluginUnavailable):
        directory._seat(NAME)


async def test_a_call_that_finds_a_replica_gone_is_tried_at_another(tmp_path: Path) -> None:
    plugin = Plugin("io.example.fast", "1.0", compiler=Compiler("json:loads", "json:loads", [], []))
    catalogue: Any = Recorder()
    refutations: Any = NoneRefuted()
    async with plugin.server(ServiceSettings(listen="127.0.0.1:0")) as stays:
        async with plugin.server(ServiceSettings(listen="127.0.0.1:0")) as goes:
            entries = [{"address": goes.address}, {"address": stays.address}]
            (tmp_path / "own.json").write_text(json.dumps(entries), encoding="ascii")
            directory = PluginDirectory(Manifest([], tmp_path), catalogue, refutations)
            async with asyncio.timeout(60):
                while len([seat for seat in directory._named(NAME) if seat.known and _ready(seat.known.plugin)]) < 2:
                    await directory.look()
            assert directory._seat(NAME)[0].address == goes.address
        with pytest.raises(PluginUnavailable):
            await directory.check_model(NAME, compiler_pb2.CompileHeader(), b"")
        assert directory._seat(NAME)[0].address == stays.address


async def test_a_lone_plugin_that_a_call_found_gone_is_not_ready_until_it_was_looked_at(tmp_path: Path) -> None:
    """So that tries wait for a container that is started anew, and are not used up at the address of the dead one."""
    plugin = Plugin("io.example.fast", "1.0", compiler=Compiler("json:loads", "json:loads", [], []))
    catalogue: Any = Recorder()
    refutations: Any = NoneRefuted()
    async with plugin.server(ServiceSettings(listen="127.0.0.1:0")) as goes:
        (tmp_path / "own.json").write_text(json.dumps([{"address": goes.address}]), encoding="ascii")
        directory = PluginDirectory(Manifest([], tmp_path), catalogue, refutations)
        async with asyncio.timeout(60):
            while not [known for known in directory.known() if _ready(known.plugin)]:
                await directory.look()
    with pytest.raises(PluginUnavailable):
        await directory.check_model(NAME, compiler_pb2.CompileHeader(), b"")
    assert [known.plugin.state for known in directory.known()] == [plugins_pb2.Plugin.STATE_UNREACHABLE]


async def looked_until_ready(directory: PluginDirectory, address: str) -> list[tuple[int, ...]]:
    """Look until the plugin is ready there; the states of all that was known meanwhile, at each turn of the event loop."""
    seen: list[tuple[int, ...]] = []

    async def note() -> None:
        while True:
            seen.append(tuple(known.plugin.state for known in directory.known()))
            await asyncio.sleep(0)

    noting = asyncio.create_task(note())
    async with asyncio.timeout(60):
        while not [
            seat
            for seat in directory._named(NAME)
            if seat.address == address and seat.known and _ready(seat.known.plugin)
        ]:
            await directory.look()
    noting.cancel()
    await asyncio.gather(noting, return_exceptions=True)
    return seen


@pytest.mark.parametrize("by", ["address file", "name of a service"])
async def test_a_lone_plugin_that_moves_is_known_all_the_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """What is not known is no compiler or importer at all: devices would be rejected for want of it."""
    plugin = Plugin("io.example.fast", "1.0", compiler=Compiler("json:loads", "json:loads", [], []))
    catalogue: Any = Recorder()
    refutations: Any = NoneRefuted()
    loop = asyncio.get_running_loop()
    where: list[str] = []

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
        return [(None, None, None, "", (address.rsplit(":", 1)[0], port)) for address in where]

    async with plugin.server(ServiceSettings(listen="127.0.0.1:0")) as before:
        port = before.address.rsplit(":", 1)[1]
        async with plugin.server(ServiceSettings(listen=f"127.0.0.2:{port}")) as after:
            file = tmp_path / "address"
            entry = {"address_file": str(file)} if by == "address file" else {"service": f"fast.test:{port}"}
            (tmp_path / "own.json").write_text(json.dumps([entry]), encoding="ascii")
            if by != "address file":
                monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
            directory = PluginDirectory(Manifest([], tmp_path), catalogue, refutations)
            for server in (before, after):
                file.write_text(server.address, encoding="ascii")
                where[:] = [server.address]
                seen = await looked_until_ready(directory, server.address)
    assert () not in seen
    assert (plugins_pb2.Plugin.STATE_UNREACHABLE,) in seen, "nor is it ready before it has answered there"


def _ready(plugin: plugins_pb2.Plugin) -> bool:
    return plugin.state == plugins_pb2.Plugin.STATE_READY
