"""API keys, projects with quotas, sizes of artifacts, and the audit log, to which rows are only ever added."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_CHANGES = ("UPDATE", "DELETE")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "api_keys",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("api_key", sa.String(128), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("project", "api_key", name="pk_api_keys"),
    )
    op.create_index("uq_api_keys_api_key", "api_keys", ["api_key"], unique=True)
    op.create_table(
        "projects",
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("project", name="pk_projects"),
    )
    op.create_table(
        "artifact_sizes",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_artifact_sizes"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("seq", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("entry", sa.String(128), nullable=False),
        sa.Column("project", sa.String(128), nullable=False),
        sa.Column("subject", sa.String(512), nullable=False),
        sa.Column("method", sa.String(256), nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_entries"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_audit_entries_entry", "audit_entries", ["entry"], unique=True)
    op.create_index("ix_audit_entries_project_seq", "audit_entries", ["project", "seq"])
    op.create_index("ix_audit_entries_subject_seq", "audit_entries", ["subject", "seq"])
    _forbid_changes()


def _forbid_changes() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit_log()"
        )
        return
    for change in _CHANGES:
        op.execute(
            f"CREATE TRIGGER audit_entries_no_{change.lower()} BEFORE {change} ON audit_entries "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def downgrade() -> None:
    """Drops the tables, and with them the audit log: save it first."""
    for name in ("audit_entries", "artifact_sizes", "projects", "api_keys"):
        op.drop_table(name)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change_of_audit_log()")
