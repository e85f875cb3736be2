"""Bridges that share a database: their leases, and whose each registration and install is."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the table and columns; what is there belongs to nobody yet, and so to the first bridge that starts."""
    op.create_table(
        "bridge_instances",
        sa.Column("instance", sa.String(63), primary_key=True),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("address", sa.String(300), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.add_column("registrations", sa.Column("updated_at", sa.Float, nullable=False, server_default="0"))
    for name in ("owner", "former"):
        op.add_column("registrations", sa.Column(name, sa.String(63), nullable=False, server_default=""))
        op.create_index(f"ix_registrations_{name}", "registrations", [name])
    op.add_column("installs", sa.Column("endpoint", sa.String(128), nullable=False, server_default=""))
    op.add_column("installs", sa.Column("owner", sa.String(63), nullable=False, server_default=""))
    connection = op.get_bind()
    opened = connection.execute(sa.text("SELECT install_id, body FROM installs WHERE NOT ended")).all()
    for install_id, body in opened:
        connection.execute(
            sa.text("UPDATE installs SET endpoint = :endpoint WHERE install_id = :install_id"),
            {"endpoint": json.loads(body)["request"]["endpoint"], "install_id": install_id},
        )


def downgrade() -> None:
    """Drops the columns and the table."""
    for name in ("endpoint", "owner"):
        op.drop_column("installs", name)
    for name in ("owner", "former"):
        op.drop_index(f"ix_registrations_{name}", "registrations")
        op.drop_column("registrations", name)
    op.drop_column("registrations", "updated_at")
    op.drop_table("bridge_instances")
