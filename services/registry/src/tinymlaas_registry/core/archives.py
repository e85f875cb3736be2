"""Checks of Keras and SavedModel archives: bounded, without traps; what is inside is read by an importer only.

A .keras file is a zip with config.json, metadata.json and model.weights.h5 (Keras 3 saving format). A SavedModel comes as
an uncompressed tar with saved_model.pb (TensorFlow SavedModel). Nothing is extracted here.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import PurePosixPath

from tinymlaas_servicekit import InvalidArgument, ResourceExhausted

MAX_MEMBERS = 1000
MAX_UNPACKED = 512 * 1024 * 1024
MAX_CONFIG = 16 * 1024 * 1024


def check_keras(data: bytes) -> None:
    """Passes for a plausible .keras archive; MODEL_INVALID or LIMIT_EXCEEDED otherwise."""
    if not data:
        raise _invalid("EMPTY_FILE", "file", "0 bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members([(m.filename, m.file_size) for m in members])
            names = {m.filename: m for m in members}
            for name in ("config.json", "metadata.json", "model.weights.h5"):
                if name not in names:
                    raise _invalid("NOT_A_MODEL", name, "is missing in the archive")
            if names["config.json"].file_size > MAX_CONFIG:
                raise _too_large("config_bytes", MAX_CONFIG, names["config.json"].file_size)
            with archive.open("config.json") as file:
                json.loads(file.read(MAX_CONFIG + 1))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise _invalid("NOT_A_MODEL", "file", "is no zip archive") from error
    except (ValueError, RecursionError) as error:
        raise _invalid("MALFORMED", "config.json", "is no JSON") from error


def check_saved_model(data: bytes) -> None:
    """Passes for a plausible tar of a SavedModel; MODEL_INVALID or LIMIT_EXCEEDED otherwise."""
    if not data:
        raise _invalid("EMPTY_FILE", "file", "0 bytes")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members: list[tuple[str, int]] = []
            for member in archive:
                if not (member.isreg() or member.isdir()):
                    raise _invalid("EXTERNAL_DATA", member.name, "is neither a file nor a folder")
                members.append((member.name, member.size))
                if len(members) > MAX_MEMBERS:
                    break
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _invalid("NOT_A_MODEL", "file", "is no tar archive") from error
    _check_members(members)
    if not any(PurePosixPath(name).name == "saved_model.pb" for name, _ in members):
        raise _invalid("NOT_A_MODEL", "saved_model.pb", "is missing in the archive")


def _check_members(members: list[tuple[str, int]]) -> None:
    if len(members) > MAX_MEMBERS:
        raise _too_large("members", MAX_MEMBERS, len(members))
    unpacked = sum(size for _, size in members)
    if unpacked > MAX_UNPACKED:
        raise _too_large("unpacked_bytes", MAX_UNPACKED, unpacked)
    for name, _ in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise _invalid("EXTERNAL_DATA", name, "points out of the archive")


def _invalid(problem: str, where: str, detail: str) -> InvalidArgument:
    shown = where[:100].encode("unicode_escape").decode("ascii")
    return InvalidArgument(
        f"{problem}: {shown} {detail}",
        "MODEL_INVALID",
        {"problem": problem, "where": shown, "detail": detail},
        "Save the model again: model.save('x.keras') for Keras, or a tar of a SavedModel folder.",
    )


def _too_large(limit: str, bound: int, value: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{value} is over {limit} = {bound}",
        "LIMIT_EXCEEDED",
        {"problem": "MODEL_TOO_LARGE", "limit": limit, "bound": bound, "value": value},
        "Use a smaller model.",
    )
