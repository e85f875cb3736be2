"""Settings that every service has, from environment variables `TINYMLAAS_*` (https://12factor.net/config)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .tls import DEFAULT_DOMAIN, TlsFiles


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
    tls_certificate_file: Path | None = Field(
        default=None, description="certificate chain (PEM) with which this service proves its name; none: no TLS"
    )
    tls_key_file: Path | None = Field(default=None, description="key of the certificate (PEM)")
    tls_ca_file: Path | None = Field(default=None, description="certificates (PEM) of the authority of all services")
    tls_domain: str = Field(
        default=DEFAULT_DOMAIN, description="domain of service names in certificates: {service}.{domain}"
    )
    health_listen: str = Field(
        default="", description="host:port of a second server without TLS that answers health checks only; empty: none"
    )
    address_file: Path | None = Field(
        default=None, description="file that gets the bound address once the service listens"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "console"
    otlp_endpoint: str | None = Field(
        default=None, description="host:port or URL of an OTLP/gRPC collector; none: no export"
    )
    metrics_listen: str = Field(default="", description="host:port that serves /metrics to Prometheus; empty: none")
    grace_seconds: float = Field(default=10.0, ge=0, description="time for running calls to end after SIGTERM")
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_concurrent_streams: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        files = (self.tls_certificate_file, self.tls_key_file, self.tls_ca_file)
        if any(files) and not all(files):
            raise ValueError("TINYMLAAS_TLS_CERTIFICATE_FILE, _KEY_FILE and _CA_FILE are set together or not at all")
        return self

    def tls(self) -> TlsFiles | None:
        """Files with which this service and its peers prove who they are; None: they share the token."""
        if self.tls_ca_file is None:
            return None
        return TlsFiles(self.tls_ca_file, self.tls_certificate_file, self.tls_key_file, self.tls_domain)

    def resolve_token(self) -> str | None:
        """The token, from the variable or else the file (surrounding white space removed); None when neither is set."""
        if self.token is not None:
            return self.token.get_secret_value() or None
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip() or None
        return None
