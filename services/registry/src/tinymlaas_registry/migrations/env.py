"""Alembic environment: runs on the connection that the caller gives."""

from tinymlaas_registry.adapters.schema import metadata
from tinymlaas_servicekit.sql import run_migrations

run_migrations(metadata)
