"""What a release needs to keep to itself, made once: tokens, passwords, the key that signs modules. A hook of the chart runs it.

What is there already stays, so a release can be upgraded, and one that was uninstalled comes back with its own keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .adapters.kubernetes_api import KubernetesCluster
from .core.manifest import MANIFEST_KEY

log = structlog.get_logger("tinymlaas.operator")
WORDS = ("client-token", "peer-token", "plugin-token", "bridge-token", "database-password", "s3-secret-key")


def generate() -> dict[str, str]:
    """Fresh values of every key. Passwords are hexadecimal: they stand in URLs."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {
        **{word: secrets.token_hex(24) for word in WORDS},
        "s3-access-key": secrets.token_hex(10),
        "signing.pem": pem.decode(),
        "signing.pub": public.hex() + "\n",
        "device-keys.master": secrets.token_hex(32) + "\n",
    }


def complete(present: Mapping[str, str]) -> dict[str, str]:
    """What is there, and fresh values of what a newer chart needs besides."""
    fresh = generate()
    if "signing.pem" in present:
        # One key of the pair alone would be another key's half.
        fresh.pop("signing.pub")
    return {**fresh, **present}


def run(cluster: KubernetesCluster, generated: str, manifest: str, labels: Mapping[str, str]) -> None:
    """Make both Secrets, or complete them."""
    if not cluster.create_secret(generated, generate(), labels):
        present = cluster.read_secret(generated)
        wanted = complete(present)
        if wanted != present:
            cluster.write_secret(generated, wanted)
            log.info("secret completed", secret=generated, keys=sorted(set(wanted) - set(present)))
    cluster.create_secret(manifest, {MANIFEST_KEY: "[]\n"}, labels)
