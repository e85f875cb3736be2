"""Replicas of one plugin: found by the name of a service, chosen by who has least to do and was not called of late."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tinymlaas.registry.v1 import plugins_pb2

from .endpoints import Location
from .manifest import Entry

_RANK = {
    plugins_pb2.Plugin.STATE_READY: 0,
    plugins_pb2.Plugin.STATE_LOADING: 1,
    plugins_pb2.Plugin.STATE_QUARANTINED: 2,
}


@dataclass(frozen=True, slots=True)
class Replica:
    """What the choice among replicas needs: state, calls under way or waiting, its place in the manifest, and its last turn.

    `turn` counts the calls of all replicas up to this one's last, 0 before its first.
    """

    state: plugins_pb2.Plugin.State.ValueType
    busy: int
    place: int
    turn: int = 0


def best(replicas: Iterable[Replica]) -> Replica | None:
    """The replica that a call goes to: ready before loading before the rest, then the least busy, then in turn."""
    return min(replicas, key=lambda each: (_RANK.get(each.state, 3), each.busy, each.turn, each.place), default=None)


class Resolver:
    """Turns an entry that names a service into one entry for each address that the name has now."""

    def __init__(self) -> None:
        self._last: dict[Entry, list[Entry]] = {}

    async def expand(self, entries: Sequence[Entry]) -> list[Entry]:
        """Entries with an address each. A name that resolves to nothing keeps its last addresses, which then don't answer."""
        self._last = {entry: found for entry, found in self._last.items() if entry in entries}
        found = await asyncio.gather(*(self._expand(entry) for entry in entries))
        return list(dict.fromkeys(each for group in found for each in group))

    async def _expand(self, entry: Entry) -> list[Entry]:
        if not entry.service:
            return [entry]
        host, _, port = entry.location.address.rpartition(":")
        try:
            told = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            told = []
        addresses = sorted({str(address[0]) for *_, address in told})
        if addresses:
            self._last[entry] = [_at(entry, address, port) for address in addresses]
        return self._last.get(entry, [entry])


def _at(entry: Entry, address: str, port: str) -> Entry:
    host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    return replace(entry, location=Location(address=f"{host}:{port}"), of=entry.location.address)
