"""The signing key: an Ed25519 key in a file of the gateway's own (PKCS#8 PEM, mode 0600), made at first start."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymlaas_servicekit import FailedPrecondition


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """Return the key of `path`, making it when there is none; two processes that start at once agree on one key.

    The public key is written beside it as `<name>.pub` (32 raw bytes, hex) for people and devices. Raises
    FailedPrecondition / KEY_UNREADABLE for a file that holds no Ed25519 key, or that others may read. A file of root's may be
    readable by this process's group: so clusters mount secrets, and so PostgreSQL takes its own keys.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _create(path)
    try:
        stat = path.stat()
        roots = stat.st_uid == 0 and os.geteuid() != 0
        if stat.st_mode & (0o037 if roots else 0o077):
            raise ValueError("others than its owner may read it (chmod 600)")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it holds another kind of key")
    except (ValueError, TypeError, OSError) as error:
        raise FailedPrecondition(
            f"the signing key cannot be used: {error}",
            "KEY_UNREADABLE",
            {"file": path.name},
            "Give the gateway a PKCS#8 PEM file with an Ed25519 private key, readable by its owner only.",
        ) from error
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    _write_public(path.with_suffix(".pub"), public.hex() + "\n")
    return key


def _create(path: Path) -> None:
    data = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike rename, it never replaces a key that another process just made
    finally:
        temporary.unlink(missing_ok=True)


def _write_public(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="ascii") != text:
        path.write_text(text, encoding="ascii")
