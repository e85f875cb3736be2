"""Make the virtual environments that the suite runs in, or lock their packages.

    environments.py setup [NAME ...]   make or update environments (default: all); needs only Python and its venv module
    environments.py lock [NAME ...]    resolve again and write each requirements.lock

Each heavy compiler has an environment of its own, because their dependencies conflict. Locks pin every package by hash and
name no index, so they install from any mirror (docs/adr/0002-locks-without-an-index.md).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "build" / "tools"
TEST_TOOLS = ("hypothesis", "pytest", "pytest-asyncio>=1", "pytest-timeout", "pytest-xdist")
PLUGIN_PARTS = ("packages/contracts", "packages/servicekit", "packages/pluginkit", "packages/modelkit")


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its folder, the parts of this tree in it, and roughly what a first download weighs."""

    name: str
    folder: Path
    parts: tuple[str, ...]
    extras: tuple[str, ...]
    megabytes: int

    @property
    def venv(self) -> Path:
        """Folder of the virtual environment."""
        return self.folder / ".venv"

    @property
    def lock(self) -> Path:
        """Its lock file."""
        return self.folder / "requirements.lock"

    def digest(self) -> str:
        """Changes when the environment must be made again."""
        seen = hashlib.sha256(self.lock.read_bytes())
        for part in self.parts:
            seen.update((ROOT / part / "pyproject.toml").read_bytes())
        return seen.hexdigest()


ENVIRONMENTS = (
    Environment(
        "light",
        ROOT,
        (
            *PLUGIN_PARTS,
            "packages/module",
            "packages/lwm2m",
            "packages/simulator",
            "packages/client",
            "services/registry",
            "services/gateway",
            "services/lwm2m-bridge",
            "services/operator",
            "device/reference",
        ),
        ("proto", "tflm"),
        330,
    ),
    Environment(
        "compiler-tvm",
        ROOT / "services/compiler-tvm",
        (*PLUGIN_PARTS, "packages/simulator", "services/compiler-tvm"),
        (),
        250,
    ),
    Environment("compiler-tflm", ROOT / "services/compiler-tflm", (*PLUGIN_PARTS, "services/compiler-tflm"), (), 60),
    Environment("optimizer", ROOT / "services/optimizer", (*PLUGIN_PARTS, "services/optimizer"), (), 90),
    Environment(
        "profiler", ROOT / "services/profiler", (*PLUGIN_PARTS, "packages/simulator", "services/profiler"), (), 200
    ),
)


def uv(*arguments: str, stdin: str | None = None) -> None:
    """Run uv; its own message is shown when it fails."""
    command = [str(TOOLS / "bin" / "uv"), *arguments]
    result = subprocess.run(command, input=stdin, text=True, cwd=ROOT, check=False)
    if result.returncode:
        raise SystemExit(f"uv {arguments[0]} {arguments[1]} failed; its message is above")


def ensure_uv() -> None:
    """Install uv, pinned by hash, into build/tools."""
    if (TOOLS / "bin" / "uv").exists():
        return
    say("installing uv into build/tools")
    subprocess.run([sys.executable, "-m", "venv", str(TOOLS)], check=True)
    requirements = ROOT / "requirements-tools.lock"
    pip = [str(TOOLS / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([*pip, "-r", str(requirements)], check=True)


def setup(environment: Environment, position: str) -> None:
    """Make one environment, or leave it alone when nothing changed since."""
    stamp = environment.venv / "tinymlaas-stamp"
    digest = environment.digest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    say(f"{position} environment {environment.name}: about {environment.megabytes} MB to download the first time")
    began = time.monotonic()
    python = str(environment.venv / "bin" / "python")
    if not Path(python).exists():
        uv("venv", "--quiet", "--python", sys.executable, str(environment.venv))
    uv("pip", "sync", "--quiet", "--python", python, "--require-hashes", str(environment.lock))
    editable = [argument for part in environment.parts for argument in ("-e", part)]
    constraints = ("--build-constraints", "requirements-build.txt")
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", *constraints, *editable)
    compile_sources(environment)
    stamp.write_text(digest)
    say(f"{position} environment {environment.name} is ready ({time.monotonic() - began:.0f} s)")


def compile_sources(environment: Environment) -> None:
    """Compile packages and this tree's parts to bytecode, once: with PYTHONDONTWRITEBYTECODE every process would do it anew.

    What can't be compiled (a package's file for another Python) is left as it is.
    """
    python = environment.venv / "bin" / "python"
    folders = [environment.venv / "lib", *(ROOT / part / "src" for part in environment.parts)]
    command = [str(python), "-m", "compileall", "-qq", "-j", "0", *map(str, folders)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, env=variables, check=False)


def requirements(environment: Environment) -> list[str]:
    """What the environment's parts depend on outside this tree, with the pins of its requirements.in."""
    lines = [*TEST_TOOLS, *(environment.folder / "requirements.in").read_text().splitlines()]
    for part in environment.parts:
        project = tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]
        lines += project.get("dependencies", [])
        for extra in environment.extras:
            lines += project.get("optional-dependencies", {}).get(extra, [])
    return [line for line in lines if line.strip() and not line.startswith(("#", "tinymlaas-"))]


def lock(environment: Environment) -> None:
    """Resolve an environment's requirements and write its lock file."""
    say(f"locking {environment.name}")
    flags = ("--quiet", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate")
    target = ("--python-version", "3.11", "--output-file", str(environment.lock))
    uv("pip", "compile", *flags, *target, "-", stdin="\n".join(requirements(environment)))


def say(text: str) -> None:
    """One line of progress."""
    print(f"· {text}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("setup", "lock"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(e.name for e in ENVIRONMENTS))
    arguments = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f"Python 3.11 is needed, this is {sys.version.split()[0]}: run `make PYTHON=python3.11 …`")
    chosen = [e for e in ENVIRONMENTS if not arguments.names or e.name in arguments.names]
    ensure_uv()
    for index, environment in enumerate(chosen, start=1):
        if arguments.action == "setup":
            setup(environment, f"[{index}/{len(chosen)}]")
        else:
            lock(environment)


if __name__ == "__main__":
    main()
