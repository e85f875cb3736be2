"""Databases as all services use them: SQLite in a file or PostgreSQL, the same statements on both.

Needs SQLAlchemy, Alembic and psycopg, on which the services that keep records depend. Blocking; async callers go through
`asyncio.to_thread`.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import structlog
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Float, MetaData, Table, create_engine, event, func, literal_column, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql import ColumnElement

from . import patience
from .errors import ServiceError, Unavailable, translate

P = ParamSpec("P")
Result = TypeVar("Result")
_log = structlog.get_logger("tinymlaas.sql")
AWAY = "DATABASE_UNAVAILABLE"
"""Reason of the error that says that a database is away."""

# libpq would wait minutes for a server whose machine is gone; a URL that says otherwise has its way.
_CONNECTION = {"connect_timeout": 10, "tcp_user_timeout": 30_000}

WRITE = {"write": True}
"""Execution options of an engine or connection that writes after it has read: its transactions take their lock at once."""


def open_engine(
    url: str, *, synchronous: Literal["NORMAL", "FULL"] = "NORMAL", writer_lock: int | None = None
) -> Engine:
    """An engine for `sqlite:///FILE`, whose folder is made, or `postgresql://...`.

    Transactions with the options `WRITE` hold SQLite's write lock from their beginning; on PostgreSQL they hold the advisory
    lock `writer_lock`, where one is given, so that one sees what others wrote. `synchronous` is SQLite's: what NORMAL may
    lose in a power cut are the last transactions, never the database.
    """
    if not url.startswith("sqlite"):
        return _open_postgresql(url, writer_lock)
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # We say BEGIN ourselves: the driver would begin late, and a read that turns into a write can fail at once.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _open_postgresql(url: str, writer_lock: int | None) -> Engine:
    located = make_url(with_driver(url))
    unsaid = {name: value for name, value in _CONNECTION.items() if name not in located.query}
    engine = create_engine(located, pool_pre_ping=True, connect_args=unsaid)
    if writer_lock is not None:

        @event.listens_for(engine, "begin")
        def on_begin(connection: Connection) -> None:
            if connection.get_execution_options().get("write", False):
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({writer_lock})")

    return engine


def with_driver(url: str) -> str:
    """A PostgreSQL URL with the driver that is installed here; other URLs as they are."""
    for plain in ("postgres://", "postgresql://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


@dataclass(frozen=True)
class Schema:
    """The tables of a service: its Alembic scripts lie in `package`.migrations, its constraints and rows are its own.

    `lock` is the key of the advisory lock that is held on PostgreSQL while the tables change; `versions` the table in which
    Alembic keeps the revision, one for each service since services may share a database.
    """

    package: str
    lock: int
    versions: str = "alembic_version"

    def upgrade(self, engine: Engine, revision: str = "head") -> None:
        """Brings a database to a later revision, "head" for the newest; several processes may do it at once.

        A server that is away is waited for as `patient` does: a service that starts meanwhile need not die of it.
        A database that a newer version of the service has changed is left as it is: each migration keeps what the version
        before reads and writes, so an instance of that version that starts again amid an upgrade works on.
        """
        patient(self._run)(engine, self._upgrade_unless_newer, revision)

    def _upgrade_unless_newer(self, config: Config, revision: str) -> None:
        connection = config.attributes["connection"]
        found = MigrationContext.configure(connection, opts={"version_table": self.versions}).get_current_heads()
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if newer := set(found) - known:
            _log.warning("the database is of a newer version and left as it is", table=self.versions, revisions=newer)
        else:
            command.upgrade(config, revision)

    def downgrade(self, engine: Engine, revision: str) -> None:
        """Takes a database back to an earlier revision, "base" for none of this service's tables."""
        self._run(engine, command.downgrade, revision)

    def _run(self, engine: Engine, change: Callable[[Config, str], None], revision: str) -> None:
        config = Config()
        config.set_main_option("script_location", f"{self.package}:migrations")
        with engine.execution_options(**WRITE).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self.lock})")
            config.attributes |= {"connection": connection, "versions": self.versions}
            change(config, revision)

    def main(self, url: str) -> None:
        """The command `python -m PACKAGE.migrations [upgrade|downgrade REVISION]`; without arguments to the newest."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.package}.migrations", description="Change the tables.")
        parser.add_argument("direction", nargs="?", choices=("upgrade", "downgrade"), default="upgrade")
        parser.add_argument("revision", nargs="?", default="", help="default: the newest")
        chosen = parser.parse_args()
        if chosen.direction == "downgrade" and not chosen.revision:
            parser.error("downgrade needs a revision")
        engine = open_engine(url)
        try:
            if chosen.direction == "downgrade":
                self.downgrade(engine, chosen.revision)
            else:
                self.upgrade(engine, chosen.revision or "head")
        finally:
            engine.dispose()


def run_migrations(metadata: MetaData) -> None:
    """What the file `migrations/env.py` of a service does: runs its scripts as `Schema` asks, on the caller's connection."""
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        target_metadata=metadata,
        render_as_batch=True,
        version_table=attributes["versions"],
    )
    with context.begin_transaction():
        context.run_migrations()


