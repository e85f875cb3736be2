"""CoAP messages as bytes (RFC 7252, clause 3), written and read independently of the library that is under test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

CON, NON, ACK, RST = range(4)
GET, POST, PUT = 1, 2, 3
OBSERVE, LOCATION_PATH, URI_PATH, CONTENT_FORMAT, MAX_AGE, URI_QUERY, ACCEPT = 6, 8, 11, 12, 14, 15, 17
ETAG, BLOCK2, BLOCK1, SIZE2, SIZE1 = 4, 23, 27, 28, 60
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Packet:
    """One CoAP message. Options are (number, value) in ascending order; `code` is class * 32 + detail."""

    kind: int
    code: int
    mid: int
    token: bytes = b""
    options: tuple[tuple[int, bytes], ...] = ()
    payload: bytes = b""

    def option(self, number: int) -> bytes | None:
        """The first option of that number."""
        return next((value for at, value in self.options if at == number), None)

    @property
    def path(self) -> str:
        """Uri-Path as text."""
        return "/" + "/".join(value.decode() for at, value in self.options if at == URI_PATH)

    def bytes(self) -> bytes:
        """The message on the wire."""
        out = bytearray([0x40 | self.kind << 4 | len(self.token), self.code])
        out += self.mid.to_bytes(2, "big") + self.token
        before = 0
        for number, value in sorted(self.options, key=lambda option: option[0]):
            delta, delta_more = _extended(number - before)
            length, length_more = _extended(len(value))
            out += bytes([delta << 4 | length]) + delta_more + length_more + value
            before = number
        return bytes(out) + (b"\xff" + self.payload if self.payload else b"")

    @staticmethod
    def of(data: bytes) -> Packet:
        """Read a message; an assertion fails where it is malformed."""
        assert data[0] >> 6 == 1, "version 1"
        length = data[0] & 15
        kind, code, mid = data[0] >> 4 & 3, data[1], int.from_bytes(data[2:4], "big")
        at, number, options = 4 + length, 0, []
        while at < len(data) and data[at] != 0xFF:
            delta, size = data[at] >> 4, data[at] & 15
            at += 1
            delta, at = _more(delta, data, at)
            size, at = _more(size, data, at)
            number += delta
            options.append((number, data[at : at + size]))
            at += size
        return Packet(kind, code, mid, data[4 : 4 + length], tuple(options), data[at + 1 :])


def _extended(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes([value - 13])
    return 14, (value - 269).to_bytes(2, "big")


def _more(nibble: int, data: bytes, at: int) -> tuple[int, int]:
    assert nibble != 15
    if nibble == 13:
        return data[at] + 13, at + 1
    if nibble == 14:
        return int.from_bytes(data[at : at + 2], "big") + 269, at + 2
    return nibble, at


def code(dotted: str) -> int:
    """`4.04` as the byte of a message."""
    first, last = dotted.split(".")
    return int(first) * 32 + int(last)


def block(number: int, more: bool, szx: int = 6) -> bytes:
    """Value of a Block option (RFC 7959, clause 2.2), without leading zero bytes."""
    value = number << 4 | more << 3 | szx
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


@dataclass
class Wire(asyncio.DatagramProtocol):
    """A UDP socket whose datagrams a test sends and takes one by one."""

    taken: asyncio.Queue[Packet] = field(default_factory=asyncio.Queue)
    peer: tuple[str, int] | None = None

    async def open(self) -> Wire:
        """Bind to a free port of loopback."""
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        return int(self.transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.peer = addr
        self.taken.put_nowait(Packet.of(data))

    def send(self, packet: Packet, to: tuple[str, int] | None = None) -> None:
        """Send a message to whoever sent the last one, or to an address."""
        self.transport.sendto(packet.bytes(), to or self.peer)

    async def take(self) -> Packet:
        """The next message that arrived."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.taken.get()

    async def take_where(self, **wanted: object) -> Packet:
        """The next message with these attributes; others, such as retransmissions, are passed over."""
        while True:
            packet = await self.take()
            if all(getattr(packet, name) == value for name, value in wanted.items()):
                return packet

    def close(self) -> None:
        """Close the socket."""
        self.transport.close()
