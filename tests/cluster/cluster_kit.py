"""A cluster to test on: the one of KUBECONFIG, else a kit's own, which is started; and the command-line tools that it needs.

A kit is a folder with `up`, `down`, `image-build` and `image` (CLUSTER_KIT names it; `shared/cluster` beside the checkout is looked
at too). Its README tells how it is built. Without KUBECONFIG and without a kit there is no cluster, and the tests say so.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CLUSTER_CACHE", "/var/cache/cluster"))
ASKED = bool(
    os.environ.get("TINYMLAAS_CLUSTER")
)  # set by `make test-cluster`; plain `make test` builds and starts nothing
IMAGES = (
    "registry",
    "gateway",
    "lwm2m-bridge",
    "dtls-front",
    "operator",
    "compiler-tvm",
    "compiler-tflm",
    "optimizer",
    "profiler",
    "board",
)
POSTGRES = "docker.io/library/postgres:15-bookworm"
BASES = ("debian", "python", "postgres", "minio", "system")
KIT_SECONDS = 3600.0  # the kit compiles Kubernetes in a quarter of an hour on two idle processors
MINIO = "quay.io/minio/minio:latest"
MINIO_AS = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"  # what the chart names; a kit's image has no release


def tool(name: str) -> str | None:
    """Path of a tool: on PATH, or for `make test-cluster` and the bench also in a kit's cache."""
    return shutil.which(name) or (shutil.which(name, path=str(CACHE / "bin")) if ASKED else None)


def kit_folder() -> Path | None:
    """The kit, if there is one."""
    for folder in (os.environ.get("CLUSTER_KIT", ""), str(ROOT.parent / "shared" / "cluster")):
        if folder and (Path(folder) / "up").exists():
            return Path(folder)
    return None


@dataclass(frozen=True)
class Cluster:
    """A reachable cluster. `kit` is set where this process started it."""

    kubeconfig: Path
    kit: Path | None

    def environment(self) -> dict[str, str]:
        """Environment of helm and kubectl."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": f"{os.environ['PATH']}:{CACHE / 'bin'}"}

    def run(self, *command: str, stdin: str | None = None, seconds: float = 600.0) -> str:
        """Run a command with the cluster's environment; what it printed. AssertionError with its words when it fails."""
        done = subprocess.run(
            command, input=stdin, env=self.environment(), capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def close(self) -> None:
        """Stop a cluster that was started here."""
        if self.kit is not None:
            _step(self.kit / "down")


def start() -> Cluster | str:
    """The cluster, or why there is none."""
    for name in ("kubectl", "helm"):
        if tool(name) is None and kit_folder() is None:
            return f"{name} is not on PATH"
    named = os.environ.get("KUBECONFIG")
    if named:
        return Cluster(Path(named), None)
    kit = kit_folder()
    if kit is None:
        return "no KUBECONFIG and no CLUSTER_KIT: name a cluster, or a kit that starts one"
    if os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK):
        return f"{kit} starts a cluster as root, where cgroups can be written"
    if not all((CACHE / "images" / f"{name}.tar").exists() for name in BASES):
        for step in ("build", "base-images"):
            if _step(kit / step) is None:
                return f"{kit / step} failed; its message is above"
    told = _step(kit / "up")
    if told is None:
        _step(kit / "down")
        return f"{kit / 'up'} failed; its message is above"
    words = shlex.split(told.strip().splitlines()[-1])
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    return Cluster(Path(settings["KUBECONFIG"]), kit)


def _step(program: Path) -> str | None:
    """What a program of the kit printed; None where it failed or took longer than any machine needs."""
    try:
        done = subprocess.run([str(program)], stdout=subprocess.PIPE, text=True, check=False, timeout=KIT_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def provide_images(cluster: Cluster) -> None:
    """Build the suite's images and hand them to a kit's cluster; for another cluster they must be where it pulls from.

    What was built before from the same files is taken from the builder's store.
    """
    if cluster.kit is None or os.environ.get("TINYMLAAS_IMAGES_READY"):
        return
    environment = {**os.environ, "IMAGE_BUILD": f"{cluster.kit / 'image-build'} --layers", "GO_FROM_HOST": "1"}
    environment["BUILDER"] = "docker.io/library/debian:bookworm-slim"
    command = [sys.executable, str(ROOT / "scripts" / "build_images.py"), "build"]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr, timeout=KIT_SECONDS)
    subprocess.run(["buildah", "tag", MINIO, MINIO_AS], check=True, timeout=60)
    names = [*(f"tinymlaas/{name}:0.1.0" for name in IMAGES), POSTGRES, MINIO_AS]
    subprocess.run([str(cluster.kit / "image"), *names], check=True, stdout=sys.stderr, timeout=KIT_SECONDS)
