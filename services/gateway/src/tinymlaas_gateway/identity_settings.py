"""Settings of who may call the gateway (spec/access.md); environment variables TINYMLAAS_*."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import grpc
from pydantic import Field, field_validator, model_validator

from tinymlaas_servicekit import ServiceSettings, TlsFiles
from tinymlaas_servicekit.tls import server_credentials

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class IdentitySettings(ServiceSettings):
    """Every field is an environment variable: `oidc_issuer` is TINYMLAAS_OIDC_ISSUER."""

    public_tls_certificate_file: Path | None = Field(
        None, description="certificate chain (PEM) shown to callers; default: that of the service, else no TLS"
    )
    public_tls_key_file: Path | None = Field(None, description="its key (PEM)")
    identity_cache_seconds: float = Field(
        30.0, ge=0, le=300, description="a deleted API key or withdrawn token is refused after so long at the latest"
    )
    oidc_issuer: str = Field("", description="issuer (https URL) of the OpenID provider; empty: none")
    oidc_audience: str = Field("", description="audience that tokens must be for")
    oidc_jwks_uri: str = Field("", description="where its keys are; default: as its discovery document says")
    oidc_ca_file: Path | None = Field(None, description="certificate (PEM) of a private authority of the provider")
    oidc_roles_claim: str = Field(
        "tinymlaas", description='claim with strings "{project}:{role}"; dots lead into objects'
    )
    oidc_role_map: dict[str, list[str]] = Field(
        default_factory=dict, description='what other strings of the claim stand for: {"admins": ["-:admin"]}'
    )
    oidc_leeway_seconds: float = Field(60.0, ge=0, le=600, description="how far clocks may be apart")

    @field_validator("oidc_issuer", "oidc_jwks_uri")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("must be an https URL (http on loopback only)")
        return url

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("TINYMLAAS_OIDC_AUDIENCE is missing: tokens for other applications would be accepted")
        if (self.public_tls_certificate_file is None) != (self.public_tls_key_file is None):
            raise ValueError("TINYMLAAS_PUBLIC_TLS_CERTIFICATE_FILE and _KEY_FILE are set together or not at all")
        return self

    def public_credentials(self) -> grpc.ServerCredentials | None:
        """TLS of the port that callers use; they show tokens, not certificates. None: no TLS."""
        files = self.tls()
        if self.public_tls_certificate_file is not None:
            files = TlsFiles(None, self.public_tls_certificate_file, self.public_tls_key_file)
        return None if files is None else server_credentials(files, require_client=False)
