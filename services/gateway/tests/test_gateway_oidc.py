"""Tokens of an OpenID provider: which are good, and how its keys are kept (spec/access.md, AC-JWT)."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import ValidationError

from tinymlaas.registry.v1 import access_pb2
from tinymlaas.type.v1 import access_pb2 as types
from tinymlaas_gateway.adapters.callers import MAX_REMEMBERED, Remembered
from tinymlaas_gateway.adapters.oidc import MAX_DOCUMENT, KeySet, TokenVerifier, https_fetch
from tinymlaas_gateway.core.roles import claimed_grants, key_grants
from tinymlaas_gateway.identity_settings import IdentitySettings
from tinymlaas_servicekit import Principal, Unauthenticated, Unavailable
from tinymlaas_servicekit.access import permissions_of

ISSUER, AUDIENCE, JWKS = "https://id.example", "tinymlaas", "https://id.example/keys"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
LEEWAY = 600.0


class Provider:
    """A provider without a network: documents by URL, and how often they were fetched."""

    def __init__(self) -> None:
        self.documents: dict[str, object] = {
            f"{ISSUER}/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": JWKS}
        }
        self.fetched: list[str] = []
        self.now = 1000.0
        self.publish(one=RSA)

    def publish(self, **keys: object) -> None:
        entries = []
        for ident, key in keys.items():
            algorithm = {RSA: "RS256", EC: "ES256", ED: "EdDSA"}[key]
            public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
            entries.append({**public, "kid": ident, "use": "sig"})
        self.documents[JWKS] = {"keys": entries}

    def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        if url not in self.documents:
            raise OSError("away")
        return json.dumps(self.documents[url]).encode()

    def verifier(self) -> TokenVerifier:
        self.keys = KeySet(ISSUER, "", self.fetch, lambda: self.now)
        return TokenVerifier(self.keys, ISSUER, AUDIENCE, LEEWAY)


def _token(key=RSA, algorithm="RS256", kid="one", **changes: object) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 3600, "iat": now, **changes}
    headers = {} if kid is None else {"kid": kid}
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(present, key, algorithm=algorithm, headers=headers)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def _reason(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await verifier.verify(token)
    return caught.value.reason


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA, "RS256"), (RSA, "PS384"), (EC, "ES256"), (ED, "EdDSA")],
    ids=lambda value: str(value)[:6],
)
async def test_a_token_signed_by_a_key_of_the_provider_is_good(key, algorithm: str) -> None:
    provider = Provider()
    provider.publish(one=key)
    claims = await provider.verifier().verify(_token(key, algorithm, aud=["other", AUDIENCE]))
    assert claims["sub"] == "ann"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": -LEEWAY / 2}, ""),
        ({"exp": -LEEWAY * 2}, "TOKEN_EXPIRED"),
        ({"nbf": LEEWAY / 2}, ""),
        ({"nbf": LEEWAY * 2}, "TOKEN_INVALID"),
        ({"iat": LEEWAY / 2}, ""),
        ({"iat": LEEWAY * 2}, "TOKEN_INVALID"),
    ],
)
async def test_clocks_may_be_apart_by_the_leeway_and_no_more(changes: dict[str, float], reason: str) -> None:
    verifier = Provider().verifier()
    token = _token(**{name: int(time.time() + offset) for name, offset in changes.items()})
    if reason:
        assert await _reason(verifier, token) == reason
    else:
        assert (await verifier.verify(token))["sub"] == "ann"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another application"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "line\nbreak"},
        {"sub": "x" * 256},
        {"exp": None},
        {"filler": "x" * 20_000},
    ],
    ids=lambda changes: str(changes)[:30],
)
async def test_a_token_with_wrong_or_missing_claims_is_refused(changes: dict[str, object]) -> None:
    assert await _reason(Provider().verifier(), _token(**changes)) == "TOKEN_INVALID"


async def test_a_token_that_the_provider_did_not_sign_is_refused() -> None:
    verifier = Provider().verifier()
    public = RSA.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    good = _token()
    body = f"{_base64(json.dumps({'alg': 'HS256', 'kid': 'one'}).encode())}.{good.split('.')[1]}"
    forged = {
        "by another key": _token(rsa.generate_private_key(65537, 2048)),
        "by a key of another kind": _token(EC, "ES256"),
        "by the public key as a secret": f"{body}.{_base64(hmac.digest(public, body.encode(), 'sha256'))}",
        "by nobody": _token("", "none"),
        "changed": good[:-8] + ("AAAAAAAA" if not good.endswith("AAAAAAAA") else "BBBBBBBB"),
        "not a token": "a.b.c",
        "without a key id where there is no such key": _token(rsa.generate_private_key(65537, 2048), kid=None),
    }
    assert {what: await _reason(verifier, token) for what, token in forged.items()} == dict.fromkeys(
        forged, "TOKEN_INVALID"
    )


async def test_keys_are_fetched_again_for_an_unknown_id_but_not_at_every_callers_wish() -> None:
    provider = Provider()
    verifier = provider.verifier()
    await verifier.verify(_token())
    await verifier.verify(_token())
    assert provider.fetched.count(JWKS) == 1
    provider.publish(one=RSA, two=EC)
    for _ in range(5):
        assert await _reason(verifier, _token(EC, "ES256", "two")) == "TOKEN_INVALID"  # asked just now
    assert provider.fetched.count(JWKS) == 1
    provider.now += 10
    await verifier.verify(_token(EC, "ES256", "two"))
    for number in range(5):
        await _reason(verifier, _token(kid=f"made up {number}"))
    assert provider.fetched.count(JWKS) == 2


async def test_a_key_that_the_provider_withdrew_is_accepted_no_more() -> None:
    provider = Provider()
    verifier = provider.verifier()
    await verifier.verify(_token())
    provider.publish(two=EC)
    provider.now += 301
    assert await _reason(verifier, _token()) == "TOKEN_INVALID"
    await verifier.verify(_token(EC, "ES256", "two"))


async def test_while_the_provider_is_away_known_keys_serve_for_a_day() -> None:
    provider = Provider()
    verifier = provider.verifier()
    await verifier.verify(_token())
    provider.documents.clear()
    provider.now += 86_000
    await verifier.verify(_token())
    provider.now += 1_000
    with pytest.raises(Unavailable) as caught:
        await verifier.verify(_token())
    assert caught.value.reason == "OIDC_UNAVAILABLE"


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example", "jwks_uri": JWKS},
        {"issuer": ISSUER, "jwks_uri": "http://id.example/keys"},
        {"issuer": ISSUER},
        [],
    ],
)
async def test_a_discovery_document_of_another_or_an_unsafe_one_is_not_followed(document: object) -> None:
    provider = Provider()
    provider.documents[f"{ISSUER}/.well-known/openid-configuration"] = document
    with pytest.raises(Unavailable):
        await provider.verifier().verify(_token())
    assert JWKS not in provider.fetched


async def test_keys_of_other_uses_and_kinds_are_left_out() -> None:
    provider = Provider()
    good = provider.documents[JWKS]["keys"][0]  # type: ignore[index]
    odd = [{**good, "use": "enc"}, {"kty": "oct", "k": "c2VjcmV0", "kid": "one"}, {"kty": "new", "kid": "x"}, 7]
    provider.documents[JWKS] = {"keys": [*odd, {**good, "kid": "two"}]}
    verifier = provider.verifier()
    assert await _reason(verifier, _token()) == "TOKEN_INVALID"
    await verifier.verify(_token(kid="two"))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/keys")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * (MAX_DOCUMENT + 1 if self.path == "/large" else 10))

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def http_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_documents_are_fetched_within_bounds_and_without_redirections(http_server: str) -> None:
    fetch = https_fetch(None)
    assert fetch(f"{http_server}/keys") == b"x" * 10
    with pytest.raises(ValueError, match="bytes"):
        fetch(f"{http_server}/large")
    with pytest.raises(OSError, match="302"):
        fetch(f"{http_server}/moved")


@pytest.mark.parametrize(
    "values",
    [
        {"oidc_issuer": ISSUER},
        {"oidc_issuer": "http://id.example", "oidc_audience": AUDIENCE},
        {"oidc_issuer": "file:///etc/passwd", "oidc_audience": AUDIENCE},
        {"public_tls_key_file": "key.pem"},
    ],
)
def test_settings_that_would_let_strangers_in_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        IdentitySettings(_env_file=None, **values)  # type: ignore[call-arg, arg-type]


VIEWER, ADMIN = permissions_of([types.ROLE_VIEWER]), permissions_of([types.ROLE_ADMIN])


@pytest.mark.parametrize(
    ("claims", "path", "grants"),
    [
        ({"tinymlaas": ["p:viewer", "-:admin"]}, "tinymlaas", {"p": VIEWER, "-": ADMIN}),
        ({"tinymlaas": "p:viewer q:admin"}, "tinymlaas", {"p": VIEWER, "q": ADMIN}),
        ({"realm": {"roles": ["p:viewer"]}}, "realm.roles", {"p": VIEWER}),
        ({"tinymlaas": ["p:viewer", "p:admin"]}, "tinymlaas", {"p": ADMIN}),
        ({"tinymlaas": ["operators", "boss"]}, "tinymlaas", {"p": VIEWER, "q": VIEWER}),
        ({"tinymlaas": ["p:root", "p", ":admin", "a/b:admin", "--:admin", 7, None]}, "tinymlaas", {}),
        ({"tinymlaas": {"p": "admin"}}, "tinymlaas", {}),
        ({"tinymlaas": "p:admin"}, "tinymlaas.roles", {}),
        ({}, "tinymlaas", {}),
    ],
)
def test_roles_are_read_from_the_claim_and_what_is_not_understood_grants_nothing(
    claims: dict[str, object], path: str, grants: object
) -> None:
    assert claimed_grants(claims, path, {"operators": ["p:viewer", "q:viewer"]}) == grants


def test_an_api_key_grants_its_roles_in_its_projects() -> None:
    grant = access_pb2.Grant
    key = access_pb2.ApiKey(
        grants=[
            grant(project="projects/p", roles=[types.ROLE_VIEWER]),
            grant(project="projects/-", roles=[types.ROLE_VENDOR, 99]),  # type: ignore[list-item]
        ]
    )
    assert key_grants(key) == {"p": VIEWER, "-": permissions_of([types.ROLE_VENDOR])}


def test_callers_are_remembered_for_a_while_never_beyond_their_expiry_and_not_without_end() -> None:
    now = [100.0]
    remembered, ann = Remembered(lambda: now[0]), Principal("ann", "oidc")
    remembered.put(b"short", ann, 30, 110.0)
    remembered.put(b"long", ann, 30, None)
    now[0] = 109.9
    assert remembered.get(b"short") == remembered.get(b"long") == ann
    now[0] = 110.0
    assert remembered.get(b"short") is None
    now[0] = 130.0
    assert remembered.get(b"long") is None
    for number in range(MAX_REMEMBERED + 1):
        remembered.put(str(number).encode(), ann, 30, None)
    assert remembered.get(b"0") is None
    assert remembered.get(b"1") == ann
