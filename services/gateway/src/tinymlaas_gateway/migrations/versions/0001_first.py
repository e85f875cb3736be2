"""The first schema: resources, results, refutations.

Takes over a database that a gateway made before it had migrations: what is there stays, with its rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables that are not there."""
    op.create_table(
        "gateway_resources",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(400), nullable=False, unique=True),
        sa.Column("project", sa.String(160), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    columns = ["kind", "project", "sequence"]
    op.create_index("gateway_resources_by_project", "gateway_resources", columns, if_not_exists=True)
    op.create_index("gateway_resources_unfinished", "gateway_resources", ["ended", "kind"], if_not_exists=True)
    op.create_table(
        "gateway_results",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "gateway_refutations",
        sa.Column("plugin", sa.String(128), primary_key=True),
        sa.Column("version", sa.String(256), primary_key=True),
        sa.Column("build", sa.String(400), primary_key=True),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drops the tables."""
    for name in ("gateway_refutations", "gateway_results", "gateway_resources"):
        op.drop_table(name)
