"""The bridge's database: migrations make what the code uses, and take over what was made before there were migrations."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tinymlaas_lwm2m import ObjectLink
from tinymlaas_lwm2m_bridge import Registration, SqlStore
from tinymlaas_lwm2m_bridge.schema import metadata

REGISTRATION = Registration(
    "id-1", "node-1", "coap://127.0.0.1:1", "coap://127.0.0.1:2", 60, "1.1", "U", False, (ObjectLink(3, 0),), 1.0, 2.0
)


def test_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'bridge.db'}")
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "bridge_schema_version"})
        assert compare_metadata(context, metadata) == []
    store.close()


def test_a_database_from_before_migrations_is_taken_over_with_its_rows(tmp_path: Path) -> None:
    """DO-BRIDGE-007."""
    url = f"sqlite:///{tmp_path / 'bridge.db'}"
    first = SqlStore(url)
    first.put_registration(REGISTRATION)
    with first.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE bridge_schema_version"))
        connection.execute(sa.text("DROP TABLE bootstraps"))
        connection.execute(sa.text("CREATE TABLE bridge_schema (version INTEGER PRIMARY KEY)"))
        connection.execute(sa.text("INSERT INTO bridge_schema VALUES (1)"))
    first.close()
    second = SqlStore(url)
    assert second.load_registrations() == [REGISTRATION]
    assert "bridge_schema" not in sa.inspect(second.engine).get_table_names()
    second.close()


def test_a_database_that_is_up_to_date_is_opened_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bridge.db'}"
    SqlStore(url).close()
    store = SqlStore(url)
    assert store.load_registrations() == []
    store.close()
