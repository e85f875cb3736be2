"""API keys, projects and the audit log in the registry's database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine, Table, delete, func, insert, select

from tinymlaas.registry.v1 import access_pb2
from tinymlaas_servicekit import sql
from tinymlaas_servicekit.resource_names import API_KEY, AUDIT_ENTRY, PROJECT, format_name, parse_name
from tinymlaas_servicekit.sql import WRITE, patient_methods

from ..core.ports import AuditFilter, Page
from . import quotas, schema


@patient_methods
class SqlAccess:
    """Implements core.ports.AccessRecords. `defaults` are the quotas of projects that have none of their own."""

    def __init__(self, engine: Engine, defaults: access_pb2.Quotas | None = None) -> None:
        self._engine, self._defaults = engine, defaults or access_pb2.Quotas()
        self._writer = engine.execution_options(**WRITE)

    def add_api_key(self, key: access_pb2.ApiKey, secret_sha256: bytes, limit: int) -> access_pb2.ApiKey | None:
        """See core.ports.AccessRecords."""
        name, table = parse_name(API_KEY, key.name), schema.api_keys
        with self._writer.begin() as connection:
            count = select(func.count()).select_from(table).where(table.c.project == name["project"])
            if (connection.scalar(count) or 0) >= limit:
                return None
            message = key.SerializeToString(deterministic=True)
            connection.execute(insert(table).values(**name, secret_sha256=secret_sha256, message=message))
        return key

    def get_api_key(self, name: str) -> access_pb2.ApiKey | None:
        """See core.ports.AccessRecords."""
        key, table = parse_name(API_KEY, name), schema.api_keys
        query = select(table.c.message).where(table.c.project == key["project"], table.c.api_key == key["api_key"])
        with self._engine.begin() as connection:
            message = connection.scalar(query)
        return None if message is None else access_pb2.ApiKey.FromString(message)

    def find_api_key(self, ident: str) -> tuple[access_pb2.ApiKey, bytes] | None:
        """See core.ports.AccessRecords."""
        table = schema.api_keys
        query = select(table.c.message, table.c.secret_sha256).where(table.c.api_key == ident)
        with self._engine.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (access_pb2.ApiKey.FromString(row.message), bytes(row.secret_sha256))

    def list_api_keys(self, project: str, page: Page) -> tuple[Sequence[access_pb2.ApiKey], str | None]:
        """See core.ports.AccessRecords."""
        table = schema.api_keys
        query = select(table.c.api_key, table.c.message).where(table.c.project == project)
        if page.cursor is not None:
            query = query.where(table.c.api_key > page.cursor)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(table.c.api_key).limit(page.size + 1)).all()
        keys = [access_pb2.ApiKey.FromString(row.message) for row in rows[: page.size]]
        return keys, rows[page.size - 1].api_key if len(rows) > page.size else None

    def delete_api_key(self, name: str) -> bool:
        """See core.ports.AccessRecords."""
        key, table = parse_name(API_KEY, name), schema.api_keys
        statement = delete(table).where(table.c.project == key["project"], table.c.api_key == key["api_key"])
        with self._writer.begin() as connection:
            return connection.execute(statement).rowcount > 0

    def get_project(self, project: str) -> access_pb2.Project:
        """See core.ports.AccessRecords."""
        table = schema.projects
        with self._engine.begin() as connection:
            message = connection.scalar(select(table.c.message).where(table.c.project == project))
            found = access_pb2.Project() if message is None else access_pb2.Project.FromString(message)
            found.name = format_name(PROJECT, project=project)
            found.effective_quotas.CopyFrom(quotas.effective(connection, project, self._defaults))
            found.usage.CopyFrom(quotas.used(connection, project))
        return found

    def list_projects(self, page: Page) -> tuple[Sequence[access_pb2.Project], str | None]:
        """See core.ports.AccessRecords."""
        table = schema.projects
        query = select(table.c.project, table.c.message)
        if page.cursor is not None:
            query = query.where(table.c.project > page.cursor)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(table.c.project).limit(page.size + 1)).all()
            found = [access_pb2.Project.FromString(row.message) for row in rows[: page.size]]
            for project, row in zip(found, rows, strict=False):
                project.effective_quotas.CopyFrom(quotas.effective(connection, row.project, self._defaults))
        return found, rows[page.size - 1].project if len(rows) > page.size else None

    def put_project(self, project: access_pb2.Project) -> None:
        """See core.ports.AccessRecords."""
        key, table = parse_name(PROJECT, project.name), schema.projects
        with self._writer.begin() as connection:
            before = connection.scalar(select(table.c.message).where(table.c.project == key["project"]))
            written = access_pb2.Project(name=project.name, display_name=project.display_name, quotas=project.quotas)
            if before is None:
                written.create_time.GetCurrentTime()
            else:
                written.create_time.CopyFrom(access_pb2.Project.FromString(before).create_time)
            sql.upsert(connection, table, {**key, "message": written.SerializeToString(deterministic=True)}, *key)

    def append_audit(self, entries: Sequence[access_pb2.AuditEntry]) -> None:
        """See core.ports.AccessRecords."""
        with self._writer.begin() as connection:
            for entry in entries:
                sql.insert_if_absent(connection, schema.audit_entries, _row(entry), "entry")

    def list_audit(self, wanted: AuditFilter, page: Page) -> tuple[Sequence[access_pb2.AuditEntry], str | None]:
        """See core.ports.AccessRecords."""
        table: Table = schema.audit_entries
        query = select(table.c.seq, table.c.message)
        for column, value in (("project", wanted.project), ("subject", wanted.subject), ("method", wanted.method)):
            if value:
                query = query.where(table.c[column] == value)
        if wanted.start_us is not None:
            query = query.where(table.c.time_us >= wanted.start_us)
        if wanted.end_us is not None:
            query = query.where(table.c.time_us < wanted.end_us)
        if page.cursor is not None:
            query = query.where(table.c.seq < int(page.cursor))
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(table.c.seq.desc()).limit(page.size + 1)).all()
        entries = [access_pb2.AuditEntry.FromString(row.message) for row in rows[: page.size]]
        return entries, str(rows[page.size - 1].seq) if len(rows) > page.size else None


def _row(entry: access_pb2.AuditEntry) -> dict[str, object]:
    return {
        "entry": parse_name(AUDIT_ENTRY, entry.name)["audit_entry"],
        "project": parse_name(PROJECT, entry.project)["project"] if entry.project else "",
        "subject": entry.subject[:512],
        "method": entry.method[:256],
        "time_us": entry.time.ToMicroseconds(),
        "message": entry.SerializeToString(deterministic=True),
    }
