"""Observe over CoAP: one path by GET, several at once by FETCH (LwM2M Core TS 1.1, clause 6.4; RFC 7641; RFC 8132, clause 2.4)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import aiocoap
from aiocoap import Code, Message
from aiocoap.numbers.types import NON

from tinymlaas_lwm2m import COMPOSITE, Format, Path, TypeLookup, Values, encode_paths, kind_of

from ..core.errors import BridgeError, Reason
from ..core.registration import Registration
from .link import CoapLink, LinkSettings, keep, unreachable

_OTHER_FORMAT = (Code.NOT_ACCEPTABLE, Code.UNSUPPORTED_CONTENT_FORMAT)


class ObservingLink(CoapLink):
    """A CoapLink that observes. An iterator that is closed ends its observation, at the device too where that listens."""

    def __init__(self, context: aiocoap.Context, settings: LinkSettings, types: TypeLookup = kind_of) -> None:
        super().__init__(context, settings, types)
        self._several: OrderedDict[str, tuple[str, Format | None]] = OrderedDict()
        """Endpoint → id of its registration then, and the format in which it observes several paths; None where it can't."""
        self.listens: Callable[[Registration], bool] = lambda device: True
        """Tells whether a device may be sent something now; one that sleeps may not."""

    async def observe(self, device: Registration, path: Path) -> AsyncGenerator[Values, None]:
        """The values at `path` now and at each notification."""
        message = self._message(device, Code.GET, path)
        message.opt.accept = self._accepted(device.endpoint)[0]
        first = True
        async with aclosing(self._answers(device, message, path)) as answers:
            async for answer in answers:
                self._expect(answer, path)
                if _cut_off(answer):  # only a hint to read: its rest might be of another moment (RFC 7959, clause 2.6)
                    yield await self.read(device, path)
                else:
                    yield self._decode(answer.opt.content_format, answer.payload, path)
                if first and answer.opt.observe is None:
                    raise BridgeError(Reason.DEVICE_REJECTED, f"{path} can't be observed", path=str(path))
                first = False

    async def observe_several(self, device: Registration, paths: tuple[Path, ...]) -> AsyncGenerator[Values, None]:
        """All values at or under the paths, now and whenever one of them changes.

        One Observe-Composite where the device can (clause 6.4.3 has it from LwM2M 1.1 on); else an observation of each
        object instance that a path lies in. What the device can do is remembered until it registers anew, which it
        does after a change of its firmware.
        """
        formats = self._composite_formats(device) if len(paths) > 1 else ()
        refused = False
        if formats:
            async with aclosing(self._at_once(device, paths, formats)) as notifications:
                try:
                    values = await anext(notifications)
                except BridgeError:
                    # Whatever was wrong: an observation of each instance tells whether it was the way of asking.
                    refused = True
                else:
                    yield values
                    async for values in notifications:
                        yield values
                    return
        async with aclosing(self._each(device, paths)) as notifications:
            async for values in notifications:
                if refused:
                    keep(self._several, device.endpoint, (device.id, None), self._settings.max_known)
                yield values

    def _composite_formats(self, device: Registration) -> tuple[Format, ...]:
        """Formats to ask for several paths in, those first that the device has used; none where it is known that it can't."""
        if device.version == "1.0":
            return ()
        known = self._formats.get(device.endpoint)
        registration, proven = self._several.get(device.endpoint, ("", known))
        if registration == device.id and proven is None:
            return ()
        return tuple(sorted(COMPOSITE, key=lambda each: each is not proven))

    async def _at_once(
        self, device: Registration, paths: tuple[Path, ...], formats: tuple[Format, ...]
    ) -> AsyncGenerator[Values, None]:
        """One Observe-Composite; a BridgeError before the first values where the device can't."""
        proven = False
        for content_format in formats:
            message = self._composite(device, Code.FETCH, content_format)
            message.payload = encode_paths(content_format, paths)
            async with aclosing(self._answers(device, message, paths[0])) as answers:
                async for answer in answers:
                    if answer.code in _OTHER_FORMAT and content_format is not formats[-1]:
                        break
                    self._expect(answer, paths[0])
                    cut_off = _cut_off(answer)
                    values = await self._read_each(device, paths) if cut_off else self._decode_several(answer, paths)
                    if not proven and (answer.opt.observe is None or not values):
                        raise BridgeError(Reason.DEVICE_REJECTED, "several paths can't be observed", path=str(paths[0]))
                    proven = True
                    keep(self._several, device.endpoint, (device.id, content_format), self._settings.max_known)
                    yield values
                else:
                    return

    async def _each(self, device: Registration, paths: tuple[Path, ...]) -> AsyncGenerator[Values, None]:
        """An observation of each object instance; all values whenever one of them notifies, once each has answered."""
        latest: dict[Path, Values] = {}
        fresh = False
        woken = asyncio.Event()

        async def follow(base: Path) -> None:
            nonlocal fresh
            try:
                async with aclosing(self.observe(device, base)) as notifications:
                    async for values in notifications:
                        latest[base], fresh = _asked_for(values, paths), True
                        woken.set()
            finally:
                woken.set()

        bases = _instances(paths)
        followers = [asyncio.create_task(follow(base), name=f"observation of {base}") for base in bases]
        try:
            while True:
                await woken.wait()
                woken.clear()
                if fresh and len(latest) == len(bases):
                    fresh = False
                    yield {at: value for values in latest.values() for at, value in values.items()}
                for follower in followers:
                    if follower.done():
                        follower.result()
                        return
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)

    async def _read_each(self, device: Registration, paths: tuple[Path, ...]) -> Values:
        found: Values = {}
        for base in _instances(paths):
            found |= _asked_for(await self.read(device, base), paths)
        return found

    async def _answers(self, device: Registration, message: Message, path: Path) -> AsyncGenerator[Message, None]:
        """The answer to a request that asks to observe, then each notification."""
        message.opt.observe = 0
        request = self._context.request(message, handle_blockwise=False)
        try:
            answer = await self._await(request.response, self._settings.answer_s, path)
            self._note(device, answer)
            self._expect_known(device, answer)
            yield answer
            try:
                async for notification in request.observation:
                    self._note(device, notification)
                    yield notification
            except (aiocoap.error.Error, OSError) as error:
                raise unreachable(path, error) from error
        finally:
            self._end(device, request, message)

    def _end(self, device: Registration, request: Any, message: Message) -> None:
        """Let aiocoap and the device forget an observation that neither of them has ended.

        aiocoap would keep it until the next notification, and tell the device only if that is confirmable.
        """
        if request.observation.cancelled:
            return
        request.observation.cancel()
        if not request.response.done() or request.response.cancelled():
            return
        request._stop_interest()
        if not self.listens(device):
            return
        # RFC 7641, clause 3.6: the same token, Observe 1. Not confirmable: what is lost is made good by a reset later on.
        ending = message.copy(mtype=NON, mid=None, observe=1)
        with suppress(aiocoap.error.Error, OSError):
            self._context.request_interfaces[0].token_interface.send_message(ending, lambda: None)


def _cut_off(answer: Message) -> bool:
    """True for the first block of a representation that does not fit into a datagram."""
    return answer.opt.block2 is not None and bool(answer.opt.block2.more)


def _instances(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """The object instances that paths lie in, or the object where a path names no instance; none twice."""
    return tuple(dict.fromkeys(Path(path.object_id, path.instance_id) for path in paths))


def _asked_for(values: Values, paths: tuple[Path, ...]) -> Values:
    return {at: value for at, value in values.items() if any(path.covers(at) for path in paths)}
