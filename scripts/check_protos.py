"""Lint the protos with buf, and compare them with those of the last commit before they changed (`buf breaking`).

buf comes as the npm package @bufbuild/buf, pinned in scripts/buf/package.json. Without npm the checks are left out, and
that is said.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from generate_contracts import ROOT, collect_sources

BUF_FOLDER = ROOT / "scripts" / "buf"


def buf() -> Path | None:
    """buf's executable, installed on first use; None without npm."""
    installed = ROOT / "build" / "buf"
    executable = installed / "node_modules" / ".bin" / "buf"
    if not executable.exists():
        npm = shutil.which("npm")
        if npm is None:
            return None
        installed.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(BUF_FOLDER / "package.json", installed / "package.json")
        options = ["--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run([npm, "install", *options], cwd=installed, check=True)
    return executable


def previous_protos(folder: Path) -> bool:
    """Write the protos as they were before their last change into `folder`; False when there is no earlier state."""
    log = ["git", "-C", str(ROOT), "log", "--format=%H", "-n", "2", "--", "protos"]
    commits = subprocess.run(log, capture_output=True, text=True, check=True).stdout.split()
    if len(commits) < 2:
        return False
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commits[1], "protos"], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return True


def main() -> int:
    """Run both checks; 1 when one finds something."""
    executable = buf()
    if executable is None:
        print("SKIPPED: buf lint and buf breaking need npm, which is not installed")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        now, before = Path(scratch) / "now", Path(scratch) / "before"
        collect_sources(now)
        lint = subprocess.run([executable, "lint", "--path", "tinymlaas"], cwd=now, check=False).returncode
        print("buf lint:", "ok" if lint == 0 else "failed")
        if not previous_protos(before):
            print("SKIPPED: buf breaking needs an earlier commit of protos/, and this checkout has none")
            return int(lint != 0)
        collect_sources(before / "with-imports")
        shutil.rmtree(before / "with-imports" / "tinymlaas")
        shutil.copytree(before / "protos", before / "with-imports", dirs_exist_ok=True)
        command = [executable, "breaking", "--against", str(before / "with-imports")]
        breaking = subprocess.run(command, cwd=now, check=False).returncode
        print("buf breaking:", "ok" if breaking == 0 else "failed; a breaking change needs docs/adr and a new version")
    return int(lint != 0 or breaking != 0)


if __name__ == "__main__":
    sys.exit(main())
