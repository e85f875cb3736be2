"""The first schema: registrations, installs with their timelines, device keys.

Takes over a database that a bridge made before it had migrations: what is there stays, with its rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables that are not there."""
    op.create_table(
        "registrations",
        sa.Column("endpoint", sa.String(128), primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("body", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "installs",
        sa.Column("install_id", sa.String(128), primary_key=True),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_installs_ended", "installs", ["ended"], if_not_exists=True)
    op.create_table(
        "install_events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("install_id", sa.String(128), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_install_events_install_id", "install_events", ["install_id"], if_not_exists=True)
    op.create_table(
        "device_keys",
        sa.Column("identity", sa.String(160), primary_key=True),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("used_at", sa.Float),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_device_keys_endpoint", "device_keys", ["endpoint"], if_not_exists=True)
    op.execute("DROP TABLE IF EXISTS bridge_schema")


def downgrade() -> None:
    """Drops the tables."""
    for name in ("device_keys", "install_events", "installs", "registrations"):
        op.drop_table(name)
