"""Light LwM2M devices: real CoAP and the states of object 9, a few kilobytes each, over a link that loses datagrams.

What a power cut keeps is `Slot`; everything else of a device is gone after `reboot`. The module is not executed: the
self-test passes, or fails on devices that were chosen to fail.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from bench.lwm2m.wire import (
    ACK,
    BLOCK2,
    CON,
    CONTENT_FORMAT,
    GET,
    LOCATION_PATH,
    OBSERVE,
    POST,
    PUT,
    URI_PATH,
    URI_QUERY,
    Fleet,
    Option,
    decode,
    encode,
    unsigned,
)
from tinymlaas_lwm2m import (
    DeviceRes,
    Format,
    MlRes,
    Path,
    SelfTestResult,
    SlotState,
    SoftwareRes,
    UpdateResult,
    UpdateState,
    Values,
    ml,
    software,
)
from tinymlaas_lwm2m import encode as encode_values

ACK_TIMEOUT_S, MAX_RETRANSMIT = 1.0, 4
"""RFC 7252 says 2 s and 4; half of that keeps a bench of some minutes at some minutes."""
ANSWER_S = 30.0
SELF_TEST_S = 0.2
LINKS = b'</>;rt="oma.lwm2m";ct="110 112 11542",</1/0>,</3/0>,</9/0>,</9/1>,</42769/0>'
_SZX = 6


class Lost(Exception):
    """No answer after all retransmissions."""


@dataclass
class Slot:
    """One module slot as flash keeps it."""

    state: UpdateState = UpdateState.INITIAL
    result: UpdateResult = UpdateResult.INITIAL
    digest: bytes | None = None
    uri: str = ""
    data: bytearray = field(default_factory=bytearray)
    tested: SelfTestResult = SelfTestResult.NOT_RUN
    active: bool = False


@dataclass
class Ledger:
    """What happened to a device in all, however often it rebooted."""

    reboots: int = 0
    registrations: int = 0
    blocks: int = 0
    bytes_stored: int = 0
    installs: int = 0
    activations: int = 0
    self_tests: int = 0


@dataclass
class Link:
    """The devices' end of the way to the bridge; `draw` spreads their retransmissions."""

    fleet: Fleet
    server: tuple[str, int]
    draw: random.Random


