"""Alembic migrations of the registry's database; `adapters.sql.migrate` runs them."""
