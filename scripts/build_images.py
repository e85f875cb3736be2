"""Build the container images of deploy/images, or lock the packages that go into them.

    build_images.py build [--only NAME ...] [--tag TAG] [--prefix PREFIX]   build; prints each image with its size
    build_images.py lock [--only NAME ...]                                  write deploy/images/locks/NAME.lock

A lock is a selection of its environment's requirements.lock: same versions, same hashes, only what the image runs. The builder is
docker, or buildah where docker does not run, or the command that IMAGE_BUILD names (called like `docker build`). Base images are
BASE and BUILDER (Go) of the environment, best given by digest; a package index is taken from pip's own configuration. Where
GO_FROM_HOST is set, the Go image is built with this machine's Go and its modules (buildah only).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from environments import ENVIRONMENTS, ROOT, ensure_uv, say, uv

FOLDER = ROOT / "deploy" / "images"
PREFIX = "tinymlaas"
VERSION = "0.1.0"
TRIES = 2  # package indexes fail now and then


@dataclass(frozen=True)
class Image:
    """One image of images.toml: its Dockerfile is NAME.Dockerfile; no `environment` where it holds no Python."""

    name: str
    summary: str
    environment: str = ""
    parts: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()

    @property
    def dockerfile(self) -> Path:
        """How it is built."""
        return FOLDER / f"{self.name}.Dockerfile"

    @property
    def lock(self) -> Path:
        """The packages in it, by hash."""
        return FOLDER / "locks" / f"{self.name}.lock"

    def requirements(self) -> list[str]:
        """What its parts need outside of this tree."""
        lines: list[str] = []
        for part in self.parts:
            project = tomllib.loads((ROOT / part / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            lines += project.get("dependencies", [])
            for extra in self.extras:
                lines += project.get("optional-dependencies", {}).get(extra, [])
        return sorted({line for line in lines if not line.startswith("tinymlaas-")})


def images() -> dict[str, Image]:
    """The images by name, in the order in which they are built."""
    document = tomllib.loads((FOLDER / "images.toml").read_text(encoding="utf-8"))
    return {
        name: Image(
            name,
            entry["summary"],
            entry.get("environment", ""),
            tuple(entry.get("parts", ())),
            tuple(entry.get("extras", ())),
        )
        for name, entry in document.items()
    }


def lock(image: Image) -> None:
    """Select the image's packages from its environment's lock file."""
    environment = next(each for each in ENVIRONMENTS if each.name == image.environment)
    say(f"locking {image.name}")
    flags = ("--quiet", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate")
    target = ("--python-version", "3.11", "--constraints", str(environment.lock), "--output-file", str(image.lock))
    # A range of a part may name a pre-release, which only the environment's own pins admit.
    image.lock.unlink(missing_ok=True)
    uv(
        "pip",
        "compile",
        *flags,
        *target,
        "--prerelease",
        "if-necessary-or-explicit",
        "-",
        stdin="\n".join(image.requirements()),
    )


def builder() -> list[str]:
    """The command that builds: IMAGE_BUILD, docker where its daemon answers, else buildah."""
    if os.environ.get("IMAGE_BUILD"):
        return shlex.split(os.environ["IMAGE_BUILD"])
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return ["docker", "build"]
    if shutil.which("buildah"):
        return ["buildah", "build"]
    raise SystemExit("no docker daemon and no buildah: install one, or name a builder in IMAGE_BUILD")


def build(image: Image, command: list[str], name: str) -> None:
    """Build an image under that name."""
    arguments = ["-t", name, "-f", str(image.dockerfile), "--build-arg", f"REVISION={revision()}"]
    wanted = "BASE" if image.environment else "BUILDER"
    if os.environ.get(wanted):
        arguments += ["--build-arg", f"{wanted}={os.environ[wanted]}"]
    if not image.environment and os.environ.get("GO_FROM_HOST"):
        arguments += host_go()
    for attempt in range(1, TRIES + 1):
        done = subprocess.run([*command, *arguments, str(ROOT)], cwd=ROOT, check=False, stdout=sys.stderr)
        if done.returncode == 0:
            return
        say(f"{image.name}: try {attempt} of {TRIES} failed")
    raise SystemExit(f"{image.name} could not be built; the builder's message is above")


def host_go() -> list[str]:
    """Mounts of this machine's Go and modules, for a base image without Go."""
    service = ROOT / "services" / "dtls-front"
    subprocess.run(["go", "mod", "download"], cwd=service, check=True)
    told = subprocess.run(
        ["go", "env", "GOROOT", "GOMODCACHE"], cwd=service, check=True, capture_output=True, text=True
    )
    root, modules = told.stdout.split()
    return ["-v", f"{root}:/usr/local/go:ro", "-v", f"{modules}:/go/pkg/mod:ro"]


def revision() -> str:
    """The commit that is built, for the label."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def size_bytes(name: str) -> int | None:
    """Size of an image's layers, None where the builder's tool does not tell."""
    if shutil.which("buildah"):
        told = subprocess.run(["buildah", "images", "--json", name], capture_output=True, text=True, check=False)
        if told.returncode == 0:
            entries = json.loads(told.stdout)
            return _bytes(str(entries[0]["size"])) if entries else None
    told = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Size}}", name], capture_output=True, text=True, check=False
    )
    return int(told.stdout) if told.returncode == 0 else None


def _bytes(text: str) -> int:
    number, unit = text.split()
    return int(float(number) * {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[unit])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "lock"))
    parser.add_argument("--only", nargs="+", choices=tuple(images()), default=list(images()), metavar="NAME")
    parser.add_argument("--tag", default=VERSION)
    parser.add_argument("--prefix", default=PREFIX, help="registry and folder of the names (default: %(default)s)")
    arguments = parser.parse_args()
    chosen = [image for name, image in images().items() if name in arguments.only]
    if arguments.action == "lock":
        ensure_uv()
        for image in chosen:
            if image.environment:
                lock(image)
        return
    command = builder()
    for image in chosen:
        name = f"{arguments.prefix}/{image.name}:{arguments.tag}"
        say(f"building {name}")
        build(image, command, name)
        size = size_bytes(name)
        print(f"{name}\t{'' if size is None else f'{size / 1e6:.0f} MB'}", flush=True)


if __name__ == "__main__":
    main()
