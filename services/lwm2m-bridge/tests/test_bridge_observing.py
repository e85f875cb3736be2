"""Observations of several paths: at once where a device can (Core TS 1.1, clause 6.4.3), else one of each instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiocoap import Code, Message, resource
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Relay, Rig, eventually, within
from test_bridge_link import Scripted, block, content, linked, refusal

from tinymlaas_lwm2m import COMPOSITE, Format, MlRes, Values, decode_paths, encode, encode_composite, ml
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import BridgeError, Reason
from tinymlaas_lwm2m_bridge.core.telemetry import TELEMETRY

TEMPERATURE, HUMIDITY, BATTERY = LwPath(3303, 0, 5700), LwPath(3304, 0, 5700), LwPath(3, 0, 9)
SENSORS = (TEMPERATURE, HUMIDITY, BATTERY)
INSTANCES = [LwPath(3303, 0), LwPath(3304, 0), LwPath(3, 0)]


class Watched(resource.ObservableResource):  # type: ignore[misc]
    """A device with sensors. `composite` answers an Observe-Composite in its place, where it has an answer."""

    def __init__(self, composite: Callable[[Message], Message | None] = lambda request: None) -> None:
        super().__init__()
        self.composite = composite
        self.values: Values = {TEMPERATURE: 20.0, HUMIDITY: 55.0, BATTERY: 80, LwPath(3303, 0, 5701): "Cel"}
        self.requests: dict[int, Message] = {}
        """By message id: a notification is rendered from the request that asked for it."""

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False

    async def add_observation(self, request: Message, serverobservation: Any) -> None:
        if request.code is not Code.FETCH or self.composite(request) is None:
            await super().add_observation(request, serverobservation)

    def observations(self) -> int:
        return len(self._observations)

    def change(self, path: LwPath, value: Any) -> None:
        self.values[path] = value
        self.updated_state()

    async def render(self, request: Message) -> Message:
        self.requests[request.mid] = request
        if request.code is Code.FETCH:
            answer = self.composite(request)
            if answer is not None:
                return answer
            spoken = int(request.opt.content_format)
            paths = decode_paths(spoken, request.payload)
            return content(encode_composite(spoken, {path: self.values[path] for path in paths}), spoken)
        base = LwPath.of(request.opt.uri_path)
        return content(encode(Format.TLV, {p: v for p, v in self.values.items() if base.covers(p)}, base))

    def asked(self) -> list[tuple[Code, int | None]]:
        return [(request.code, request.opt.observe) for request in self.requests.values()]

    def fetches(self) -> int:
        return self.asked().count((Code.FETCH, 0))


async def until(events: Any, wanted: Values) -> None:
    """Take values until they are the wanted ones."""
    values = await within(anext(events))
    while values != wanted:
        values = await within(anext(events))


def seen(site: Watched) -> Values:
    return {path: site.values[path] for path in SENSORS}


async def test_several_paths_are_one_observation_that_ends_at_the_device_too() -> None:
    """DO-OBS-005."""
    site = Watched()
    async with linked(site) as (link, device):
        async with aclosing(link.observe_several(device, SENSORS)) as events:
            assert await within(anext(events)) == seen(site)
            assert site.asked() == [(Code.FETCH, 0)]
            site.change(HUMIDITY, 60.0)
            await until(events, seen(site))
            site.change(BATTERY, 79)
            await until(events, seen(site))
            assert site.observations() == 1
        await eventually(lambda: site.observations() == 0, "the device was told that nobody observes it any more")
        assert site.fetches() == 1


async def test_an_observation_of_a_device_that_sleeps_is_ended_without_a_word() -> None:
    site = Watched()
    async with linked(site) as (link, device):
        heard: list[str] = []
        link.heard = heard.append
        events = link.observe_several(device, SENSORS)
        assert await within(anext(events)) == seen(site)
        site.change(BATTERY, 79)
        await until(events, seen(site))
        assert heard == [device.endpoint] * len(heard)
        assert len(heard) >= 2, "a device that notifies is awake"
        link.listens = lambda device: False
        await events.aclose()
        assert await within(link.read(device, BATTERY)) == {BATTERY: 79}
        assert all(observe != 1 for _, observe in site.asked())
        site.updated_state()  # the notification that nobody waits for is refused by a reset
        await eventually(lambda: site.observations() == 0, "the device forgot the observation")


def garbage(request: Message) -> Message:
    return content(b"\xff", Format.SENML_CBOR)


def unobserved(request: Message) -> Message:
    return content(encode_composite(Format.SENML_CBOR, {BATTERY: 80}), Format.SENML_CBOR)


def nothing(request: Message) -> Message:
    return content(encode_composite(Format.SENML_CBOR, {}), Format.SENML_CBOR, observe=1)


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        *((lambda request, code=code: Message(code=code), times) for code, times in (
            (Code.METHOD_NOT_ALLOWED, 1),
            (Code.NOT_ACCEPTABLE, len(COMPOSITE)),
            (Code.UNSUPPORTED_CONTENT_FORMAT, len(COMPOSITE)),
            (Code.NOT_IMPLEMENTED, 1),
            (Code.BAD_OPTION, 1),
            (Code.BAD_REQUEST, 1),
            (Code.NOT_FOUND, 1),
        )),
        (garbage, 1),
        (unobserved, 1),
        (nothing, 1),
    ],
)  # fmt: skip
async def test_a_device_that_can_not_is_observed_one_by_one_and_not_asked_again(answer: Any, asked: int) -> None:
    """DO-OBS-005: until it registers anew, perhaps with other firmware."""
    site = Watched(answer)
    async with linked(site) as (link, device):
        async with aclosing(link.observe_several(device, SENSORS)) as events:
            assert await within(anext(events)) == seen(site)
            assert site.fetches() == asked
            assert site.observations() == len(INSTANCES)
            site.change(TEMPERATURE, 21.5)
            await until(events, seen(site))
        await eventually(lambda: site.observations() == 0, "all observations ended")
        assert await within(anext(link.observe_several(device, SENSORS))) == seen(site)
        assert site.fetches() == asked
        site.composite = lambda request: None
        assert await within(anext(link.observe_several(replace(device, id="anew"), SENSORS))) == seen(site)
        assert site.fetches() == asked + 1


async def test_the_format_in_which_a_device_observes_several_paths_is_found_and_remembered() -> None:
    """DO-CAP-005."""

    def only_json(request: Message) -> Message | None:
        return None if request.opt.accept == Format.SENML_JSON else Message(code=Code.NOT_ACCEPTABLE)

    site = Watched(only_json)
    async with linked(site) as (link, device):
        assert await within(anext(link.observe_several(device, SENSORS))) == seen(site)
        assert site.fetches() == 2
        assert await within(anext(link.observe_several(device, SENSORS))) == seen(site)
        assert site.fetches() == 3


async def test_a_device_of_lwm2m_1_0_and_a_single_path_are_asked_by_get() -> None:
    site = Watched()
    async with linked(site) as (link, device):
        old = replace(device, version="1.0")
        assert await within(anext(link.observe_several(old, SENSORS))) == seen(site)
        assert await within(anext(link.observe_several(device, (BATTERY,)))) == {BATTERY: 80}
        assert {code for code, _ in site.asked()} == {Code.GET}


async def test_a_composite_notification_that_is_longer_than_a_datagram_is_read_anew() -> None:
    """DO-OBS-002."""
    values: Values = {TEMPERATURE: 20.0, BATTERY: 80}

    async def handler(request: Message) -> Message:
        if request.code is Code.FETCH:
            return content(b"\x80", Format.SENML_CBOR, block2=block(0, True), observe=1)
        base = LwPath.of(request.opt.uri_path)
        return content(encode(Format.TLV, {at: value for at, value in values.items() if base.covers(at)}, base))

    site = Scripted(handler)
    async with linked(site) as (link, device):
        assert await within(anext(link.observe_several(device, (TEMPERATURE, BATTERY)))) == values
        assert [request.code for request in site.requests] == [Code.FETCH, Code.GET, Code.GET]


async def test_a_device_that_can_not_be_observed_at_all_says_so() -> None:
    async def handler(request: Message) -> Message:
        return Message(code=Code.METHOD_NOT_ALLOWED)

    async with linked(Scripted(handler)) as (link, device):
        error = await refusal(anext(link.observe_several(device, SENSORS)))
        assert (error.reason, error.metadata["coap_code"]) == (Reason.DEVICE_REJECTED, "4.05")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts())


async def test_telemetry_is_observed_at_once_and_without_what_never_changes(rig: Rig) -> None:
    """DO-OBS-005: the lists of operators and keys stay out of the notifications."""
    bridge = await rig.bridge()
    device = await rig.device(FaultBoard())
    await within(device.registered.wait())
    async with aclosing(bridge.observe("node-1")) as events:
        assert (await within(anext(events))).invocations == 0
        assert list(device._site._watches.values()) == [TELEMETRY]
        assert ml(MlRes.RUNTIME_OPERATORS) not in TELEMETRY
    await eventually(lambda: not device._site._watches, "nobody observes the device any more")
    await device.close()
    await bridge.close()


async def test_a_device_that_registered_anew_is_observed_anew(rig: Rig) -> None:
    """DO-OBS-006: a reboot has lost the observation, and nothing would ever come again."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    async with aclosing(bridge.observe("node-1")) as events:
        await within(anext(events))
        before = bridge.registration("node-1")
        await device.reboot()
        await within(anext(events))
        assert bridge.registration("node-1").id != before.id
        assert list(device._site._watches.values()) == [TELEMETRY]
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        bridge.directory.deregister(bridge.registration("node-1").id, "")
        with pytest.raises(BridgeError) as caught:
            await within(following)
        assert caught.value.reason == Reason.DEVICE_UNKNOWN
    assert bridge.directory._moved == {}
    await device.close()
    await bridge.close()


async def test_the_end_of_an_observation_does_not_wake_a_device(rig: Rig) -> None:
    """DO-QUEUE-001."""
    bridge = await rig.bridge()
    async with Relay(("127.0.0.1", rig.port)).open() as relay:
        device = await rig.device(server_port=relay.port, lifetime_s=3600, queue_mode=True)
        await within(device.registered.wait())
        async with aclosing(bridge.observe("node-1")) as events:
            await within(anext(events))
            rig.clock.now += 94
            sent = relay.datagrams_to_device
        assert relay.datagrams_to_device == sent
        waiting = asyncio.ensure_future(anext(bridge.observe("node-1")))
        await asyncio.sleep(0)
        assert relay.datagrams_to_device == sent
        device.wake()
        assert (await within(waiting)).invocations == 0
        await device.close()
    await bridge.close()
