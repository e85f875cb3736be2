"""Alembic environment: runs on the connection that the caller gives."""

from alembic import context

from tinymlaas_gateway.adapters.schema import metadata

connection = context.config.attributes["connection"]
# A table of its own: the services may share one database.
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, version_table="gateway_schema_version"
)
with context.begin_transaction():
    context.run_migrations()
