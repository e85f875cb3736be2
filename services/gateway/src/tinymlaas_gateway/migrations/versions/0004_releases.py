"""Plugins that were released from quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "gateway_releases",
        sa.Column("plugin", sa.String(128), primary_key=True),
        sa.Column("version", sa.String(256), primary_key=True),
        sa.Column("builds", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Drops the table; what was released is in quarantine again."""
    op.drop_table("gateway_releases")
