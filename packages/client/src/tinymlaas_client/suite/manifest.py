"""What the embedded suite consists of: read from `deploy/local/suite.toml`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MANIFEST_PATH = Path("deploy") / "local" / "suite.toml"


@dataclass(frozen=True)
class ProcessSpec:
    """One process: the virtual environment that holds its program, the module to run, and its settings.

    Values of `settings` may hold `{state}`, `{address:NAME}` and `{token_file}`, which are filled in at start.
    """

    name: str
    environment: str
    module: str
    settings: Mapping[str, str]
    role: str


@dataclass(frozen=True)
class SuiteManifest:
    """The processes in the order in which they start, and the folder that paths are relative to."""

    root: Path
    processes: tuple[ProcessSpec, ...]

    def process(self, name: str) -> ProcessSpec:
        """The process of that name; KeyError if there is none."""
        for spec in self.processes:
            if spec.name == name:
                return spec
        raise KeyError(name)


def load_manifest(path: Path | None = None) -> SuiteManifest:
    """Read a manifest: the given one, the one that TINYMLAAS_SUITE names, or that of the checkout around this file or folder.

    Raises FileNotFoundError with what to do when there is none.
    """
    path = path or _find()
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    processes = tuple(
        ProcessSpec(
            name=entry["name"],
            environment=entry.get("environment", ".venv"),
            module=entry["module"],
            settings=entry.get("settings", {}),
            role=entry["role"],
        )
        for entry in document["process"]
    )
    return SuiteManifest(root=path.resolve().parents[2], processes=processes)


def _find() -> Path:
    named = os.environ.get("TINYMLAAS_SUITE")
    if named:
        return Path(named)
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / MANIFEST_PATH).is_file():
                return folder / MANIFEST_PATH
    raise FileNotFoundError(
        f"no {MANIFEST_PATH} here or above: run this inside a checkout of TinyMLaaS, or name one with TINYMLAAS_SUITE"
    )