class Device:
    """One device. `start` registers; `reboot` is a power cut of some time."""

    def __init__(self, number: int, link: Link, lifetime_s: int, *, fails_self_test: bool = False) -> None:
        self.number = number
        self.endpoint = f"node-{number:05d}"
        self.slots = [Slot(), Slot()]
        self.previous: int | None = None
        self.ledger = Ledger()
        self.reboot_at_block: int | None = None
        self._link = link
        self._lifetime_s = lifetime_s
        self._fails = fails_self_test
        self._mid = number & 0xFFFF
        self._boot()

    def _boot(self) -> None:
        self.on = True
        self.location: tuple[bytes, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[bytes, asyncio.Future[tuple[int, list[Option], bytes]]] = {}
        self._acknowledged: set[int] = set()
        self._answered: OrderedDict[int, bytes] = OrderedDict()

    def start(self) -> None:
        """Register, stay registered, and go on with downloads that were under way."""
        self._go(self._stay())
        for slot in self.slots:
            if slot.state is UpdateState.DOWNLOAD_STARTED:
                self._go(self._pull(slot))

    def stop(self) -> None:
        """Stop at once, saying nothing."""
        self.on = False
        for task in list(self._tasks):
            task.cancel()

    def reboot(self, off_s: float) -> None:
        """Lose power for a while."""
        if not self.on:
            return
        self.ledger.reboots += 1
        self.stop()
        asyncio.get_running_loop().call_later(off_s, self._again)

    def _again(self) -> None:
        self._boot()
        for slot in self.slots:
            if slot.tested is SelfTestResult.RUNNING:
                slot.tested = SelfTestResult.NOT_RUN
        self.start()

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The registration interface.

    async def _stay(self) -> None:
        while True:
            try:
                if not self.location:
                    await self._register()
                    pause = 0.5 * self._lifetime_s
                else:
                    code, _, _ = await self._ask(POST, [(URI_PATH, part) for part in self.location])
                    self.location = self.location if code == 0x44 else ()
                    pause = 0.5 * self._lifetime_s if self.location else 0.0
            except Lost:
                self.location, pause = (), 1.0
            await asyncio.sleep(pause)

    async def _register(self) -> None:
        query = (f"ep={self.endpoint}", f"lt={self._lifetime_s}", "lwm2m=1.1", "b=U")
        options = [(URI_PATH, b"rd"), (CONTENT_FORMAT, b"\x28"), *((URI_QUERY, text.encode()) for text in query)]
        code, answer, _ = await self._ask(POST, options, LINKS)
        if code != 0x41:
            raise Lost
        self.location = tuple(value for number, value in answer if number == LOCATION_PATH)
        self.ledger.registrations += 1

    # Pull of an image.

    async def _pull(self, slot: Slot) -> None:
        """Fetch block after block; what is stored stays over a reboot."""
        digest = bytes.fromhex(slot.uri.rpartition("/")[2])
        misses = 0
        while True:
            number = len(slot.data) >> (_SZX + 4)
            options = [(URI_PATH, b"p"), (URI_PATH, digest.hex().encode()), (BLOCK2, unsigned(number << 4 | _SZX))]
            try:
                code, answer, payload = await self._ask(GET, options)
            except Lost:
                code, answer, payload = 0xA3, [], b""
            if code >> 5 == 5:
                # The bridge is away, or has not read the image yet: not the end of the download.
                misses += 1
                if misses > 20:
                    slot.state, slot.result = UpdateState.INITIAL, UpdateResult.CONNECTION_LOST
                    return
                await asyncio.sleep(1.0)
                continue
            if code != 0x45:
                slot.state, slot.result = UpdateState.INITIAL, UpdateResult.INVALID_URI
                return
            misses = 0
            block = int.from_bytes(dict(answer).get(BLOCK2, b""), "big")
            start = (block >> 4) << ((block & 7) + 4)
            slot.data += payload[len(slot.data) - start :]
            self.ledger.blocks += 1
            self.ledger.bytes_stored += len(payload)
            if self.reboot_at_block is not None and number >= self.reboot_at_block:
                self.reboot_at_block = None
                asyncio.get_running_loop().call_soon(self.reboot, 1.0)
                await asyncio.sleep(ANSWER_S)
            if not block & 8:
                break
        if hashlib.sha256(slot.data).digest() != digest:
            slot.state, slot.result, slot.data = UpdateState.INITIAL, UpdateResult.INTEGRITY_FAILURE, bytearray()
            return
        slot.state, slot.result = UpdateState.DELIVERED, UpdateResult.DOWNLOADED_AND_VERIFIED

    # Messages.

    async def _ask(self, code: int, options: list[Option], payload: bytes = b"") -> tuple[int, list[Option], bytes]:
        """A confirmable request with the retransmissions of RFC 7252, clause 4.2; `Lost` without an answer."""
        self._mid = (self._mid + 1) & 0xFFFF
        mid, token = self._mid, self._mid.to_bytes(2, "big")
        data = encode(CON, code, mid, token, options, payload)
        answer = self._waiting[token] = asyncio.get_running_loop().create_future()
        try:
            pause = ACK_TIMEOUT_S * self._link.draw.uniform(1.0, 1.5)
            for attempt in range(MAX_RETRANSMIT + 1):
                if mid not in self._acknowledged:
                    self._send(data)
                try:
                    async with asyncio.timeout(ANSWER_S if mid in self._acknowledged else pause * 2**attempt):
                        return await asyncio.shield(answer)
                except TimeoutError:
                    continue
            raise Lost
        finally:
            del self._waiting[token]
            self._acknowledged.discard(mid)

    def _send(self, data: bytes) -> None:
        if self.on:
            self._link.fleet.send(self.number, data, self._link.server)

    def received(self, data: bytes) -> None:
        """A datagram that arrived."""
        if not self.on:
            return
        kind, code, mid, token, options, payload = decode(data)
        if 1 <= code <= 7:
            answer = self._answered.get(mid)
            if answer is None:
                answer = self._answered[mid] = self._serve(code, mid, token, options, payload)
                if len(self._answered) > 64:
                    self._answered.popitem(last=False)
            self._send(answer)
        elif code == 0:
            self._acknowledged.add(mid)
        else:
            if kind == CON:
                self._send(encode(ACK, 0, mid, b""))
            waiting = self._waiting.get(token)
            if waiting is not None and not waiting.done():
                waiting.set_result((code, options, payload))

    # The management interface.

    def _serve(self, code: int, mid: int, token: bytes, options: list[Option], payload: bytes) -> bytes:
        try:
            path = Path.of([value.decode() for number, value in options if number == URI_PATH])
            if code == GET:
                return self._read(mid, token, path, any(number == OBSERVE for number, _ in options))
            done = (
                self._write(path, payload) if code == PUT else self._execute(path, payload) if code == POST else False
            )
        except (ValueError, IndexError):
            done = False
        return encode(ACK, 0x44 if done else 0x85, mid, token)

    def _read(self, mid: int, token: bytes, path: Path, observe: bool) -> bytes:
        values = {at: value for at, value in self._values().items() if path.covers(at)}
        if not values:
            return encode(ACK, 0x84, mid, token)
        options = [*(((OBSERVE, b"\x01"),) if observe else ()), (CONTENT_FORMAT, unsigned(Format.TLV))]
        return encode(ACK, 0x45, mid, token, options, encode_values(Format.TLV, values, path))

    def _write(self, path: Path, payload: bytes) -> bool:
        if path.object_id != 9 or path.resource_id != SoftwareRes.PACKAGE_URI:
            return False
        slot, uri = self.slots[path.instance_id or 0], payload.decode()
        if slot.state is UpdateState.DOWNLOAD_STARTED:
            return uri == slot.uri
        if slot.state is not UpdateState.INITIAL:
            return False
        if slot.digest != bytes.fromhex(uri.rpartition("/")[2]):
            slot.data.clear()
        slot.digest, slot.uri = bytes.fromhex(uri.rpartition("/")[2]), uri
        slot.state, slot.result, slot.tested = (
            UpdateState.DOWNLOAD_STARTED,
            UpdateResult.DOWNLOADING,
            SelfTestResult.NOT_RUN,
        )
        self._go(self._pull(slot))
        return True

    def _execute(self, path: Path, payload: bytes) -> bool:
        if path == ml(MlRes.SELF_TEST):
            return self._self_test(self.slots[int(payload.decode().partition("'")[2].rstrip("'") or 0)])
        if path == ml(MlRes.ROLLBACK):
            return self._roll_back()
        if path.object_id != 9:
            return False
        index = path.instance_id or 0
        operations: dict[int | None, Callable[[int], bool]] = {
            SoftwareRes.INSTALL: self._install,
            SoftwareRes.UNINSTALL: self._uninstall,
            SoftwareRes.ACTIVATE: self._activate,
            SoftwareRes.DEACTIVATE: self._deactivate,
        }
        operation = operations.get(path.resource_id)
        return operation is not None and operation(index)

    def _install(self, index: int) -> bool:
        slot = self.slots[index]
        if slot.state is not UpdateState.DELIVERED:
            return False
        slot.state, slot.result = UpdateState.INSTALLED, UpdateResult.INSTALLED
        self.ledger.installs += 1
        return True

    def _uninstall(self, index: int) -> bool:
        if self.slots[index].active:
            return False
        self.slots[index] = Slot()
        if self.previous == index:
            self.previous = None
        return True

    def _activate(self, index: int) -> bool:
        slot = self.slots[index]
        if slot.tested is not SelfTestResult.PASSED or slot.state is not UpdateState.INSTALLED:
            return False
        if not slot.active:
            self.ledger.activations += 1
            for other, held in enumerate(self.slots):
                if held.active:
                    held.active, self.previous = False, other
            slot.active = True
        return True

    def _deactivate(self, index: int) -> bool:
        was, self.slots[index].active = self.slots[index].active, False
        return was

    def _roll_back(self) -> bool:
        if self.previous is None:
            return False
        for slot in self.slots:
            slot.active = False
        self.slots[self.previous].active, self.previous = True, None
        return True

    def _self_test(self, slot: Slot) -> bool:
        if slot.state is not UpdateState.INSTALLED:
            return False
        if slot.tested is not SelfTestResult.RUNNING:
            slot.tested = SelfTestResult.RUNNING
            self.ledger.self_tests += 1
            self._go(self._test(slot))
        return True

    async def _test(self, slot: Slot) -> None:
        await asyncio.sleep(SELF_TEST_S)
        slot.tested = SelfTestResult.FAILED if self._fails else SelfTestResult.PASSED

    def _values(self) -> Values:
        values: Values = {
            Path(3, 0, DeviceRes.MANUFACTURER): "TinyMLaaS",
            Path(3, 0, DeviceRes.MODEL): "bench-node",
            Path(3, 0, DeviceRes.SERIAL): f"{self.number:05d}",
            Path(3, 0, DeviceRes.FIRMWARE_VERSION): "1.0.0",
            ml(MlRes.ISA): "armv7e-m",
            ml(MlRes.CPU): "cortex-m4",
            ml(MlRes.CLOCK): 80_000_000,
            ml(MlRes.RAM_TOTAL): 262_144,
            ml(MlRes.RAM_FREE): 245_760,
            ml(MlRes.FLASH_TOTAL): 1_048_576,
            ml(MlRes.FLASH_FREE): 262_144,
            ml(MlRes.EXECUTE_IN_PLACE): True,
            ml(MlRes.LOADER_ABI): 1,
            ml(MlRes.PAYLOAD_KINDS, 0): "NATIVE",
            ml(MlRes.SECURITY_COUNTER): 0,
            ml(MlRes.INVOCATIONS): 0,
            ml(MlRes.ERROR_COUNT): 0,
        }
        values |= {ml(MlRes.ISA_FEATURES, n): name for n, name in enumerate(("thumb2", "dsp", "fpu-sp"))}
        if self.previous is not None:
            values[ml(MlRes.PREVIOUS_SLOT)] = self.previous
        for index, slot in enumerate(self.slots):
            values[software(index, SoftwareRes.UPDATE_STATE)] = int(slot.state)
            values[software(index, SoftwareRes.UPDATE_RESULT)] = int(slot.result)
            values[software(index, SoftwareRes.ACTIVATION_STATE)] = slot.active
            values[ml(MlRes.SLOT_SIZE, index)] = 131_072
            values[ml(MlRes.SLOT_STATE, index)] = int(_shown(slot))
            values[ml(MlRes.RECEIVED_BYTES, index)] = len(slot.data)
            values[ml(MlRes.SELF_TEST_RESULT, index)] = int(slot.tested)
            if slot.digest is not None and slot.state is not UpdateState.INITIAL:
                values[ml(MlRes.MODULE_DIGEST, index)] = slot.digest
        return values


def _shown(slot: Slot) -> SlotState:
    if slot.active:
        return SlotState.ACTIVE
    if slot.state is UpdateState.INSTALLED:
        return SlotState.TESTED if slot.tested is SelfTestResult.PASSED else SlotState.INSTALLED
    if slot.state is UpdateState.DELIVERED:
        return SlotState.VERIFIED
    return SlotState.RECEIVING if slot.state is UpdateState.DOWNLOAD_STARTED else SlotState.EMPTY


def read_fleet(link: Link, devices: list[Device]) -> None:
    """Hand on what has arrived; to be called when the fleet's socket is readable."""
    while (received := link.fleet.receive()) is not None:
        number, data = received
        if number < len(devices):
            devices[number].received(data)
