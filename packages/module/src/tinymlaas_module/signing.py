"""Signatures of modules: Ed25519 (RFC 8032) over the signed head, whose section table holds every section's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from . import layout
from .contents import Module, Signature
from .errors import ModuleError, Reason
from .layout import SignatureAlgorithm
from .packing import with_signatures
from .parsing import parse


def key_id(public_key: bytes) -> bytes:
    """Return the 8-byte id of a 32-byte Ed25519 public key: the start of its SHA-512."""
    return hashlib.sha512(public_key).digest()[: layout.KEY_ID_BYTES]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Trusted Ed25519 public keys (32 bytes each) by key id."""

    keys: Mapping[bytes, bytes]

    @classmethod
    def of(cls, public_keys: Iterable[bytes]) -> KeyRing:
        """Return a ring of ``public_keys``."""
        return cls({key_id(key): key for key in public_keys})


def raw_public_key(private_key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes of the public half."""
    return private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(image: bytes, private_key: Ed25519PrivateKey) -> bytes:
    """Return ``image`` with a signature by ``private_key``, replacing one by the same key and keeping others.

    Ed25519 is deterministic, so the same module and key give the same bytes. Raises ``ModuleError`` for an image that
    does not parse, and for a fifth signature (SIGNATURE_BLOCK_INVALID).
    """
    module = parse(image)
    identity = key_id(raw_public_key(private_key))
    value = private_key.sign(layout.SIGNING_CONTEXT + module.signed_head)
    others = [
        record
        for record in module.signatures
        if (record.algorithm, record.key_id) != (SignatureAlgorithm.ED25519, identity)
    ]
    signed = with_signatures(module, [*others, Signature(SignatureAlgorithm.ED25519, identity, value)])
    parse(signed)
    return signed


def verify(module: Module, keys: KeyRing | Iterable[bytes], minimum_counter: int = 0) -> bytes:
    """Return the key id that vouches for ``module`` or raise ``ModuleError``; ``keys`` are a ring or raw public keys.

    Checks in the loader's order: a signature is there (SIGNATURE_MISSING), by a trusted key (KEY_UNKNOWN), it holds
    (SIGNATURE_INVALID), the security counter is not below ``minimum_counter`` (DOWNGRADE), and every section of this
    image has its digest (DIGEST_MISMATCH). The first Ed25519 record with a trusted key decides.
    """
    trusted = (keys if isinstance(keys, KeyRing) else KeyRing.of(keys)).keys
    records = [record for record in module.signatures if record.algorithm is SignatureAlgorithm.ED25519]
    if not records:
        raise ModuleError(Reason.SIGNATURE_MISSING, "no Ed25519 signature")
    record = next((record for record in records if record.key_id in trusted), None)
    if record is None:
        raise ModuleError(Reason.KEY_UNKNOWN, "no trusted key", key_ids=", ".join(r.key_id.hex() for r in records))
    try:
        public_key = Ed25519PublicKey.from_public_bytes(trusted[record.key_id])
        public_key.verify(record.value, layout.SIGNING_CONTEXT + module.signed_head)
    except InvalidSignature:
        raise ModuleError(Reason.SIGNATURE_INVALID, "signature does not match", key_id=record.key_id.hex()) from None
    if module.header.security_counter < minimum_counter:
        raise ModuleError(
            Reason.DOWNGRADE,
            f"security counter {module.header.security_counter} is below {minimum_counter}",
            counter=module.header.security_counter,
            minimum=minimum_counter,
        )
    for section in module.sections:
        if section.data is not None and layout.section_digest(section.data) != section.digest:
            raise ModuleError(Reason.DIGEST_MISMATCH, f"section {section.name}", section=section.name)
    return record.key_id


def digest(data: bytes) -> str:
    """Return the content address ``sha256:<hex>`` of these bytes; a stripped image has another than the full one."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def identity(module: Module) -> str:
    """Return ``im1:<hex>``, the same for the full module and each image stripped or signed from it."""
    return "im1:" + layout.section_digest(layout.SIGNING_CONTEXT + module.signed_head).hex()
