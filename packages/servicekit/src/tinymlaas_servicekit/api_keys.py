"""The text form of API keys: "tml_{id}_{secret}"; only a digest of the secret is ever kept.

The id is 16 hex digits. The secret has 256 random bits, so one round of SHA-256 is as good as a slow hash: there is nothing
to guess (NIST SP 800-63B, look-up secrets). The prefix lets scanners find keys that were committed by mistake.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

PREFIX = "tml_"
_FORM = re.compile(r"tml_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class PresentedKey:
    """What a caller shows: the key's id and the sha256 (32 bytes) of its secret."""

    id: str
    secret_sha256: bytes


def new_api_key() -> tuple[str, PresentedKey]:
    """A random key: its text, to be told once, and what is kept of it."""
    ident, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return f"{PREFIX}{ident}_{secret}", PresentedKey(ident, _digest(secret))


def read_api_key(text: str) -> PresentedKey | None:
    """The key that a text is, None when it has another form."""
    match = _FORM.fullmatch(text)
    return None if match is None else PresentedKey(match[1], _digest(match[2]))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()
