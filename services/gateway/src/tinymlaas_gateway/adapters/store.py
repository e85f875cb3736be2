"""The gateway's own records (SQLAlchemy): builds and deployments as they are now, known results, refuted claims.

Blocking; async callers go through `asyncio.to_thread`. One row per resource; its body is the public message. Every
change is one transaction and raises the revision, which watchers compare.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_servicekit import sql
from tinymlaas_servicekit.metrics import count
from tinymlaas_servicekit.sql import WRITE, insert_absent, insert_if_absent, patient, upsert

from .memory import ByteCache
from .schema import SCHEMA, refutations, releases, resources, results

MEMORY_BYTES = 32 << 20
Body = TypeVar("Body", bound="builds_pb2.Build | deployments_pb2.Deployment")


@dataclass(frozen=True, slots=True)
class Record(Generic[Body]):
    """A resource as stored: its public message and what stands beside it."""

    body: Body
    revision: int
    ended: bool
    cancel_requested: bool
    fingerprint: str


@dataclass(frozen=True, slots=True)
class New(Generic[Body]):
    """A resource to be stored: its message, the project that it is of, and the digest of the request that made it."""

    project: str
    body: Body
    fingerprint: str


def open_engine(url: str) -> sa.Engine:
    """Open the database and bring its tables to the newest schema. What was acknowledged survives a power cut."""
    engine = sql.open_engine(url, synchronous="FULL")
    SCHEMA.upgrade(engine)
    return engine


class Resources(Generic[Body]):
    """Builds or deployments by name."""

    def __init__(self, engine: sa.Engine, kind: str, body: type[Body], ended: Callable[[Body], bool]) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**WRITE)
        self._kind = kind
        self._type = body
        self._ended = ended
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []
        self._enders: list[Callable[[Body], None]] = []

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the name after each change, from whichever thread made it."""
        self._listeners.append(listener)

    def on_end(self, listener: Callable[[Body], None]) -> None:
        """Call `listener` with each resource that ends by a change of this process, from whichever thread made it."""
        self._enders.append(listener)

    def create(self, project: str, body: Body, fingerprint: str) -> tuple[Record[Body], bool]:
        """Store a new resource; return (what is stored under its name, whether this call made it)."""
        return self.create_many([New(project, body, fingerprint)])[0]

    @patient
    def create_many(self, news: Sequence[New[Body]]) -> list[tuple[Record[Body], bool]]:
        """Store new resources in one transaction, the same as `create` one after the other."""
        rows = [
            {
                "kind": self._kind,
                "name": new.body.name,
                "project": new.project,
                "fingerprint": new.fingerprint,
                "revision": 1,
                "ended": self._ended(new.body),
                "cancel_requested": False,
                "body": self._packed(new.body),
            }
            for new in news
        ]
        found: list[tuple[Record[Body], bool]] = []
        made: list[Body] = []
        with self._lock, self._writer.begin() as connection:
            inserted = insert_absent(connection, resources, rows, "name")
            for new in news:
                if new.body.name in inserted:
                    inserted.remove(new.body.name)
                    self._created(connection, new.body)
                    made.append(new.body)
                    found.append((Record(new.body, 1, self._ended(new.body), False, new.fingerprint), True))
                else:
                    record = self._record(connection, connection.execute(self._select(new.body.name)).one())
                    # The very same one is that of an earlier try, whose answer got lost on the way.
                    found.append((record, record.revision == 1 and record.body == new.body))
        for body in made:
            self._tell(body.name)
            if self._ended(body):
                self._tell_end(body)
        return found

    @patient
    def get(self, name: str) -> Record[Body] | None:
        """Return a resource, None when there is none of this name."""
        with self._engine.connect() as connection:
            row = connection.execute(self._select(name)).first()
            return None if row is None else self._record(connection, row)

    @patient
    def change(self, name: str, edit: Callable[[Body], None]) -> Record[Body]:
        """Apply `edit` to the message in one transaction; a change that changes nothing writes nothing.

        Raises KeyError for an unknown name. Ended resources can still be edited (rollback of a deployment).
        """
        with self._lock, self._writer.begin() as connection:
            row = connection.execute(self._select(name).with_for_update()).first()
            if row is None:
                raise KeyError(name)
            body = self._read(connection, row)
            edit(body)
            data = self._write(connection, row, body)
            if data is None:
                return Record(body, row.revision, row.ended, row.cancel_requested, row.fingerprint)
            after = Record(body, row.revision + 1, self._ended(body), row.cancel_requested, row.fingerprint)
            connection.execute(
                resources.update()
                .where(resources.c.name == name)
                .values(body=data, revision=after.revision, ended=after.ended)
            )
        self._tell(name)
        if after.ended and not row.ended:
            self._tell_end(body)
        return after

    @patient
    def request_cancel(self, name: str) -> Record[Body]:
        """Note that the resource shall stop; raises KeyError for an unknown name."""
        with self._lock, self._writer.begin() as connection:
            row = connection.execute(self._select(name)).first()
            if row is None:
                raise KeyError(name)
            connection.execute(resources.update().where(resources.c.name == name).values(cancel_requested=True))
            record = self._record(connection, row)
        self._tell(name)
        return Record(record.body, record.revision, record.ended, True, record.fingerprint)

    def page(self, project: str, size: int, before: int | None) -> tuple[list[Body], int | None]:
        """Return at most `size` resources of a project, newest first, and the cursor behind the last (None: no more)."""
        found = self.latest(project, size + 1, before)
        more = found[size - 1][0] if len(found) > size else None
        return [record.body for _, record in found[:size]], more

    @patient
    def latest(self, project: str, size: int, before: int | None) -> list[tuple[int, Record[Body]]]:
        """Return at most `size` resources of a project, newest first, each with its cursor.

        Cursors rise with time over all kinds of resources, so that pages of several kinds can be merged.
        """
        query = (
            resources.select()
            .where(resources.c.kind == self._kind, resources.c.project == project)
            .order_by(resources.c.sequence.desc())
            .limit(size)
        )
        if before is not None:
            query = query.where(resources.c.sequence < before)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
            return [(row.sequence, self._record(connection, row)) for row in rows]

    @patient
    def unfinished(self) -> list[str]:
        """Names of resources that have not ended, oldest first."""
        query = (
            sa.select(resources.c.name)
            .where(resources.c.kind == self._kind, resources.c.ended.is_(False))
            .order_by(resources.c.sequence)
        )
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def _select(self, name: str) -> sa.Select[Any]:
        return resources.select().where(resources.c.kind == self._kind, resources.c.name == name)

    def _record(self, connection: sa.Connection, row: Any) -> Record[Body]:
        body = self._read(connection, row)
        return Record(body, row.revision, row.ended, row.cancel_requested, row.fingerprint)

    # Where the body of a resource is: here in its row.

    def _packed(self, body: Body) -> bytes:
        """What the row of a resource keeps of its body."""
        return body.SerializeToString(deterministic=True)

    def _created(self, connection: sa.Connection, body: Body) -> None:
        """Store what the row of a new resource does not keep."""

    def _read(self, connection: sa.Connection, row: Any) -> Body:
        """The body of a row, nobody else's."""
        body = self._type()
        body.ParseFromString(row.body)
        return body

    def _write(self, connection: sa.Connection, row: Any, body: Body) -> bytes | None:
        """What to put into the row of a resource whose body may have changed, the rest stored; None: nothing has changed."""
        data = self._packed(body)
        return None if data == row.body else data

    def _tell_end(self, body: Body) -> None:
        for listener in self._enders:
            listener(body)

    def _tell(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)


