"""Files that an operator mounts into the gateway: manifests of plugins, and the signing key."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from tinymlaas.registry.v1.plugins_pb2 import Plugin as State
from tinymlaas_gateway.adapters.keys import load_or_create
from tinymlaas_gateway.adapters.manifest import Manifest, read_manifest
from tinymlaas_gateway.adapters.replicas import Replica, Resolver, best
from tinymlaas_servicekit import FailedPrecondition, InvalidArgument


def write(path: Path, entries: list[object]) -> None:
    """Write a manifest as a volume of a cluster does: anew, in one step."""
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(entries), encoding="utf-8")
    scratch.replace(path)


def addresses(manifest: Manifest) -> list[str]:
    """What the manifest lists now."""
    return [entry.location.address for entry in manifest.entries()]


def test_a_folder_of_manifests_is_all_of_them_and_follows_each(tmp_path: Path) -> None:
    manifest = Manifest([], tmp_path)
    assert addresses(manifest) == []
    write(tmp_path / "own.json", ["compiler:7100"])
    (tmp_path / "vendor.token").write_text("secret\n", encoding="ascii")
    write(tmp_path / "vendor.json", [{"address": "vendor:7100", "token_file": "vendor.token"}])
    assert addresses(manifest) == ["compiler:7100", "vendor:7100"]
    assert [entry.token for entry in manifest.entries()] == [None, "secret"]
    write(tmp_path / "vendor.json", [])
    assert addresses(manifest) == ["compiler:7100"]
    (tmp_path / "own.json").unlink()
    assert addresses(manifest) == []


def test_a_broken_file_of_a_folder_leaves_its_last_good_version_and_the_others(tmp_path: Path) -> None:
    manifest = Manifest([], tmp_path)
    write(tmp_path / "own.json", ["compiler:7100"])
    write(tmp_path / "vendor.json", ["vendor:7100"])
    assert len(manifest.entries()) == 2
    (tmp_path / "vendor.json").write_text("{", encoding="ascii")
    assert addresses(manifest) == ["compiler:7100", "vendor:7100"]


def test_a_key_that_root_mounted_for_our_group_is_taken_and_one_for_everybody_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "signing.pem"
    load_or_create(path)
    if path.stat().st_uid != 0:
        pytest.skip("only root can make a file of root's")
    path.chmod(0o440)
    with pytest.raises(FailedPrecondition):
        load_or_create(path)  # our own file: nobody else has to read it
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    load_or_create(path)
    path.chmod(0o444)
    with pytest.raises(FailedPrecondition):
        load_or_create(path)


async def test_a_service_is_every_address_that_its_name_has_and_the_last_ones_while_it_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "own.json", [{"service": "compiler.suite.svc:7100"}, "127.0.0.1:1"])
    entries = Manifest([], tmp_path).entries()
    names = {"compiler.suite.svc": ["10.0.0.2", "10.0.0.1"]}

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if not names[host]:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return [(None, None, None, "", (address, port)) for address in names[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    resolver = Resolver()

    async def found() -> list[str]:
        return [entry.location.address for entry in await resolver.expand(entries)]

    assert await found() == ["10.0.0.1:7100", "10.0.0.2:7100", "127.0.0.1:1"]
    assert {entry.label for entry in await resolver.expand(entries)} == {"compiler.suite.svc:7100", "127.0.0.1:1"}
    names["compiler.suite.svc"] = ["10.0.0.3"]
    assert await found() == ["10.0.0.3:7100", "127.0.0.1:1"]
    names["compiler.suite.svc"] = []
    assert await found() == ["10.0.0.3:7100", "127.0.0.1:1"]


def test_a_call_goes_to_the_replica_that_is_ready_and_has_least_to_do() -> None:
    ready, loading, away = State.STATE_READY, State.STATE_LOADING, State.STATE_UNREACHABLE
    assert best([]) is None
    assert best([Replica(ready, 2, 0), Replica(ready, 1, 1), Replica(loading, 0, 2)]) == Replica(ready, 1, 1)
    assert best([Replica(away, 0, 0), Replica(loading, 5, 1)]) == Replica(loading, 5, 1)
    assert best([Replica(ready, 1, 0), Replica(ready, 1, 1)]) == Replica(ready, 1, 0)
    assert best([Replica(ready, 0, 0, 7), Replica(ready, 0, 1, 6)]) == Replica(ready, 0, 1, 6), "in turn"


@pytest.mark.parametrize("entry", [{}, {"service": "no-port"}, {"service": "a:1", "address": "b:1"}])
def test_an_entry_that_says_too_little_or_too_much_makes_the_manifest_none(tmp_path: Path, entry: object) -> None:
    write(tmp_path / "own.json", [entry])
    with pytest.raises(InvalidArgument):
        read_manifest(tmp_path / "own.json")
