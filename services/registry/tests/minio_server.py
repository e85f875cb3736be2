"""A real MinIO server for tests, which they may kill, freeze and start again."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tinymlaas_registry.adapters import S3Settings

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 60


class MinioServer:
    """A server whose data outlive its process; `bucket` settings name a bucket of their own each."""

    def __init__(self, program: str, folder: Path, scheme: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._program, self._folder = program, folder
        self.endpoint, self._secret = f"{scheme}://{self._address}", secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    def bucket(self) -> S3Settings:
        return S3Settings(self.endpoint, f"t-{secrets.token_hex(6)}", "tests", self._secret)

    def start(self) -> None:
        """Returns once it answers."""
        environment = {**os.environ, "MINIO_ROOT_USER": "tests", "MINIO_ROOT_PASSWORD": self._secret}
        certificates = ["--certs-dir", str(self._folder / "certs")]
        command = [self._program, "server", "--quiet", *certificates, "--address", self._address]
        with (self._folder / "log").open("ab") as log:
            command.append(str(self._folder / "data"))
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < end, "MinIO does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Whether calls are judged: a stranger's is refused. Its health is good before, while calls are answered by 503."""
        # This is asked without looking at its certificate; the tests look.
        blind = ssl._create_unverified_context() if self.endpoint.startswith("https") else None
        try:
            urllib.request.urlopen(f"{self.endpoint}/bucket", timeout=5, context=blind).close()
        except urllib.error.HTTPError as refused:
            refused.close()
            return refused.code == HTTPStatus.FORBIDDEN
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Ends it at once; no effect where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and bytes, as far as the system does that for it, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def minio_running(folder: Path, scheme: str = "http") -> Iterator[MinioServer]:
    """A MinIO server on loopback, with TLS where `folder`/certs has a certificate; a skip where there is no `minio` program."""
    program = shutil.which("minio") or shutil.which("minio", path=str(ROOT / "build" / "tools" / "bin"))
    if program is None:
        pytest.skip("no `minio` program: `make minio` builds it (needs Go)")
    server = MinioServer(program, folder, scheme)
    try:
        server.start()
        yield server
    finally:
        server.kill()
