"""Artifacts as files in a folder: objects/ab/cdef..., written beside and renamed, so that a file is whole or absent."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_SHA256 = re.compile(r"[0-9a-f]{64}")


class FolderStore:
    """An ArtifactStore in a folder, for one process at a time. What an earlier process left unfinished is removed."""

    def __init__(self, root: Path) -> None:
        self._objects, self._incoming = root / "objects", root / "incoming"
        for folder in (self._objects, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in self._incoming.iterdir():
            stale.unlink()

    shared = False

    def begin(self) -> FolderIncoming:
        """See ports.ArtifactStore."""
        return FolderIncoming(self)

    def path(self, sha256: str) -> Path:
        """Where an artifact lies; ValueError when the digest is none, so that no name can lead elsewhere."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError("no sha256 in hex")
        return self._objects / sha256[:2] / sha256[2:]

    def size(self, sha256: str) -> int | None:
        """See ports.ArtifactStore."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, sha256: str) -> BinaryIO:
        """See ports.ArtifactStore."""
        return self.path(sha256).open("rb")

    def delete(self, sha256: str) -> None:
        """See ports.ArtifactStore."""
        self.path(sha256).unlink(missing_ok=True)

    def digests(self, older_than_s: float = 0.0) -> Iterable[str]:
        """See ports.ArtifactStore."""
        files = (file for folder in self._objects.iterdir() for file in folder.iterdir())
        if older_than_s:
            newest = time.time() - older_than_s
            files = (file for file in files if file.stat().st_mtime <= newest)
        return sorted(file.parent.name + file.name for file in files)

    def temporary(self) -> tuple[BinaryIO, Path]:
        """A new file for bytes that arrive."""
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        return os.fdopen(descriptor, "w+b"), Path(name)


class FolderIncoming:
    """Bytes on their way into a FolderStore."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store
        self._file, self._path = store.temporary()

    def write(self, data: bytes) -> None:
        """See ports.Incoming."""
        self._file.write(data)

    def read(self) -> bytes:
        """See ports.Incoming."""
        self._file.flush()
        return self._path.read_bytes()

    def commit(self, sha256: str) -> None:
        """See ports.Incoming."""
        target = self._store.path(sha256)
        if target.exists():
            os.utime(target)
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        if not target.parent.exists():
            target.parent.mkdir(exist_ok=True)
            _sync_folder(target.parent.parent)
        os.replace(self._path, target)
        _sync_folder(target.parent)

    def abort(self) -> None:
        """See ports.Incoming."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
