"""Ten thousand devices at once: registrations a second, what an update costs, bytes for each device."""

from __future__ import annotations

import select
import time
from collections import deque
from dataclasses import dataclass

from bench.lwm2m.servers import Server
from bench.lwm2m.wire import CON, CONTENT_FORMAT, LOCATION_PATH, POST, URI_PATH, URI_QUERY, Fleet, decode, encode

DEVICES = 10_000
LIFETIME_S = 300
STORMS = 3
STEADY_S = 20.0
WINDOW = 256
ACK_TIMEOUT_S = 2.0
LINKS = (
    b'</>;rt="oma.lwm2m";ct="60 110 112 11542 11544",</1/0>,</3/0>,</4/0>,</9/0>,</9/1>,</3324/0>,</3313/0>,</42769/0>'
)


@dataclass(frozen=True)
class Figures:
    """What one server needed. Rates count acknowledged requests, processor time is the server's, user and system."""

    storm_per_s: float
    cold_storm_per_s: float
    storm_ms_each: float
    resent: int
    missing: int
    update_ms_each: float
    steady_percent: float
    bytes_each: float


class Devices:
    """The devices' side: sends a request for each and resends what is not answered, as RFC 7252 tells."""

    def __init__(self, count: int, server: Server) -> None:
        self.count = count
        self._server = server
        self._fleet = Fleet(count)
        self._mid = 0
        self.locations: list[tuple[bytes, ...]] = [()] * count
        self.resent = 0

    def close(self) -> None:
        """Free the socket."""
        self._fleet.close()

    def register(self) -> float:
        """All devices register; seconds until the last one was answered."""
        return self._exchange([self._registration(device) for device in range(self.count)])

    def update(self, seconds: float = 0.0) -> int:
        """All devices update once or, given a time, evenly over it at one update in half a lifetime; how many."""
        if not seconds:
            self._exchange([self._renewal(device) for device in range(self.count)])
            return self.count
        pace = 2 * self.count / LIFETIME_S
        began, sent = time.monotonic(), 0
        while (now := time.monotonic() - began) < seconds:
            due = [self._renewal(device % self.count) for device in range(sent, int(now * pace) + 1)]
            sent += len(due)
            self._exchange(due)
            time.sleep(0.01)
        return sent

    def _registration(self, device: int) -> tuple[int, bytes]:
        query = (f"ep=storm-{device:05d}", f"lt={LIFETIME_S}", "lwm2m=1.1", "b=U")
        options = [(URI_PATH, b"rd"), (CONTENT_FORMAT, b"\x28"), *((URI_QUERY, text.encode()) for text in query)]
        return device, self._message(device, options, LINKS)

    def _renewal(self, device: int) -> tuple[int, bytes]:
        return device, self._message(device, [(URI_PATH, part) for part in self.locations[device]], b"")

    def _message(self, device: int, options: list[tuple[int, bytes]], payload: bytes) -> bytes:
        self._mid = (self._mid + 1) & 0xFFFF
        return encode(CON, POST, self._mid, device.to_bytes(4, "big"), options, payload)

    def _exchange(self, requests: list[tuple[int, bytes]]) -> float:
        """Send requests of different devices, at most `WINDOW` of them unanswered at a time."""
        began = time.monotonic()
        waiting: dict[int, tuple[float, bytes]] = {}
        order: deque[tuple[float, int]] = deque()
        queue = deque(requests)
        while queue or waiting:
            while queue and len(waiting) < WINDOW:
                device, data = queue.popleft()
                self._fleet.send(device, data, self._server.coap)
                waiting[device] = time.monotonic(), data
                order.append((time.monotonic(), device))
            select.select([self._fleet.socket], [], [], 0.05)
            while (received := self._fleet.receive()) is not None:
                device, data = received
                if waiting.pop(device, None) is not None:
                    self._answered(device, data)
            now = time.monotonic()
            while order and now - order[0][0] > ACK_TIMEOUT_S:
                _, device = order.popleft()
                if device in waiting:
                    self.resent += 1
                    self._fleet.send(device, waiting[device][1], self._server.coap)
                    order.append((now, device))
            if now - began > 120:
                raise RuntimeError(f"{len(waiting)} of {len(requests)} requests are not answered after 120 s")
        return time.monotonic() - began

    def _answered(self, device: int, data: bytes) -> None:
        _, code, _, _, options, payload = decode(data)
        if code >> 5 != 2:
            raise RuntimeError(f"device {device} was answered {code >> 5}.{code & 31:02d} {payload.decode()}")
        location = tuple(value for number, value in options if number == LOCATION_PATH)
        if location:
            self.locations[device] = location


def measure(server: Server, count: int = DEVICES, steady_s: float = STEADY_S) -> Figures:
    """Three storms, an update of each device, then updates as they come in steady state."""
    devices = Devices(count, server)
    try:
        empty = server.resident_bytes()
        rates: list[float] = []
        for storm in range(STORMS):
            spent = server.cpu_seconds()
            rates.append(count / devices.register())
            spent = server.cpu_seconds() - spent
            if storm == 0:
                held = server.resident_bytes()
        before = server.cpu_seconds()
        devices.update()
        updates = server.cpu_seconds() - before
        before, began = server.cpu_seconds(), time.monotonic()
        devices.update(steady_s)
        steady = (server.cpu_seconds() - before) / (time.monotonic() - began)
        return Figures(
            storm_per_s=rates[-1],
            cold_storm_per_s=rates[0],
            storm_ms_each=1000 * spent / count,
            resent=devices.resent,
            missing=count - len(set(devices.locations) - {()}),
            update_ms_each=1000 * updates / count,
            steady_percent=100 * steady,
            bytes_each=(held - empty) / count,
        )
    finally:
        devices.close()
