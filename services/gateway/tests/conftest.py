"""Fixtures of the gateway's tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent))

from gateway_world import World, make_world

import postgres_server
from tinymlaas_gateway.adapters.store import open_engine


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
        return f"sqlite:///{tmp_path / 'state' / 'gateway.sqlite'}"
    return postgres_server.database(request.getfixturevalue("postgresql"), str(tmp_path))


@pytest.fixture
def opened(database_url: str) -> Iterator[Callable[[], sa.Engine]]:
    """Opens the database as one more gateway."""
    engines: list[sa.Engine] = []

    def open_one() -> sa.Engine:
        engines.append(open_engine(database_url))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.dispose()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Fake registry and bridge in this process; plugins and gateway as processes that the test starts."""
    async with make_world(tmp_path) as made:
        yield made


@pytest.fixture
def on_each_database(world: World, database_url: str) -> None:
    """The test's gateways keep their records in SQLite, then in a real PostgreSQL server."""
    world.settings["TINYMLAAS_DATABASE_URL"] = database_url
