"""Bytes that arrive in chunks: order, sizes, checksums and digest, checked while they come."""

from __future__ import annotations

import hashlib

import google_crc32c

from tinymlaas_servicekit.errors import DataLoss, InvalidArgument, ResourceExhausted

from .ports import Incoming

MAX_CHUNK = 1024 * 1024


class Upload:
    """Takes the chunks of one file into `incoming`; `finish` says whether it is the file that was announced."""

    def __init__(self, incoming: Incoming, sha256: str, limit: int, announced: int = 0) -> None:
        if announced > limit:
            raise _too_large(limit, announced)
        self._incoming, self._sha256, self._limit, self._announced = incoming, sha256, limit, announced
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes, offset: int | None = None, crc32c: int | None = None) -> None:
        """Takes the next bytes; `offset` and `crc32c` are checked when given."""
        if len(data) > MAX_CHUNK:
            raise ResourceExhausted(
                f"a chunk has {len(data)} bytes, at most {MAX_CHUNK} are allowed",
                "LIMIT_EXCEEDED",
                {"limit": "chunk_bytes", "bound": MAX_CHUNK, "value": len(data)},
                "Send chunks of at most 1 MiB.",
            )
        if offset is not None and offset != self.size:
            raise InvalidArgument(
                f"a chunk at {offset} after {self.size} bytes",
                "UPLOAD_INVALID",
                {"field": "chunk.offset", "expected": self.size, "got": offset},
                "Send chunks in order, without gaps.",
            )
        if crc32c is not None and (got := google_crc32c.value(data)) != crc32c:
            raise DataLoss(
                f"the chunk at {self.size} was damaged on its way",
                "DIGEST_MISMATCH",
                {"expected": f"{crc32c:08x}", "got": f"{got:08x}", "offset": self.size},
            )
        if self.size + len(data) > self._limit:
            raise _too_large(self._limit, self.size + len(data))
        if self._announced and self.size + len(data) > self._announced:
            raise _wrong_size(self._announced, f"{self.size + len(data)} or more")
        self._digest.update(data)
        self._incoming.write(data)
        self.size += len(data)

    def finish(self) -> None:
        """Passes when size and sha256 are those announced; DATA_LOSS / DIGEST_MISMATCH otherwise."""
        if self._announced and self.size != self._announced:
            raise _wrong_size(self._announced, str(self.size))
        got = self._digest.hexdigest()
        if got != self._sha256:
            raise DataLoss(
                "the bytes that arrived are not those of the announced sha256",
                "DIGEST_MISMATCH",
                {"expected": self._sha256, "got": got},
            )


def _too_large(limit: int, size: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{size} bytes are over the limit of {limit}",
        "LIMIT_EXCEEDED",
        {"problem": "MODEL_TOO_LARGE", "limit": "bytes", "bound": limit, "value": size},
        "Send a smaller file, or ask the operator to raise the limit.",
    )


def _wrong_size(announced: int, got: str) -> DataLoss:
    return DataLoss(
        f"{announced} bytes were announced, {got} arrived", "DIGEST_MISMATCH", {"expected": announced, "got": got}
    )
