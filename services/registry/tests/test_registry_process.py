"""The registry as a process: started as the suite starts it, killed at any moment, started again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import registry_backends

from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc, models_pb2, models_pb2_grpc
from tinymlaas_servicekit import connect, from_rpc_error

WAIT = 120


@contextlib.asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, grpc.aio.Channel]]:
    address = folder / "address"
    address.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "TINYMLAAS_STATE_DIR": str(folder / "state"),
        "TINYMLAAS_ADDRESS_FILE": str(address),
        "TINYMLAAS_TOKEN": "t0ken",
        "TINYMLAAS_LISTEN": "127.0.0.1:0",
        "TINYMLAAS_GRACE_SECONDS": "0",
        **{f"TINYMLAAS_{name.upper()}": value for name, value in registry_backends.settings(folder).items()},
    }
    with (folder / "log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tinymlaas_registry", env=environment, stderr=log
        )
    try:
        async with asyncio.timeout(WAIT):
            while not address.exists():  # noqa: ASYNC110 (another process makes it)
                await asyncio.sleep(0.02)
        async with connect(address.read_text().strip(), "t0ken") as channel:
            yield child, channel
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        async with asyncio.timeout(WAIT):
            await child.wait()


def artifact(data: bytes) -> list[artifacts_pb2.WriteArtifactRequest]:
    sha256 = hashlib.sha256(data).hexdigest()
    return [
        artifacts_pb2.WriteArtifactRequest(
            sha256=sha256 if offset == 0 else "",
            parent="projects/p" if offset == 0 else "",
            data=data[offset : offset + (1 << 20)],
        )
        for offset in range(0, len(data), 1 << 20)
    ]


async def test_what_was_acknowledged_survives_a_kill_and_what_was_not_leaves_nothing(tmp_path: Path) -> None:
    kept, lost = os.urandom(3 << 20), os.urandom(3 << 20)

    async def unfinished(arrived: asyncio.Event) -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        for request in artifact(lost)[:2]:
            yield request
        arrived.set()
        await asyncio.Event().wait()

    async with process(tmp_path) as (child, channel):
        stub = artifacts_pb2_grpc.ArtifactsStub(channel)
        sha256 = (await stub.WriteArtifact(iter(artifact(kept)))).sha256
        arrived = asyncio.Event()
        call = asyncio.ensure_future(stub.WriteArtifact(unfinished(arrived)))
        async with asyncio.timeout(WAIT):
            await arrived.wait()
        child.kill()
        with pytest.raises(grpc.RpcError):
            await call
        await child.wait()
    async with process(tmp_path) as (_, channel):
        stub = artifacts_pb2_grpc.ArtifactsStub(channel)
        request = artifacts_pb2.ReadArtifactRequest(sha256=sha256, parent="projects/p")
        assert b"".join([part.data async for part in stub.ReadArtifact(request)]) == kept
    files = [path for path in (tmp_path / "state" / "artifacts").rglob("*") if path.is_file()]
    assert [path.parent.name + path.name for path in files] == [sha256]


async def test_the_process_wants_its_token(tmp_path: Path) -> None:
    async with process(tmp_path), connect((tmp_path / "address").read_text().strip(), "wrong") as channel:
        stub = models_pb2_grpc.ModelsStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.ListModels(models_pb2.ListModelsRequest(parent="projects/p"))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
