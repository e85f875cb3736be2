"""Records in a SQL database through SQLAlchemy: the same statements on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Engine, Select, Table, delete, insert, select

from tinymlaas.registry.v1 import access_pb2, devices_pb2, models_pb2, modules_pb2, plugins_pb2
from tinymlaas_servicekit import sql
from tinymlaas_servicekit.resource_names import DEVICE, MODEL, MODEL_VERSION, MODULE, PLUGIN, parse_name
from tinymlaas_servicekit.sql import WRITE, Schema, patient_methods

from ..core.ports import Page
from . import quotas, schema

M = TypeVar("M", bound=Message)

_WRITER_LOCK = 0x74696E79_6D6C0001
"""Key of the advisory lock that writers of the catalogue hold; any number that nothing else in the database uses."""


SCHEMA = Schema("tinymlaas_registry", _WRITER_LOCK)


def open_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL. One writer at a time on both: it reads what is there before it writes."""
    return sql.open_engine(url, writer_lock=_WRITER_LOCK)


def migrate(engine: Engine) -> None:
    """Brings the database to the newest schema; several processes may do it at once."""
    SCHEMA.upgrade(engine)


@patient_methods
class SqlRecords:
    """Implements core.ports.Records. `now` gives the time of writes, `defaults` are quotas of projects without their own."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], Timestamp] | None = None,
        defaults: access_pb2.Quotas | None = None,
    ) -> None:
        self._engine, self._now = engine, now or _now
        self._defaults = defaults or access_pb2.Quotas()
        self._writer = engine.execution_options(**WRITE)
        # To change a row needs no lock of all writers where the database locks rows; SQLite has the one lock only.
        self._row_writer = engine if engine.dialect.name == "postgresql" else self._writer

    def get_model(self, name: str) -> models_pb2.Model | None:
        """See core.ports.Records."""
        key = parse_name(MODEL, name)
        with self._engine.begin() as connection:
            return _model(connection, key["project"], key["model"])

    def list_models(self, project: str, tag: str, page: Page) -> tuple[Sequence[models_pb2.Model], str | None]:
        """See core.ports.Records."""
        table = schema.models
        query = select(table.c.model).where(table.c.project == project).order_by(table.c.model)
        if tag:
            tags = schema.model_tags
            tagged = select(tags.c.model).where(tags.c.project == project, tags.c.tag == tag)
            query = query.where(table.c.model.in_(tagged))
        if page.cursor is not None:
            query = query.where(table.c.model > page.cursor)
        with self._engine.begin() as connection:
            ids = list(connection.scalars(query.limit(page.size + 1)))
            found = [_model(connection, project, model) for model in ids[: page.size]]
        return [model for model in found if model is not None], ids[page.size - 1] if len(ids) > page.size else None

    def delete_model(self, name: str) -> list[str] | None:
        """See core.ports.Records."""
        key = parse_name(MODEL, name)
        table, references = schema.models, schema.artifact_references
        with self._writer.begin() as connection:
            if _model(connection, key["project"], key["model"]) is None:
                return None
            owned = references.c.project == key["project"], references.c.owner.startswith(f"{name}/", autoescape=True)
            digests = set(connection.scalars(select(references.c.sha256).where(*owned)))
            connection.execute(delete(references).where(*owned))
            # Explicit, though the foreign key cascades: not every database has it switched on.
            for child in (schema.model_versions, schema.model_tags, table):
                connection.execute(
                    delete(child).where(child.c.project == key["project"], child.c.model == key["model"])
                )
            kept = set(connection.scalars(select(references.c.sha256).where(references.c.sha256.in_(digests))))
        return sorted(digests - kept)

    def get_version(self, name: str) -> models_pb2.ModelVersion | None:
        """See core.ports.Records."""
        key = parse_name(MODEL_VERSION, name)
        with self._engine.begin() as connection:
            return _version(connection, key["project"], key["model"], key["version"])

    def list_versions(self, model: str, page: Page) -> tuple[Sequence[models_pb2.ModelVersion], str | None]:
        """See core.ports.Records."""
        key, table = parse_name(MODEL, model), schema.model_versions
        query = select(table.c.seq, table.c.message).where(
            table.c.project == key["project"], table.c.model == key["model"]
        )
        return self._newest_first(table, query, page, models_pb2.ModelVersion)

    def find_checked(self, sha256: str, format: int) -> models_pb2.ModelVersion | None:
        """See core.ports.Records."""
        table = schema.model_versions
        query = select(table.c.message).where(table.c.sha256 == sha256, table.c.format == format).limit(1)
        with self._engine.begin() as connection:
            return _parsed(models_pb2.ModelVersion, connection.scalar(query))

    def add_version(self, model: models_pb2.Model, version: models_pb2.ModelVersion) -> models_pb2.ModelVersion:
        """See core.ports.Records."""
        key, now = parse_name(MODEL_VERSION, version.name), self._now()
        project, model_id = key["project"], key["model"]
        with self._writer.begin() as connection:
            existing = _model(connection, project, model_id)
            written = models_pb2.Model()
            written.CopyFrom(model)
            written.create_time.CopyFrom(now if existing is None else existing.create_time)
            written.update_time.CopyFrom(now)
            written.ClearField("latest_version")
            _put(connection, schema.models, {"project": project, "model": model_id}, written)
            tags = schema.model_tags
            connection.execute(delete(tags).where(tags.c.project == project, tags.c.model == model_id))
            for tag in sorted(set(written.tags)):
                connection.execute(insert(tags).values(project=project, model=model_id, tag=tag))
            known = _version(connection, project, model_id, key["version"])
            if known is not None:
                return known
            added = models_pb2.ModelVersion()
            added.CopyFrom(version)
            added.create_time.CopyFrom(now)
            connection.execute(
                insert(schema.model_versions).values(
                    project=project,
                    model=model_id,
                    version=key["version"],
                    sha256=added.sha256,
                    format=added.format,
                    derived=int(bool(added.derived_from)),
                    message=added.SerializeToString(deterministic=True),
                )
            )
            self._refer(connection, project, added.sha256, added.name, added.size_bytes)
        return added

    def get_module(self, name: str) -> modules_pb2.Module | None:
        """See core.ports.Records."""
        return self._get(schema.modules, parse_name(MODULE, name), modules_pb2.Module)

    def list_modules(
        self, project: str, model_version: str, page: Page
    ) -> tuple[Sequence[modules_pb2.Module], str | None]:
        """See core.ports.Records."""
        table = schema.modules
        query = select(table.c.seq, table.c.message).where(table.c.project == project)
        if model_version:
            query = query.where(table.c.model_version == model_version)
        return self._newest_first(table, query, page, modules_pb2.Module)

    def add_module(self, module: modules_pb2.Module) -> modules_pb2.Module:
        """See core.ports.Records."""
        key, table = parse_name(MODULE, module.name), schema.modules
        with self._writer.begin() as connection:
            where = table.c.project == key["project"], table.c.module == key["module"]
            known = _parsed(modules_pb2.Module, connection.scalar(select(table.c.message).where(*where)))
            if known is not None:
                return known
            added = modules_pb2.Module()
            added.CopyFrom(module)
            added.create_time.CopyFrom(self._now())
            message = added.SerializeToString(deterministic=True)
            connection.execute(insert(table).values(**key, model_version=added.model_version, message=message))
            sizes = {added.sha256: added.size_bytes, added.device_image_sha256: added.device_image_bytes}
            for sha256 in sorted(sizes.keys() - {""}):
                self._refer(connection, key["project"], sha256, added.name, sizes[sha256])
        return added

    def change_device(
        self, name: str, change: Callable[[devices_pb2.Device | None], devices_pb2.Device]
    ) -> devices_pb2.Device:
        """See core.ports.Records."""
        key = parse_name(DEVICE, name)
        with self._row_writer.begin() as connection:
            known = _locked_device(connection, key)
            if known is not None:
                return _change(connection, key, known, change)
        with self._writer.begin() as connection:
            known = _locked_device(connection, key)
            if known is None:
                quotas.check_devices(connection, key["project"], self._defaults)
            return _change(connection, key, known, change)

    def get_device(self, name: str) -> devices_pb2.Device | None:
        """See core.ports.Records."""
        return self._get(schema.devices, parse_name(DEVICE, name), devices_pb2.Device)

    def list_devices(self, project: str, page: Page) -> tuple[Sequence[devices_pb2.Device], str | None]:
        """See core.ports.Records."""
        table = schema.devices
        query = select(table.c.device, table.c.message).where(table.c.project == project)
        return self._by_id(table.c.device, query, page, devices_pb2.Device)

    def delete_device(self, name: str) -> bool:
        """See core.ports.Records."""
        return self._delete(schema.devices, parse_name(DEVICE, name))

    def put_plugin(self, plugin: plugins_pb2.Plugin) -> None:
        """See core.ports.Records."""
        with self._writer.begin() as connection:
            _put(connection, schema.plugins, parse_name(PLUGIN, plugin.name), plugin)

    def get_plugin(self, name: str) -> plugins_pb2.Plugin | None:
        """See core.ports.Records."""
        return self._get(schema.plugins, parse_name(PLUGIN, name), plugins_pb2.Plugin)

    def list_plugins(self, page: Page) -> tuple[Sequence[plugins_pb2.Plugin], str | None]:
        """See core.ports.Records."""
        table = schema.plugins
        return self._by_id(table.c.plugin, select(table.c.plugin, table.c.message), page, plugins_pb2.Plugin)

    def delete_plugin(self, name: str) -> bool:
        """See core.ports.Records."""
        return self._delete(schema.plugins, parse_name(PLUGIN, name))

    def add_reference(self, project: str, sha256: str, size_bytes: int) -> None:
        """See core.ports.Records."""
        with self._writer.begin() as connection:
            self._refer(connection, project, sha256, "", size_bytes)

    def check_room(self, project: str, sha256: str, size_bytes: int) -> None:
        """See core.ports.Records."""
        with self._engine.begin() as connection:
            quotas.check_bytes(connection, project, sha256, size_bytes, self._defaults)

    def unsized(self) -> set[str]:
        """See core.ports.Records."""
        known, table = select(schema.artifact_sizes.c.sha256), schema.artifact_references
        with self._engine.begin() as connection:
            return set(connection.scalars(select(table.c.sha256).where(table.c.sha256.not_in(known)).distinct()))

    def add_sizes(self, sizes: Mapping[str, int]) -> None:
        """See core.ports.Records."""
        with self._writer.begin() as connection:
            for sha256, size in sizes.items():
                quotas.record_size(connection, sha256, size)

    def owns(self, project: str, sha256: str) -> bool:
        """See core.ports.Records."""
        table = schema.artifact_references
        query = select(table.c.owner).where(table.c.project == project, table.c.sha256 == sha256).limit(1)
        with self._engine.begin() as connection:
            return connection.scalar(query) is not None

    def referenced(self) -> set[str]:
        """See core.ports.Records."""
        with self._engine.begin() as connection:
            return set(connection.scalars(select(schema.artifact_references.c.sha256).distinct()))

    def _refer(self, connection: Connection, project: str, sha256: str, owner: str, size_bytes: int) -> None:
        quotas.check_bytes(connection, project, sha256, size_bytes, self._defaults)
        quotas.record_size(connection, sha256, size_bytes)
        key = {"project": project, "sha256": sha256, "owner": owner}
        sql.insert_if_absent(connection, schema.artifact_references, key, *key)

    def _get(self, table: Table, key: dict[str, str], kind: type[M]) -> M | None:
        with self._engine.begin() as connection:
            return _parsed(kind, connection.scalar(select(table.c.message).where(*_where(table, key))))

    def _delete(self, table: Table, key: dict[str, str]) -> bool:
        with self._writer.begin() as connection:
            return connection.execute(delete(table).where(*_where(table, key))).rowcount > 0

    def _by_id(self, column: Any, query: Select[Any], page: Page, kind: type[M]) -> tuple[list[M], str | None]:
        if page.cursor is not None:
            query = query.where(column > page.cursor)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(column).limit(page.size + 1)).all()
        messages = [kind.FromString(row.message) for row in rows[: page.size]]
        return messages, str(rows[page.size - 1][0]) if len(rows) > page.size else None

    def _newest_first(self, table: Table, query: Select[Any], page: Page, kind: type[M]) -> tuple[list[M], str | None]:
        if page.cursor is not None:
            query = query.where(table.c.seq < int(page.cursor))
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(table.c.seq.desc()).limit(page.size + 1)).all()
        messages = [kind.FromString(row.message) for row in rows[: page.size]]
        return messages, str(rows[page.size - 1].seq) if len(rows) > page.size else None


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now


def _parsed(kind: type[M], message: bytes | None) -> M | None:
    return None if message is None else kind.FromString(message)


def _where(table: Table, key: dict[str, str]) -> Iterator[Any]:
    return (table.c[column] == value for column, value in key.items())


def _put(connection: Connection, table: Table, key: dict[str, str], message: Message) -> None:
    sql.upsert(connection, table, {**key, "message": message.SerializeToString(deterministic=True)}, *key)


def _locked_device(connection: Connection, key: dict[str, str]) -> devices_pb2.Device | None:
    """A device that nobody else writes until the transaction ends."""
    query = select(schema.devices.c.message).where(*_where(schema.devices, key)).with_for_update()
    return _parsed(devices_pb2.Device, connection.scalar(query))


def _change(
    connection: Connection,
    key: dict[str, str],
    known: devices_pb2.Device | None,
    change: Callable[[devices_pb2.Device | None], devices_pb2.Device],
) -> devices_pb2.Device:
    device = change(known)
    if device != known:
        _put(connection, schema.devices, key, device)
    return device


def _model(connection: Connection, project: str, model: str) -> models_pb2.Model | None:
    table = schema.models
    query = select(table.c.message).where(table.c.project == project, table.c.model == model)
    found = _parsed(models_pb2.Model, connection.scalar(query))
    if found is not None:
        latest = _version(connection, project, model, "latest")
        found.latest_version = latest.name if latest is not None else ""
    return found


def _version(connection: Connection, project: str, model: str, version: str) -> models_pb2.ModelVersion | None:
    """A version; "latest" is the newest upload, and the newest derived one only where there is no upload."""
    table = schema.model_versions
    query = select(table.c.message).where(table.c.project == project, table.c.model == model)
    if version == "latest":
        query = query.order_by(table.c.derived, table.c.seq.desc()).limit(1)
    else:
        query = query.where(table.c.version == version)
    return _parsed(models_pb2.ModelVersion, connection.scalar(query))
