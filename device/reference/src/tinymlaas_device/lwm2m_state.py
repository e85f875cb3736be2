"""What the LwM2M side of a device remembers over a power cut, beside what the board keeps in its own flash."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any

from tinymlaas_lwm2m import FirmwareResult, FirmwareState, UpdateResult


@dataclass
class SlotMemory:
    """Object 9's own part of a slot: where its image comes from, whether Install was executed, the last result."""

    uri: str = ""
    downloading: bool = False
    installed: bool = False
    update_result: int = UpdateResult.INITIAL
    status_reason: str = ""
    expected_digest: str = ""


@dataclass
class FirmwareMemory:
    """Object 5: what is under way in which bank; `switching` once the board was told to start that bank."""

    state: FirmwareState = FirmwareState.IDLE
    result: FirmwareResult = FirmwareResult.INITIAL
    uri: str = ""
    bank: int = 0
    switching: bool = False

    @staticmethod
    def of(document: dict[str, Any]) -> FirmwareMemory:
        """From what was stored."""
        found = FirmwareMemory(**document)
        found.state, found.result = FirmwareState(found.state), FirmwareResult(found.result)
        return found


@dataclass
class Memory:
    """All that is remembered; `save` writes it so that a power cut leaves either the old or the new state."""

    file: FilePath | None = None
    lifetime_s: int = 60
    slots: dict[int, SlotMemory] = field(default_factory=dict)
    previous_slot: int | None = None
    server: str = ""
    firmware: FirmwareMemory = field(default_factory=FirmwareMemory)

    @staticmethod
    def load(file: FilePath | None, lifetime_s: int) -> Memory:
        """Read the file; a missing one is a new device, a damaged one raises `ValueError`."""
        memory = Memory(file, lifetime_s)
        if file is not None and file.exists():
            document = json.loads(file.read_text(encoding="utf-8"))
            memory.lifetime_s = int(document["lifetime_s"])
            memory.previous_slot = document["previous_slot"]
            memory.server = str(document.get("server", ""))
            memory.firmware = FirmwareMemory.of(document.get("firmware", {}))
            memory.slots = {int(index): SlotMemory(**slot) for index, slot in document["slots"].items()}
        return memory

    def slot(self, index: int) -> SlotMemory:
        """The part of one slot."""
        return self.slots.setdefault(index, SlotMemory())

    def save(self) -> None:
        """Write to the file, if there is one."""
        if self.file is None:
            return
        document = {
            "lifetime_s": self.lifetime_s,
            "previous_slot": self.previous_slot,
            "server": self.server,
            "firmware": asdict(self.firmware),
            "slots": {index: asdict(slot) for index, slot in self.slots.items()},
        }
        scratch = self.file.with_name(self.file.name + ".new")
        with scratch.open("w", encoding="utf-8") as stream:
            json.dump(document, stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(self.file)
