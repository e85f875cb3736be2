"""Many CoAP devices on one socket: each sends from a loopback address of its own (127.0.0.0/8, IP_PKTINFO)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

CON, ACK = 0, 2
GET, POST, PUT, DELETE = 1, 2, 3, 4
OBSERVE, LOCATION_PATH, URI_PATH, CONTENT_FORMAT, URI_QUERY, ACCEPT = 6, 8, 11, 12, 15, 17
ETAG, BLOCK2, BLOCK1, SIZE2 = 4, 23, 27, 28

_PKTINFO = struct.Struct("=I4s4s")
_IP_PKTINFO = 8
_BUFFER = 8 * 1024 * 1024

Option = tuple[int, bytes]


def encode(kind: int, code: int, mid: int, token: bytes, options: Iterable[Option] = (), payload: bytes = b"") -> bytes:
    """A message (RFC 7252, clause 3); `options` in ascending order, values shorter than 269 bytes."""
    out = bytearray((0x40 | kind << 4 | len(token), code, mid >> 8, mid & 0xFF)) + token
    before = 0
    for number, value in options:
        delta, length = number - before, len(value)
        before = number
        out.append(min(delta, 13) << 4 | min(length, 13))
        out += bytes((delta - 13,) if delta >= 13 else ()) + bytes((length - 13,) if length >= 13 else ())
        out += value
    return bytes(out + (b"\xff" + payload if payload else b""))


def decode(data: bytes) -> tuple[int, int, int, bytes, list[Option], bytes]:
    """(kind, code, message id, token, options, payload) of a message that a server of this project sent."""
    length = data[0] & 15
    at, number = 4 + length, 0
    options: list[Option] = []
    while at < len(data) and data[at] != 0xFF:
        delta, size = data[at] >> 4, data[at] & 15
        at += 1
        if delta == 13:
            delta, at = data[at] + 13, at + 1
        elif delta == 14:
            delta, at = int.from_bytes(data[at : at + 2], "big") + 269, at + 2
        if size == 13:
            size, at = data[at] + 13, at + 1
        elif size == 14:
            size, at = int.from_bytes(data[at : at + 2], "big") + 269, at + 2
        number += delta
        options.append((number, data[at : at + size]))
        at += size
    return data[0] >> 4 & 3, data[1], data[2] << 8 | data[3], data[4 : 4 + length], options, data[at + 1 :]


def unsigned(value: int) -> bytes:
    """A number as an option's value."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


class Fleet:
    """One UDP socket for devices 0, 1, ... at 127.N.0.0, 127.N.0.1, ...: the bridge sees as many hosts. N is `network`."""

    def __init__(self, count: int, network: int = 1) -> None:
        if count > 1 << 16:
            raise ValueError("at most 65,536 devices")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self.socket.bind(("0.0.0.0", 0))  # noqa: S104 - all of 127.0.0.0/8; what comes from elsewhere is not read
        self.socket.setblocking(False)
        self._network = bytes((127, network))
        self._from = [_PKTINFO.pack(0, self._network + bytes((n >> 8, n & 255)), bytes(4)) for n in range(count)]

    def send(self, device: int, data: bytes, to: tuple[str, int]) -> bool:
        """Send from a device's address; False where the socket's buffer is full."""
        try:
            self.socket.sendmsg((data,), [(socket.IPPROTO_IP, _IP_PKTINFO, self._from[device])], 0, to)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> tuple[int, bytes] | None:
        """(device, datagram) of what has arrived, or None."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(4096, 64)
        except BlockingIOError:
            return None
        for level, kind, value in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                at = _PKTINFO.unpack(value[: _PKTINFO.size])[2]
                if at[:2] == self._network:
                    return at[2] << 8 | at[3], data
        return None

    def close(self) -> None:
        """Free the socket."""
        self.socket.close()
