"""The bridge as a whole, free of gRPC: what the servicer maps its calls to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace

import structlog

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_lwm2m import (
    ML_CAPABILITY,
    MlRes,
    ObjectLibrary,
    Path,
    SelfTestResult,
    ServerRes,
    SoftwareRes,
    UpdateState,
    ml,
    software,
)
from tinymlaas_lwm2m.objects import SERVER
from tinymlaas_servicekit.metrics import watch

from .coap.bootstrap import BootstrapServer, BootstrapSettings
from .coap.endpoint import CoapEndpoint, CoapSettings
from .coap.link import LinkSettings
from .coap.traced import TracedLink
from .core.bootstrap import Account, BootstrapRecord
from .core.catalogue import Catalogue
from .core.directory import Admission, Clock, Directory, admit_anyone
from .core.errors import BridgeError, Reason
from .core.install_plan import DeviceView
from .core.install_record import InstallEvent, InstallRequest
from .core.install_run import InstallSettings
from .core.installer import Installer
from .core.ports import ArtifactSource, ImageCheck
from .core.records import RecordEvent, Records
from .core.registration import Registration
from .core.sleep import AWAKE_S, Sleepers, asleep_error
from .core.survey import Surveyor
from .core.telemetry import TELEMETRY, Observation, counter, observation_of, until
from .fleet import Fleet
from .fleet_store import FleetStore
from .images import TensorShapes
from .install_log import ThreadedInstallLog
from .registration_writer import RegistrationWriter
from .store import SqlStore

log = structlog.get_logger("tinymlaas.bridge")


IssueKey = Callable[[str], tuple[str, bytes]]
"""endpoint → identity and secret of a pre-shared key made for it, which bootstrap hands out."""


@dataclass(frozen=True)
class BridgeSettings:
    """Settings of all parts of the bridge. `bootstrap` None serves none; `account` is what a bootstrap gives a device.

    An empty `server_uri` there means the bridge's own CoAP address.
    """

    coap: CoapSettings = field(default_factory=CoapSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    install: InstallSettings = field(default_factory=InstallSettings)
    bootstrap: BootstrapSettings | None = None
    account: Account = field(default_factory=lambda: Account(server_uri=""))
    max_devices: int = 20_000
    max_input_bytes: int = 4 * 1024 * 1024
    expiry_poll_s: float = 1.0
    lease_s: float = 15.0
    fleet_poll_s: float = 1.0
    awake_s: float = AWAKE_S
    wake_wait_s: float = 300.0


@dataclass(frozen=True)
class Inference:
    """Outputs of one run, one entry for each output tensor, and its cost."""

    outputs: tuple[bytes, ...]
    latency: int
    latency_unit: str


class Bridge:
    """Registered devices and what can be done with them. `start`, use, `close`."""

    def __init__(
        self,
        store: SqlStore,
        artifacts: ArtifactSource,
        check: ImageCheck,
        settings: BridgeSettings | None = None,
        *,
        catalogue: Catalogue | None = None,
        library: ObjectLibrary | None = None,
        clock: Clock = time.time,
        admit: Admission = admit_anyone,
        issue_key: IssueKey | None = None,
        refresh_keys: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._check = check
        self._settings = settings or BridgeSettings()
        self._catalogue = catalogue or Catalogue.builtin()
        self._library = library or ObjectLibrary()
        self._clock = clock
        self._admit = admit
        self._issue_key = issue_key
        self._shapes = TensorShapes(artifacts)
        self.bootstrap: BootstrapServer | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._watches: list[Callable[[], None]] = []
        self._writer = RegistrationWriter(store)
        self._install_log = ThreadedInstallLog(store)
        self.fleet = Fleet(
            FleetStore(store, self._settings.lease_s),
            refresh_keys,
            poll_s=self._settings.fleet_poll_s,
        )
        self.fleet.hold()
        self.directory = Directory(self._writer, clock, admit=admit, max_devices=self._settings.max_devices)

    async def start(self) -> None:
        """Serve CoAP and take up open installs."""
        await self._writer.start()
        self.endpoint = await CoapEndpoint.start(
            self.directory, self._settings.coap, self._settings.link, self._library.kind_of, self._writer.written
        )
        self.endpoint.packages.awaited_elsewhere = self.fleet.awaits
        self._link = TracedLink(self.endpoint.link)
        self._sleepers = Sleepers(self.directory, self._clock, awake_s=self._settings.awake_s)
        self.endpoint.link.heard = self._sleepers.heard
        self.endpoint.link.listens = self._sleepers.awake
        self._surveyor = Surveyor(self._link, self._catalogue, self._library)
        self._records = Records(self.directory, self._surveyor)
        self._installer = Installer(
            self.directory,
            self._link,
            self.endpoint.packages,
            self._artifacts,
            self._check,
            self._store,
            self._install_log,
            self._surveyor,
            self._sleepers,
            self._clock,
            self._settings.install,
        )
        if self._settings.bootstrap is not None:
            self.bootstrap = BootstrapServer(
                self._store, self._account, self._admit, self._clock, self._settings.bootstrap
            )
            await self.bootstrap.start()
        resumed = self._installer.resume()
        self.endpoint.serve()
        self._expiry = asyncio.create_task(self._expire(), name="expiry of registrations")
        self.fleet.start(self.directory, self._installer)
        self._watches = [
            watch("tinymlaas.devices.registered", lambda: [(len(self.directory), {})]),
            watch("tinymlaas.installs.open", lambda: [(self._installer.running(), {})]),
        ]
        log.info("bridge started", devices=len(self.directory), installs_resumed=resumed)

    async def close(self) -> None:
        """Stop; open installs stay open in the store, registrations stay registered."""
        for stop in self._watches:
            stop()
        if self._expiry is not None:
            self._expiry.cancel()
            with suppress(asyncio.CancelledError):
                await self._expiry
        self.endpoint.refuse()
        if self.bootstrap is not None:
            await self.bootstrap.close()
        await self._installer.close()
        await self.endpoint.close()
        await self._writer.close()
        await self.fleet.close()
        self._install_log.close()
        self._store.close()

    def watch_devices(self) -> AsyncIterator[RecordEvent]:
        """Every device, then an event with `change` None, then each change, with what is known of the device."""
        return self._records.watch()

    def registration(self, endpoint: str) -> Registration:
        """Registration of a device; DEVICE_UNKNOWN where there is none."""
        return self.directory.get(endpoint)

    async def read_capabilities(self, endpoint: str) -> devices_pb2.Device:
        """The device's record, afresh from the device."""
        return await self._records.refresh(await self._awake(endpoint))

    async def install(self, request: InstallRequest) -> AsyncIterator[InstallEvent]:
        """Bring a module into a slot and self-test it; the timeline until its end."""
        await self.fleet.check_free(request.endpoint)
        async for event in self._installer.install(request):
            yield event

    async def cancel_install(self, install_id: str) -> None:
        """Stop an install at the next safe point."""
        record = await self._install_log.read(install_id)
        if record is not None and not record.step.terminal:
            await self.fleet.check_here(record.request.endpoint)
            await self.fleet.check_free(record.request.endpoint)
        await self._installer.cancel(install_id)

    async def trigger_bootstrap(self, endpoint: str) -> None:
        """Let a registered device ask its bootstrap server for its accounts anew (Core TS 1.1, clause 6.1.3)."""
        async with self._installer.device_lock(endpoint):
            await self._link.execute(await self._awake(endpoint), Path(SERVER, 0, ServerRes.BOOTSTRAP_TRIGGER))

    def bootstrapped(self, endpoint: str) -> BootstrapRecord | None:
        """How the last bootstrap of an endpoint went, or None."""
        return self._store.get_bootstrap(endpoint)

    def _account(self, endpoint: str) -> Account:
        """The server that a bootstrap gives a device; a coaps one comes with a new key."""
        account = self._settings.account
        account = replace(account, server_uri=account.server_uri or self.endpoint.address)
        if not account.server_uri.startswith("coaps://"):
            return account
        if self._issue_key is None:
            raise BridgeError(Reason.KEYS_MISSING, "a coaps server needs keys for its devices")
        identity, secret = self._issue_key(endpoint)
        return replace(account, identity=identity, secret=secret)

    async def activate(self, endpoint: str, slot: int) -> None:
        """Make a self-tested module the active one. Repeatable."""
        async with self._installer.device_lock(endpoint):
            device = await self._awake(endpoint)
            view = await self._surveyor.view(device)
            state = view.slot(slot)
            if state.active or (state.firmware and state.update_state == UpdateState.INSTALLED):
                return
            if state.update_state != UpdateState.INSTALLED:
                reason = Reason.SLOT_EMPTY if state.empty else Reason.SELF_TEST_REQUIRED
                raise BridgeError(reason, f"slot {slot} holds no installed module", slot=slot)
            if view.has_ml_object and state.self_test != SelfTestResult.PASSED:
                raise BridgeError(Reason.SELF_TEST_REQUIRED, f"slot {slot} has not passed its self-test", slot=slot)
            try:
                await self._link.execute(device, software(slot, SoftwareRes.ACTIVATE))
            except BridgeError as error:
                # Sent again after its answer was lost, to a device that rebooted in between, it is refused though done.
                if error.reason != Reason.DEVICE_REJECTED or not await self._is_active(device, slot):
                    raise
            await self._confirm_active(device, slot)

    async def deactivate(self, endpoint: str, slot: int) -> None:
        """Take the module of a slot out of use. Repeatable."""
        async with self._installer.device_lock(endpoint):
            device = await self._awake(endpoint)
            if await self._is_active(device, slot):
                await self._deactivate(device, slot)

    async def rollback(self, endpoint: str, leave: str = "") -> None:
        """Make the module active again that was active before. Repeatable where `leave` is the digest (hex) of the present one."""
        async with self._installer.device_lock(endpoint):
            device = await self._awake(endpoint)
            view = await self._surveyor.view(device)
            if leave and (view.running is None or view.running.hex() != leave):
                return
            before = view.active
            try:
                await self._link.execute(device, ml(MlRes.ROLLBACK))
            except BridgeError as error:
                if error.reason != Reason.DEVICE_REJECTED:
                    raise
                now = (await self._surveyor.view(device)).active
                if before is None or now is None or now.index == before.index:
                    raise BridgeError(
                        Reason.NO_PREVIOUS_MODULE, f"{endpoint} keeps no earlier module", device=endpoint
                    ) from error
            after = (await self._surveyor.view(device)).active
            if after is None or (before is not None and after.index == before.index):
                raise BridgeError(Reason.ACTIVATION_FAILED, "the device did not go back", device=endpoint)

    async def uninstall(self, endpoint: str, slot: int) -> None:
        """Empty a slot, deactivating it first where needed. Repeatable."""
        async with self._installer.device_lock(endpoint):
            device = await self._awake(endpoint)
            state = (await self._surveyor.view(device)).slot(slot)
            if state.empty:
                return
            if state.active:
                await self._deactivate(device, slot)
            with suppress_reason(Reason.DEVICE_REJECTED):
                await self._link.execute(device, software(slot, SoftwareRes.UNINSTALL))
            left = (await self._surveyor.view(device)).slot(slot)
            if not left.empty:
                detail = left.status_reason or "the slot is not empty"
                raise BridgeError(Reason.UNINSTALL_FAILED, detail, slot=slot, update_result=left.update_result)

    async def observe(self, endpoint: str) -> AsyncGenerator[Observation, None]:
        """Counters and self-test result now and whenever the device notifies; asked for anew where it registers anew."""
        moved = True
        while moved:
            await self.fleet.check_here(endpoint)
            device = await self._awake(endpoint)
            if not device.has(ML_CAPABILITY):
                raise BridgeError(Reason.DEVICE_REJECTED, "the device has no ML capability object", device=endpoint)
            leave = asyncio.create_task(self.directory.moved(device), name=f"move of {endpoint}")
            seen = until(leave, self._link.observe_several(device, TELEMETRY))
            try:
                async with aclosing(seen) as values_seen:
                    async for values in values_seen:
                        yield observation_of(values)
                moved = leave.done()
            finally:
                leave.cancel()

    async def infer(self, endpoint: str, inputs: tuple[bytes, ...]) -> Inference:
        """Run the active module once; `inputs` has the bytes of each input tensor in table order."""
        async with self._installer.device_lock(endpoint):
            device = await self._awake(endpoint)
            running = (await self._surveyor.view(device)).running
            if running is None:
                raise BridgeError(Reason.NO_ACTIVE_MODULE, f"{endpoint} has no active module", device=endpoint)
            shapes = await self._shapes.sizes(running.hex())
            if tuple(len(tensor) for tensor in inputs) != shapes.inputs:
                raise BridgeError(
                    Reason.ARGUMENT_INVALID,
                    f"input tensors must have {shapes.inputs} bytes",
                    field="inputs",
                    need=str(shapes.inputs),
                    have=str(tuple(len(tensor) for tensor in inputs)),
                )
            if sum(shapes.inputs) > self._settings.max_input_bytes:
                raise BridgeError(
                    Reason.LIMIT_EXCEEDED,
                    "the input is too long",
                    limit="max_input_bytes",
                    value=self._settings.max_input_bytes,
                )
            return await self._infer(device, b"".join(inputs), shapes.outputs)

    async def _infer(self, device: Registration, data: bytes, output_sizes: tuple[int, ...]) -> Inference:
        await self._link.write(device, ml(MlRes.INPUT), data)
        try:
            await self._link.execute(device, ml(MlRes.INVOKE))
        except BridgeError as error:
            if error.reason == Reason.DEVICE_REJECTED:
                raise BridgeError(
                    Reason.INFERENCE_FAILED, error.metadata.get("text") or error.detail, device=device.endpoint
                ) from error
            raise
        values = await self._link.read(device, ml(MlRes.OUTPUT))
        output = values.get(ml(MlRes.OUTPUT))
        if not isinstance(output, bytes) or len(output) != sum(output_sizes):
            raise BridgeError(
                Reason.DEVICE_ANSWER_INVALID,
                "the output has not the size of the module's outputs",
                device=device.endpoint,
            )
        outputs, offset = [], 0
        for size in output_sizes:
            outputs.append(output[offset : offset + size])
            offset += size
        values = await self._link.read(device, ml(MlRes.LAST_LATENCY))
        unit = await self._link.read(device, ml(MlRes.LATENCY_UNIT))
        return Inference(
            tuple(outputs), counter(values.get(ml(MlRes.LAST_LATENCY))), str(unit.get(ml(MlRes.LATENCY_UNIT), ""))
        )

    async def _awake(self, endpoint: str) -> Registration:
        """The registration of a device that listens; one in queue mode is waited for, at most `wake_wait_s`."""
        try:
            async with asyncio.timeout(self._settings.wake_wait_s):
                return await self._sleepers.woken(endpoint)
        except TimeoutError as error:
            raise asleep_error(self.directory.get(endpoint)) from error

    async def _is_active(self, device: Registration, slot: int) -> bool:
        return (await self._surveyor.view(device)).slot(slot).active

    async def _deactivate(self, device: Registration, slot: int) -> None:
        try:
            await self._link.execute(device, software(slot, SoftwareRes.DEACTIVATE))
        except BridgeError as error:
            if error.reason != Reason.DEVICE_REJECTED or await self._is_active(device, slot):
                raise
        if await self._is_active(device, slot):
            raise BridgeError(Reason.ACTIVATION_FAILED, f"slot {slot} is still active", slot=slot)

    async def _confirm_active(self, device: Registration, slot: int) -> None:
        """Ask the device rather than believe that a switch worked."""
        view: DeviceView = await self._surveyor.view(device)
        state = view.slot(slot)
        if not state.active:
            raise BridgeError(Reason.ACTIVATION_FAILED, state.status_reason or f"slot {slot} is not active", slot=slot)

    async def _expire(self) -> None:
        while True:
            for registration in self.directory.expire():
                log.info("device lost", endpoint=registration.endpoint)
            await asyncio.sleep(self._settings.expiry_poll_s)


@contextmanager
def suppress_reason(reason: Reason) -> Iterator[None]:
    """Pass over errors of one reason: what the device shows afterwards tells more than its answer."""
    try:
        yield
    except BridgeError as error:
        if error.reason != reason:
            raise
