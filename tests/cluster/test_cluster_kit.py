"""Without a cluster `make test-cluster` passes, but never silently: each test that could not run says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cluster_kit

CLUSTER_TESTS = Path(__file__).resolve().parent / "test_cluster.py"


def kit(folder: Path, **programs: str) -> Path:
    """A kit whose programs are these shell scripts."""
    for name in ("build", "base-images", "up", "down"):
        (folder / name).write_text(f"#!/bin/sh\n{programs.get(name.replace('-', '_'), 'exit 0')}\n", encoding="ascii")
        (folder / name).chmod(0o755)
    return folder


def test_every_test_of_a_cluster_that_is_not_there_is_skipped_and_says_what_is_missing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "PYTEST_ADDOPTS")}
    environment |= {"TINYMLAAS_CLUSTER": "1", "CLUSTER_KIT": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", str(CLUSTER_TESTS), "-rs", "-n", "0"]
    done = subprocess.run(
        command, cwd=cluster_kit.ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no KUBECONFIG and no kit in CLUSTER_KIT" in done.stdout
    assert "passed" not in done.stdout
    assert "15 skipped" in done.stdout


def test_a_cluster_that_is_named_needs_the_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(cluster_kit, "tool", lambda name: None if name == "helm" else f"/bin/{name}")
    assert cluster_kit.start() == "helm is not on PATH"


def test_a_kit_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("CLUSTER_KIT", str(kit(tmp_path)))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    told = cluster_kit.start()
    assert isinstance(told, str)
    assert "only as root" in told


def test_a_kit_that_fails_is_no_skip_and_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("CLUSTER_KIT", str(kit(tmp_path, up="exit 3", down=f"touch {tmp_path}/gone")))
    monkeypatch.setattr(cluster_kit, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.access", lambda path, mode: True)
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        cluster_kit.start()
    assert (tmp_path / "gone").exists()
