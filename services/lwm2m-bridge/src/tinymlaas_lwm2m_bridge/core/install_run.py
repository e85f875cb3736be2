"""One install: from a request to an inactive, self-tested module in a slot, whatever breaks on the way.

It looks at the device, decides by `install_plan`, acts, and looks again. Nothing is taken from memory that the device can
say itself; so going on after a restart of the bridge, the device or the link is the same as going on at all.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from tinymlaas_lwm2m import MlRes, UpdateResult, UpdateState, ml
from tinymlaas_module import Requirement
from tinymlaas_servicekit.metrics import count

from .directory import Clock, Directory
from .errors import BridgeError, Reason
from .evidence import check_fit
from .install_plan import Action, SlotView, choose_slot, holds, next_action
from .install_record import Failure, InstallEvent, InstallRecord, Step, Transfer
from .ports import ArtifactSource, DeviceLink, ImageCheck, InstallLog, PackageServer
from .registration import Registration
from .sleep import Sleepers, asleep_error
from .survey import Surveyor
from .targets import Target, slot_target

T = TypeVar("T")

_LOOK_AT_SLEEPER_S = 60.0
_RETRIED = {Reason.CONNECTION_LOST}
_REGISTRY_AWAY = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


@dataclass(frozen=True)
class InstallSettings:
    """Limits and times of installs, in seconds and bytes."""

    concurrency: int = 16
    attempts: int = 5
    poll_s: float = 0.5
    offline_s: float = 86_400.0
    registry_s: float = 600.0
    stuck_s: float = 120.0
    max_image_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True)
class Site:
    """What installs work with; they share `places` for concurrent downloads."""

    directory: Directory
    link: DeviceLink
    packages: PackageServer
    artifacts: ArtifactSource
    check: ImageCheck
    log: InstallLog
    surveyor: Surveyor
    sleepers: Sleepers
    clock: Clock
    settings: InstallSettings
    places: asyncio.Semaphore


class InstallRun:
    """One install under way. `cancel` is set from outside, `told` is called after each line of its timeline."""

    def __init__(self, site: Site, record: InstallRecord, cancel: asyncio.Event, told: Callable[[], None]) -> None:
        self._in = site
        self._record = record
        self._request = record.request
        self._digest = bytes.fromhex(record.request.digest)
        self._cancel = cancel
        self._wake = told
        self._image = b""
        self._need = Requirement(0, 0, 1, 0)
        self._bytes_done = 0
        self._progress_at = asyncio.get_running_loop().time()
        self._progress: object = None
        self._told: tuple[Step, int] | None = None
        self._offline_since: float | None = None

    async def drive(self) -> None:
        """Go from wherever the device is to READY."""
        if self._record.cancelled:
            self._cancel.set()
        self._image = await self._checked_image()
        await self._save(bytes_total=len(self._image))
        self._in.packages.offer(self._request.digest, self._image)
        try:
            while True:
                # A device that is away holds none of the places for concurrent downloads.
                async with self._in.places:
                    seen, absence = await self._while_online()
                if absence is None:
                    return
                await self._wait_online(seen, absence)
        finally:
            self._in.packages.withdraw(self._request.digest)

    async def _while_online(self) -> tuple[Registration | None, BridgeError | None]:
        """Step until the end, or until the device is away; then why, and the registration it was last seen with."""
        seen: Registration | None = None
        while True:
            try:
                seen = self._in.directory.get(self._request.endpoint)
                if not self._in.sleepers.awake(seen):
                    return seen, asleep_error(seen)
                if await self._step(seen):
                    return seen, None
                self._offline_since = None
            except BridgeError as error:
                if error.reason not in (Reason.DEVICE_UNREACHABLE, Reason.DEVICE_UNKNOWN):
                    raise
                return seen, error

    async def fail(self, error: BridgeError) -> None:
        """End the install; leave no half module in the slot where the device can still be asked."""
        if error.reason == Reason.SELF_TEST_FAILED and self._record.slot is not None:
            with suppress(BridgeError):
                await self._clear(self._in.directory.get(self._request.endpoint), slot_target(self._record.slot))
        step = Step.CANCELLED if error.reason == Reason.INSTALL_CANCELLED else Step.FAILED
        await self._tell(step, error.detail, Failure.of(error))

    async def _checked_image(self) -> bytes:
        image = await self._fetched_image()
        if len(image) > self._in.settings.max_image_bytes:
            raise BridgeError(
                Reason.LIMIT_EXCEEDED,
                f"the image has {len(image)} bytes",
                limit="max_image_bytes",
                value=self._in.settings.max_image_bytes,
            )
        got = hashlib.sha256(image).hexdigest()
        if got != self._request.digest:
            raise BridgeError(
                Reason.DIGEST_MISMATCH,
                "the artifact is not what its digest says",
                expected=self._request.digest,
                got=got,
            )
        self._need = await asyncio.to_thread(self._in.check, image)
        return image

    async def _fetched_image(self) -> bytes:
        """The image as the registry gives it; one that is away is asked again for `registry_s`."""
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + self._in.settings.registry_s, _FIRST_PAUSE_S
        while True:
            reading = await self._done_or_cancelled(self._in.artifacts.read(self._request.digest))
            error = reading.exception()
            if error is None:
                return reading.result()
            if getattr(error, "code", None) not in _REGISTRY_AWAY or loop.time() + pause > end:
                raise error
            if pause == _FIRST_PAUSE_S:
                detail = f"waiting for the registry: {getattr(error, 'message', error)}"
                await self._tell(self._record.step, detail, always=True)
            await self._done_or_cancelled(asyncio.sleep(pause))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _done_or_cancelled(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Work that has ended; a cancel ends it, and the install with it where that does not come too late."""
        task = asyncio.create_task(work)
        cancel = asyncio.create_task(self._cancel.wait())
        try:
            await asyncio.wait({task, cancel}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await self._cancelled_unread()
                await asyncio.wait({task})
            return task
        finally:
            task.cancel()
            cancel.cancel()

    async def _cancelled_unread(self) -> None:
        """End a cancelled install whose image has not come, unless the device is past cancelling: that needs the image."""
        try:
            if self._record.slot is not None:
                device = self._in.directory.get(self._request.endpoint)
                slot = (await self._in.surveyor.view(device)).slot(self._record.slot)
                if slot.past_cancelling and self._record.install_sent:
                    return
                await self._cancelled(device, slot)
        except BridgeError as error:
            if error.reason not in (Reason.DEVICE_UNREACHABLE, Reason.DEVICE_UNKNOWN):
                raise
        raise BridgeError(
            Reason.INSTALL_CANCELLED, "cancelled before the image was read", install_id=self._request.install_id
        )

    async def _step(self, device: Registration) -> bool:
        """One look and one action; True at the end."""
        view = await self._in.surveyor.view(device)
        if self._record.slot is None:
            slot_index = choose_slot(view, self._digest, len(self._image), self._request.slot)
            await self._save(slot=slot_index)
        assert self._record.slot is not None
        slot = view.slot(self._record.slot)
        if self._cancel.is_set() and not (slot.past_cancelling and self._record.install_sent):
            await self._cancelled(device, slot)
        try:
            action = next_action(self._record, slot, self._digest)
        except BridgeError as error:
            if not await self._retry(error, device, slot):
                raise
            action = Action.TRANSFER
        if action in (Action.CLEAR, Action.TRANSFER):
            # Before anything of the device is touched: what does not fit must not cost the image that is there.
            check_fit(self._need, view, slot)
        try:
            await self._act(action, device, slot)
        except BridgeError as error:
            # A request whose answer was lost is sent again; a device that rebooted in between refuses what it has done.
            if error.reason != Reason.DEVICE_REJECTED or not await self._done_all_the_same(action, device, slot):
                raise
        return action is Action.READY

    async def _done_all_the_same(self, action: Action, device: Registration, before: SlotView) -> bool:
        """Whether a slot has changed by an action that the device refused; what that action would have noted is noted."""
        after = (await self._in.surveyor.view(device)).slot(before.index)
        if (after.update_state, after.digest, after.self_test) == (
            before.update_state,
            before.digest,
            before.self_test,
        ):
            return False
        if action is Action.INSTALL:
            await self._save(install_sent=True)
        elif action is Action.SELF_TEST:
            await self._save(test_sent=True)
        elif action is Action.TRANSFER:
            await self._save(attempts=self._record.attempts + 1)
        return True

    async def _retry(self, error: BridgeError, device: Registration, slot: SlotView) -> bool:
        """True where another attempt may do better: a lost link, or push where pull is not possible."""
        worked = slot.digest == self._digest and slot.received > 0
        of_another = self._record.uri not in ("", self._in.packages.uri(self._request.digest, device))
        if error.reason == Reason.URI_INVALID and (worked or of_another):
            # The URI has worked before, or led to a bridge that is gone: who answered 4.xx was not this one in good order.
            return self._record.attempts < self._in.settings.attempts
        if error.reason == Reason.URI_INVALID and self._request.transfer is Transfer.AUTO and not self._record.pushing:
            await self._save(pushing=True)
            return True
        return error.reason in _RETRIED and self._record.attempts < self._in.settings.attempts

    async def _act(self, action: Action, device: Registration, slot: SlotView) -> None:
        link, index = self._in.link, slot.index
        if action is Action.TRANSFER:
            await self._transfer(device, slot)
        elif action is Action.CLEAR:
            await self._clear(device, slot.target)
        elif action is Action.INSTALL:
            await self._tell(Step.DELIVERED, "verified by the device", done=len(self._image))
            await link.execute(device, slot.target.install)
            await self._save(install_sent=True)
            await self._pause()
        elif action is Action.SELF_TEST:
            await self._tell(Step.INSTALLED, "", done=len(self._image))
            await link.execute(device, ml(MlRes.SELF_TEST), {0: str(index)})
            await self._save(test_sent=True)
            await self._tell(Step.SELF_TESTING, "", done=len(self._image))
            await self._pause()
        elif action is Action.WAIT:
            await self._wait(device, slot)
        else:
            detail = "self-test passed" if slot.self_test is not None else "the device offers no self-test"
            await self._tell(Step.READY, "active already" if slot.active else detail, done=len(self._image))

    async def _transfer(self, device: Registration, slot: SlotView) -> None:
        """Tell the device where to fetch, or push; then it is at least in DOWNLOAD_STARTED."""
        if self._record.attempts >= self._in.settings.attempts:
            raise BridgeError(
                Reason.INSTALL_STUCK, f"transferred {self._record.attempts} times without a result", slot=slot.index
            )
        if self._request.transfer is Transfer.PUSH:
            await self._save(pushing=True)
        self._bytes_done = slot.received if slot.digest == self._digest else 0
        self._progressed(None)
        if not self._record.pushing:
            uri = self._in.packages.uri(self._request.digest, device)
            await self._tell(Step.DOWNLOADING, "pull", done=self._bytes_done)
            await self._in.link.write(device, slot.target.package_uri, uri)
            await self._save(attempts=self._record.attempts + 1, uri=uri)
            await self._pause()
            return
        await self._tell(Step.DOWNLOADING, "push", done=0)
        if slot.knows_digests and slot.target.expected_digest is not None:
            await self._in.link.write(device, slot.target.expected_digest, self._digest)
        # A push that breaks off leaves the device in DOWNLOAD_STARTED; where it shows no digest, the count tells.
        await self._save(attempts=self._record.attempts + 1)
        try:
            await self._in.link.push(device, slot.target.package, self._image, self._pushed)
        except BridgeError as error:
            if error.reason == Reason.INSTALL_CANCELLED:
                return  # the next look at the device clears what went out
            if error.reason != Reason.DEVICE_REJECTED:
                raise
            # The refusal of a block says less than the result that the device shows for the whole.
            shown = (await self._in.surveyor.view(device)).slot(slot.index)
            if shown.update_result < UpdateResult.NOT_ENOUGH_STORAGE:
                raise

    async def _pushed(self, done: int) -> None:
        self._bytes_done = done
        await self._tell(Step.DOWNLOADING, "push", done=done)
        if self._cancel.is_set():
            raise BridgeError(Reason.INSTALL_CANCELLED, "cancelled by the caller", install_id=self._request.install_id)

    async def _wait(self, device: Registration, slot: SlotView) -> None:
        if slot.update_state in (UpdateState.DOWNLOAD_STARTED, UpdateState.DOWNLOADED):
            step = Step.DOWNLOADING if slot.update_state == UpdateState.DOWNLOAD_STARTED else Step.DOWNLOADED
            done = len(self._image) if step is Step.DOWNLOADED else max(slot.received, self._bytes_done)
            await self._tell(step, "push" if self._record.pushing else "pull", done=min(done, len(self._image)))
        if self._progressed((slot.update_state, slot.received, slot.self_test)):
            await self._pause()
            return
        if self._record.pushing and slot.update_state == UpdateState.DOWNLOAD_STARTED:
            # Nobody pushes any more (the push itself would not be here): the link broke, or the bridge was restarted.
            await self._again(device, slot, "the push broke off")
            return
        if asyncio.get_running_loop().time() - self._progress_at > self._in.settings.stuck_s:
            await self._again(device, slot, "no progress")
            return
        await self._pause()

    async def _again(self, device: Registration, slot: SlotView, why: str) -> None:
        """Start the transfer once more after it stood still; INSTALL_STUCK when that did not help before."""
        downloading = slot.update_state == UpdateState.DOWNLOAD_STARTED
        if not downloading or self._record.attempts >= self._in.settings.attempts:
            raise BridgeError(
                Reason.INSTALL_STUCK, f"{why} in state {UpdateState(slot.update_state).name}", slot=slot.index
            )
        if self._record.pushing:
            await self._clear(device, slot.target)
        try:
            await self._transfer(device, slot)
        except BridgeError as error:
            if error.reason != Reason.DEVICE_REJECTED or self._record.pushing:
                raise
            # Another install's push was left there: the device takes no URI before that is gone.
            await self._clear(device, slot.target)

    def _progressed(self, state: object) -> bool:
        """Note what the device shows; True where it differs from the last look."""
        if state is not None and state == self._progress:
            return False
        self._progress = state
        self._progress_at = asyncio.get_running_loop().time()
        return True

    async def _clear(self, device: Registration, target: Target) -> None:
        if target.uninstall is not None:
            await self._in.link.execute(device, target.uninstall)
            return
        # An empty URI brings object 5 back to idle (Core TS 1.1, appendix E.6).
        await self._in.link.write(device, target.package_uri, "")

    async def _cancelled(self, device: Registration, slot: SlotView) -> None:
        """Stop here: an image that this install brought and nobody activated is removed."""
        if holds(self._record, slot, self._digest) and not slot.active:
            await self._clear(device, slot.target)
        raise BridgeError(Reason.INSTALL_CANCELLED, "cancelled by the caller", install_id=self._request.install_id)

    async def _pause(self) -> None:
        """Give the device time, but hear a cancel at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._in.settings.poll_s):
                await self._cancel.wait()

    async def _wait_online(self, seen: Registration | None, error: BridgeError) -> None:
        """Wait until the device registers or updates, at most `offline_s`; look from time to time all the same."""
        loop = asyncio.get_running_loop()
        if self._cancel.is_set():
            raise BridgeError(
                Reason.INSTALL_CANCELLED, "cancelled while the device was away", install_id=self._request.install_id
            )
        if self._offline_since is None:
            self._offline_since = loop.time()
            await self._tell(
                self._record.step, f"waiting for the device: {error.detail}", done=self._bytes_done, always=True
            )
        asleep = self._in.sleepers.asleep(self._request.endpoint)
        if asleep:
            # What only sleeps is not away: no time runs out before its lifetime does.
            self._offline_since = loop.time()
        elif loop.time() - self._offline_since > self._in.settings.offline_s:
            raise error
        waiting = asyncio.ensure_future(self._in.directory.wait_for_update(self._request.endpoint, seen))
        cancel = asyncio.ensure_future(self._cancel.wait())
        try:
            pause = _LOOK_AT_SLEEPER_S if asleep else 10 * self._in.settings.poll_s
            await asyncio.wait({waiting, cancel}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            cancel.cancel()

    async def _save(self, **changes: object) -> None:
        self._record = replace(self._record, updated_at=self._in.clock(), **changes)  # type: ignore[arg-type]
        await self._in.log.note(self._record, None)

    async def _tell(
        self, step: Step, detail: str, failure: Failure | None = None, *, done: int | None = None, always: bool = False
    ) -> None:
        """Append to the timeline unless it would repeat the last line."""
        done = self._bytes_done if done is None else done
        if not always and self._told == (step, done):
            return
        self._told = (step, done)
        self._bytes_done = done
        event = InstallEvent(
            install_id=self._request.install_id,
            step=step,
            time=self._in.clock(),
            slot=self._record.slot,
            bytes_done=done,
            bytes_total=self._record.bytes_total,
            detail=detail,
            failure=failure,
        )
        if step is not self._record.step:
            count("tinymlaas.installs.steps", step=step.value)
        if failure is not None:
            count("tinymlaas.installs.failed", reason=failure.reason)
        before = self._record
        self._record = replace(before, step=step, failure=failure, cancelled=self._cancel.is_set())
        changed = None
        if self._record != before:
            changed = self._record = replace(self._record, updated_at=self._in.clock())
        await self._in.log.note(changed, event)
        self._wake()
