"""Alembic environment: runs on the connection that the caller gives."""

from alembic import context

from tinymlaas_lwm2m_bridge.schema import metadata

connection = context.config.attributes["connection"]
# A table of its own: bridge and registry may share one database.
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, version_table="bridge_schema_version"
)
with context.begin_transaction():
    context.run_migrations()
