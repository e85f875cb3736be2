"""Simulated flash: pages that must be erased before they are programmed, a controller, power cuts, a file that persists."""

import fcntl
import mmap
from collections.abc import Callable
from pathlib import Path

_KEY = 0x4567_0123
_ERASE, _PROGRAM = 1, 2
_ERASED = 0xFF


class PowerLost(Exception):
    """The power went; RAM is lost, flash holds what was written and perhaps a torn page or unit."""


class FlashMisuse(Exception):
    """The firmware did what the flash controller forbids: real hardware would lock up or corrupt data."""


class FlashArray:
    """Bytes of flash, kept in `file` when there is one: every change is in the file at once.

    Raises BlockingIOError when another process holds the file, ValueError when its size is not `size`.
    """

    def __init__(self, size: int, file: Path | None) -> None:
        self.size = size
        self._handle = None
        if file is None:
            self._bytes: bytearray | mmap.mmap = bytearray(b"\xff" * size)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        self._handle = file.open("a+b")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            have = self._handle.seek(0, 2)
            if have == 0:
                self._handle.write(b"\xff" * size)
                self._handle.flush()
            elif have != size:
                raise ValueError(f"{file.name} holds {have} bytes of flash, this board has {size}")
            self._bytes = mmap.mmap(self._handle.fileno(), size)
        except BaseException:
            self._handle.close()
            raise

    def read(self, offset: int, size: int) -> bytes:
        """Give bytes."""
        return bytes(self._bytes[offset : offset + size])

    def put(self, offset: int, data: bytes) -> None:
        """Write bytes without flash rules, as a programmer with a debug probe."""
        self._bytes[offset : offset + len(data)] = data

    def close(self) -> None:
        """Let go of the file. Repeatable."""
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()
        if self._handle is not None:
            self._handle.close()


class FlashController:
    """The memory-mapped controller that the firmware's driver talks to; see `device/firmware/src/flash.c`.

    `changed(offset, data)` tells the simulated memory. `operations` counts finished erases and programs.
    """

    def __init__(
        self, flash: FlashArray, page_bytes: int, program_bytes: int, changed: Callable[[int, bytes], None]
    ) -> None:
        self._flash = flash
        self._page_bytes = page_bytes
        self._program_bytes = program_bytes
        self._changed = changed
        self._unlocked = False
        self._offset = 0
        self._unit = bytearray(b"\xff" * program_bytes)
        self.operations = 0
        self.operations_until_cut: int | None = None

    def read(self, offset: int, size: int) -> int:
        """Read a register: only STATUS tells anything; every operation is done when it is read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register. Raises FlashMisuse or PowerLost."""
        if size != 4:
            raise FlashMisuse(f"a {size}-byte access to a register")
        if offset == 0x00:
            self._unlocked = value == _KEY
        elif offset == 0x04:
            self._offset = value
        elif offset == 0x08:
            self._command(value)
        elif 0x20 <= offset < 0x20 + self._program_bytes:
            self._unit[offset - 0x20 : offset - 0x1C] = value.to_bytes(4, "little")
        else:
            raise FlashMisuse(f"no register at {offset:#x}")

    def _command(self, command: int) -> None:
        if not self._unlocked:
            raise FlashMisuse("a command without its key")
        self._unlocked = False
        unit = self._page_bytes if command == _ERASE else self._program_bytes
        if command not in (_ERASE, _PROGRAM) or self._offset % unit or self._offset + unit > self._flash.size:
            raise FlashMisuse(f"command {command} at offset {self._offset:#x}")
        before = self._flash.read(self._offset, unit)
        if command == _ERASE:
            after = bytes([_ERASED]) * unit
        else:
            if any(byte != _ERASED for byte in before):
                raise FlashMisuse(f"programmed {self._offset:#x} without erasing its page")
            after = bytes(self._unit)
        if self.operations_until_cut == 0:
            self.operations_until_cut = None
            half = unit // 2
            self._flash.put(self._offset, after[:half] + before[half:])
            raise PowerLost(f"power was cut in flash operation {self.operations}")
        if self.operations_until_cut is not None:
            self.operations_until_cut -= 1
        self.operations += 1
        self._flash.put(self._offset, after)
        self._changed(self._offset, after)
