"""Board catalogue: what is known of a board by its manufacturer and model when the device does not say it itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import yaml

_SPACE = re.compile(r"[\s_-]+")
_BYTES = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB)?")
_UNIT = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_FIELDS = {
    "manufacturer",
    "models",
    "cpu",
    "isa",
    "features",
    "clock_hz",
    "ram",
    "flash",
    "execute_in_place",
    "accelerators",
    "payload_kinds",
    "rtos",
}


@dataclass(frozen=True)
class Board:
    """One board or chip of the catalogue; None and empty mean unknown. Sizes in bytes."""

    cpu: str
    isa: str
    features: tuple[str, ...] = ()
    clock_hz: int | None = None
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    execute_in_place: bool | None = None
    accelerators: tuple[str, ...] = ()
    payload_kinds: tuple[str, ...] = ()
    rtos: str = ""


class CatalogueError(ValueError):
    """A catalogue file that can't be used; the text names the entry."""


class Catalogue:
    """Boards by manufacturer and model; spelling differences in case, blanks, hyphens do not matter."""

    def __init__(self, boards: Mapping[tuple[str, str], Board]) -> None:
        self._boards = dict(boards)

    def __len__(self) -> int:
        return len(self._boards)

    def find(self, manufacturer: str, model: str) -> Board | None:
        """The board, or None where the catalogue does not know it."""
        return self._boards.get((_key(manufacturer), _key(model)))

    @staticmethod
    def load(*files: FilePath) -> Catalogue:
        """Read catalogue files; an entry of a later file replaces one of an earlier."""
        boards: dict[tuple[str, str], Board] = {}
        for file in files:
            with file.open(encoding="utf-8") as stream:
                document = yaml.safe_load(stream)
            entries = document.get("boards") if isinstance(document, dict) else None
            if not isinstance(entries, list):
                raise CatalogueError(f"{file.name}: no list of boards")
            for index, entry in enumerate(entries):
                boards.update(_entry(entry, f"{file.name}, board {index}"))
        return Catalogue(boards)

    @staticmethod
    def builtin(*extra: FilePath) -> Catalogue:
        """The catalogue that ships with the bridge, and files of the user's own."""
        return Catalogue.load(FilePath(__file__).parent.parent / "data" / "boards.yaml", *extra)


def _key(text: str) -> str:
    return _SPACE.sub("", text).casefold()


def _entry(entry: Any, where: str) -> dict[tuple[str, str], Board]:
    if not isinstance(entry, dict) or not {"manufacturer", "models", "cpu", "isa"} <= entry.keys():
        raise CatalogueError(f"{where}: needs manufacturer, models, cpu and isa")
    unknown = entry.keys() - _FIELDS
    if unknown:
        raise CatalogueError(f"{where}: unknown field {sorted(unknown)[0]}")
    board = Board(
        cpu=str(entry["cpu"]),
        isa=str(entry["isa"]),
        features=_texts(entry, "features", where),
        clock_hz=int(entry["clock_hz"]) if "clock_hz" in entry else None,
        ram_bytes=_size(entry, "ram", where),
        flash_bytes=_size(entry, "flash", where),
        execute_in_place=entry.get("execute_in_place"),
        accelerators=_texts(entry, "accelerators", where),
        payload_kinds=_texts(entry, "payload_kinds", where),
        rtos=str(entry.get("rtos", "")),
    )
    return {(_key(str(entry["manufacturer"])), _key(model)): board for model in _texts(entry, "models", where)}


def _texts(entry: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = entry.get(field, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CatalogueError(f"{where}: {field} must be a list of texts")
    return tuple(value)


def _size(entry: Mapping[str, Any], field: str, where: str) -> int | None:
    if field not in entry:
        return None
    match = _BYTES.fullmatch(str(entry[field]))
    if not match:
        raise CatalogueError(f"{where}: {field} must be a size such as 256 KiB")
    return int(match[1]) * _UNIT[match[2]]
