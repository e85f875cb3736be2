"""The first schema: models, versions, tags, modules, devices, plugins, references to artifacts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "models",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("project", "model", name="pk_models"),
    )
    op.create_table(
        "model_tags",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(4096), nullable=False),
        sa.PrimaryKeyConstraint("project", "model", "tag", name="pk_model_tags"),
        sa.ForeignKeyConstraint(
            ["project", "model"], ["models.project", "models.model"], "fk_model_tags_project_model", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "model_versions",
        sa.Column("seq", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("format", sa.Integer, nullable=False),
        sa.Column("derived", sa.Integer, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_model_versions"),
        sa.ForeignKeyConstraint(
            ["project", "model"],
            ["models.project", "models.model"],
            "fk_model_versions_project_model",
            ondelete="CASCADE",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_model_versions_name", "model_versions", ["project", "model", "version"], unique=True)
    op.create_index("ix_model_versions_sha256", "model_versions", ["sha256"])
    op.create_table(
        "modules",
        sa.Column("seq", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("module", sa.String(128), nullable=False),
        sa.Column("model_version", sa.String(512), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_modules"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_modules_name", "modules", ["project", "module"], unique=True)
    op.create_table(
        "devices",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("device", sa.String(128), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("project", "device", name="pk_devices"),
    )
    op.create_table(
        "plugins",
        sa.Column("plugin", sa.String(128), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("plugin", name="pk_plugins"),
    )
    op.create_table(
        "artifact_references",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(512), nullable=False),
        sa.PrimaryKeyConstraint("project", "sha256", "owner", name="pk_artifact_references"),
    )
    op.create_index("ix_artifact_references_sha256", "artifact_references", ["sha256"])
    op.create_index("ix_artifact_references_owner", "artifact_references", ["project", "owner"])


def downgrade() -> None:
    """Drops the tables."""
    names = ("artifact_references", "plugins", "devices", "modules", "model_versions", "model_tags", "models")
    for name in names:
        op.drop_table(name)