class Results:
    """Results by digest of their request: what is known already is not computed again."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**WRITE)
        self._memory = ByteCache(MEMORY_BYTES)

    async def known(self, kind: str, digest: str) -> bytes | None:
        """As `get`, for coroutines: without a thread where the result is in memory."""
        found = self._memory.get(f"{kind}/{digest}")
        if found is None:
            found = await asyncio.to_thread(self.get, kind, digest)
        count("tinymlaas.cache.lookups", kind=kind, result="miss" if found is None else "hit")
        return found

    @patient
    def get(self, kind: str, digest: str) -> bytes | None:
        """Return the result of a request, None when it is not known."""
        query = sa.select(results.c.body).where(results.c.digest == digest, results.c.kind == kind)
        with self._engine.connect() as connection:
            found: bytes | None = connection.execute(query).scalar()
        if found is not None:
            self._memory.put(f"{kind}/{digest}", found)
        return found

    @patient
    def put(self, kind: str, digest: str, body: bytes) -> None:
        """Store a result; the first one stays."""
        with self._writer.begin() as connection:
            insert_if_absent(connection, results, {"digest": digest, "kind": kind, "body": body}, "digest")


class Refutations:
    """Builds in which a claim of a plugin was refuted; each build counts once however often its step is repeated.

    What was refuted before the plugin's version was released counts no more.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**WRITE)

    @patient
    def add(self, plugin: str, version: str, build: str) -> int:
        """Note a refuted claim; return the number of builds with one."""
        key = {"plugin": plugin, "version": version, "build": build}
        with self._writer.begin() as connection:
            insert_if_absent(connection, refutations, key, *key)
        return self.count(plugin, version)

    @patient
    def count(self, plugin: str, version: str) -> int:
        """Number of builds in which a claim of this version of the plugin was refuted since it was released."""
        return self.counts().get((plugin, version), 0)

    @patient
    def release(self, plugin: str, version: str) -> None:
        """Forget what was held against this version of the plugin."""
        with self._writer.begin() as connection:
            builds = connection.execute(
                sa.select(sa.func.count())
                .select_from(refutations)
                .where(refutations.c.plugin == plugin, refutations.c.version == version)
            ).scalar_one()
            upsert(connection, releases, {"plugin": plugin, "version": version, "builds": builds}, "plugin", "version")

    def counts(self) -> dict[tuple[str, str], int]:
        """The count of every plugin and version that has any; not repeated, as who asks asks again."""
        table = refutations.outerjoin(
            releases, (releases.c.plugin == refutations.c.plugin) & (releases.c.version == refutations.c.version)
        )
        forgiven = sa.func.coalesce(sa.func.max(releases.c.builds), 0)
        query = (
            sa.select(refutations.c.plugin, refutations.c.version, sa.func.count() - forgiven)
            .select_from(table)
            .group_by(refutations.c.plugin, refutations.c.version)
        )
        with self._engine.connect() as connection:
            return {(plugin, version): int(number) for plugin, version, number in connection.execute(query)}
