"""The images run as a cluster runs them: read-only roots, an ordinary user, no network but loopback.

Needs root, buildah and the images; skips and says so else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_kit import ASKED

NAMES = ("registry", "gateway", "lwm2m-bridge", "operator", "compiler-tflm", "board")


def buildah(*arguments: str) -> str:
    """What buildah printed; empty where it fails."""
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def missing() -> str:
    """What these tests lack here, empty for nothing."""
    if not ASKED:
        return "`make test-cluster` runs this"
    if os.geteuid() != 0:
        return "root is needed to mount images"
    if shutil.which("buildah") is None or shutil.which("unshare") is None or shutil.which("ip") is None:
        return "buildah, unshare or ip is not installed"
    return next(
        (
            f"no image tinymlaas/{n}:0.1.0: make images"
            for n in NAMES
            if not buildah("images", "-q", f"tinymlaas/{n}:0.1.0")
        ),
        "",
    )


@pytest.fixture
def roots() -> Iterator[dict[str, str]]:
    """Mounted file systems of fresh containers, by image."""
    if lacking := missing():
        pytest.skip(lacking)
    containers: dict[str, str] = {}
    try:
        for name in NAMES:
            containers[name] = buildah("from", "--pull-never", f"tinymlaas/{name}:0.1.0")
        yield {name: buildah("mount", container) for name, container in containers.items()}
    finally:
        for container in containers.values():
            buildah("umount", container)
            buildah("rm", container)


def test_a_light_service_takes_200_MB_at_most_with_its_base(roots: dict[str, str]) -> None:
    for name in ("registry", "gateway", "lwm2m-bridge", "operator"):
        assert sum(file.lstat().st_size for file in Path(roots[name]).rglob("*")) <= 200e6, name


def test_the_suite_and_a_board_run_from_images_without_root_writes_or_network(roots: dict[str, str]) -> None:
    program = str(Path(__file__).resolve().parent / "image_suite.py")
    named = [f"{name}={root}" for name, root in roots.items()]
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", sys.executable, program, *named]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["plugins"] == {"io.tinymlaas.compiler-tflm": "STATE_READY"}
    assert [name.rsplit("/", 1)[-1] for name in told["devices"]] == ["board-1"]
