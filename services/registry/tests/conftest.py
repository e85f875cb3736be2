"""Every test of the served registry runs on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import registry_backends

import postgres_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    with postgres_server.running() as url:
        yield url


@pytest.fixture(autouse=True, params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of database that `registry_backends.settings` gives in this test."""
    if request.param == "postgresql":
        registry_backends.server.set(request.getfixturevalue("postgresql"))
    else:
        registry_backends.server.set(None)
    yield request.param
    registry_backends.server.set(None)
