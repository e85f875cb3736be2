"""Leases of instances that share a database: who is alive, by the database's clock, so that others can take over the rest.

Needs what `sql` needs. Blocking; async callers go through `asyncio.to_thread`.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from .sql import WRITE, database_time, upsert

RELEASED = 0.0
"""When the lease of an instance ran out that gave it up."""


def lease_table(name: str, metadata: sa.MetaData) -> sa.Table:
    """The table of a service's leases, one row for each instance that is alive or has died with work left."""
    return sa.Table(
        name,
        metadata,
        sa.Column("instance", sa.String(63), primary_key=True),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("address", sa.String(300), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )


class Leases:
    """The lease of this process on the name of its instance, and a view of the others'.

    A process holds its name for `seconds` after `take` or `renew`. A name is taken from whoever holds it: the supervisor
    that starts two processes of one name is at fault, and the one that lost it is told by `renew`.

    Call `renew` every quarter of that time. While the database is away nobody can, and all leases run out; so `expired`
    takes for dead whose lease has run out only once this one has been renewed without delay for `seconds`: whoever lives
    could do so, too.
    """

    def __init__(self, engine: sa.Engine, table: sa.Table, instance: str, seconds: float = 15.0) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**WRITE)
        self._table = table
        self._holder = secrets.token_hex(16)
        self.instance = instance
        self.seconds = seconds
        self._steady_since = 0.0

    def take(self, address: str = "") -> None:
        """Hold the name from now on; `address` is what others reach this instance by."""
        with self._writer.begin() as connection:
            now = connection.scalar(sa.select(database_time(connection)))
            row = {
                "instance": self.instance,
                "holder": self._holder,
                "address": address,
                "expires_at": (now or 0.0) + self.seconds,
            }
            upsert(connection, self._table, row, "instance")
            self._steady_since = now or 0.0

    def renew(self, address: str | None = None) -> bool:
        """Hold the name for longer; False where another process holds it, or an expired lease was cleared away.

        `address`, where given, is what others reach this instance by from now on.
        """
        table = self._table
        with self._writer.begin() as connection:
            mine = table.c.instance == self.instance, table.c.holder == self._holder
            query = sa.select(table.c.expires_at, database_time(connection).label("now")).where(*mine)
            held = connection.execute(query.with_for_update()).first()
            if held is None:
                return False
            change = table.update().where(*mine).values(expires_at=held.now + self.seconds)
            if address is not None:
                change = change.values(address=address)
            connection.execute(change)
            if held.expires_at < held.now + self.seconds / 2:
                self._steady_since = held.now
            return True

    def release(self) -> None:
        """End the lease at once: what this instance leaves may be taken over now."""
        table = self._table
        with self._writer.begin() as connection:
            mine = table.c.instance == self.instance, table.c.holder == self._holder
            connection.execute(table.update().where(*mine).values(expires_at=RELEASED))

    def alive(self) -> dict[str, str]:
        """Address by name of every instance whose lease holds."""
        table = self._table
        with self._engine.connect() as connection:
            query = sa.select(table.c.instance, table.c.address).where(table.c.expires_at > database_time(connection))
            return {row.instance: row.address for row in connection.execute(query)}

    def expired(self) -> list[str]:
        """Names of the others whose lease was given up or has run out, in order; of the latter none while the own was late."""
        table = self._table
        with self._engine.connect() as connection:
            now = database_time(connection)
            query = sa.select(table.c.instance).where(
                table.c.instance != self.instance,
                table.c.expires_at <= now,
                sa.or_(table.c.expires_at == RELEASED, now >= self._steady_since + self.seconds),
            )
            return list(connection.execute(query.order_by(table.c.instance)).scalars())

    def clear(self, instance: str) -> None:
        """Forget an instance whose lease has run out and that has left nothing; one that came back stays."""
        table = self._table
        with self._writer.begin() as connection:
            gone = table.c.instance == instance, table.c.expires_at <= database_time(connection)
            connection.execute(table.delete().where(*gone))
