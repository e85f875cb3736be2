"""Deployments as stored: one row for each device, so that news of a device costs the same however many there are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_servicekit.sql import patient, upsert_all

from .schema import device_rollouts, resources
from .store import Record, Resources

Deployment = deployments_pb2.Deployment
KEPT = 8
_LENGTH_DELIMITED = 2
_FIELD = Deployment.DESCRIPTOR.fields_by_name["rollouts"].number << 3 | _LENGTH_DELIMITED


@dataclass(frozen=True, slots=True)
class _Members:
    """A deployment's devices at a revision: the serialized rollout of each, in order."""

    revision: int
    rows: tuple[bytes, ...]


class Deployments(Resources[deployments_pb2.Deployment]):
    """Deployments by name. Bodies that `get` returns may be shared: they must not be changed."""

    def __init__(self, engine: sa.Engine, ended: Callable[[deployments_pb2.Deployment], bool]) -> None:
        super().__init__(engine, "deployment", Deployment, ended)
        self._keeping = threading.Lock()
        self._members: OrderedDict[int, _Members] = OrderedDict()
        self._records: OrderedDict[str, Record[deployments_pb2.Deployment]] = OrderedDict()

    @patient
    def get(self, name: str) -> Record[deployments_pb2.Deployment] | None:
        """Return a deployment, None when there is none of this name."""
        with self._engine.connect() as connection:
            kept = self._records.get(name)
            if kept is not None:
                now = connection.execute(_stamp(name)).first()
                if now is not None and now == (kept.revision, kept.ended, kept.cancel_requested):
                    return kept
            row = connection.execute(self._select(name)).first()
            if row is None:
                return None
            record = self._record(connection, row)
        with self._keeping:
            _keep(self._records, name, record)
        return record

    @patient
    def get_device(self, name: str, device: str) -> Record[deployments_pb2.Deployment] | None:
        """Return a deployment with this device's rollout only, with none when it takes no part; None: no such deployment."""
        with self._engine.connect() as connection:
            row = connection.execute(self._select(name)).first()
            if row is None:
                return None
            body = Deployment.FromString(row.body)
            member = connection.execute(_member(row.sequence, device)).first()
        if member is not None:
            body.rollouts.add().ParseFromString(member.body)
        return Record(body, row.revision, row.ended, row.cancel_requested, row.fingerprint)

    @patient
    def change_device(
        self, name: str, device: str, edit: Callable[[deployments_pb2.DeviceRollout], None]
    ) -> deployments_pb2.DeviceRollout:
        """Apply `edit` to what a deployment says of one device, in one transaction; a change that changes nothing writes nothing.

        Raises KeyError for an unknown deployment and for a device that takes no part.
        """
        with self._lock, self._writer.begin() as connection:
            row = connection.execute(_head(name).with_for_update()).first()
            if row is None:
                raise KeyError(name)
            member = connection.execute(_member(row.sequence, device)).first()
            if member is None:
                raise KeyError(device)
            item = deployments_pb2.DeviceRollout.FromString(member.body)
            edit(item)
            data = item.SerializeToString(deterministic=True)
            if data == member.body:
                return item
            at = sa.and_(device_rollouts.c.deployment == row.sequence, device_rollouts.c.position == member.position)
            connection.execute(device_rollouts.update().where(at).values(body=data, revision=row.revision + 1))
            connection.execute(
                resources.update().where(resources.c.sequence == row.sequence).values(revision=row.revision + 1)
            )
        self._tell(name)
        return item

    def _packed(self, body: deployments_pb2.Deployment) -> bytes:
        head = Deployment()
        head.CopyFrom(body)
        head.ClearField("rollouts")
        return head.SerializeToString(deterministic=True)

    def _created(self, connection: sa.Connection, body: deployments_pb2.Deployment) -> None:
        row = connection.execute(self._select(body.name)).one()
        self._put(connection, row.sequence, 1, (), body)

    def _read(self, connection: sa.Connection, row: Any) -> deployments_pb2.Deployment:
        members = self._members_at(connection, row.sequence, row.revision)
        return Deployment.FromString(b"".join([row.body, *(_framed(data) for data in members.rows)]))

    def _write(self, connection: sa.Connection, row: Any, body: deployments_pb2.Deployment) -> bytes | None:
        before = self._members_at(connection, row.sequence, row.revision).rows
        changed = self._put(connection, row.sequence, row.revision + 1, before, body)
        data = self._packed(body)
        return data if changed or data != row.body else None

    def _put(
        self,
        connection: sa.Connection,
        sequence: int,
        revision: int,
        before: tuple[bytes, ...],
        body: deployments_pb2.Deployment,
    ) -> bool:
        """Write the rows of the devices that are new or have changed; whether there were any."""
        if len(body.rollouts) < len(before):
            raise ValueError("a device does not leave a deployment")
        rows = []
        for position, item in enumerate(body.rollouts):
            data = item.SerializeToString(deterministic=True)
            if position >= len(before) or data != before[position]:
                row = {"deployment": sequence, "position": position, "device": item.device}
                rows.append({**row, "revision": revision, "body": data})
        upsert_all(connection, device_rollouts, rows, "deployment", "position")
        return bool(rows)

    def _members_at(self, connection: sa.Connection, sequence: int, revision: int) -> _Members:
        """The devices of a deployment. Only rows that have changed since the last look are read."""
        kept = self._members.get(sequence, _Members(0, ()))
        if kept.revision == revision:
            return kept
        query = (
            sa.select(device_rollouts.c.position, device_rollouts.c.body)
            .where(device_rollouts.c.deployment == sequence, device_rollouts.c.revision > kept.revision)
            .order_by(device_rollouts.c.position)
        )
        rows = list(kept.rows)
        for position, data in connection.execute(query):
            if position < len(rows):
                rows[position] = data
            else:
                rows.append(data)
        members = _Members(revision, tuple(rows))
        with self._keeping:
            _keep(self._members, sequence, members)
        return members


def _keep(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > KEPT:
        kept.popitem(last=False)


def _stamp(name: str) -> sa.Select[Any]:
    of = resources.c
    return sa.select(of.revision, of.ended, of.cancel_requested).where(of.kind == "deployment", of.name == name)


def _head(name: str) -> sa.Select[Any]:
    of = resources.c
    return sa.select(of.sequence, of.revision).where(of.kind == "deployment", of.name == name)


def _member(sequence: int, device: str) -> sa.Select[Any]:
    of = device_rollouts.c
    return sa.select(of.position, of.body).where(of.deployment == sequence, of.device == device)


def _framed(data: bytes) -> bytes:
    """A serialized rollout as a field of a serialized deployment (Protocol Buffers, encoding: a LEN record)."""
    return _varint(_FIELD) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
