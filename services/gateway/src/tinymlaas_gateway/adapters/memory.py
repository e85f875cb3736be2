"""What the gateway keeps in memory of what it asked for: bytes that never change, and answers that hold for a moment."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache:
    """Bytes by key, those used last within a budget. For bytes that never change under their key; thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The bytes under a key, None when they are not kept."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, unless they would take more than an eighth of the budget."""
        if len(data) > self._max_bytes // 8:
            return
        with self._lock:
            self._bytes += len(data) - len(self._entries.pop(key, b""))
            self._entries[key] = data
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._entries.popitem(last=False)[1])


class Recent(Generic[Value]):
    """Answers kept for `seconds`, at most `size` of them: what changes elsewhere is seen that much later. Errors are not kept."""

    def __init__(self, seconds: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Value]] = OrderedDict()
        self._lock = threading.Lock()

    async def get(self, key: str, ask: Callable[[], Awaitable[Value]]) -> Value:
        """The answer kept under a key, else what `ask` returns now."""
        found = self._entries.get(key)
        if found is not None and self._clock() < found[0]:
            return found[1]
        value = await ask()
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (self._clock() + self._seconds, value)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return value


class Derived(Generic[Value]):
    """What follows from something that is replaced when it changes, and a key: forgotten with the thing. Thread-safe.

    Values must not be changed; at most `size` of them are kept, those used last.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._thing: object = None
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, thing: object, key: Hashable) -> Value | None:
        """The value of a key, None when it is not kept."""
        with self._lock:
            found = self._entries.get(key) if thing is self._thing else None
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, thing: object, key: Hashable, value: Value) -> None:
        """Keep a value that follows from the thing, until one is kept of another thing."""
        with self._lock:
            if thing is not self._thing:
                self._thing = thing
                self._entries.clear()
            self._entries[key] = value
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
