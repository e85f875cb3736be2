"""Alembic environment: runs on the connection that the caller gives."""

from alembic import context

from tinymlaas_gateway.adapters.schema import metadata

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    version_table=attributes["versions"],
)
with context.begin_transaction():
    context.run_migrations()
