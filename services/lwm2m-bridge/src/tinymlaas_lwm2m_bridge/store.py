"""Registrations and installs in SQL (SQLite file or PostgreSQL), so that a restart loses neither."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import fields as fields_of
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite

from tinymlaas_lwm2m import ObjectLink

from . import schema
from .core.bootstrap import BootstrapRecord, BootstrapState
from .core.install_record import Failure, InstallEvent, InstallRecord, InstallRequest, Step, Transfer
from .core.registration import Registration

_REGISTRATION_FIELDS = tuple(field.name for field in fields_of(Registration))
_MIGRATION_LOCK = 0x4C774D32
"""Key of the advisory lock under which PostgreSQL lets one bridge at a time change the schema."""


def migrate(engine: sa.Engine) -> None:
    """Brings the database to the newest schema; several bridges may do it at once."""
    config = Config()
    config.set_main_option("script_location", "tinymlaas_lwm2m_bridge:migrations")
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


class SqlStore:
    """Implements `RegistrationStore`, `InstallStore` and `BootstrapStore` on one database."""

    def __init__(self, url: str) -> None:
        self.engine = self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        migrate(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def load_registrations(self) -> list[Registration]:
        """All stored registrations."""
        with self._engine.connect() as connection:
            return [
                _registration(body) for body in connection.execute(sa.select(schema.registrations.c.body)).scalars()
            ]

    def put_registration(self, registration: Registration) -> None:
        """Store one, replacing the endpoint's earlier one."""
        self.write_registrations({registration.endpoint: registration})

    def delete_registration(self, endpoint: str) -> None:
        """Remove an endpoint's registration if there is one."""
        self.write_registrations({endpoint: None})

    def write_registrations(self, changes: Mapping[str, Registration | None]) -> None:
        """Store or, where None, remove registrations by endpoint, all in one transaction."""
        table = schema.registrations
        rows = [
            {"endpoint": kept.endpoint, "id": kept.id, "body": _body(kept)}
            for _, kept in sorted(changes.items())
            if kept
        ]
        gone = [{"gone": endpoint} for endpoint, kept in sorted(changes.items()) if kept is None]
        with self._engine.begin() as connection:
            if rows:
                insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
                statement = insert(table)
                written = {"id": statement.excluded.id, "body": statement.excluded.body}
                connection.execute(statement.on_conflict_do_update(index_elements=["endpoint"], set_=written), rows)
            if gone:
                connection.execute(table.delete().where(table.c.endpoint == sa.bindparam("gone")), gone)

    def get_install(self, install_id: str) -> InstallRecord | None:
        """The record of an install, or None."""
        with self._engine.connect() as connection:
            query = sa.select(schema.installs.c.body).where(schema.installs.c.install_id == install_id)
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
            _upsert(connection, schema.installs, schema.installs.c.install_id, row)

    def open_installs(self) -> list[InstallRecord]:
        """Records that have not ended, oldest first."""
        query = (
            sa.select(schema.installs.c.body)
            .where(schema.installs.c.ended.is_(False))
            .order_by(schema.installs.c.created_at)
        )
        with self._engine.connect() as connection:
            return [_record(body) for body in connection.execute(query).scalars()]

    def add_event(self, event: InstallEvent) -> None:
        """Append to an install's timeline."""
        with self._engine.begin() as connection:
            connection.execute(
                schema.events.insert().values(install_id=event.install_id, body=json.dumps(asdict(event)))
            )

    def events(self, install_id: str) -> list[InstallEvent]:
        """Timeline of an install, oldest first."""
        query = (
            sa.select(schema.events.c.body)
            .where(schema.events.c.install_id == install_id)
            .order_by(schema.events.c.number)
        )
        with self._engine.connect() as connection:
            return [_event(body) for body in connection.execute(query).scalars()]

    def get_bootstrap(self, endpoint: str) -> BootstrapRecord | None:
        """How the last bootstrap of an endpoint went, or None."""
        query = sa.select(schema.bootstraps.c.body).where(schema.bootstraps.c.endpoint == endpoint)
        with self._engine.connect() as connection:
            body = connection.execute(query).scalar()
        if body is None:
            return None
        fields = json.loads(body)
        return BootstrapRecord(state=BootstrapState(fields.pop("state")), **fields)

    def put_bootstrap(self, record: BootstrapRecord) -> None:
        """Store a bootstrap, replacing the endpoint's earlier one."""
        row = {"endpoint": record.endpoint, "body": json.dumps(asdict(record))}
        with self._engine.begin() as connection:
            _upsert(connection, schema.bootstraps, schema.bootstraps.c.endpoint, row)


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


def _body(registration: Registration) -> str:
    """The registration as JSON: by hand, since `asdict` copies each link, which costs more than all else here."""
    body = {name: getattr(registration, name) for name in _REGISTRATION_FIELDS}
    body["objects"] = [
        {"object_id": link.object_id, "instance_id": link.instance_id, "version": link.version}
        for link in registration.objects
    ]
    return json.dumps(body)


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
