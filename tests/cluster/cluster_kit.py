"""A cluster to test on: the one of KUBECONFIG, else a kit's own, which is started; and the command-line tools that it needs.

A kit is a folder with `build`, `base-images`, `up`, `down`, `image-build` and `image`: CLUSTER_KIT names it; where that is not set,
`shared/cluster` beside the checkout is looked at. Its README tells how it is built. Without KUBECONFIG and without a kit there is
no cluster, and the tests say so; a kit that is there and fails, fails them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_images import PREFIX, VERSION

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CLUSTER_CACHE", "/var/cache/cluster"))
ASKED = bool(
    os.environ.get("TINYMLAAS_CLUSTER")
)  # set by `make test-cluster`; plain `make test` builds and starts nothing
IMAGES = (  # those that take longest first
    "compiler-tflm",
    "compiler-tvm",
    "board",
    "profiler",
    "optimizer",
    "registry",
    "gateway",
    "lwm2m-bridge",
    "operator",
    "dtls-front",
)
POSTGRES = "docker.io/library/postgres:15-bookworm"
BASES = ("debian", "python", "postgres", "minio", "system")
KIT_SECONDS = 3600.0  # the kit compiles Kubernetes in a quarter of an hour on two idle processors
MINIO = "quay.io/minio/minio:latest"
MINIO_AS = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"  # what the chart names; a kit's image has no release


def tool(name: str) -> str | None:
    """Path of a tool: on PATH, in build/tools/bin, or for `make test-cluster` and the bench also in a kit's cache."""
    own = shutil.which(name) or shutil.which(name, path=str(ROOT / "build" / "tools" / "bin"))
    return own or (shutil.which(name, path=str(CACHE / "bin")) if ASKED else None)


def kit_folder() -> Path | None:
    """The kit, if there is one."""
    folder = Path(os.environ.get("CLUSTER_KIT") or ROOT.parent / "shared" / "cluster")
    return folder if (folder / "up").exists() else None


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


def usable_kit() -> Path | str:
    """The kit that can start a cluster here, or what is missing for one."""
    kit = kit_folder()
    if kit is None:
        return "no KUBECONFIG and no kit in CLUSTER_KIT: name a cluster, or a kit that starts one"
    if os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK):
        return f"no KUBECONFIG, and {kit} starts a cluster only as root, where cgroups can be written"
    return kit


def build(kit: Path) -> None:
    """Build what the kit runs and its base images, where that was not done yet."""
    if not all((CACHE / "images" / f"{name}.tar").exists() for name in BASES):
        for step in ("build", "base-images"):
            _step(kit / step)


def start() -> Cluster | str:
    """The cluster, or what is missing here for one. CalledProcessError or TimeoutExpired for a kit that fails."""
    if named := os.environ.get("KUBECONFIG"):
        absent = [name for name in ("kubectl", "helm") if tool(name) is None]
        return f"{absent[0]} is not on PATH" if absent else Cluster(Path(named), None)
    kit = usable_kit()
    if isinstance(kit, str):
        return kit
    build(kit)
    try:
        words = shlex.split(_step(kit / "up").strip().splitlines()[-1])
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        return Cluster(Path(settings["KUBECONFIG"]), kit)
    except BaseException:
        _step(kit / "down")
        raise


def _step(program: Path) -> str:
    """What a program of the kit printed; what it says of its work goes to stderr."""
    return subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True, timeout=KIT_SECONDS).stdout


def provide_images(cluster: Cluster) -> None:
    """Build the suite's images and hand them to a kit's cluster; for another cluster they must be where it pulls from.

    Two at a time, one being built while another one is handed over, as far as two processors allow.
    """
    if cluster.kit is None or os.environ.get("TINYMLAAS_IMAGES_READY"):
        return
    kit = cluster.kit
    environment = {**os.environ, "IMAGE_BUILD": str(kit / "image-build"), "GO_FROM_HOST": "1"}
    environment["BUILDER"] = "docker.io/library/debian:bookworm-slim"

    def run(*command: str) -> None:
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr, timeout=KIT_SECONDS)

    def provide(name: str) -> None:
        run(sys.executable, str(ROOT / "scripts" / "build_images.py"), "build", "--only", name)
        run(str(kit / "image"), f"{PREFIX}/{name}:{VERSION}")

    run("buildah", "tag", MINIO, MINIO_AS)
    with ThreadPoolExecutor(2) as pool:
        servers = pool.submit(run, str(kit / "image"), POSTGRES, MINIO_AS)
        for _ in pool.map(provide, IMAGES):
            pass
        servers.result()
