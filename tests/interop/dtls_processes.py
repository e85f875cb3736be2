"""The Go programs of services/dtls-front as processes: the front before a bridge, and the device's side of a session."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

DEADLINE_S = 60.0


def build_programs(root: Path) -> Path:
    """Folder with `dtls-front` and `dtls-peer`, built there; a skip that says what is missing where Go is not."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: the DTLS front can't be built")
    folder = root / "build" / "dtls-front"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [go, "build", "-o", f"{folder}/", "./cmd/..."],
        cwd=root / "services" / "dtls-front",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@asynccontextmanager
async def running(*command: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with these environment variables beside ours, ended at the end."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **settings}, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


@dataclass(frozen=True)
class Peer:
    """The device's side of a session; `port` takes plain CoAP on loopback."""

    port: int
    process: asyncio.subprocess.Process

    def rebind(self) -> None:
        """Go on from another source port, as behind a NAT that has forgotten the device."""
        self.process.send_signal(signal.SIGUSR1)


@asynccontextmanager
async def peer_of(folder: Path, front: str, identity: str, secret: bytes) -> AsyncIterator[Peer]:
    """A session of a device with an identity and its key, opened by the device's first datagram."""
    command = [str(folder / "dtls-peer"), "-server", front, "-identity", identity]
    async with running(*command, TINYMLAAS_PSK=secret.hex()) as process:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stdout.readline()
        yield Peer(int(line.decode().rsplit(":", 1)[1]), process)


@asynccontextmanager
async def front_of(
    folder: Path, scratch: Path, bridge: str, coap: str, *, listen: str = "127.0.0.1:0"
) -> AsyncIterator[str]:
    """A front before a bridge (`bridge` its gRPC address, `coap` its CoAP socket); yields the address that it serves."""
    file = scratch / f"front-of-{coap.rpartition(':')[2]}"
    file.unlink(missing_ok=True)
    settings = {
        "TINYMLAAS_LISTEN": listen,
        "TINYMLAAS_BRIDGE_ADDRESS": bridge,
        "TINYMLAAS_COAP_ADDRESS": coap,
        "TINYMLAAS_ADDRESS_FILE": str(file),
    }
    async with running(str(folder / "dtls-front"), **settings) as process:
        end = asyncio.get_running_loop().time() + DEADLINE_S
        while not file.exists():
            assert process.returncode is None, "the front ended"
            assert asyncio.get_running_loop().time() < end, "the front does not listen"
            await asyncio.sleep(0.01)
        yield file.read_text().strip()
