"""Who calls, and what they may do: the principal of a call, and how a server finds it out."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from tinymlaas.type.v1 import access_pb2

from ._calls import Call
from .access import Access, Permission, permissions_of
from .errors import Unauthenticated

EVERYWHERE = "-"
"""Project id that stands for every project and the installation itself, as in "projects/-"."""
GATEWAY = "gateway"
"""Service name of gateways, the callers that the suite's other services serve."""

SUBJECT_HEADER = "tinymlaas-subject"
"""Metadata by which the gateway tells another service for whom it calls."""

Grants = Mapping[str, frozenset[Permission]]
ADMIN_EVERYWHERE: Grants = {EVERYWHERE: permissions_of([access_pb2.ROLE_ADMIN])}
ALL_EVERYWHERE: Grants = {EVERYWHERE: frozenset(access_pb2.Permission.values())}


@dataclass(frozen=True)
class Principal:
    """Who calls: `subject` names the caller, `how` the way it was proven ("token", "api-key", "oidc", "mtls", "none").

    `grants` are the permissions by project id; those of "-" hold everywhere. `service` is set for a service of the suite that
    has proven its name: what it may call is declared at the RPCs and needs no grants.
    """

    subject: str
    how: str
    grants: Grants = field(default_factory=dict)
    service: str = ""

    def may(self, access: Access, project: str) -> bool:
        """Whether what an RPC needs is held in a project ("-": in the whole installation)."""
        if self.service:
            return self.service == GATEWAY or self.service in access.callers
        return any(access.permission in self.grants.get(place, ()) for place in (EVERYWHERE, project))

    def may_somewhere(self, access: Access) -> bool:
        """Whether what an RPC needs is held in any project."""
        return self.may(access, EVERYWHERE) or any(access.permission in held for held in self.grants.values())


_principal: ContextVar[Principal | None] = ContextVar("tinymlaas_principal", default=None)


def current_principal() -> Principal:
    """The caller of the call that is being served; Unauthenticated outside of an authenticated call."""
    principal = _principal.get()
    if principal is None:
        raise Unauthenticated("there is no authenticated caller")
    return principal


def subject_of(context: Any) -> str:
    """On whose behalf a service of the suite was called: whom the gateway names, else the caller itself."""
    named = dict(context.invocation_metadata() or ()).get(SUBJECT_HEADER, "")
    return str(named)[:512] or current_principal().subject


class Authenticator(Protocol):
    """Decides who calls; raises Unauthenticated."""

    async def authenticate(self, call: Call) -> Principal:
        """The caller, from the call's metadata and connection."""


def bearer(call: Call) -> str:
    """The bearer token of a call (RFC 6750 syntax); TOKEN_MISSING where there is none."""
    scheme, _, credential = call.metadata.get("authorization", "").partition(" ")
    if not credential or scheme.lower() != "bearer":
        raise Unauthenticated("no bearer token", "TOKEN_MISSING", {"scheme": "Bearer"})
    return credential.strip()


class TokenAuthenticator:
    """One bearer token for the whole installation, compared in constant time. None admits everybody.

    Its holder has `grants`: everything, where nothing else is said, for that is what services of one host share.
    """

    def __init__(self, token: str | None, grants: Grants = ALL_EVERYWHERE) -> None:
        self._token = None if token is None else token.encode()
        self._holder, self._anybody = Principal("token", "token", grants), Principal("anonymous", "none", grants)

    async def authenticate(self, call: Call) -> Principal:
        """The holder of the token; TOKEN_MISSING or TOKEN_INVALID otherwise."""
        if self._token is None:
            return self._anybody
        if not hmac.compare_digest(bearer(call).encode(), self._token):
            raise Unauthenticated("wrong token", "TOKEN_INVALID", {"scheme": "Bearer"})
        return self._holder


class PeerAuthenticator:
    """Services of the suite, by the certificate that they connect with: its DNS name (SAN) "{service}.{domain}".

    The certificate's authority and validity were checked in the handshake (RFC 5280); the name is checked here.
    """

    def __init__(self, domain: str) -> None:
        self._suffix = f".{domain}"

    async def authenticate(self, call: Call) -> Principal:
        """The service; PEER_UNKNOWN when the certificate names none of the domain."""
        for name in call.peer_names:
            service = name.removesuffix(self._suffix)
            if service != name and service and "." not in service and "*" not in service:
                return Principal(f"service:{service}", "mtls", service=service)
        raise Unauthenticated(
            "the certificate names no service of this installation",
            "PEER_UNKNOWN",
            {"expected": f"{{service}}{self._suffix}"},
            "Connect with the certificate of a service; its subject alternative names must have one of that form.",
        )
