"""Tokens of an OpenID provider: its keys fetched and kept, and each token checked (OpenID Connect Core 1.0, RFC 7517, RFC 7519)."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog

from tinymlaas_servicekit import Unauthenticated, Unavailable

log = structlog.get_logger("tinymlaas.gateway")

# Asymmetric only: with a symmetric one, whoever can check a token can make one.
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}
_OKP = {"Ed25519": ("EdDSA",), "Ed448": ("EdDSA",)}
FRESH_SECONDS = 300.0
LAST_RESORT_SECONDS = 86_400.0
REFETCH_SECONDS = 10.0
FETCH_SECONDS = 10.0
MAX_DOCUMENT = 1 << 20
MAX_TOKEN = 16 * 1024
MAX_SUBJECT = 255

Fetch = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the algorithms that it may be used with: its kind's, or the one that its owner bound it to."""

    public: Any
    algorithms: tuple[str, ...]


class KeySet:
    """The signing keys of a provider, by key id; fetched when first needed, when old, and for an unknown id."""

    def __init__(self, issuer: str, jwks_uri: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer, self._uri, self._fetch, self._clock = issuer, jwks_uri, fetch, clock
        self._keys: dict[str, Key] = {}
        self._fetched = self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def key(self, ident: str | None) -> Key | None:
        """The key of that id, without an id the only key; None when the provider has none. Unavailable while it is away."""
        age = self._clock() - self._fetched
        if age > FRESH_SECONDS or (self._find(ident) is None):
            await self._refresh()
        if self._clock() - self._fetched > LAST_RESORT_SECONDS:
            raise Unavailable(
                "the keys of the OpenID provider cannot be fetched",
                "OIDC_UNAVAILABLE",
                {"issuer": self._issuer},
                "Check that the gateway reaches the provider; API keys work meanwhile.",
            )
        return self._find(ident)

    def _find(self, ident: str | None) -> Key | None:
        if ident is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(ident)

    async def _refresh(self) -> None:
        """Fetches, unless that was tried just now: callers choose key ids, and must not choose our traffic."""
        async with self._lock:
            if self._clock() - self._tried < REFETCH_SECONDS:
                return
            self._tried = self._clock()
            try:
                self._keys = await asyncio.to_thread(self._load)
            except (OSError, ValueError, jwt.PyJWTError) as error:
                log.warning("keys of the OpenID provider not fetched", issuer=self._issuer, error=str(error)[:500])
                return
            self._fetched = self._clock()

    def _load(self) -> dict[str, Key]:
        uri = self._uri or self._discovered()
        document = json.loads(self._fetch(uri))
        if not isinstance(document, Mapping) or not isinstance(document.get("keys"), list):
            raise ValueError("the document has no keys")
        found: dict[str, Key] = {}
        for entry in document["keys"]:
            if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
                continue
            try:
                public = jwt.PyJWK.from_dict(entry).key
            except jwt.PyJWTError:
                continue  # of a kind that this library does not know; the others still count
            algorithms = tuple(name for name in _algorithms(entry) if entry.get("alg", name) == name)
            found[str(entry.get("kid", ""))] = Key(public, algorithms)
        return found

    def _discovered(self) -> str:
        """Where the keys are, as OpenID Connect Discovery 1.0 says, section 4."""
        document = json.loads(self._fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"))
        if not isinstance(document, Mapping) or document.get("issuer") != self._issuer:
            raise ValueError("the discovery document is of another issuer")
        uri = document.get("jwks_uri")
        # Not to a plain address where the issuer itself is a protected one.
        if not isinstance(uri, str) or (self._issuer.startswith("https:") and not uri.startswith("https:")):
            raise ValueError("the discovery document has no safe jwks_uri")
        return uri


class TokenVerifier:
    """Checks tokens against a provider's keys, issuer and audience; clocks may differ by `leeway` seconds."""

    def __init__(self, keys: KeySet, issuer: str, audience: str, leeway: float) -> None:
        self._keys, self._issuer, self._audience, self._leeway = keys, issuer, audience, leeway

    async def verify(self, token: str) -> dict[str, Any]:
        """The claims of a good token; Unauthenticated / TOKEN_EXPIRED or TOKEN_INVALID for another."""
        if len(token) > MAX_TOKEN:
            raise _invalid("it is too long")
        try:
            header = jwt.get_unverified_header(token)
            ident = header.get("kid")
            key = await self._keys.key(ident if isinstance(ident, str) else None)
            if key is None:
                raise _invalid("it is signed by no key of the provider")
            if header.get("alg") not in key.algorithms:
                raise _invalid("its algorithm is not the key's")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=list(key.algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the token has expired", "TOKEN_EXPIRED", help="Sign in again.") from error
        except jwt.PyJWTError as error:
            raise _invalid(str(error)[:200]) from error
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject.isascii() or not subject.isprintable() or not subject:
            raise _invalid("its subject is no printable text")
        if len(subject) > MAX_SUBJECT:
            raise _invalid("its subject is too long")
        return claims


def _algorithms(entry: Mapping[str, Any]) -> tuple[str, ...]:
    curve = str(entry.get("crv", ""))
    return {"RSA": _RSA, "EC": _EC.get(curve, ()), "OKP": _OKP.get(curve, ())}.get(str(entry.get("kty")), ())


def https_fetch(ca_file: Path | None) -> Fetch:
    """A function that fetches a small document; OSError or ValueError when it cannot."""
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirect())

    def fetch(url: str) -> bytes:
        with opener.open(url, timeout=FETCH_SECONDS) as answer:
            data: bytes = answer.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise ValueError(f"the document has more than {MAX_DOCUMENT} bytes")
        return data

    return fetch


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Providers have no reason to send us elsewhere; others might have one."""

    def redirect_request(self, *arguments: Any) -> None:
        """No request: the redirection becomes an error."""


def _invalid(detail: str) -> Unauthenticated:
    return Unauthenticated(f"the token is not valid: {detail}", "TOKEN_INVALID", {"scheme": "Bearer"})
