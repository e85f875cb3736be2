"""Alembic migrations of the bridge's database."""
