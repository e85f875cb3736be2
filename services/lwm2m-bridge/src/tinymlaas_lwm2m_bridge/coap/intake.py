"""The first look at each datagram: bounded for each source, and nothing that can't be read gets further."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import structlog

from .packets import plausible
from .sources import Sources

log = structlog.get_logger("tinymlaas.bridge.coap")

Handler = Callable[[bytes, Any, int, Any], None]
"""(datagram, ancillary data, flags of recvmsg, source address)."""

_RECEIVE_BYTES, _ANCILLARY_BYTES = 4096, 1024
_DRAINED_AT_ONCE = 64
_WANTED_BUFFER = 4 * 1024 * 1024


class Intake:
    """Stands between a socket and aiocoap's message interface; `attach` puts it there."""

    def __init__(self, interface: Any, sources: Sources, handler: Handler | None = None) -> None:
        self._interface = interface
        self._sources = sources
        self._handler: Handler = handler or interface.datagram_msg_received
        self._socket: socket.socket = interface.transport.get_extra_info("socket")
        self.unreadable = 0

    def attach(self) -> None:
        """Take all datagrams from now on; a burst of them waits in a larger buffer, as far as the system allows."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WANTED_BUFFER)
        self._interface.datagram_msg_received = self._received

    def _received(self, data: bytes, ancillary: Any, flags: int, address: Any) -> None:
        self._take(data, ancillary, flags, address)
        # aiocoap reads one datagram for each turn of the event loop; the others that are here are cheaper now.
        for _ in range(_DRAINED_AT_ONCE):
            try:
                data, ancillary, flags, address = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES)
            except OSError:
                # Nothing more to read, or an error that aiocoap reads from its queue in the next turn.
                return
            self._take(data, ancillary, flags, address)

    def _take(self, data: bytes, ancillary: Any, flags: int, address: Any) -> None:
        if not self._sources.allow(address[0]):
            return
        if flags & socket.MSG_TRUNC or not plausible(data):
            self.unreadable += 1
            return
        try:
            self._handler(data, ancillary, flags, address)
        except Exception as error:
            # aiocoap lets through what its decoder raises, such as for a path that is no UTF-8: a datagram like any other.
            self.unreadable += 1
            log.warning("a datagram can't be read", source=address[0], error=f"{type(error).__name__}: {error}"[:200])


def interface_of(context: Any) -> Any:
    """The message interface of an aiocoap context with one transport."""
    return context.request_interfaces[0].token_interface.message_interface
