"""Pre-shared keys of devices: made, handed to DTLS fronts, replaced by a newer one at its first use (RFC 4279)."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .errors import BridgeError, Reason
from .registration import check_endpoint

SECRET_BYTES = 16
"""Length of the keys that are made here: AES-128, as TLS_PSK_WITH_AES_128_CCM_8 uses."""
SHORTEST_SECRET, LONGEST_SECRET = 16, 64
_BOOTSTRAP = ".bs."
"""Between endpoint name and number in the identity of a bootstrap key."""
_IDENTITY = re.compile(r"[\x21-\x7e]{1,160}")


@dataclass(frozen=True)
class DeviceKey:
    """A key without its secret; times are seconds since the epoch, `used_at` None before its first handshake."""

    identity: str
    endpoint: str
    created_at: float
    used_at: float | None = None

    @property
    def bootstrap(self) -> bool:
        """True for a key for sessions with the bootstrap server, which outlives the keys that are handed out there."""
        return self.identity.removeprefix(self.endpoint).startswith(_BOOTSTRAP)


class KeyStore(Protocol):
    """Where keys outlive the process; secrets are encrypted there."""

    def endpoints(self) -> set[str]:
        """Endpoints that have a key."""
        ...

    def put(self, key: DeviceKey, secret: bytes) -> None:
        """Store a new key."""
        ...

    def get(self, identity: str) -> tuple[DeviceKey, bytes] | None:
        """A key with its secret."""
        ...

    def used(self, identity: str, time: float) -> None:
        """Note a handshake."""
        ...

    def delete(self, identity: str) -> None:
        """Remove a key. Repeatable."""
        ...

    def of_endpoint(self, endpoint: str) -> list[DeviceKey]:
        """An endpoint's keys, newest first."""
        ...

    def page(self, after: str, count: int) -> list[DeviceKey]:
        """At most `count` keys whose identities come after `after`, by identity."""
        ...


class DeviceKeys:
    """The keys of this bridge's devices.

    All but `has` waits for the store: called from threads, several at once. What adds or takes away keys of one endpoint goes
    one after another.
    """

    def __init__(self, store: KeyStore, clock: Callable[[], float], *, max_keys_each: int = 4) -> None:
        self._store = store
        self._clock = clock
        self._max_each = max_keys_each
        self._endpoints = store.endpoints()
        self._changes = 0
        self._memory = threading.Lock()  # of the two above; held for no call of the store
        self._changing: dict[str, threading.RLock] = {}
        self._retiring: dict[str, set[str]] = {}  # by the key that retires them

    def has(self, endpoint: str) -> bool:
        """Whether an endpoint has a key; answered from memory."""
        return endpoint in self._endpoints

    def refresh(self) -> None:
        """See the keys that other instances have made or deleted. A change here meanwhile wins."""
        changes = self._changes
        endpoints = self._store.endpoints()
        with self._memory:
            if changes == self._changes:
                self._endpoints = endpoints

    def create(self, endpoint: str, secret: bytes = b"", *, bootstrap: bool = False) -> tuple[DeviceKey, bytes]:
        """A new key beside the endpoint's others. ARGUMENT_INVALID, or LIMIT_EXCEEDED where it has too many."""
        check_endpoint(endpoint)
        if secret and not SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET:
            raise BridgeError(
                Reason.ARGUMENT_INVALID,
                f"a key has {SHORTEST_SECRET} to {LONGEST_SECRET} bytes, not {len(secret)}",
                field="secret",
            )
        with self._lock(endpoint):
            if len(self._store.of_endpoint(endpoint)) >= self._max_each:
                raise BridgeError(
                    Reason.LIMIT_EXCEEDED, f"{endpoint} has {self._max_each} keys", limit="keys", value=self._max_each
                )
            identity = f"{endpoint}{_BOOTSTRAP if bootstrap else '.'}{secrets.token_hex(4)}"
            key = DeviceKey(identity, endpoint, self._clock())
            secret = secret or secrets.token_bytes(SECRET_BYTES)
            self._store.put(key, secret)
            with self._memory:
                self._endpoints.add(endpoint)
                self._changes += 1
        return key, secret

    def reissue(self, endpoint: str) -> tuple[str, bytes]:
        """Identity and secret of a new key, in the place of keys that were handed out before and never used."""
        with self._lock(endpoint):
            for key in self._store.of_endpoint(endpoint):
                if key.used_at is None and not key.bootstrap:
                    self.delete(key.identity)
            made, secret = self.create(endpoint)
        return made.identity, secret

    def resolve(self, identity: bytes) -> tuple[DeviceKey, bytes]:
        """A key with its secret; IDENTITY_UNKNOWN where there is none."""
        name = identity.decode("ascii", errors="replace")
        found = self._store.get(name) if _IDENTITY.fullmatch(name) else None
        if found is None:
            raise BridgeError(Reason.IDENTITY_UNKNOWN, "no key has that identity", identity=name[:64])
        return found

    def used(self, identity: bytes) -> tuple[DeviceKey, list[str]]:
        """Note a handshake: the key, and the identities of the endpoint's older keys of its kind, which are retired by it.

        Where the store fails amid that, the next call goes on with it and names all of them.
        """
        key, _ = self.resolve(identity)
        self._store.used(key.identity, self._clock())
        retired = self._retiring.get(key.identity, set()) | {
            old.identity
            for old in self._store.of_endpoint(key.endpoint)
            if old.created_at < key.created_at and old.bootstrap == key.bootstrap
        }
        self._retiring[key.identity] = retired
        for old in retired:
            self._store.delete(old)
        self._retiring.pop(key.identity, None)
        return key, sorted(retired)

    def delete(self, identity: str) -> None:
        """Take a key back. Repeatable."""
        found = self._store.get(identity)
        if found is None:
            return
        endpoint = found[0].endpoint
        with self._lock(endpoint):
            self._store.delete(identity)
            left = self._store.of_endpoint(endpoint)
            with self._memory:
                if not left:
                    self._endpoints.discard(endpoint)
                self._changes += 1

    def _lock(self, endpoint: str) -> threading.RLock:
        return self._changing.setdefault(endpoint, threading.RLock())

    def of_endpoint(self, endpoint: str) -> list[DeviceKey]:
        """An endpoint's keys, newest first."""
        return self._store.of_endpoint(endpoint)

    def page(self, after: str, count: int) -> list[DeviceKey]:
        """At most `count` keys after an identity, by identity."""
        return self._store.page(after, count)
