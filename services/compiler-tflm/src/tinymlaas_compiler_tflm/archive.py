"""Unpack a SavedModel that came as a tar archive; the archive is hostile until checked."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tinymlaas_compiler_tflm.errors import LimitExceeded
from tinymlaas_modelkit.errors import MalformedModel

MAX_FILES = 200
MAX_BYTES = 512 << 20


def unpack(data: bytes, folder: Path) -> Path:
    """Unpack an uncompressed tar archive into `folder` (made here); the folder that holds saved_model.pb is the result.

    Errors: MalformedModel (no tar, links or names that lead outside, no SavedModel in it), LimitExceeded.
    """
    folder.mkdir()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            _extract(tar, folder)
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        raise MalformedModel("MALFORMED", f"not a tar archive that can be unpacked: {type(error).__name__}") from error
    found = sorted(folder.rglob("saved_model.pb"))
    if len(found) != 1:
        raise MalformedModel("NOT_A_MODEL", f"the archive holds {len(found)} files saved_model.pb instead of one")
    return found[0].parent


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    total = 0
    for count, member in enumerate(tar, 1):
        total += max(member.size, 0)
        if count > MAX_FILES:
            raise LimitExceeded("too many files in the archive", limit=f"files = {MAX_FILES}", value="more")
        if total > MAX_BYTES:
            raise LimitExceeded("the archive is too large", limit=f"bytes = {MAX_BYTES}", value="more")
        if not (member.isreg() or member.isdir()):
            raise MalformedModel(
                "MALFORMED", "the archive holds something that is neither file nor folder", member.name
            )
        if member.name.startswith("/"):
            raise MalformedModel("MALFORMED", "the archive holds an absolute name", member.name)
        # The data filter refuses names that lead outside, and strips permissions.
        tar.extract(member, folder, filter="data")
