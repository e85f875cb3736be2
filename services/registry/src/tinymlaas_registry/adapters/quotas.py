"""What projects use and may use, counted in the transaction that would add to it, so that no two additions share one place."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from tinymlaas.registry.v1 import access_pb2
from tinymlaas_servicekit import ResourceExhausted, sql

from . import schema


def effective(connection: Connection, project: str, defaults: access_pb2.Quotas) -> access_pb2.Quotas:
    """The quotas that hold: the project's own, and for those that it has not the defaults."""
    table, found = schema.projects, access_pb2.Quotas()
    found.CopyFrom(defaults)
    message = connection.scalar(select(table.c.message).where(table.c.project == project))
    if message is not None:
        found.MergeFrom(access_pb2.Project.FromString(message).quotas)
    return found


def used(connection: Connection, project: str) -> access_pb2.Usage:
    """What a project has: bytes of distinct artifacts, and devices."""
    return access_pb2.Usage(bytes=_bytes(connection, project), devices=_devices(connection, project))


def record_size(connection: Connection, sha256: str, size_bytes: int) -> None:
    """Records the size of an artifact, once."""
    row = {"sha256": sha256, "size_bytes": size_bytes}
    sql.insert_if_absent(connection, schema.artifact_sizes, row, "sha256")


def check_bytes(
    connection: Connection, project: str, sha256: str, size_bytes: int, defaults: access_pb2.Quotas
) -> None:
    """ResourceExhausted where an artifact would bring a project over its bytes; one that it has already adds none."""
    quotas = effective(connection, project, defaults)
    if not quotas.HasField("max_bytes"):
        return
    references = schema.artifact_references
    has = select(references.c.owner).where(references.c.project == project, references.c.sha256 == sha256).limit(1)
    if connection.scalar(has) is not None:
        return
    total = _bytes(connection, project) + size_bytes
    if total > quotas.max_bytes:
        raise exceeded(project, "bytes", quotas.max_bytes, total)


def check_devices(connection: Connection, project: str, defaults: access_pb2.Quotas) -> None:
    """ResourceExhausted where one more device would be too many."""
    quotas = effective(connection, project, defaults)
    if not quotas.HasField("max_devices"):
        return
    count = _devices(connection, project) + 1
    if count > quotas.max_devices:
        raise exceeded(project, "devices", quotas.max_devices, count)


def exceeded(project: str, quota: str, bound: int, value: int) -> ResourceExhausted:
    """The error of a quota that does not allow `value`."""
    return ResourceExhausted(
        f"projects/{project} may have {bound:,} {quota}; this would make {value:,}",
        "QUOTA_EXCEEDED",
        {"project": f"projects/{project}", "quota": quota, "bound": bound, "value": value},
        "Delete what the project no longer needs, or ask an administrator of the installation for a higher quota.",
    )


def _bytes(connection: Connection, project: str) -> int:
    references, sizes = schema.artifact_references, schema.artifact_sizes
    mine = select(references.c.sha256).where(references.c.project == project)
    total = connection.scalar(select(func.coalesce(func.sum(sizes.c.size_bytes), 0)).where(sizes.c.sha256.in_(mine)))
    return int(total or 0)


def _devices(connection: Connection, project: str) -> int:
    count = select(func.count()).select_from(schema.devices).where(schema.devices.c.project == project)
    return int(connection.scalar(count) or 0)
