"""Makes the helper modules of this folder importable by its tests; databases for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import postgres_server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgres_server.Server]:
    """A PostgreSQL server, which a test that takes it down brings back."""
    with postgres_server.serving() as server:
        yield server


@pytest.fixture
def postgresql(postgresql_server: postgres_server.Server) -> str:
    """URL of the server."""
    return postgresql_server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database: a file, then one of a real PostgreSQL server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bridge.db'}"
    return postgres_server.database(request.getfixturevalue("postgresql"), str(tmp_path))
