"""Tables of the gateway's own records; `migrations` brings a database to them. DBOS keeps its tables itself."""

from __future__ import annotations

import sqlalchemy as sa

from tinymlaas_servicekit.leases import lease_table
from tinymlaas_servicekit.sql import Schema

SCHEMA = Schema("tinymlaas_gateway", 0x74696E79_67770001, "gateway_schema_version")

metadata = sa.MetaData()

resources = sa.Table(
    "gateway_resources",
    metadata,
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(400), nullable=False, unique=True),
    sa.Column("project", sa.String(160), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("gateway_resources_by_project", "kind", "project", "sequence"),
    sa.Index("gateway_resources_unfinished", "ended", "kind"),
)

# What a deployment says of its devices; the rest of it is in `resources`. `revision` is the deployment's at the last change.
device_rollouts = sa.Table(
    "gateway_device_rollouts",
    metadata,
    sa.Column("deployment", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("device", sa.String(400), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("gateway_device_rollouts_by_device", "deployment", "device"),
    sa.Index("gateway_device_rollouts_by_revision", "deployment", "revision"),
)

results = sa.Table(
    "gateway_results",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

refutations = sa.Table(
    "gateway_refutations",
    metadata,
    sa.Column("plugin", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(256), primary_key=True),
    sa.Column("build", sa.String(400), primary_key=True),
)

# Of how many builds the refuted claims are forgiven.
releases = sa.Table(
    "gateway_releases",
    metadata,
    sa.Column("plugin", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(256), primary_key=True),
    sa.Column("builds", sa.Integer, nullable=False),
)

instances = lease_table("gateway_instances", metadata)
