"""Tables of the bridge's database; `migrations` brings a database to them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("endpoint", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
)
installs = sa.Table(
    "installs",
    metadata,
    sa.Column("install_id", sa.String(128), primary_key=True),
    sa.Column("ended", sa.Boolean, nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
events = sa.Table(
    "install_events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("install_id", sa.String(128), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)
device_keys = sa.Table(
    "device_keys",
    metadata,
    sa.Column("identity", sa.String(160), primary_key=True),
    sa.Column("endpoint", sa.String(128), nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("used_at", sa.Float),
    sa.Column("secret", sa.LargeBinary, nullable=False),
)
bootstraps = sa.Table(
    "bootstraps",
    metadata,
    sa.Column("endpoint", sa.String(128), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
