"""Type-check each part of this tree in the environment that it runs in, strictly."""

from __future__ import annotations

import os
import subprocess
import sys

from environments import ENVIRONMENTS, ROOT, Environment

SHARED = {part for environment in ENVIRONMENTS if environment.name == "light" for part in environment.parts}


def sources(environment: Environment) -> list[str]:
    """Source folders that are checked in this environment; shared packages only in the light one."""
    parts = environment.parts if environment.name == "light" else [p for p in environment.parts if p not in SHARED]
    return [f"{part}/src" for part in parts if part != "packages/contracts"]


def main() -> int:
    """Run mypy once an environment."""
    failed = False
    mypy = str(ROOT / ".venv" / "bin" / "mypy")
    for environment in ENVIRONMENTS:
        folders = sources(environment)
        path = ":".join(str(ROOT / part / "src") for part in environment.parts)
        print(f"· mypy: {environment.name}", flush=True)
        command = [
            mypy,
            "--python-executable",
            str(environment.venv / "bin" / "python"),
            "--no-error-summary",
            *folders,
        ]
        failed |= subprocess.run(command, cwd=ROOT, env={**os.environ, "MYPYPATH": path}, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
