"""Settings of the registry, from environment variables `TINYMLAAS_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from tinymlaas.registry.v1 import access_pb2
from tinymlaas_servicekit import ServiceSettings

from .adapters import S3Settings


class RegistrySettings(ServiceSettings):
    """Where records and artifacts lie, and how much one caller may send."""

    state_dir: Path = Field(default=Path("registry-state"), description="folder of database and artifacts")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the state folder")
    artifacts_dir: Path | None = Field(default=None, description="folder of the artifacts; none: in the state folder")
    s3_endpoint: str = Field(
        default="", description="http(s)://host:port of an S3 store for artifacts; empty: the folder"
    )
    s3_bucket: str = Field(default="tinymlaas", min_length=3, description="its bucket, made where it is missing")
    s3_region: str = Field(default="", description="its region, where it has some")
    s3_access_key: SecretStr = Field(default=SecretStr(""), description="access key")
    s3_secret_key: SecretStr = Field(default=SecretStr(""), description="secret key")
    s3_ca_file: Path | None = Field(default=None, description="certificate of a private authority of the S3 store")
    sweep_seconds: float = Field(
        default=3600.0, gt=0, description="pause between removals of unreferenced artifacts from a shared store"
    )
    sweep_grace_seconds: float = Field(
        default=86_400.0, ge=0, description="age at which unreferenced artifacts of a shared store are removed"
    )
    max_model_bytes: int = Field(default=64 * 1024 * 1024, ge=1, description="largest model file")
    max_artifact_bytes: int = Field(default=256 * 1024 * 1024, ge=1, description="largest artifact")
    max_uploads: int = Field(default=16, ge=1, description="uploads at once")
    max_checks: int = Field(default=2, ge=1, description="model checks at once; others wait")
    default_max_bytes: int | None = Field(
        default=None, ge=0, description="bytes that a project may store which has no quota of its own; none: no bound"
    )
    default_max_builds: int | None = Field(default=None, ge=0, description="builds at once of such a project")
    default_max_devices: int | None = Field(default=None, ge=0, description="devices of such a project")
    stall_seconds: float = Field(default=60.0, gt=0, description="silence after which an upload is given up")

    def resolve_database_url(self) -> str:
        """The SQLAlchemy URL of the records."""
        return self.database_url or f"sqlite:///{self.state_dir / 'registry.db'}"

    def default_quotas(self) -> access_pb2.Quotas:
        """Bounds of projects that have none of their own."""
        return access_pb2.Quotas(
            max_bytes=self.default_max_bytes, max_builds=self.default_max_builds, max_devices=self.default_max_devices
        )

    def s3(self) -> S3Settings | None:
        """The bucket for artifacts, where one is set."""
        if not self.s3_endpoint:
            return None
        return S3Settings(
            endpoint=self.s3_endpoint,
            bucket=self.s3_bucket,
            access_key=self.s3_access_key.get_secret_value(),
            secret_key=self.s3_secret_key.get_secret_value(),
            region=self.s3_region,
            ca_file=self.s3_ca_file,
        )

    def resolve_artifacts_dir(self) -> Path:
        """The folder of the artifacts."""
        return self.artifacts_dir or self.state_dir / "artifacts"
