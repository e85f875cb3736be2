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
            subprocess.run([str(self.kit / "down")], check=False, stdout=sys.stderr)


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
    if not (CACHE / "images" / "minio.tar").exists():
        for step in ("build", "base-images"):
            if subprocess.run([str(kit / step)], check=False, stdout=sys.stderr).returncode != 0:
                return f"{kit / step} failed; its message is above"
    done = subprocess.run([str(kit / "up")], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return f"{kit / 'up'} failed; its message is above"
    words = shlex.split(done.stdout.strip().splitlines()[-1])
    told = dict(word.split("=", 1) for word in words if "=" in word)
    return Cluster(Path(told["KUBECONFIG"]), kit)


def provide_images(cluster: Cluster) -> None:
    """Build the suite's images and hand them to a kit's cluster; for another cluster they must be where it pulls from."""
    if cluster.kit is None or os.environ.get("TINYMLAAS_IMAGES_READY"):
        return
    environment = {**os.environ, "IMAGE_BUILD": str(cluster.kit / "image-build"), "GO_FROM_HOST": "1"}
    environment["BUILDER"] = "docker.io/library/debian:bookworm-slim"
    command = [sys.executable, str(ROOT / "scripts" / "build_images.py"), "build"]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    subprocess.run(["buildah", "tag", MINIO, MINIO_AS], check=True)
    names = [f"tinymlaas/{name}:0.1.0" for name in IMAGES]
    subprocess.run([str(cluster.kit / "image"), *names, POSTGRES, MINIO_AS], check=True, stdout=sys.stderr)
