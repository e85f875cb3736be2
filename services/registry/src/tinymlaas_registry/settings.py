"""Settings of the registry, from environment variables `TINYMLAAS_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tinymlaas_servicekit import ServiceSettings


class RegistrySettings(ServiceSettings):
    """Where records and artifacts lie, and how much one caller may send."""

    state_dir: Path = Field(default=Path("registry-state"), description="folder of database and artifacts")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the state folder")
    artifacts_dir: Path | None = Field(default=None, description="folder of the artifacts; none: in the state folder")
    max_model_bytes: int = Field(default=64 * 1024 * 1024, ge=1, description="largest model file")
    max_artifact_bytes: int = Field(default=256 * 1024 * 1024, ge=1, description="largest artifact")
    max_uploads: int = Field(default=16, ge=1, description="uploads at once")
    max_checks: int = Field(default=2, ge=1, description="model checks at once; others wait")
    stall_seconds: float = Field(default=60.0, gt=0, description="silence after which an upload is given up")

    def resolve_database_url(self) -> str:
        """The SQLAlchemy URL of the records."""
        return self.database_url or f"sqlite:///{self.state_dir / 'registry.db'}"

    def resolve_artifacts_dir(self) -> Path:
        """The folder of the artifacts."""
        return self.artifacts_dir or self.state_dir / "artifacts"
