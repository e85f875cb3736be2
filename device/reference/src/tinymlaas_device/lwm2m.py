"""A LwM2M 1.1 device around a board: registers, shows what it is, takes modules, runs them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import urlsplit

import aiocoap
import structlog
from aiocoap import Code, Message

from tinymlaas_lwm2m import (
    ML_CAPABILITY,
    OBJECTS,
    DeviceRes,
    FirmwareRes,
    Format,
    MlRes,
    Path,
    ServerRes,
    SoftwareRes,
    Value,
    Values,
    format_discovery,
    format_registration,
)
from tinymlaas_lwm2m.objects import DEVICE, FIRMWARE, SERVER, SOFTWARE

from .board import Board, BoardError, SlotState
from .lwm2m_board import BoardWorker
from .lwm2m_bootstrap import BootstrapError, BootstrapSession, ask, hostinfo
from .lwm2m_download import DownloadSettings, Fetcher
from .lwm2m_firmware import Firmware
from .lwm2m_objects import BINDING, ObjectTree
from .lwm2m_site import DeviceSite
from .lwm2m_software import RefusedError, Slot, refused
from .lwm2m_state import Memory

log = structlog.get_logger("tinymlaas.device")

MAX_INPUT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class DeviceSettings:
    """How the device reaches its server. `lifetime_s` is the registration's; `retry_s` the pause after a failure.

    With `bootstrap` the server is a bootstrap server, which is asked for the one to register at.
    `queue_mode` tells the server to ask only shortly after an update; the device itself listens all the time.
    """

    endpoint: str
    server: str
    lifetime_s: int = 60
    retry_s: float = 2.0
    host: str = "127.0.0.1"
    port: int = 0
    state_file: FilePath | None = None
    allow_plain_coap: bool = False
    queue_mode: bool = False
    bootstrap: bool = False
    download: DownloadSettings = field(default_factory=DownloadSettings)


class PlainCoapError(ValueError):
    """Plain CoAP beyond loopback, without the flag that allows it."""


class LwM2mDevice:
    """One device. `start` registers and serves until `close`; `vanish` ends it as a power cut would."""

    def __init__(self, board: Board, settings: DeviceSettings) -> None:
        _refuse_open_server(settings)
        self._board = board
        self._settings = settings
        self._memory = Memory.load(settings.state_file, settings.lifetime_s)
        self._worker = BoardWorker(board, self._changed, self._power_lost)
        self._location: tuple[str, ...] | None = None
        self._server_remote: Any = None
        self._update_now = asyncio.Event()
        self._input = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._registration: asyncio.Task[None] | None = None
        self._reboot_task: asyncio.Task[None] | None = None
        self.registered = asyncio.Event()

    async def start(self) -> None:
        """Bind, begin to register, and go on with interrupted downloads."""
        # One socket registers and serves: the server asks at the address that it was registered from (clause 6.2).
        self._context = await aiocoap.Context.create_server_context(
            None, bind=(self._settings.host, self._settings.port), transports=["udp6"]
        )
        fetcher = Fetcher(self._context, self._settings.download)
        spec = self._worker.spec
        slots = 0 if spec.static_firmware else spec.slots
        self._slots = [Slot(index, self._worker, self._memory, fetcher, self._changed) for index in range(slots)]
        self._firmware = (
            Firmware(self._worker, self._memory, fetcher, self._changed, self._reboot_soon)
            if spec.static_firmware
            else None
        )
        self._tree = ObjectTree(self._worker, self._slots, self._firmware)
        self._tree.lifetime_s = self._memory.lifetime_s
        self._tree.previous_slot = self._memory.previous_slot
        self._site = DeviceSite(self, self._is_server)
        self._context.serversite = self._site
        self._registration = asyncio.create_task(self._stay_registered(), name="registration")
        self._resume()

    async def close(self) -> None:
        """De-register and stop."""
        await self._stop_registration()
        if self._location is not None:
            message = self._to_server(Code.DELETE, self._location)
            with suppress(aiocoap.error.Error, OSError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._context.request(message, handle_blockwise=False).response
        await self.vanish()

    def wake(self) -> None:
        """Send a registration update now, as a device does that wakes up."""
        self._update_now.set()

    async def vanish(self) -> None:
        """Stop at once and say nothing to the server."""
        await self._stop_registration()
        for task in [*self._tasks, *([self._reboot_task] if self._reboot_task else [])]:
            task.cancel()
        await self._stop_work()
        await self._context.shutdown()
        await asyncio.get_running_loop().run_in_executor(None, self._worker.close)

    async def reboot(self) -> None:
        """Switch the board off and on; RAM is lost, what flash holds goes on."""
        log.info("reboot", endpoint=self._settings.endpoint)
        await self._stop_registration()
        await self._stop_work()
        self._input.clear()
        self._tree.forget()
        self._site.forget()
        await self._worker.call(lambda board: board.reboot())
        self._location = None
        # Before it registers: the server then sees at once how an update of the firmware ended.
        self._resume()
        self._registration = asyncio.create_task(self._stay_registered(), name="registration")

    def _resume(self) -> None:
        for slot in self._slots:
            slot.resume()
        if self._firmware is not None:
            self._firmware.resume()

    async def _stop_work(self) -> None:
        for slot in self._slots:
            await slot.stop()
        if self._firmware is not None:
            await self._firmware.stop()

    @property
    def address(self) -> str:
        """`host:port` that the device is served at, once it has registered."""
        return str(self._server_remote.hostinfo_local) if self._server_remote is not None else ""

    # What the server may do, called by the site.

    def read(self, path: Path) -> Values | None:
        """Values at or under a path."""
        return self._tree.read(path)

    def links(self) -> bytes:
        """All objects in link format."""
        return format_registration(self._tree.links())

    def discover(self, path: Path) -> bytes | None:
        """What lies at or under a path, in link format."""
        paths = self._tree.discover(path)
        versions = {definition.id: definition.version for definition in OBJECTS.values()}
        return None if paths is None else format_discovery(paths, versions)

    def takes_blocks(self, path: Path) -> bool:
        """True for a pushed package and for the input of a module."""
        package = (path.object_id, path.resource_id) in (
            (SOFTWARE, SoftwareRes.PACKAGE),
            (FIRMWARE, FirmwareRes.PACKAGE),
        )
        return path.depth == 3 and (package or path == Path(ML_CAPABILITY, 0, MlRes.INPUT))

    async def write_block(self, path: Path, offset: int, data: bytes, more: bool, total: int) -> None:
        """Take one block of a package or of an input."""
        if path.object_id == SOFTWARE:
            await self._slot(path).write_block(offset, data, more, total)
            return
        if path.object_id == FIRMWARE:
            await self._object_5(path).write_block(offset, data, more, total)
            return
        if offset == 0:
            self._input.clear()
        if offset != len(self._input):
            raise RefusedError(f"expected byte {len(self._input)}", "4.08")
        if max(total, offset + len(data)) > MAX_INPUT_BYTES:
            raise RefusedError("the input is too long", "4.13")
        self._input += data

    async def write(self, path: Path, value: Value) -> None:
        """Write one resource."""
        if path == Path(SERVER, 0, ServerRes.LIFETIME) and isinstance(value, int) and 0 < value <= 31_536_000:
            self._memory.lifetime_s = self._tree.lifetime_s = value
            self._memory.save()
            self._update_now.set()
            self._changed()
        elif path.object_id == SOFTWARE and path.resource_id == SoftwareRes.PACKAGE_URI and isinstance(value, str):
            self._slot(path).write_uri(value)
        elif path.object_id == FIRMWARE and path.resource_id == FirmwareRes.PACKAGE_URI and isinstance(value, str):
            await self._object_5(path).write_uri(value)
        elif path.object_id == ML_CAPABILITY and path.resource_id == MlRes.EXPECTED_DIGEST:
            index = path.resource_instance_id
            if index is None or index >= len(self._slots) or not isinstance(value, bytes):
                raise RefusedError("no such slot", "4.04")
            self._slots[index].expect(value)
        else:
            raise RefusedError("not writable")

    async def execute(self, path: Path, arguments: dict[int, str]) -> None:
        """Execute one resource."""
        at = (path.object_id, path.resource_id)
        if at == (DEVICE, DeviceRes.REBOOT):
            self._reboot_soon()
        elif at == (SERVER, ServerRes.REGISTRATION_UPDATE_TRIGGER):
            self._update_now.set()
        elif at == (SERVER, ServerRes.BOOTSTRAP_TRIGGER) and self._settings.bootstrap:
            self._memory.server = ""
            self._memory.save()
            self._update_now.set()
        elif path.object_id == SOFTWARE:
            await self._execute_software(path)
        elif at == (FIRMWARE, FirmwareRes.UPDATE):
            await self._object_5(path).update()
        elif at == (ML_CAPABILITY, MlRes.SELF_TEST):
            self._slot_argument(arguments).start_self_test()
        elif at == (ML_CAPABILITY, MlRes.INVOKE):
            await self._invoke()
        elif at == (ML_CAPABILITY, MlRes.ROLLBACK) and self._firmware is None:
            await self._rollback()
        else:
            raise RefusedError("not executable")

    async def _execute_software(self, path: Path) -> None:
        slot = self._slot(path)
        operations: dict[int | None, Callable[[], Awaitable[None]]] = {
            SoftwareRes.INSTALL: slot.install,
            SoftwareRes.UNINSTALL: slot.uninstall,
            SoftwareRes.ACTIVATE: slot.activate,
            SoftwareRes.DEACTIVATE: slot.deactivate,
        }
        operation = operations.get(path.resource_id)
        if operation is None:
            raise RefusedError("not executable")
        before = self._worker.snapshot.active
        await operation()
        self._note_previous(before)

    async def _invoke(self) -> None:
        data = bytes(self._input)
        try:
            invocation = await self._worker.call(lambda board: board.invoke(data))
        except BoardError as error:
            self._tree.output = None
            self._tree.last_error = str(error)[:200]
            self._changed()
            raise refused(error) from error
        self._tree.count(invocation)
        self._changed()

    async def _rollback(self) -> None:
        try:
            await self._worker.call(lambda board: board.rollback())
        except BoardError as error:
            raise refused(error) from error
        self._remember_previous(None)

    def _note_previous(self, before: int | None) -> None:
        """Keep track of the rollback copy, which the board knows but does not tell: a hint for choosing slots."""
        snapshot = self._worker.snapshot
        previous = self._memory.previous_slot
        if before is not None and snapshot.active not in (None, before):
            previous = before
        if previous is not None and snapshot.slots[previous].state not in (SlotState.TESTED, SlotState.INSTALLED):
            previous = None
        self._remember_previous(previous)

    def _remember_previous(self, previous: int | None) -> None:
        if previous != self._memory.previous_slot:
            self._memory.previous_slot = self._tree.previous_slot = previous
            self._memory.save()
            self._changed()

    def _object_5(self, path: Path) -> Firmware:
        if self._firmware is None or path.instance_id != 0:
            raise RefusedError("no such instance", "4.04")
        return self._firmware

    def _slot(self, path: Path) -> Slot:
        if path.instance_id is None or path.instance_id >= len(self._slots):
            raise RefusedError("no such slot", "4.04")
        return self._slots[path.instance_id]

    def _slot_argument(self, arguments: dict[int, str]) -> Slot:
        text = arguments.get(0, "0") or "0"
        if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) >= len(self._slots):
            raise RefusedError("no such slot", "4.00")
        return self._slots[int(text)]

    # Registration interface.

    async def _stay_registered(self) -> None:
        """Register, then update before the lifetime ends, for ever; a 4.04 to an update registers anew."""
        while True:
            try:
                if self._settings.bootstrap and not self._memory.server:
                    await self._bootstrap()
                self._update_now.clear()  # first: what asks for an update from here on asks for another one
                if self._location is None:
                    await self._register()
                else:
                    await self._update()
            except (aiocoap.error.Error, OSError, RefusedError, BootstrapError) as error:
                log.warning(
                    "registration failed", endpoint=self._settings.endpoint, error=str(error) or type(error).__name__
                )
                self._location = None
                self.registered.clear()
                await asyncio.sleep(self._settings.retry_s)
                continue
            with suppress(TimeoutError):
                # Early enough for all retransmissions of a lost update (RFC 7252: 93 s) where the lifetime leaves room.
                pause = max(self._memory.lifetime_s * 0.5, self._memory.lifetime_s - 100)
                async with asyncio.timeout(pause):
                    await self._update_now.wait()

    async def _bootstrap(self) -> None:
        self._location = self._server_remote = None
        session = self._site.bootstrap = BootstrapSession(self._settings.server)
        try:
            account = await ask(self._context, session, self._settings.server, self._settings.endpoint)
        finally:
            self._site.bootstrap = None
        self._memory.server = account.uri
        self._memory.lifetime_s = self._tree.lifetime_s = account.lifetime_s
        self._memory.save()

    async def _register(self) -> None:
        message = self._to_server(Code.POST, ("rd",))
        message.opt.content_format = Format.LINK
        message.opt.uri_query = (
            f"ep={self._settings.endpoint}",
            f"lt={self._memory.lifetime_s}",
            "lwm2m=1.1",
            f"b={BINDING}",
            *(("Q",) if self._settings.queue_mode else ()),
        )
        message.payload = self.links()
        answer = await self._context.request(message).response
        if answer.code is not Code.CREATED:
            raise RefusedError(f"the server answered {answer.code} {answer.payload[:200].decode(errors='replace')}")
        self._location = tuple(answer.opt.location_path)
        self._server_remote = answer.remote
        self.registered.set()
        log.info("registered", endpoint=self._settings.endpoint, address=self.address)

    async def _update(self) -> None:
        assert self._location is not None
        message = self._to_server(Code.POST, self._location)
        message.opt.uri_query = (f"lt={self._memory.lifetime_s}",)
        answer = await self._context.request(message).response
        if answer.code is not Code.CHANGED:
            raise RefusedError(f"the server answered {answer.code}")

    def _to_server(self, code: Code, path: tuple[str, ...]) -> Message:
        message = Message(code=code)
        message.unresolved_remote = urlsplit(self._memory.server or self._settings.server).netloc
        message.opt.uri_path = path
        return message

    async def _stop_registration(self) -> None:
        if self._registration is not None:
            self._registration.cancel()
            with suppress(asyncio.CancelledError):
                await self._registration
            self._registration = None
        self.registered.clear()

    def _is_server(self, remote: Any) -> bool:
        """Only the server that the device registered at may manage it.

        A server may call before its answer to the registration is here; it is then known by the address of its URI.
        """
        if self._server_remote is not None:
            return bool(remote == self._server_remote)
        return bool(remote.hostinfo == hostinfo(self._memory.server or self._settings.server))

    def _changed(self) -> None:
        if hasattr(self, "_site"):
            self._site.notify()

    def _power_lost(self) -> None:
        asyncio.get_running_loop().call_soon(self._reboot_soon)

    def _reboot_soon(self) -> None:
        if self._reboot_task is None or self._reboot_task.done():
            self._reboot_task = asyncio.create_task(self.reboot(), name="reboot")


def _refuse_open_server(settings: DeviceSettings) -> None:
    parts = urlsplit(settings.server)
    if parts.scheme != "coap" or not parts.hostname:
        raise ValueError(f"the server must be a coap:// URI, not {settings.server!r}")
    try:
        loopback = ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        loopback = parts.hostname == "localhost"
    if loopback:
        return
    if not settings.allow_plain_coap:
        raise PlainCoapError(
            f"{parts.hostname} is another machine and plain CoAP has no security: --allow-plain-coap accepts that"
        )
    log.warning(
        "PLAIN COAP TO ANOTHER HOST: anybody on the way can read and forge what this device gets",
        server=settings.server,
    )
