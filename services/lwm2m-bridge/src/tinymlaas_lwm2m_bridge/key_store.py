"""Keys of devices in the bridge's database, each secret encrypted with AES-256-GCM under the bridge's master key."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tinymlaas_servicekit.sql import insert_if_absent, patient_methods

from .core.device_keys import DeviceKey
from .core.errors import BridgeError, Reason
from .schema import device_keys as _keys

_NONCE_BYTES = 12
MASTER_BYTES = 32


def master_key(path: Path, *, make: bool) -> bytes:
    """The master key (hexadecimal digits) of a file; made there, readable by its owner only, where that is allowed.

    KEYS_MISSING where the file is not there or holds no key.
    """
    if make and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(MASTER_BYTES) + "\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise BridgeError(Reason.KEYS_MISSING, "the master key of device keys can't be read", path=str(path)) from error
    if len(key) != MASTER_BYTES:
        raise BridgeError(Reason.KEYS_MISSING, f"a master key has {MASTER_BYTES} bytes", path=str(path))
    return key


@patient_methods
class SqlKeyStore:
    """Implements `KeyStore` on the bridge's engine. The identity is authenticated with its secret: rows can't be swapped.

    Blocking: each call waits for a database that is away, up to a minute.
    """

    def __init__(self, engine: sa.Engine, master: bytes) -> None:
        self._engine = engine
        self._cipher = AESGCM(master)

    def endpoints(self) -> set[str]:
        """Endpoints that have a key."""
        with self._engine.connect() as connection:
            return set(connection.execute(sa.select(_keys.c.endpoint).distinct()).scalars())

    def put(self, key: DeviceKey, secret: bytes) -> None:
        """Store a new key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        row = {
            "identity": key.identity,
            "endpoint": key.endpoint,
            "created_at": key.created_at,
            "used_at": key.used_at,
            "secret": nonce + self._cipher.encrypt(nonce, secret, key.identity.encode()),
        }
        with self._engine.begin() as connection:
            # Identities are random: one that is there is this key, whose commit went unanswered the time before.
            insert_if_absent(connection, _keys, row, "identity")

    def get(self, identity: str) -> tuple[DeviceKey, bytes] | None:
        """A key with its secret; DATA_LOSS where the row does not decrypt under this master key."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_keys).where(_keys.c.identity == identity)).mappings().first()
        if row is None:
            return None
        sealed = row["secret"]
        try:
            secret = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], identity.encode())
        except InvalidTag as error:
            raise BridgeError(
                Reason.KEYS_MISSING, "the stored key was encrypted under another master key", identity=identity
            ) from error
        return _key(row), secret

    def used(self, identity: str, time: float) -> None:
        """Note a handshake."""
        with self._engine.begin() as connection:
            connection.execute(_keys.update().where(_keys.c.identity == identity).values(used_at=time))

    def delete(self, identity: str) -> None:
        """Remove a key. Repeatable."""
        with self._engine.begin() as connection:
            connection.execute(_keys.delete().where(_keys.c.identity == identity))

    def of_endpoint(self, endpoint: str) -> list[DeviceKey]:
        """An endpoint's keys, newest first."""
        query = sa.select(_keys).where(_keys.c.endpoint == endpoint).order_by(_keys.c.created_at.desc())
        with self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(query).mappings()]

    def page(self, after: str, count: int) -> list[DeviceKey]:
        """At most `count` keys after an identity, by identity."""
        query = sa.select(_keys).where(_keys.c.identity > after).order_by(_keys.c.identity).limit(count)
        with self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(query).mappings()]


def _key(row: sa.RowMapping) -> DeviceKey:
    return DeviceKey(row["identity"], row["endpoint"], row["created_at"], row["used_at"])
