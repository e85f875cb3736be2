"""Settings that every service has, from environment variables `TINYMLAAS_*` (https://12factor.net/config)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Where a service listens, which token it wants, how it logs. A service adds its own fields in a subclass."""

    model_config = SettingsConfigDict(env_prefix="TINYMLAAS_", extra="ignore")

    listen: str = Field(default="127.0.0.1:0", description="host:port, port 0 for a free one, or unix:/path")
    token: SecretStr | None = Field(
        default=None, description="bearer token that callers must send; none: no authentication"
    )
    token_file: Path | None = Field(
        default=None, description="file with the token; used when TINYMLAAS_TOKEN is not set"
    )
    address_file: Path | None = Field(
        default=None, description="file that gets the bound address once the service listens"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "console"
    otlp_endpoint: str | None = Field(
        default=None, description="host:port or URL of an OTLP/gRPC collector; none: no export"
    )
    grace_seconds: float = Field(default=10.0, ge=0, description="time for running calls to end after SIGTERM")
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_concurrent_streams: int = Field(default=256, ge=1)

    def resolve_token(self) -> str | None:
        """The token, from the variable or else the file (surrounding white space removed); None when neither is set."""
        if self.token is not None:
            return self.token.get_secret_value() or None
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip() or None
        return None
