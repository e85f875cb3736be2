"""Registrations and installs in SQL (SQLite file or PostgreSQL), so that a restart loses neither."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from tinymlaas_lwm2m import ObjectLink

from .core.install_record import Failure, InstallEvent, InstallRecord, InstallRequest, Step, Transfer
from .core.registration import Registration

SCHEMA_VERSION = 1

_metadata = sa.MetaData()
_schema = sa.Table("bridge_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_registrations = sa.Table(
    "registrations",
    _metadata,
    sa.Column("endpoint", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)
_installs = sa.Table(
    "installs",
    _metadata,
    sa.Column("install_id", sa.String(128), primary_key=True),
    sa.Column("ended", sa.Boolean, nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
_events = sa.Table(
    "install_events",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("install_id", sa.String(128), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)
device_keys = sa.Table(
    "device_keys",
    _metadata,
    sa.Column("identity", sa.String(160), primary_key=True),
    sa.Column("endpoint", sa.String(128), nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("used_at", sa.Float),
    sa.Column("secret", sa.LargeBinary, nullable=False),
)


class SqlStore:
    """Implements `RegistrationStore` and `InstallStore` on one database."""

    def __init__(self, url: str) -> None:
        self.engine = self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        _metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            version = connection.execute(sa.select(_schema.c.version)).scalar()
            if version is None:
                connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise RuntimeError(f"the bridge's database has schema {version}, this version needs {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def load_registrations(self) -> list[Registration]:
        """All stored registrations."""
        with self._engine.connect() as connection:
            return [_registration(body) for body in connection.execute(sa.select(_registrations.c.body)).scalars()]

    def put_registration(self, registration: Registration) -> None:
        """Store one, replacing the endpoint's earlier one."""
        row = {"endpoint": registration.endpoint, "id": registration.id, "body": json.dumps(asdict(registration))}
        with self._engine.begin() as connection:
            _upsert(connection, _registrations, _registrations.c.endpoint, row)

    def delete_registration(self, endpoint: str) -> None:
        """Remove an endpoint's registration if there is one."""
        with self._engine.begin() as connection:
            connection.execute(_registrations.delete().where(_registrations.c.endpoint == endpoint))

    def get_install(self, install_id: str) -> InstallRecord | None:
        """The record of an install, or None."""
        with self._engine.connect() as connection:
            query = sa.select(_installs.c.body).where(_installs.c.install_id == install_id)
            body = connection.execute(query).scalar()
        return None if body is None else _record(body)

    def put_install(self, record: InstallRecord) -> None:
        """Store a record, replacing the earlier one."""
        row = {
            "install_id": record.request.install_id,
            "ended": record.step.terminal,
            "created_at": record.created_at,
            "body": json.dumps(asdict(record)),
        }
        with self._engine.begin() as connection:
            _upsert(connection, _installs, _installs.c.install_id, row)

    def open_installs(self) -> list[InstallRecord]:
        """Records that have not ended, oldest first."""
        query = sa.select(_installs.c.body).where(_installs.c.ended.is_(False)).order_by(_installs.c.created_at)
        with self._engine.connect() as connection:
            return [_record(body) for body in connection.execute(query).scalars()]

    def add_event(self, event: InstallEvent) -> None:
        """Append to an install's timeline."""
        with self._engine.begin() as connection:
            connection.execute(_events.insert().values(install_id=event.install_id, body=json.dumps(asdict(event))))

    def events(self, install_id: str) -> list[InstallEvent]:
        """Timeline of an install, oldest first."""
        query = sa.select(_events.c.body).where(_events.c.install_id == install_id).order_by(_events.c.number)
        with self._engine.connect() as connection:
            return [_event(body) for body in connection.execute(query).scalars()]


def _tune_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # A power cut may lose the last moments; devices are asked afresh anyway, so a sync each time buys nothing.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _upsert(connection: sa.Connection, table: sa.Table, key: sa.Column[Any], row: dict[str, Any]) -> None:
    updated = connection.execute(table.update().where(key == row[key.name]).values(row))
    if updated.rowcount == 0:
        connection.execute(table.insert().values(row))


def _registration(body: str) -> Registration:
    fields = json.loads(body)
    fields["objects"] = tuple(ObjectLink(**link) for link in fields["objects"])
    return Registration(**fields)


def _record(body: str) -> InstallRecord:
    fields = json.loads(body)
    request = fields.pop("request")
    failure = fields.pop("failure")
    return InstallRecord(
        request=InstallRequest(**request | {"transfer": Transfer(request["transfer"])}),
        failure=Failure(**failure) if failure else None,
        step=Step(fields.pop("step")),
        **fields,
    )


def _event(body: str) -> InstallEvent:
    fields = json.loads(body)
    failure = fields.pop("failure")
    return InstallEvent(step=Step(fields.pop("step")), failure=Failure(**failure) if failure else None, **fields)
