"""Settings of the gateway: those of every service, and where everything else is (environment variables TINYMLAAS_*)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from .identity_settings import IdentitySettings


class GatewaySettings(IdentitySettings):
    """Every field is an environment variable: `registry_address` is TINYMLAAS_REGISTRY_ADDRESS."""

    state_dir: Path = Field(Path("state"), description="folder of the gateway's own records and, by default, its key")
    registry_address: str = Field("", description="host:port of the registry")
    registry_address_file: Path | None = Field(None, description="file with the registry's address, instead of it")
    plugins: list[str] = Field(default_factory=list, description="addresses of plugins, as a JSON list")
    plugins_manifest: Path | None = Field(None, description="JSON file, or folder of such, that lists plugins; watched")
    bridges: list[str] = Field(default_factory=list, description="addresses of bridges, as a JSON list")
    bridges_manifest: Path | None = Field(None, description="JSON file that lists bridges, watched for changes")
    projects: list[str] = Field(default_factory=lambda: ["default"], description="projects whose devices are watched")
    peer_token: SecretStr | None = Field(None, description="token for registry, plugins, bridges; default: the own one")
    signing_key_file: Path | None = Field(None, description="Ed25519 key (PEM); made in state_dir when it is not there")
    instance: str = Field(
        "gateway",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
        description="name of this gateway among those that share a database, the same after a restart (a pod's name)",
    )
    lease_seconds: float = Field(
        15.0, gt=0, description="a gateway that has been silent for so long is dead: others take up its work"
    )
    database_url: str = Field(
        "", description="postgresql://... or sqlite:///... of the gateway's records; default: SQLite in state_dir"
    )
    dbos_database_url: str = Field(
        "",
        description="the same for DBOS's records; default: beside the gateway's in PostgreSQL, or SQLite in state_dir",
    )
    compiles_at_once: int = Field(2, ge=1, le=64)
    compile_seconds: float = Field(900.0, gt=0)
    check_seconds: float = Field(60.0, gt=0)
    profile_seconds: float = Field(600.0, gt=0)
    silence_seconds: float = Field(
        30.0, gt=0, description="a plugin that gives no sign of life for so long is given up"
    )

    def resolve_peer_token(self) -> str | None:
        """The token that the suite's other services want."""
        return self.peer_token.get_secret_value() if self.peer_token is not None else self.resolve_token()

    def resolve_key_file(self) -> Path:
        """Where the signing key is."""
        return self.signing_key_file or self.state_dir / "signing.pem"

    def resolve_database_url(self) -> str:
        """Where the gateway's records are."""
        return self.database_url or f"sqlite:///{self.state_dir.resolve() / 'gateway.sqlite'}"

    def resolve_dbos_url(self) -> str:
        """Where DBOS's records are: in PostgreSQL in a schema of their own, else in another file, so that neither waits
        for the other's writes."""
        if not self.dbos_database_url and not self.resolve_database_url().startswith("sqlite"):
            return self.resolve_database_url()
        return self.dbos_database_url or f"sqlite:///{self.state_dir.resolve() / 'dbos.sqlite'}"
