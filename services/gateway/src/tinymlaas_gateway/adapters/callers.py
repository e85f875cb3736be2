"""Who calls the gateway: the holder of the installation's token, of an API key, or of a token of the OpenID provider."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import grpc

from tinymlaas.registry.v1 import access_pb2, access_pb2_grpc
from tinymlaas_servicekit import Call, Principal, TokenAuthenticator, Unauthenticated, from_rpc_error
from tinymlaas_servicekit.api_keys import PresentedKey, read_api_key
from tinymlaas_servicekit.identity import ADMIN_EVERYWHERE, bearer

from ..core.roles import claimed_grants, key_grants
from ..identity_settings import IdentitySettings
from .endpoints import Endpoint
from .oidc import KeySet, TokenVerifier, https_fetch

CALL_SECONDS = 10.0
MAX_REMEMBERED = 4096


class Remembered:
    """Callers by the digest of what they showed, until a time; at most `MAX_REMEMBERED`, those used last."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def get(self, key: bytes) -> Principal | None:
        """The caller, None when it is not remembered (any more)."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() >= entry[0]:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def put(self, key: bytes, principal: Principal, seconds: float, expiry: float | None) -> None:
        """Remembers for `seconds`, but never beyond `expiry` (Unix time)."""
        until = self._clock() + seconds
        self._entries[key] = (until if expiry is None else min(until, expiry), principal)
        while len(self._entries) > MAX_REMEMBERED:
            self._entries.popitem(last=False)


class Callers:
    """Implements servicekit's Authenticator for the gateway (spec/access.md)."""

    def __init__(self, settings: IdentitySettings, registry: Endpoint) -> None:
        self._registry, self._seconds = registry, settings.identity_cache_seconds
        self._claim, self._role_map = settings.oidc_roles_claim, settings.oidc_role_map
        self._remembered = Remembered()
        self._verifier: TokenVerifier | None = None
        if settings.oidc_issuer:
            keys = KeySet(settings.oidc_issuer, settings.oidc_jwks_uri, https_fetch(settings.oidc_ca_file))
            leeway = settings.oidc_leeway_seconds
            self._verifier = TokenVerifier(keys, settings.oidc_issuer, settings.oidc_audience, leeway)
        token = settings.resolve_token()
        # Nobody is let in without a token once there is another way to prove who one is.
        self._token = TokenAuthenticator(token, ADMIN_EVERYWHERE) if token or not self._verifier else None

    async def authenticate(self, call: Call) -> Principal:
        """The caller; TOKEN_MISSING, TOKEN_INVALID, TOKEN_EXPIRED or API_KEY_INVALID otherwise."""
        if "authorization" in call.metadata:
            credential = bearer(call)
            key = read_api_key(credential)
            if key is not None:
                return await self._by_key(key)
            if self._verifier is not None and credential.count(".") == 2:
                return await self._by_token(self._verifier, credential)
        if self._token is None:
            bearer(call)
            raise Unauthenticated("neither an API key nor a token of the OpenID provider", "TOKEN_INVALID")
        return await self._token.authenticate(call)

    async def _by_key(self, key: PresentedKey) -> Principal:
        memory = key.id.encode() + key.secret_sha256
        known = self._remembered.get(memory)
        if known is not None:
            return known
        request = access_pb2.ResolveApiKeyRequest(api_key_id=key.id, secret_sha256=key.secret_sha256)
        stub = access_pb2_grpc.ApiKeysStub(self._registry.channel())
        try:
            found: access_pb2.ApiKey = await stub.ResolveApiKey(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        principal = Principal(f"api-key:{key.id}", "api-key", key_grants(found))
        expiry = found.expire_time.ToNanoseconds() / 1e9 if found.HasField("expire_time") else None
        self._remembered.put(memory, principal, self._seconds, expiry)
        return principal

    async def _by_token(self, verifier: TokenVerifier, token: str) -> Principal:
        memory = hashlib.sha256(token.encode()).digest()
        known = self._remembered.get(memory)
        if known is not None:
            return known
        claims = await verifier.verify(token)
        principal = Principal(f"oidc:{claims['sub']}", "oidc", claimed_grants(claims, self._claim, self._role_map))
        self._remembered.put(memory, principal, self._seconds, float(claims["exp"]))
        return principal
