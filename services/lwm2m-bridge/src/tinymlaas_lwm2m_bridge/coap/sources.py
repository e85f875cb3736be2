"""What one source address may make the bridge do before anything of it is believed (RFC 7252, clause 11.3)."""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable

_LOOPBACK = bytes(15) + b"\x01"
_LOOPBACK_NET = 127
_MAPPED = bytes(10) + b"\xff\xff"

SMALL_BLOCK_SZX = 1
"""32 bytes: with its options an answer is then no longer than the request, which names a digest (DO-SEC-009)."""


class Sources:
    """Limits for each host beyond loopback; what comes from loopback has passed a DTLS front or is this machine's own.

    A host is `verified` once a device at it has answered a request of the bridge: its address is then no forged one, so
    large answers to it are no weapon against somebody else.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        per_second: float = 1_000.0,
        burst: float = 4_000.0,
        limit: int = 50_000,
        trusted: Callable[[str], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = burst
        self._limit = limit
        self._trusted = trusted or is_loopback
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._verified: OrderedDict[str, None] = OrderedDict()
        self.dropped = 0

    def allow(self, host: str) -> bool:
        """Whether one more datagram of a host is read; one that is not is dropped without an answer."""
        if self._trusted(host):
            return True
        now = self._clock()
        left, seen = self._left.get(host, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._per_second)
        allowed = left >= 1.0
        self._left[host] = (left - 1.0 if allowed else left), now
        self._left.move_to_end(host)
        if len(self._left) > self._limit:
            self._left.popitem(last=False)
        self.dropped += not allowed
        return allowed

    def verify(self, host: str) -> None:
        """Note that a device at a host has answered."""
        if self._trusted(host):
            return
        self._verified[host] = None
        self._verified.move_to_end(host)
        if len(self._verified) > self._limit:
            self._verified.popitem(last=False)

    def largest_szx(self, host: str, szx: int) -> int:
        """The size exponent of blocks that a host gets where it asked for `szx`."""
        return szx if host in self._verified or self._trusted(host) else min(szx, SMALL_BLOCK_SZX)


def is_loopback(host: str) -> bool:
    """True for a loopback address, also an IPv4 one written as IPv6; asked for each datagram of a fleet."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)[0] == _LOOPBACK_NET
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed == _LOOPBACK or packed.startswith(_MAPPED + bytes((_LOOPBACK_NET,)))