def unavailable(error: BaseException) -> ServiceError | None:
    """UNAVAILABLE / DATABASE_UNAVAILABLE for what an engine raises where a database server is away, restarts or is overloaded.

    None for every other exception, those of SQLite among them. `adapt` knows these, so no caller is told INTERNAL for them.
    """
    if not isinstance(error, PoolTimeout):  # of a pool all of whose connections wait for a server that hangs
        if not isinstance(error, DBAPIError) or isinstance(error.orig, sqlite3.Error):
            return None
        if not isinstance(error, OperationalError) and not error.connection_invalidated:
            return None
    return Unavailable(
        "the database cannot be reached",
        AWAY,
        help="Check that the database runs and that TINYMLAAS_DATABASE_URL is right, then call again.",
    )


translate(unavailable)


def patient(method: Callable[P, Result]) -> Callable[P, Result]:
    """Decorates a method that runs one transaction and may be repeated: a server that restarts is waited for.

    Raises Unavailable / DATABASE_UNAVAILABLE where it stays away for longer than `patience` says. Errors of SQLite pass. The
    caller's thread sleeps meanwhile, so it must not be an event loop's.
    """

    @functools.wraps(method)
    def repeat(*args: P.args, **kwargs: P.kwargs) -> Result:
        end, pause = time.monotonic() + patience.seconds(), 0.1
        while True:
            try:
                return method(*args, **kwargs)
            except (DBAPIError, PoolTimeout) as error:
                away = unavailable(error)
                if away is None:
                    raise
                if time.monotonic() + pause > end or not patience.pause(pause):
                    raise away from error
            pause = min(pause * 2, 2.0)

    return repeat


def patient_methods(kind: type[Result]) -> type[Result]:
    """Decorates a class whose public methods are each one transaction that may be repeated: all of them are `patient`."""
    for name, method in vars(kind).copy().items():
        if not name.startswith("_") and inspect.isfunction(method):
            setattr(kind, name, patient(method))
    return kind


def insert_if_absent(connection: Connection, table: Table, row: Mapping[str, Any], *keys: str) -> bool:
    """Insert a row unless one has its `keys` (together unique) already; whether it was inserted. Safe between processes."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**row).on_conflict_do_nothing(index_elements=list(keys))
    return connection.execute(statement).rowcount > 0


def insert_absent(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], key: str) -> set[Any]:
    """Insert rows, of those with one value of `key` (unique) the first, unless the table has it; the keys inserted."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    distinct = {row[key]: row for row in reversed(rows)}
    statement = insert(table).on_conflict_do_nothing(index_elements=[key]).returning(table.c[key])
    return set(connection.execute(statement, [dict(row) for row in reversed(distinct.values())]).scalars())


def upsert(connection: Connection, table: Table, row: Mapping[str, Any], *keys: str) -> None:
    """Insert a row, or write its other columns into the one that has its `keys` (together unique)."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    others = {name: value for name, value in row.items() if name not in keys}
    connection.execute(insert(table).values(**row).on_conflict_do_update(index_elements=list(keys), set_=others))


def upsert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *keys: str) -> None:
    """As `upsert` for each of many rows, which name the same columns: one statement, prepared once."""
    if not rows:
        return
    insert = (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)
    others = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(
        insert.on_conflict_do_update(index_elements=list(keys), set_=others), [dict(row) for row in rows]
    )


def database_time(connection: Connection) -> ColumnElement[float]:
    """The database's own clock, seconds since the epoch: one clock for all processes that share it."""
    if connection.dialect.name == "postgresql":
        return literal_column("extract(epoch from clock_timestamp())::float8", Float)
    return (func.julianday("now", type_=Float) - 2440587.5) * 86400.0
