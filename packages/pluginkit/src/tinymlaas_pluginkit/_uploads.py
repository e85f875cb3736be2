"""The stream in: one header, then whole blobs in chunks, checked as they arrive and written to the job's folder."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from tinymlaas.plugin.v1 import stream_pb2

from . import _rpcs
from .errors import DigestMismatch, LimitExceeded, StreamInvalid
from .jobs import Limits

MAX_CHUNK = 1024 * 1024
SHA256_BYTES = 32


async def read_header(rpc: _rpcs.Rpc, requests: AsyncIterator[Any], limits: Limits) -> Any:
    """The header, which is the first message; refuses at once what it announces to be over a limit."""
    async for request in requests:
        if request.WhichOneof("part") != "header":
            raise StreamInvalid("CP-STREAM-001", "the first message is no header")
        header = request.header
        if "model_sha256" in header.DESCRIPTOR.fields_by_name:
            if len(header.model_sha256) != SHA256_BYTES:
                raise StreamInvalid("CP-STREAM-002", "model_sha256 is not 32 bytes long")
            if header.model_bytes > limits.max_model_bytes:
                raise LimitExceeded("max_model_bytes", limits.max_model_bytes, header.model_bytes)
        return header
    raise StreamInvalid("CP-STREAM-001", "the stream ended before the header")


async def read_blobs(rpc: _rpcs.Rpc, requests: AsyncIterator[Any], header: Any, folder: Path, limits: Limits) -> None:
    """Writes every blob to its file; all are there, whole, and what header and digests say, or an error."""
    expected = _announced(rpc, header)
    done: set[str] = set()
    current: _Blob | None = None
    try:
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                raise StreamInvalid("CP-STREAM-001", "only chunks may follow the header")
            chunk = request.chunk
            if current is None:
                if chunk.blob not in rpc.blobs_in or chunk.blob in done:
                    raise StreamInvalid("CP-STREAM-003", f"blob {chunk.blob[:32]!r} is not awaited")
                current = _Blob(chunk.blob, _rpcs.blob_in(folder, chunk.blob), expected.get(chunk.blob), limits)
            if current.add(chunk):
                done.add(current.name)
                current = None
    finally:
        if current is not None:
            current.file.close()
    if current is not None:
        raise StreamInvalid("CP-STREAM-004", f"the stream ended inside of blob {current.name!r}")
    missing = [name for name in rpc.blobs_in if name not in done and name not in rpc.optional_in]
    if missing:
        raise StreamInvalid("CP-STREAM-004", f"the stream ended without blob {missing[0]!r}")


def _announced(rpc: _rpcs.Rpc, header: Any) -> dict[str, tuple[int, bytes]]:
    """Size and digest of blobs that the header tells of."""
    if rpc.kind == "profile":
        return {"payload": (header.parts.payload_bytes, header.parts.payload_sha256)}
    return {"model": (header.model_bytes, header.model_sha256)}


class _Blob:
    def __init__(self, name: str, path: Path, expected: tuple[int, bytes] | None, limits: Limits) -> None:
        self.name = name
        self.file: BinaryIO = path.open("wb")
        self._expected = expected
        self._limits = limits
        self._digest = hashlib.sha256()
        self._bytes = 0

    def add(self, chunk: stream_pb2.Chunk) -> bool:
        """Takes a chunk; True when it was the last one and the blob is right."""
        if chunk.blob != self.name:
            raise StreamInvalid("CP-STREAM-003", f"blob {chunk.blob[:32]!r} began inside of blob {self.name!r}")
        if len(chunk.data) > MAX_CHUNK:
            raise LimitExceeded("chunk_bytes", MAX_CHUNK, len(chunk.data))
        self._bytes += len(chunk.data)
        if self._bytes > self._limits.max_model_bytes:
            raise LimitExceeded("max_model_bytes", self._limits.max_model_bytes, self._bytes)
        if self._expected is not None and self._bytes > self._expected[0]:
            raise DigestMismatch(f"size of {self.name}", self._expected[0], f"{self._bytes} or more")
        self.file.write(chunk.data)
        self._digest.update(chunk.data)
        if not chunk.sha256:
            return False
        self.file.close()
        self._check(chunk.sha256)
        return True

    def _check(self, claimed: bytes) -> None:
        got = self._digest.digest()
        if claimed != got:
            raise DigestMismatch(f"sha256 of {self.name}", claimed[:SHA256_BYTES].hex(), got.hex())
        if self._expected is not None:
            size, sha256 = self._expected
            if self._bytes != size:
                raise DigestMismatch(f"size of {self.name}", size, self._bytes)
            if sha256 != got:
                raise DigestMismatch(f"sha256 of {self.name} in the header", sha256.hex(), got.hex())
