"""Save the state of a suite to a folder, and restore it into empty databases and an empty artifact folder.

    backup.py save FOLDER --database NAME=URL ... [--artifacts FOLDER] [--file NAME=PATH ...]
    backup.py restore FOLDER --database NAME=URL ... [--artifacts FOLDER] [--file NAME=PATH ...]

Names are yours; those of a restore must be those of the save: registry, gateway, bridge, and dbos where DBOS has a database
of its own. URLs are postgresql://... (needs pg_dump and pg_restore of the server's version or newer, in PATH or --pg-bin) or
sqlite:///FILE. Databases are saved before artifacts: what a record names is then among them, unless a model was
deleted meanwhile. `--file` is for keys: without the signing key nobody can seal, and
without the master key of device keys no device can be reached. A bucket is copied by its own tools (`mc mirror`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

MANIFEST = "manifest.json"


class BackupError(Exception):
    """The state cannot be saved or restored; the message says what to do."""


def save(
    folder: Path,
    databases: Mapping[str, str],
    artifacts: Path | None = None,
    files: Mapping[str, Path] | None = None,
    pg_bin: Path | None = None,
) -> None:
    """Write everything into a folder that must be new; readable by its owner only, since keys are in it."""
    if folder.exists():
        raise BackupError(f"{folder} exists: name a new folder")
    folder.mkdir(parents=True, mode=0o700)
    for name, url in databases.items():
        if url.startswith("sqlite:///"):
            with (
                closing(sqlite3.connect(f"file:{_sqlite_path(url)}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(folder / f"{name}.sqlite")) as target,
            ):
                source.backup(target)
        else:
            dump = ["--format=custom", "--no-owner", f"--file={folder / name}.dump", f"--dbname={_libpq(url)}"]
            _postgresql("pg_dump", dump, pg_bin)
    if artifacts is not None:
        _copy_artifacts(artifacts, folder / "artifacts")
    for name, path in (files or {}).items():
        (folder / "files").mkdir(mode=0o700, exist_ok=True)
        shutil.copy2(path, folder / "files" / name)
    entries = {
        str(path.relative_to(folder)): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parts[len(folder.parts)] != "artifacts"
    }
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=1) + "\n")


def restore(
    folder: Path,
    databases: Mapping[str, str],
    artifacts: Path | None = None,
    files: Mapping[str, Path] | None = None,
    pg_bin: Path | None = None,
) -> None:
    """Write what was saved into databases and folders that must be empty; everything is checked before anything is written."""
    _check(folder, databases, artifacts, files or {}, pg_bin)
    for name, url in databases.items():
        if url.startswith("sqlite:///"):
            _sqlite_path(url).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / f"{name}.sqlite", _sqlite_path(url))
        else:
            options = ["--exit-on-error", "--no-owner", "--single-transaction", f"--dbname={_libpq(url)}"]
            _postgresql("pg_restore", [*options, f"{folder / name}.dump"], pg_bin)
    if artifacts is not None:
        _copy_artifacts(folder / "artifacts", artifacts)
    for name, path in (files or {}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write((folder / "files" / name).read_bytes())


def _check(
    folder: Path,
    databases: Mapping[str, str],
    artifacts: Path | None,
    files: Mapping[str, Path],
    pg_bin: Path | None,
) -> None:
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        raise BackupError(f"{folder} holds no whole backup: its {MANIFEST}, written last, is missing") from None
    for name, digest in entries.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise BackupError(f"{folder / name} is damaged: take another backup")
    for name, url in databases.items():
        lite = url.startswith("sqlite:///")
        if f"{name}.{'sqlite' if lite else 'dump'}" not in entries:
            raise BackupError(f"{folder} has no {name} of that kind of database; it has {', '.join(entries)}")
        empty = not _sqlite_path(url).exists() if lite else _is_empty(url, pg_bin)
        if not empty:
            raise BackupError(f"the database for {name} is not empty: restore into a new one")
    for name, path in files.items():
        if f"files/{name}" not in entries:
            raise BackupError(f"{folder} has no file {name}")
        if path.exists():
            raise BackupError(f"{path} exists: it is not overwritten")
    if artifacts is not None:
        if not (folder / "artifacts").is_dir():
            raise BackupError(f"{folder} has no artifacts")
        if (artifacts / "objects").exists() and any((artifacts / "objects").iterdir()):
            raise BackupError(f"{artifacts} is not empty: restore into a new folder")
        for path in (folder / "artifacts" / "objects").glob("*/*"):
            if _sha256(path) != path.parent.name + path.name:
                raise BackupError(f"{path} is damaged: take another backup")


def _is_empty(url: str, pg_bin: Path | None) -> bool:
    query = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    options = ["--no-psqlrc", "--tuples-only", "--no-align", f"--dbname={_libpq(url)}", f"--command={query}"]
    return _postgresql("psql", options, pg_bin).strip() == "0"


def _postgresql(program: str, arguments: Sequence[str], pg_bin: Path | None) -> str:
    found = str(pg_bin / program) if pg_bin is not None else shutil.which(program)
    if found is None:
        raise BackupError(
            f"{program} is missing: install PostgreSQL's client programs, or name their folder by --pg-bin"
        )
    result = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise BackupError(f"{program} failed: {result.stderr.strip()[:1000]}")
    return result.stdout


def _copy_artifacts(source: Path, target: Path) -> None:
    """Copy the objects; what is on its way into the folder (incoming/) is no artifact yet."""
    for path in sorted((source / "objects").glob("*/*")):
        copy = target / "objects" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (target / "objects").mkdir(parents=True, exist_ok=True)


def _sqlite_path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def _libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(values: Sequence[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, separator, value in pairs:
        if not separator or not name.isidentifier() or not value:
            raise BackupError("expected NAME=VALUE, such as registry=postgresql://...")
    return {name: value for name, _, value in pairs}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--database", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--pg-bin", type=Path, help="folder of pg_dump, pg_restore and psql")
    chosen = parser.parse_args()
    try:
        files = {name: Path(path) for name, path in _named(chosen.file).items()}
        action = save if chosen.action == "save" else restore
        action(chosen.folder.resolve(), _named(chosen.database), chosen.artifacts, files, chosen.pg_bin)
    except (BackupError, OSError, sqlite3.Error) as error:
        print(f"backup.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
