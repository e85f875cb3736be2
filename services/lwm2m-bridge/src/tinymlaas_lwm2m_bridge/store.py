"""Registrations and installs in SQL (SQLite file or PostgreSQL), so that a restart loses neither."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from dataclasses import fields as fields_of

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tinymlaas_lwm2m import ObjectLink
from tinymlaas_servicekit.sql import WRITE, insert_if_absent, open_engine, patient, upsert

from . import schema
from .core.bootstrap import BootstrapRecord, BootstrapState
from .core.install_record import Failure, InstallEvent, InstallRecord, InstallRequest, Step, Transfer
from .core.registration import Registration

_ROWS_AT_ONCE = 64
_REGISTRATION_FIELDS = tuple(field.name for field in fields_of(Registration) if field.name != "objects")


class SqlStore:
    """Implements `RegistrationStore`, `InstallStore` and `BootstrapStore` on one database.

    Bridges may share it under different names (`instance`): what one writes is its own from then on, and it loads that only.
    """

    def __init__(self, url: str, instance: str = "bridge") -> None:
        # SQLite: a power cut may lose the last moments; devices are asked afresh anyway, so a sync each time buys nothing.
        self.engine = self._engine = open_engine(url)
        self._writer = self._engine.execution_options(**WRITE)
        self.instance = instance
        self._upsert = _Upsert(self._engine.dialect)
        schema.SCHEMA.upgrade(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def load_registrations(self) -> list[Registration]:
        """All registrations of this instance, and those that are nobody's, which are its own from now on."""
        table = schema.registrations
        with self._writer.begin() as connection:
            connection.execute(table.update().where(table.c.owner == "").values(owner=self.instance))
            query = sa.select(table.c.body).where(table.c.owner == self.instance)
            return [registration_of(body) for body in connection.execute(query).scalars()]

    def put_registration(self, registration: Registration) -> None:
        """Store one, replacing the endpoint's earlier one."""
        self.write_registrations({registration.endpoint: registration})

    def delete_registration(self, endpoint: str) -> None:
        """Remove an endpoint's registration if there is one."""
        self.write_registrations({endpoint: None})

    def write_registrations(self, changes: Mapping[str, Registration | None]) -> None:
        """Store or, where None, remove registrations by endpoint, all in one transaction.

        One that another instance has received since stays that one's.
        """
        table = schema.registrations
        ordered = sorted(changes.items())
        links = _Links()
        rows = [
            (endpoint, kept.id, _body(kept, links), kept.updated_at, self.instance, "")
            for endpoint, kept in ordered
            if kept is not None
        ]
        gone = [{"gone": endpoint} for endpoint, kept in ordered if kept is None]
        with self._writer.begin() as connection:
            self._upsert.run(connection, rows)
            if gone:
                mine = table.c.endpoint == sa.bindparam("gone"), table.c.owner == self.instance
                connection.execute(table.delete().where(*mine), gone)

    @patient
    def get_install(self, install_id: str) -> InstallRecord | None:
        """The record of an install, or None."""
        with self._engine.connect() as connection:
            query = sa.select(schema.installs.c.body).where(schema.installs.c.install_id == install_id)
            body = connection.execute(query).scalar()
        return None if body is None else record_of(body)

    @patient
    def begin_install(self, record: InstallRecord) -> InstallRecord:
        """Store the record of a new install, unless its id has one; the one that is stored."""
        row = self._row(record)
        with self._writer.begin() as connection:
            if insert_if_absent(connection, schema.installs, row, "install_id"):
                return record
            query = sa.select(schema.installs.c.body).where(schema.installs.c.install_id == row["install_id"])
            return record_of(connection.execute(query).scalar_one())

    @patient
    def note_install(self, record: InstallRecord | None, event: InstallEvent | None) -> None:
        """Store a record, replacing the earlier one, and append to its timeline, both or none.

        A record that another instance has taken meanwhile stays as it is.
        """
        with self._writer.begin() as connection:
            if record is not None:
                self._put_install(connection, record)
            if event is not None:
                row = {"install_id": event.install_id, "body": json.dumps(asdict(event))}
                connection.execute(schema.events.insert().values(row))

    def _put_install(self, connection: sa.Connection, record: InstallRecord) -> None:
        row, table = self._row(record), schema.installs
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        free = table.c.owner.in_(("", self.instance))
        statement = insert(table).values(row)
        connection.execute(statement.on_conflict_do_update(index_elements=["install_id"], set_=row, where=free))

    def _row(self, record: InstallRecord) -> dict[str, object]:
        return {
            "install_id": record.request.install_id,
            "ended": record.step.terminal,
            "created_at": record.created_at,
            "body": json.dumps(asdict(record)),
            "endpoint": record.request.endpoint,
            "owner": self.instance,
        }

    @patient
    def open_installs(self) -> list[InstallRecord]:
        """Records of this instance that have not ended, oldest first; those that are nobody's are its own from now on."""
        table = schema.installs
        with self._writer.begin() as connection:
            nobodys = table.c.ended.is_(False), table.c.owner == ""
            connection.execute(table.update().where(*nobodys).values(owner=self.instance))
            mine = table.c.ended.is_(False), table.c.owner == self.instance
            query = sa.select(table.c.body).where(*mine).order_by(table.c.created_at)
            return [record_of(body) for body in connection.execute(query).scalars()]

    @patient
    def events(self, install_id: str, skip: int = 0) -> list[InstallEvent]:
        """Timeline of an install, oldest first, without its first `skip` entries."""
        query = (
            sa.select(schema.events.c.body)
            .where(schema.events.c.install_id == install_id)
            .order_by(schema.events.c.number)
            .offset(skip)
        )
        with self._engine.connect() as connection:
            return [_event(body) for body in connection.execute(query).scalars()]

    @patient
    def get_bootstrap(self, endpoint: str) -> BootstrapRecord | None:
        """How the last bootstrap of an endpoint went, or None."""
        query = sa.select(schema.bootstraps.c.body).where(schema.bootstraps.c.endpoint == endpoint)
        with self._engine.connect() as connection:
            body = connection.execute(query).scalar()
        if body is None:
            return None
        fields = json.loads(body)
        return BootstrapRecord(state=BootstrapState(fields.pop("state")), **fields)

    @patient
    def put_bootstrap(self, record: BootstrapRecord) -> None:
        """Store a bootstrap, replacing the endpoint's earlier one."""
        row = {"endpoint": record.endpoint, "body": json.dumps(asdict(record))}
        with self._writer.begin() as connection:
            upsert(connection, schema.bootstraps, row, "endpoint")


