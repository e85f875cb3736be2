"""Lock-step: exact packets between a bridge and a device, for what networks and devices do at the wrong moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from coap_packets import (
    ACCEPT,
    ACK,
    BLOCK1,
    BLOCK2,
    CON,
    CONTENT_FORMAT,
    ETAG,
    GET,
    LOCATION_PATH,
    NON,
    OBSERVE,
    POST,
    PUT,
    RST,
    SIZE1,
    URI_PATH,
    URI_QUERY,
    Packet,
    Wire,
    block,
    code,
)
from lwm2m_rig import Artifacts, Clock, Rig, digest_of, image_of, within

from tinymlaas_lwm2m import Format, encode
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Bridge, BridgeError, LinkSettings, Reason

IMAGE = image_of(3_000)
PATIENT = LinkSettings(ack_timeout_s=0.3, max_retransmit=3, answer_s=20.0, execute_s=20.0)
REGISTER = (
    (URI_PATH, b"rd"),
    (CONTENT_FORMAT, b"\x28"),
    (URI_QUERY, b"ep=node-1"),
    (URI_QUERY, b"lt=60"),
    (URI_QUERY, b"lwm2m=1.1"),
    (URI_QUERY, b"b=U"),
)
LINKS = b'</>;rt="oma.lwm2m",</3/0>,</9/0>,</3303/0>'
VALUE = {LwPath(3, 0, 9): 55}
TLV = Format.TLV.to_bytes(2, "big")


class Device:
    """A device whose every packet the test writes."""

    def __init__(self, wire: Wire, bridge: Bridge, clock: Clock) -> None:
        self.wire = wire
        self.bridge = bridge
        self.clock = clock
        self.server = ("127.0.0.1", int(bridge.endpoint.address.rsplit(":", 1)[1]))

    async def register(self, mid: int = 1) -> Packet:
        self.wire.send(Packet(CON, POST, mid, b"\x01", REGISTER, LINKS), self.server)
        return await self.wire.take()

    def read(self, path: str = "/3/0/9") -> asyncio.Task[Any]:
        device = self.bridge.registration("node-1")
        return asyncio.create_task(self.bridge.endpoint.link.read(device, LwPath.parse(path)))

    def answer(
        self, request: Packet, *, kind: int = ACK, mid: int | None = None, payload: bytes | None = None
    ) -> Packet:
        body = encode(Format.TLV, VALUE, LwPath(3, 0, 9)) if payload is None else payload
        number = request.mid if mid is None else mid
        return Packet(kind, code("2.05"), number, request.token, ((CONTENT_FORMAT, TLV),), body)


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[Device]:
    rig = Rig(tmp_path, Artifacts(IMAGE), link=PATIENT)
    bridge = await rig.bridge()
    wire = await Wire().open()
    yield Device(wire, bridge, rig.clock)
    wire.close()
    await bridge.close()


async def test_a_registration_is_answered_in_the_acknowledgement_with_its_location(device: Device) -> None:
    """DO-REG-001: RFC 7252, piggybacked response."""
    answer = await device.register()
    assert (answer.kind, answer.code, answer.mid, answer.token) == (ACK, code("2.01"), 1, b"\x01")
    location = [value for number, value in answer.options if number == LOCATION_PATH]
    assert location == [b"rd", device.bridge.registration("node-1").id.encode()]


async def test_a_duplicate_of_a_registration_gets_the_same_answer_and_registers_nothing_anew(device: Device) -> None:
    """RFC 7252, clause 4.5: the acknowledgement was lost and the device sends again."""
    first = await device.register()
    registration = device.bridge.registration("node-1")
    assert await device.register() == first
    assert device.bridge.registration("node-1") == registration


async def test_a_new_registration_under_a_new_message_id_replaces_the_old_one(device: Device) -> None:
    """DO-REG-004."""
    first = await device.register(1)
    second = await device.register(2)
    assert first.options != second.options
    old = next(value for number, value in reversed(first.options) if number == LOCATION_PATH)
    update = Packet(CON, POST, 3, b"\x02", ((URI_PATH, b"rd"), (URI_PATH, old)))
    device.wire.send(update, device.server)
    assert (await device.wire.take()).code == code("4.04")


async def test_a_request_that_is_lost_is_sent_again_with_the_same_message_id_and_token(device: Device) -> None:
    """RFC 7252, clause 4.2."""
    await device.register()
    read = device.read()
    lost = await device.wire.take()
    again = await device.wire.take()
    assert lost == again
    device.wire.send(device.answer(again))
    assert await within(read) == VALUE


async def test_an_answer_that_comes_twice_is_taken_once(device: Device) -> None:
    await device.register()
    read = device.read()
    request = await device.wire.take()
    assert (request.kind, request.code, request.path) == (CON, GET, "/3/0/9")
    assert request.option(ACCEPT) is not None
    device.wire.send(device.answer(request))
    device.wire.send(device.answer(request))
    assert await within(read) == VALUE
    other = device.read()
    request = await device.wire.take_where(code=GET)
    device.wire.send(device.answer(request))
    assert await within(other) == VALUE


async def test_a_separate_response_is_taken_and_acknowledged(device: Device) -> None:
    """RFC 7252, clause 5.2.2."""
    await device.register()
    read = device.read()
    request = await device.wire.take()
    device.wire.send(Packet(ACK, 0, request.mid))
    device.wire.send(device.answer(request, kind=CON, mid=900))
    acknowledged = await device.wire.take_where(kind=ACK)
    assert (acknowledged.code, acknowledged.mid) == (0, 900)
    assert await within(read) == VALUE


async def test_a_separate_response_that_overtakes_its_acknowledgement_is_taken(device: Device) -> None:
    """RFC 7252, clause 5.2.2: messages are reordered."""
    await device.register()
    read = device.read()
    request = await device.wire.take()
    device.wire.send(device.answer(request, kind=CON, mid=901))
    assert await within(read) == VALUE
    device.wire.send(Packet(ACK, 0, request.mid))


async def test_a_separate_response_without_confirmation_is_taken(device: Device) -> None:
    await device.register()
    read = device.read()
    request = await device.wire.take()
    device.wire.send(Packet(ACK, 0, request.mid))
    device.wire.send(device.answer(request, kind=NON, mid=902))
    assert await within(read) == VALUE


async def test_a_reset_ends_the_call_at_once_as_unreachable(device: Device) -> None:
    """RFC 7252, clause 4.2: the device has lost its state; no retransmission follows."""
    await device.register()
    read = device.read()
    request = await device.wire.take()
    device.wire.send(Packet(RST, 0, request.mid))
    with pytest.raises(BridgeError) as caught:
        await within(read)
    assert caught.value.reason == Reason.DEVICE_UNREACHABLE
    assert device.wire.taken.empty()


async def test_an_answer_with_a_foreign_token_is_not_taken(device: Device) -> None:
    """RFC 7252, clause 5.3.1."""
    await device.register()
    read = device.read()
    request = await device.wire.take()
    device.wire.send(Packet(NON, code("2.05"), 903, b"\x77\x77", ((CONTENT_FORMAT, TLV),), b"\xc1\x09\x01"))
    device.wire.send(device.answer(request))
    assert await within(read) == VALUE


async def test_a_notification_that_nobody_asked_for_is_reset(device: Device) -> None:
    """RFC 7641, clause 3.6."""
    await device.register()
    stray = Packet(CON, code("2.05"), 904, b"\x55", ((OBSERVE, b"\x05"), (CONTENT_FORMAT, TLV)), b"\xc1\x09\x01")
    device.wire.send(stray, device.server)
    assert await device.wire.take() == Packet(RST, 0, 904)


async def test_a_device_that_answers_4_01_is_away_until_its_next_update_and_then_means_it(device: Device) -> None:
    """DO-BRIDGE-014: it may see another address than it registered at, where a translation of addresses was forgotten."""

    async def refused_with() -> Reason:
        read = device.read()
        request = await device.wire.take_where(code=GET)
        device.wire.send(Packet(ACK, code("4.01"), request.mid, request.token))
        with pytest.raises(BridgeError) as caught:
            await within(read)
        return caught.value.reason

    async def update(mid: int) -> None:
        device.clock.now += 1
        device.wire.send(Packet(CON, POST, mid, b"\x02", ((URI_PATH, b"rd"), (URI_PATH, location))), device.server)
        assert (await device.wire.take_where(mid=mid)).code == code("2.04")

    answer = await device.register()
    location = next(value for number, value in reversed(answer.options) if number == LOCATION_PATH)
    assert await refused_with() == Reason.DEVICE_UNREACHABLE
    assert await refused_with() == Reason.DEVICE_UNREACHABLE
    await update(2)
    assert await refused_with() == Reason.DEVICE_REJECTED
    read = device.read()
    device.wire.send(device.answer(await device.wire.take_where(code=GET)))
    assert await within(read) == VALUE
    assert await refused_with() == Reason.DEVICE_UNREACHABLE


async def test_a_push_that_is_answered_with_4_08_ends_with_that_code(device: Device) -> None:
    """RFC 7959, clause 2.9.2: Request Entity Incomplete."""
    await device.register()
    registration = device.bridge.registration("node-1")
    push = asyncio.create_task(device.bridge.endpoint.link.push(registration, LwPath(9, 0, 2), IMAGE))
    first = await device.wire.take()
    assert (first.code, first.option(BLOCK1), first.option(SIZE1)) == (PUT, block(0, True), (3_000).to_bytes(2, "big"))
    device.wire.send(Packet(ACK, code("2.31"), first.mid, first.token, ((BLOCK1, block(0, True)),)))
    second = await device.wire.take_where(code=PUT)
    assert (second.option(BLOCK1), len(second.payload)) == (block(1, True), 1024)
    device.wire.send(Packet(ACK, code("4.08"), second.mid, second.token))
    with pytest.raises(BridgeError) as caught:
        await within(push)
    assert (caught.value.reason, caught.value.metadata["coap_code"]) == (Reason.DEVICE_REJECTED, "4.08")


async def test_a_push_that_is_too_large_is_told_with_4_13(device: Device) -> None:
    """RFC 7959, clause 2.9.3: Request Entity Too Large."""
    await device.register()
    registration = device.bridge.registration("node-1")
    push = asyncio.create_task(device.bridge.endpoint.link.push(registration, LwPath(9, 0, 2), IMAGE))
    first = await device.wire.take()
    device.wire.send(Packet(ACK, code("4.13"), first.mid, first.token, ((SIZE1, (2_048).to_bytes(2, "big")),)))
    with pytest.raises(BridgeError) as caught:
        await within(push)
    assert caught.value.metadata["coap_code"] == "4.13"


async def test_the_last_block_is_asked_for_again_where_its_answer_is_lost(device: Device) -> None:
    """RFC 7959 over a lossy link: no block is skipped and none is taken twice."""
    await device.register()
    whole = encode(Format.OPAQUE, {LwPath(42769, 0, 28): IMAGE[:1500]}, LwPath(42769, 0, 28))
    read = device.read("/42769/0/28")
    first = await device.wire.take()
    options = ((ETAG, b"\x01"), (CONTENT_FORMAT, b"\x2a"), (BLOCK2, block(0, True)))
    device.wire.send(Packet(ACK, code("2.05"), first.mid, first.token, options, whole[:1024]))
    lost = await device.wire.take_where(code=GET)
    assert lost.option(BLOCK2) == block(1, False)
    again = await device.wire.take()
    assert again == lost
    options = ((ETAG, b"\x01"), (CONTENT_FORMAT, b"\x2a"), (BLOCK2, block(1, False)))
    device.wire.send(Packet(ACK, code("2.05"), again.mid, again.token, options, whole[1024:]))
    assert await within(read) == {LwPath(42769, 0, 28): IMAGE[:1500]}


async def test_a_late_answer_to_an_earlier_block_does_not_end_up_in_the_representation(device: Device) -> None:
    """RFC 7959: the duplicate of the first block arrives while the second one is awaited."""
    await device.register()
    read = device.read("/42769/0/28")
    first = await device.wire.take()
    options = ((ETAG, b"\x01"), (CONTENT_FORMAT, b"\x2a"), (BLOCK2, block(0, True)))
    early = Packet(ACK, code("2.05"), first.mid, first.token, options, IMAGE[:1024])
    device.wire.send(early)
    second = await device.wire.take_where(code=GET)
    device.wire.send(early)
    options = ((ETAG, b"\x01"), (CONTENT_FORMAT, b"\x2a"), (BLOCK2, block(1, False)))
    device.wire.send(Packet(ACK, code("2.05"), second.mid, second.token, options, IMAGE[1024:1500]))
    assert await within(read) == {LwPath(42769, 0, 28): IMAGE[:1500]}


@pytest.mark.parametrize(("number", "szx", "size"), [(0, 6, 1024), (2, 6, 952), (7, 4, 256), (46, 2, 56), (0, 0, 16)])
async def test_any_block_of_an_image_is_served_to_a_first_request(
    device: Device, number: int, szx: int, size: int
) -> None:
    """DO-INST-004: random access, without any request before; the ETag is the digest's beginning."""
    digest = digest_of(IMAGE)
    device.bridge.endpoint.packages.offer(digest, IMAGE)
    request = Packet(
        CON, GET, 50, b"\x09", ((URI_PATH, b"p"), (URI_PATH, digest.encode()), (BLOCK2, block(number, False, szx)))
    )
    device.wire.send(request, device.server)
    answer = await device.wire.take()
    start = number << (szx + 4)
    assert (answer.code, answer.payload) == (code("2.05"), IMAGE[start : start + size])
    assert answer.option(BLOCK2) == block(number, start + size < len(IMAGE), szx)
    assert answer.option(ETAG) == bytes.fromhex(digest[:16])
    device.bridge.endpoint.packages.withdraw(digest)
    device.wire.send(Packet(CON, GET, 51, b"\x0a", request.options), device.server)
    assert (await device.wire.take()).code == code("4.04")
