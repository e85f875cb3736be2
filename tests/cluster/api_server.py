"""A Kubernetes API server with etcd and nothing else: what is applied is checked and kept, but nothing runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cluster_kit import tool

TOOLS = ("etcd", "kube-apiserver", "kubectl")
SECONDS = 180.0


@dataclass(frozen=True)
class ApiServer:
    """A running API server: its URL, certificate, and a token of a cluster administrator."""

    url: str
    certificate: Path
    token: str

    def kubectl(self, *arguments: str, stdin: str | None = None, token: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl against it, as the administrator or with another token."""
        kubectl = tool("kubectl")
        assert kubectl is not None
        base = [kubectl, "--server", self.url, "--certificate-authority", str(self.certificate)]
        return subprocess.run(
            [*base, "--token", token or self.token, *arguments],
            input=stdin,
            env={**os.environ, "KUBECONFIG": "/dev/null", "HOME": str(self.certificate.parent)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def missing() -> str:
    """Which tool is missing, empty where none is."""
    return next((name for name in TOOLS if tool(name) is None), "")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ApiServer]:
    """Start etcd and an API server below a folder; both end with the context."""
    client, peer, port = free_ports(3)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = folder / "sa.pem"
    account.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    token = secrets.token_hex(16)
    tokens = folder / "tokens.csv"
    tokens.write_text(f'{token},admin,admin,"system:masters"\n', encoding="ascii")
    etcd = [f"--data-dir={folder / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}", "--unsafe-no-fsync"]
    etcd += [f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}"]
    etcd += [
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
    ]
    api = [f"--etcd-servers=http://127.0.0.1:{client}", f"--secure-port={port}", "--bind-address=127.0.0.1"]
    api += [f"--cert-dir={folder / 'certificates'}", f"--token-auth-file={tokens}", "--authorization-mode=RBAC"]
    api += [f"--service-account-key-file={account}", f"--service-account-signing-key-file={account}"]
    api += ["--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16"]
    # No controller makes service accounts here, so pods could not name theirs.
    api += ["--disable-admission-plugins=ServiceAccount"]
    with contextlib.ExitStack() as stack:
        for name, arguments in (("etcd", etcd), ("kube-apiserver", api)):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen([tool(name) or name, *arguments], stdout=log, stderr=log, cwd=folder)
            stack.callback(_end, process)
        server = ApiServer(f"https://127.0.0.1:{port}", folder / "certificates" / "apiserver.crt", token)
        deadline = time.monotonic() + SECONDS
        while not (server.certificate.exists() and server.kubectl("get", "--raw", "/readyz").returncode == 0):
            log_text = (folder / "kube-apiserver.log").read_text(errors="replace")
            assert process.poll() is None, log_text[-3000:]
            assert time.monotonic() < deadline, log_text[-3000:]
            time.sleep(0.5)
        yield server


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
