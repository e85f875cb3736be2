"""Files that an operator mounts into the gateway: manifests of plugins, and the signing key."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tinymlaas_gateway.adapters.keys import load_or_create
from tinymlaas_gateway.adapters.manifest import Manifest
from tinymlaas_servicekit import FailedPrecondition


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
