"""What bridges that share a database ask it about each other: whose a device is, what moved here, what a dead one left."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from tinymlaas_servicekit.leases import Leases
from tinymlaas_servicekit.sql import WRITE, database_time, patient

from .core.install_record import InstallRecord
from .core.registration import Registration
from .schema import installs, instances, registrations
from .store import SqlStore, record_of, registration_of

log = structlog.get_logger("tinymlaas.bridge.fleet")

PART = 1000
"""Devices that one query names."""


@dataclass(frozen=True)
class Owner:
    """The instance that a device is registered at, and the address that it is called by."""

    instance: str
    address: str


class FleetStore:
    """Implements the decisions of a fleet as single transactions, so that two instances never both take a thing."""

    def __init__(self, store: SqlStore, lease_seconds: float = 15.0) -> None:
        self._engine = store.engine
        self._writer = store.engine.execution_options(**WRITE)
        self._me = store.instance
        self.leases = Leases(store.engine, instances, store.instance, lease_seconds)

    @patient
    def owner(self, endpoint: str) -> Owner | None:
        """Whose the device is, None where that is this instance, a dead one, or none."""
        query = (
            sa.select(instances.c.instance, instances.c.address)
            .join(registrations, registrations.c.owner == instances.c.instance)
            .where(registrations.c.endpoint == endpoint, instances.c.instance != self._me)
        )
        with self._engine.connect() as connection:
            row = connection.execute(query.where(instances.c.expires_at > database_time(connection))).first()
        return None if row is None else Owner(row.instance, row.address)

    @patient
    def installing(self, endpoint: str) -> str | None:
        """The other instance that runs an install on the device now, None where there is none."""
        query = sa.select(installs.c.owner).where(
            installs.c.endpoint == endpoint, installs.c.ended.is_(False), installs.c.owner.not_in(("", self._me))
        )
        with self._engine.connect() as connection:
            found: str | None = connection.execute(query.limit(1)).scalar()
        return found

    def is_open(self, digest: str) -> bool:
        """Whether an install of this image is open; True where the database is away.

        Also one that is this instance's already, which has just taken it and does not serve the image yet.
        """
        query = sa.select(installs.c.install_id).where(
            installs.c.ended.is_(False), installs.c.body.contains(digest, autoescape=True)
        )
        try:
            with self._engine.connect() as connection:
                return connection.execute(query.limit(1)).first() is not None
        except SQLAlchemyError:
            log.warning("it can't be told whose image a device asks for", digest=digest, exc_info=True)
            return True

    def gone(self) -> list[str]:
        """Endpoints that have registered at another instance since they were this one's; to be answered by `let_go`."""
        query = sa.select(registrations.c.endpoint).where(
            registrations.c.former == self._me, registrations.c.owner != self._me
        )
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def elsewhere(self, known: Mapping[str, float]) -> list[str]:
        """Endpoints of those that are another instance's by now, whoever it came by; `known` has when each was heard here last.

        One that was heard here later than the database knows is on its way there, and stays.
        """
        table, found = registrations, []
        with self._engine.connect() as connection:
            for part in _parts(known):
                query = sa.select(table.c.endpoint, table.c.updated_at).where(
                    table.c.owner != self._me, table.c.endpoint.in_(part)
                )
                found += [row.endpoint for row in connection.execute(query) if row.updated_at >= known[row.endpoint]]
        return found

    def take_back(self, known: Mapping[str, Registration]) -> set[str]:
        """Make those of the `gone` this instance's again that were taken while its lease had run out, though it lives.

        Only as long as nobody else has heard of the device: to take it over changes neither its registration's id nor time,
        which the device's next message elsewhere does. Whoever took it finds it `gone` now, and lets go of its installs.
        """
        table = registrations
        kept: set[str] = set()
        with self._writer.begin() as connection:
            for part in _parts(known):
                lost = table.c.owner != self._me, table.c.endpoint.in_(part)
                query = sa.select(table.c.endpoint, table.c.id, table.c.updated_at).where(*lost).with_for_update()
                same = {
                    row.endpoint
                    for row in connection.execute(query)
                    if (known[row.endpoint].id, known[row.endpoint].updated_at) == (row.id, row.updated_at)
                }
                if same:
                    change = table.update().where(table.c.endpoint.in_(same))
                    connection.execute(change.values(owner=self._me, former=table.c.owner))
                kept |= same
        return kept

    def let_go(self, endpoints: Iterable[str]) -> None:
        """Say that this instance works on these devices no more: whose they are now may."""
        names = list(endpoints)
        with self._writer.begin() as connection:
            mine = installs.c.endpoint.in_(names), installs.c.owner == self._me, installs.c.ended.is_(False)
            connection.execute(installs.update().where(*mine).values(owner=""))
            left = registrations.c.endpoint.in_(names), registrations.c.former == self._me
            connection.execute(registrations.update().where(*left).values(former=""))

    def take_installs(self) -> list[InstallRecord]:
        """Make open installs on own devices this instance's, unless one that is alive still runs them; return them."""
        with self._writer.begin() as connection:
            alive = sa.select(instances.c.instance).where(instances.c.expires_at > database_time(connection))
            own = sa.select(registrations.c.endpoint).where(registrations.c.owner == self._me)
            free = (
                installs.c.ended.is_(False),
                installs.c.owner != self._me,
                installs.c.owner.not_in(alive),
                installs.c.endpoint.in_(own),
            )
            change = installs.update().where(*free).values(owner=self._me).returning(installs.c.body)
            return [record_of(body) for body in connection.execute(change).scalars()]

    def adopt(self, dead: str) -> tuple[list[Registration], list[InstallRecord]]:
        """Make this instance's what one left whose lease has run out; empty where it lives again or another one was first.

        Where one before it has not let go of a device yet, `former` goes on to say so: it learns of it in no other way soon,
        while the one whose lease ran out asks for all that is `elsewhere` when it comes back.
        """
        with self._writer.begin() as connection:
            gone = sa.select(instances.c.instance).where(
                instances.c.instance == dead, instances.c.expires_at <= database_time(connection)
            )
            change = registrations.update().where(registrations.c.owner.in_(gone))
            settled = registrations.c.former.in_(("", self._me))
            former = sa.case((settled, dead), else_=registrations.c.former)
            devices = connection.execute(
                change.values(owner=self._me, former=former).returning(registrations.c.body)
            ).scalars()
            left = installs.update().where(installs.c.owner.in_(gone), installs.c.ended.is_(False))
            records = connection.execute(left.values(owner=self._me).returning(installs.c.body)).scalars()
            found = [registration_of(body) for body in devices], [record_of(body) for body in records]
        if not any(found):
            self.leases.clear(dead)
        return found


def _parts(names: Collection[str]) -> Iterator[list[str]]:
    """Names in their order, few enough for one query."""
    ordered = sorted(names)
    for start in range(0, len(ordered), PART):
        yield ordered[start : start + PART]
