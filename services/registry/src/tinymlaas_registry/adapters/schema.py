"""The tables. A record is kept as its proto message; what is searched or sorted by stands in columns beside it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKeyConstraint, Index, Integer, LargeBinary, MetaData, String, Table

# Names of constraints are fixed, so that migrations can name them on every database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

models = Table(
    "models",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("message", LargeBinary, nullable=False),
)

model_tags = Table(
    "model_tags",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("tag", String(4096), primary_key=True),
    ForeignKeyConstraint(["project", "model"], ["models.project", "models.model"], ondelete="CASCADE"),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("project", String(128), nullable=False),
    Column("model", String(128), nullable=False),
    Column("version", String(128), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("format", Integer, nullable=False),
    Column("derived", Integer, nullable=False),
    Column("message", LargeBinary, nullable=False),
    ForeignKeyConstraint(["project", "model"], ["models.project", "models.model"], ondelete="CASCADE"),
    Index("uq_model_versions_name", "project", "model", "version", unique=True),
    Index("ix_model_versions_sha256", "sha256"),
    sqlite_autoincrement=True,
)

modules = Table(
    "modules",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("project", String(128), nullable=False),
    Column("module", String(128), nullable=False),
    Column("model_version", String(512), nullable=False),
    Column("message", LargeBinary, nullable=False),
    Index("uq_modules_name", "project", "module", unique=True),
    sqlite_autoincrement=True,
)

devices = Table(
    "devices",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("device", String(128), primary_key=True),
    Column("message", LargeBinary, nullable=False),
)

plugins = Table(
    "plugins",
    metadata,
    Column("plugin", String(128), primary_key=True),
    Column("message", LargeBinary, nullable=False),
)

# Who keeps an artifact: a model version, a module, or the project itself (owner "").
artifact_references = Table(
    "artifact_references",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("owner", String(512), primary_key=True),
    Index("ix_artifact_references_sha256", "sha256"),
    Index("ix_artifact_references_owner", "project", "owner"),
)

# Of the secret only its digest is kept.
api_keys = Table(
    "api_keys",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("api_key", String(128), primary_key=True),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Index("uq_api_keys_api_key", "api_key", unique=True),
)

projects = Table(
    "projects",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("message", LargeBinary, nullable=False),
)

artifact_sizes = Table(
    "artifact_sizes",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
)

# Triggers of the migration refuse to change or delete rows.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("entry", String(128), nullable=False),
    Column("project", String(128), nullable=False),
    Column("subject", String(512), nullable=False),
    Column("method", String(256), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Index("uq_audit_entries_entry", "entry", unique=True),
    Index("ix_audit_entries_project_seq", "project", "seq"),
    Index("ix_audit_entries_subject_seq", "subject", "seq"),
    sqlite_autoincrement=True,
)
