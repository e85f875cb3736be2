"""What a `TflmBoard` keeps: the state of its slots in one JSON file, the bytes of each slot in a file beside it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class SlotRecord:
    """State of one slot; `digest` is the announced sha256 in hex, empty when EMPTY."""

    state: int = 0
    size: int = 0
    digest: str = ""
    security_counter: int = 0
    name: str = ""
    version: str = ""


class TflmState:
    """Slots, active and previous slot, security counter; in memory only when `file` is None.

    Raises ValueError when the file is of a board with another number of slots.
    """

    def __init__(self, slots: int, file: Path | None) -> None:
        self._file = file
        self._memory = [bytearray() for _ in range(slots)]
        self.slots = [SlotRecord() for _ in range(slots)]
        self.active: int | None = None
        self.previous: int | None = None
        self.counter = 0
        if file is not None and file.exists():
            document = json.loads(file.read_text(encoding="utf-8"))
            if len(document["slots"]) != slots:
                raise ValueError(f"{file.name} holds {len(document['slots'])} slots, this board has {slots}")
            self.slots = [SlotRecord(**row) for row in document["slots"]]
            self.active, self.previous = document["active"], document["previous"]
            self.counter = int(document["counter"])
            for index, place in enumerate(self._places()):
                self._memory[index] = bytearray(place.read_bytes() if place.exists() else b"")

    def _places(self) -> list[Path]:
        assert self._file is not None
        return [self._file.with_name(f"{self._file.name}.slot{index}") for index in range(len(self.slots))]

    def save(self) -> None:
        """Write the state so that a crash leaves the old or the new one."""
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "slots": [asdict(record) for record in self.slots],
            "active": self.active, "previous": self.previous, "counter": self.counter,
        }  # fmt: skip
        scratch = self._file.with_name(self._file.name + ".new")
        with scratch.open("w", encoding="utf-8") as stream:
            json.dump(document, stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(self._file)

    def data(self, slot: int) -> bytes:
        """Give the bytes of a slot."""
        return bytes(self._memory[slot])

    def written(self, slot: int) -> int:
        """Give how many bytes a slot holds."""
        return len(self._memory[slot])

    def append(self, slot: int, data: bytes) -> None:
        """Add bytes to a slot."""
        if self._file is not None:
            with self._places()[slot].open("ab") as stream:
                stream.write(data)
        self._memory[slot] += data

    def clear(self, slot: int) -> None:
        """Drop the bytes of a slot."""
        if self._file is not None:
            self._places()[slot].unlink(missing_ok=True)
        self._memory[slot] = bytearray()
