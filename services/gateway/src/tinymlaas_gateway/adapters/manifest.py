"""Who is there, by local manifest: a JSON file that lists plugins or bridges, read again whenever it changes.

    [{"address": "127.0.0.1:4001"}, {"address_file": "run/compiler.addr", "token_file": "run/token"}]

`{"service": "compiler.suite.svc:7100"}` names replicas of one plugin: every address that the name resolves to is one.
Relative paths are relative to the manifest's folder. A missing file is an empty list: nothing has been started yet. A folder is
all its `*.json` files, so that several writers can share it: in a cluster the chart's own plugins and those of the operator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import structlog

from tinymlaas_servicekit import InvalidArgument

from .endpoints import Location

log = structlog.get_logger("tinymlaas.gateway")
MAX_ENTRIES = 256
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A plugin or bridge: where it listens and the token that it wants (None: the suite's).

    `service`: the location is a name for all replicas. `of`: that name, for one replica of them. `identity`: its name in its
    certificate, where services connect by mTLS.
    """

    location: Location
    token: str | None = None
    service: bool = False
    of: str = ""
    identity: str = ""

    @property
    def label(self) -> str:
        """How the entry is called in logs."""
        return self.of or self.location.address or str(self.location.address_file)

    @property
    def peer(self) -> str:
        """What its certificate must name: its identity, else the host of a service that it is a replica of."""
        return self.identity or self.of.rpartition(":")[0]


def read_manifest(path: Path) -> list[Entry]:
    """Return the entries of a manifest; InvalidArgument / MANIFEST_INVALID for a file that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        items = json.loads(text)
        if not isinstance(items, list) or len(items) > MAX_ENTRIES or len(text) > MAX_BYTES:
            raise ValueError(f"it must be a list of at most {MAX_ENTRIES} entries")
        return [_entry(item, path.parent) for item in items]
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise InvalidArgument(
            f"{path.name} is no manifest: {error}",
            "MANIFEST_INVALID",
            {"file": path.name},
            'Write a JSON list of objects with "address", "address_file" or "service".',
        ) from error


def _entry(item: object, folder: Path) -> Entry:
    if isinstance(item, str):
        item = {"address": item}
    if not isinstance(item, dict) or len({"address", "address_file", "service"} & item.keys()) != 1:
        raise ValueError('each entry needs one of "address", "address_file", "service"')
    token_file = item.get("token_file")
    token = (folder / str(token_file)).read_text(encoding="utf-8").strip() if token_file else None
    identity = str(item.get("identity", ""))
    if "service" in item:
        service = str(item["service"])
        if not service.rpartition(":")[2].isdecimal():
            raise ValueError('"service" is host:port')
        return Entry(Location(address=service), token, service=True, identity=identity)
    if "address" in item:
        return Entry(Location(address=str(item["address"])), token, identity=identity)
    return Entry(Location(address_file=folder / str(item["address_file"])), token, identity=identity)


class Manifest:
    """The entries now: fixed ones and those of the file or folder, read again when something was written anew."""

    def __init__(self, fixed: list[Entry], path: Path | None) -> None:
        self._fixed = fixed
        self._path = path
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._read: dict[Path, list[Entry]] = {}

    def entries(self) -> list[Entry]:
        """Entries without repetition; while a file is broken, those of its last good version."""
        files = self._files()
        self._stamps = {file: stamp for file, stamp in self._stamps.items() if file in files}
        self._read = {file: entries for file, entries in self._read.items() if file in files}
        for file in files:
            self._look_at(file)
        listed = [entry for file in files for entry in self._read.get(file, [])]
        return list(dict.fromkeys([*self._fixed, *listed]))

    def _files(self) -> list[Path]:
        if self._path is None:
            return []
        return sorted(self._path.glob("*.json")) if self._path.is_dir() else [self._path]

    def _look_at(self, file: Path) -> None:
        try:
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            stamp = (0, 0)
        if stamp == self._stamps.get(file):
            return
        self._stamps[file] = stamp
        try:
            self._read[file] = read_manifest(file)
        except InvalidArgument as error:
            log.error("manifest not read", file=str(file), message=error.message)
