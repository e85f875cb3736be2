"""Tables of the bridge's database; `migrations` brings a database to them.

Of bridges that share a database each row of a registration or install belongs to one, its `owner`. `former` names the
bridge that a device has come from, until that one has let go of it; of several in turn, the first.
"""

from __future__ import annotations

import sqlalchemy as sa

from tinymlaas_servicekit.leases import lease_table
from tinymlaas_servicekit.sql import Schema

SCHEMA = Schema("tinymlaas_lwm2m_bridge", 0x4C774D32, "bridge_schema_version")

metadata = sa.MetaData()
registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("endpoint", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False, server_default="0"),
    sa.Column("owner", sa.String(63), nullable=False, server_default="", index=True),
    sa.Column("former", sa.String(63), nullable=False, server_default="", index=True),
)
installs = sa.Table(
    "installs",
    metadata,
    sa.Column("install_id", sa.String(128), primary_key=True),
    sa.Column("ended", sa.Boolean, nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("endpoint", sa.String(128), nullable=False, server_default=""),
    sa.Column("owner", sa.String(63), nullable=False, server_default=""),
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
instances = lease_table("bridge_instances", metadata)
