"""A UDP proxy between a fleet and a server that loses, doubles and delays datagrams: `python -m bench.lwm2m.bad_link --to PORT`.

Devices at 127.1.x.y send to the proxy's port; the server sees each of them at 127.2.x.y. It prints its port, and when its
input ends what happened to the datagrams, both as one line of JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.lwm2m.wire import Fleet

LOSS = 0.05
DOUBLED = 0.02
LATE = 0.05
LATE_S = (0.02, 0.3)
"""A late datagram is overtaken by those that were sent within this time after it."""
NETWORK = 2
MAX_DEVICES = 1 << 16
_BUFFER = 8 * 1024 * 1024


@dataclass
class BadLink:
    """A proxy under way. `counts` are those of its end."""

    port: int
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """What the link did, in words."""
        sent = sum(self.counts.get(fate, 0) for fate in ("carried", "lost"))
        doubled, late = self.counts.get("doubled", 0), self.counts.get("late", 0)
        return f"{100 * LOSS:.0f} % of {sent:,} datagrams lost, {doubled:,} doubled, {late:,} overtaken"


@contextmanager
def bad_link(root: Path, server_port: int, seed: int) -> Iterator[BadLink]:
    """A proxy process before a server on loopback."""
    command = [sys.executable, "-m", "bench.lwm2m.bad_link", "--to", str(server_port), "--seed", str(seed)]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        link = BadLink(json.loads(process.stdout.readline())["port"])
        yield link
        told, _ = process.communicate("", timeout=30)
        link.counts = json.loads(told)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Proxy:
    """Datagrams of both ways, each with a fate that is drawn."""

    def __init__(self, server: tuple[str, int], seed: int) -> None:
        self._server = server
        self._draw = random.Random(seed)  # noqa: S311 - the same faults each time
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._front.bind(("127.0.0.1", 0))
        self._front.setblocking(False)
        self._back = Fleet(MAX_DEVICES, NETWORK)
        self._devices: dict[int, tuple[str, int]] = {}
        self._late: list[tuple[float, int, int, bool, bytes]] = []
        self.counts: Counter[str] = Counter()

    @property
    def port(self) -> int:
        """Where devices send to."""
        return int(self._front.getsockname()[1])

    def run(self, until: int) -> None:
        """Carry until this file descriptor can be read."""
        while True:
            pause = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            ready, _, _ = select.select([self._front, self._back.socket, until], [], [], pause)
            if self._front in ready:
                self._from_devices()
            if self._back.socket in ready:
                while (received := self._back.receive()) is not None:
                    self._carry(received[0], False, received[1])
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, device, up, data = heapq.heappop(self._late)
                self._send(device, up, data)
            if until in ready:
                return

    def _from_devices(self) -> None:
        while True:
            try:
                data, source = self._front.recvfrom(4096)
            except BlockingIOError:
                return
            _, network, high, low = (int(part) for part in source[0].split("."))
            if network == 1:
                self._devices[high << 8 | low] = source
                self._carry(high << 8 | low, True, data)

    def _carry(self, device: int, up: bool, data: bytes) -> None:
        if self._draw.random() < LOSS:
            self.counts["lost"] += 1
            return
        self.counts["carried"] += 1
        if self._draw.random() < DOUBLED:
            self.counts["doubled"] += 1
            self._delay(device, up, data)
        if self._draw.random() < LATE:
            self.counts["late"] += 1
            self._delay(device, up, data)
        else:
            self._send(device, up, data)

    def _delay(self, device: int, up: bool, data: bytes) -> None:
        at = time.monotonic() + self._draw.uniform(*LATE_S)
        heapq.heappush(self._late, (at, self._draw.getrandbits(32), device, up, data))

    def _send(self, device: int, up: bool, data: bytes) -> None:
        if up:
            self._back.send(device, data, self._server)
        elif device in self._devices:
            try:
                self._front.sendto(data, self._devices[device])
            except BlockingIOError:
                self.counts["lost"] += 1


def main() -> None:
    """Carry until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=int, required=True, help="the server's port on loopback")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    proxy = Proxy(("127.0.0.1", chosen.to), chosen.seed)
    print(json.dumps({"port": proxy.port}), flush=True)
    proxy.run(sys.stdin.fileno())
    print(json.dumps(proxy.counts), flush=True)


if __name__ == "__main__":
    main()