class _Upsert:
    """The upsert of `write_registrations` for so many rows at once, each the values of `schema.registrations` in its order.

    As text made once, since SQLAlchemy takes longer to put it together than the database to run it; and as one statement,
    since the driver lets go of Python's lock and takes it again for each, beside a busy event loop.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        table = schema.registrations
        statement = postgresql.insert(table) if dialect.name == "postgresql" else sqlite.insert(table)
        written = {name: statement.excluded[name] for name in ("id", "body", "updated_at", "owner")}
        nobody = sa.literal_column("''", sa.String())
        moved = sa.and_(table.c.owner != statement.excluded.owner, table.c.owner != nobody)
        statement = statement.on_conflict_do_update(
            index_elements=["endpoint"],
            set_=written | {"former": sa.case((moved, table.c.owner), else_=table.c.former)},
            where=sa.or_(~moved, table.c.updated_at <= statement.excluded.updated_at),
        )
        by_place = type(dialect)(paramstyle="format" if dialect.name == "postgresql" else "qmark")  # type: ignore[call-arg]
        self._head, _, rest = str(statement.compile(dialect=by_place)).partition(" VALUES ")
        self._row, _, self._tail = rest.partition(" ON CONFLICT ")
        self._texts: dict[int, str] = {}

    def run(self, connection: sa.Connection, rows: Sequence[tuple[object, ...]]) -> None:
        """Store rows of different endpoints."""
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[first : first + _ROWS_AT_ONCE]
            text = self._texts.get(len(part))
            if text is None:
                text = f"{self._head} VALUES {', '.join([self._row] * len(part))} ON CONFLICT {self._tail}"
                self._texts[len(part)] = text
            connection.exec_driver_sql(text, tuple(value for row in part for value in row))


class _Links(dict[int, str]):
    """Links of registrations as JSON by the identity of their tuple, which devices of one kind share: each written once."""

    def of(self, objects: tuple[ObjectLink, ...]) -> str:
        """The JSON text."""
        text = self.get(id(objects))
        if text is None:
            links = [{"object_id": o.object_id, "instance_id": o.instance_id, "version": o.version} for o in objects]
            text = self[id(objects)] = json.dumps(links)
        return text


def _body(registration: Registration, links: _Links) -> str:
    """The registration as JSON: by hand, since `asdict` copies each link, which costs more than all else here."""
    body = json.dumps({name: getattr(registration, name) for name in _REGISTRATION_FIELDS})
    return f'{body[:-1]}, "objects": {links.of(registration.objects)}}}'


def registration_of(body: str) -> Registration:
    """A registration from its stored form."""
    fields = json.loads(body)
    fields["objects"] = tuple(ObjectLink(**link) for link in fields["objects"])
    return Registration(**fields)


def record_of(body: str) -> InstallRecord:
    """An install from its stored form."""
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
