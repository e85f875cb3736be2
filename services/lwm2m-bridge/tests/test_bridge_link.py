"""The link to devices that break the rules, and the package server, packet by packet over loopback UDP."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiocoap
import pytest
from aiocoap import Code, Message, resource
from aiocoap.optiontypes import BlockOption
from hypothesis import given, settings
from hypothesis import strategies as st
from lwm2m_rig import image_of, within

from tinymlaas_lwm2m import (
    Format,
    Kind,
    MlRes,
    ObjectDef,
    ObjectLibrary,
    ObjectLink,
    Operations,
    Path,
    ResourceDef,
    SoftwareRes,
    Values,
    encode,
    ml,
    software,
)
from tinymlaas_lwm2m_bridge import BridgeError, LinkSettings, Reason, Registration
from tinymlaas_lwm2m_bridge.coap.observing import ObservingLink
from tinymlaas_lwm2m_bridge.coap.server import PackageResource, Packages
from tinymlaas_lwm2m_bridge.coap.sources import Sources

SETTINGS = LinkSettings(ack_timeout_s=0.05, max_retransmit=1, answer_s=2.0, execute_s=10.0, max_answer_bytes=8192)
Handler = Callable[[Message], Awaitable[Message]]
IMAGE = image_of(10_000)
DIGEST = hashlib.sha256(IMAGE).hexdigest()


class Scripted(resource.Resource):  # type: ignore[misc]
    """A device whose answers a test writes."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.handler = handler
        self.requests: list[Message] = []

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False

    async def render(self, request: Message) -> Message:
        self.requests.append(request)
        return await self.handler(request)


@asynccontextmanager
async def scripted(handler: Handler) -> AsyncIterator[tuple[ObservingLink, Registration, Scripted]]:
    """A link and a device that answers by `handler`."""
    site = Scripted(handler)
    async with linked(site) as (link, device):
        yield link, device, site


@asynccontextmanager
async def linked(site: Any) -> AsyncIterator[tuple[ObservingLink, Registration]]:
    """A link and a device that serves a resource."""
    server = await aiocoap.Context.create_server_context(None, bind=("127.0.0.1", 0), transports=["udp6"])
    server.serversite = site
    client = await aiocoap.Context.create_server_context(None, bind=("127.0.0.1", 0), transports=["udp6"])
    port = server.request_interfaces[0].token_interface.message_interface.transport.get_extra_info("socket")
    address = f"coap://127.0.0.1:{port.getsockname()[1]}"
    objects = (ObjectLink(9, 0), ObjectLink(42769, 0))
    device = Registration("id", "node-1", address, "coap://127.0.0.1:1", 60, "1.1", "U", False, objects, 0.0, 0.0)
    yield ObservingLink(client, SETTINGS), device
    await client.shutdown()
    await server.shutdown()


def content(payload: bytes, content_format: int = Format.TLV, **options: Any) -> Message:
    answer = Message(code=Code.CONTENT, payload=payload)
    answer.opt.content_format = content_format
    for name, value in options.items():
        setattr(answer.opt, name, value)
    return answer


async def refusal(work: Awaitable[Any]) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        await within(work)
    return caught.value


def block(number: int, more: bool, szx: int = 6) -> Any:
    return BlockOption.BlockwiseTuple(number, more, szx)


async def test_a_device_that_sends_blocks_for_ever_is_cut_off() -> None:
    """DO-SEC-002."""

    async def endless(request: Message) -> Message:
        number = request.opt.block2.block_number if request.opt.block2 else 0
        return content(b"\x00" * 1024, block2=block(number, True))

    async with scripted(endless) as (link, device, site):
        error = await refusal(link.read(device, Path(3, 0)))
        assert (error.reason, error.metadata["value"]) == (Reason.LIMIT_EXCEEDED, "8192")
        assert len(site.requests) == 9


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (content(b"\xc1"), "cut off"),
        (content(b"x", 61), "not supported"),
        (content(b"x", Format.TEXT), "one resource"),
        (content(b"\x00" * 1024, block2=block(5, True)), "out of order"),
        (content(b"\x00" * 7, block2=block(0, True)), "wrong size"),
    ],
)
async def test_answers_that_break_the_standard_are_named(answer: Message, detail: str) -> None:
    """DO-SEC-002."""

    async def handler(request: Message) -> Message:
        return answer.copy()

    async with scripted(handler) as (link, device, _):
        error = await refusal(link.read(device, Path(3, 0)))
        assert error.reason == Reason.DEVICE_ANSWER_INVALID
        assert detail in error.detail


async def test_a_representation_that_changes_between_blocks_is_read_anew_and_not_mixed() -> None:
    count = 0

    async def changing(request: Message) -> Message:
        nonlocal count
        count += 1
        number = request.opt.block2.block_number if request.opt.block2 else 0
        return content(b"\x00" * 1024, block2=block(number, number < 1), etag=bytes([count]))

    async with scripted(changing) as (link, device, _):
        error = await refusal(link.read(device, Path(3, 0)))
        assert error.reason == Reason.DEVICE_ANSWER_INVALID
        assert "changes faster" in error.detail
        assert count == 6


@pytest.mark.parametrize("spoken", [Format.TLV, Format.SENML_CBOR, Format.SENML_JSON, Format.LWM2M_CBOR])
async def test_the_format_that_a_device_speaks_is_found_and_remembered(spoken: Format) -> None:
    """DO-CAP-005."""
    values: Values = {Path(3, 0, 0): "Maker", Path(3, 0, 9): 55}

    async def handler(request: Message) -> Message:
        if request.opt.accept != spoken:
            return Message(code=Code.NOT_ACCEPTABLE)
        return content(encode(spoken, values, Path(3, 0)), spoken)

    async with scripted(handler) as (link, device, site):
        assert await within(link.read(device, Path(3, 0))) == values
        asked = len(site.requests)
        assert await within(link.read(device, Path(3, 0))) == values
        assert len(site.requests) == asked + 1


async def test_an_object_that_nobody_knows_passes_as_opaque_and_one_of_a_users_file_as_its_types() -> None:
    """DO-CAP-007."""

    async def handler(request: Message) -> Message:
        return content(b"\xc4\x4d" + struct.pack(">f", 1.5))

    added = ObjectDef(30_000, "Vendor", False, {77: ResourceDef(77, "Level", Operations.READ, Kind.FLOAT)})
    at = Path(30_000, 0, 77)
    async with scripted(handler) as (link, device, _):
        assert await within(link.read(device, Path(30_000, 0))) == {at: struct.pack(">f", 1.5)}
        link._types = ObjectLibrary([added]).kind_of
        assert await within(link.read(device, Path(30_000, 0))) == {at: 1.5}


async def test_a_device_without_a_common_format_is_refused() -> None:
    async def handler(request: Message) -> Message:
        return Message(code=Code.NOT_ACCEPTABLE)

    async with scripted(handler) as (link, device, _):
        assert (await refusal(link.read(device, Path(3, 0)))).reason == Reason.DEVICE_ANSWER_INVALID


async def test_a_missing_resource_is_nothing_and_a_missing_object_is_a_refusal() -> None:
    async def handler(request: Message) -> Message:
        return Message(code=Code.NOT_FOUND)

    async with scripted(handler) as (link, device, _):
        assert await within(link.read(device, ml(MlRes.OUTPUT))) == {}
        assert (await refusal(link.read(device, Path(3, 0)))).metadata["coap_code"] == "4.04"


async def test_an_error_answer_keeps_its_code_and_text() -> None:
    async def handler(request: Message) -> Message:
        return Message(code=Code.METHOD_NOT_ALLOWED, payload=b"slot is in state INITIAL")

    async with scripted(handler) as (link, device, _):
        error = await refusal(link.execute(device, software(0, SoftwareRes.INSTALL)))
        assert error.reason == Reason.DEVICE_REJECTED
        assert error.metadata == {"path": "/9/0/4", "coap_code": "4.05", "text": "slot is in state INITIAL"}


async def test_a_device_that_does_not_answer_is_unreachable() -> None:
    async def handler(request: Message) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async with scripted(handler) as (link, device, _):
        assert (await refusal(link.read(device, Path(3, 0)))).reason == Reason.DEVICE_UNREACHABLE


async def test_a_closed_port_is_unreachable() -> None:
    async def handler(request: Message) -> Message:
        return Message(code=Code.CHANGED)

    async with scripted(handler) as (link, device, _):
        gone = Registration(**{**vars(device), "address": "coap://127.0.0.1:9", "endpoint": "gone"})
        assert (await refusal(link.read(gone, Path(3, 0)))).reason == Reason.DEVICE_UNREACHABLE


async def test_a_late_answer_comes_as_a_separate_response() -> None:
    """DO-ML-007."""
    gate = asyncio.Event()

    async def slow(request: Message) -> Message:
        if request.code is Code.POST:
            await gate.wait()
            return Message(code=Code.CHANGED)
        gate.set()
        return content(encode(Format.TLV, {Path(3, 0, 9): 5}, Path(3, 0)))

    async with scripted(slow) as (link, device, _):
        execution = asyncio.create_task(link.execute(device, ml(MlRes.INVOKE)))
        # The device answers the read only because the message layer has acknowledged the execute in the meantime.
        assert await within(link.read(device, Path(3, 0))) == {Path(3, 0, 9): 5}
        await within(execution)


@pytest.mark.parametrize("szx", [6, 4, 0])
async def test_a_push_takes_the_block_size_that_the_device_asks_for(szx: int) -> None:
    received = bytearray()

    async def handler(request: Message) -> Message:
        part = request.opt.block1
        assert part.start == len(received)
        received.extend(request.payload)
        answer = Message(code=Code.CONTINUE if part.more else Code.CHANGED)
        answer.opt.block1 = block(part.block_number, part.more, min(szx, part.size_exponent))
        return answer

    async with scripted(handler) as (link, device, site):
        steps: list[int] = []

        async def progress(done: int) -> None:
            steps.append(done)

        await within(link.push(device, software(0, SoftwareRes.PACKAGE), IMAGE[:5000], progress))
        assert bytes(received) == IMAGE[:5000]
        assert steps == sorted(set(steps))
        assert steps[-1] == 5000
        assert site.requests[0].opt.size1 == 5000


async def test_something_that_can_not_be_observed_says_so() -> None:
    async def handler(request: Message) -> Message:
        return content(encode(Format.TLV, {Path(3, 0, 9): 5}, Path(3, 0)))

    async with scripted(handler) as (link, device, _):
        events = link.observe(device, Path(3, 0))
        assert await within(anext(events)) == {Path(3, 0, 9): 5}
        assert (await refusal(anext(events))).reason == Reason.DEVICE_REJECTED


async def test_a_notification_that_is_longer_than_a_datagram_is_read_anew() -> None:
    """DO-OBS-002: its first block is a hint; the rest might be of another moment."""
    path, latest = Path(42769, 0, 28), IMAGE[:3000]

    async def handler(request: Message) -> Message:
        whole = encode(Format.TLV, {path: latest}, path)
        if request.opt.observe == 0:
            return content(b"of an earlier moment" * 50, block2=block(0, True), observe=1)
        number = request.opt.block2.block_number if request.opt.block2 else 0
        part = whole[number * 1024 : number * 1024 + 1024]
        return content(part, block2=block(number, len(whole) > (number + 1) * 1024))

    async with scripted(handler) as (link, device, site):
        assert await within(anext(link.observe(device, path))) == {path: latest}
        asked = [request.opt.block2.block_number if request.opt.block2 else 0 for request in site.requests]
        assert asked == [0, 0, 1, 2]


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Packages, Callable[..., Awaitable[Message]]]]:
    """A package server and a way to ask it."""
    packages = Packages(Sources(asyncio.get_running_loop().time))
    site = resource.Site()
    site.add_resource(["p"], PackageResource(packages))
    server = await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", 0), transports=["udp6"])
    client = await aiocoap.Context.create_client_context(transports=["udp6"])
    transport = server.request_interfaces[0].token_interface.message_interface.transport
    port = transport.get_extra_info("socket").getsockname()[1]

    async def get(digest: str, number: int | None = None, szx: int = 6, **options: Any) -> Message:
        message = Message(code=options.pop("code", Code.GET), uri=f"coap://127.0.0.1:{port}/p/{digest}")
        if number is not None:
            message.opt.block2 = block(number, False, szx)
        for name, value in options.items():
            setattr(message.opt, name, value)
        answer: Message = await within(client.request(message, handle_blockwise=False).response)
        return answer

    yield packages, get
    await client.shutdown()
    await server.shutdown()


async def test_any_block_of_any_size_is_served_at_any_time() -> None:
    """DO-INST-004."""
    async with served() as (packages, get):
        packages.offer(DIGEST, IMAGE)
        for number, szx in ((9, 6), (0, 6), (5, 2), (312, 1), (624, 0), (3, 6)):
            answer = await get(DIGEST, number, szx)
            size = 1 << (szx + 4)
            assert answer.payload == IMAGE[number * size : (number + 1) * size]
            assert answer.opt.etag == bytes.fromhex(DIGEST)[:8]
            assert answer.opt.size2 == len(IMAGE)
            assert answer.opt.block2 == block(number, (number + 1) * size < len(IMAGE), szx)


async def test_the_package_server_refuses_what_it_does_not_have() -> None:
    """DO-SEC-005."""
    async with served() as (packages, get):
        assert (await get(DIGEST)).code is Code.NOT_FOUND
        packages.offer(DIGEST, IMAGE)
        packages.offer(DIGEST, IMAGE)
        assert (await get(DIGEST, 10)).code is Code.BAD_REQUEST
        assert (await get(DIGEST + "/x")).code is Code.NOT_FOUND
        assert (await get(DIGEST, code=Code.POST)).code is Code.METHOD_NOT_ALLOWED
        assert (await get(DIGEST, etags=[bytes.fromhex(DIGEST)[:8]])).code is Code.VALID
        packages.withdraw(DIGEST)
        assert (await get(DIGEST)).code is Code.CONTENT
        packages.withdraw(DIGEST)
        assert (await get(DIGEST)).code is Code.NOT_FOUND


@given(payload=st.binary(max_size=64), content_format=st.sampled_from([0, 42, 110, 112, 11542, 60]))
@settings(max_examples=30, deadline=None)
def test_any_answer_of_a_device_is_values_or_a_reason(payload: bytes, content_format: int) -> None:
    """DO-SEC-002."""

    async def handler(request: Message) -> Message:
        return content(payload, content_format)

    async def ask() -> None:
        async with scripted(handler) as (link, device, _):
            for path in (Path(42769, 0), ml(MlRes.OUTPUT), Path(9)):
                try:
                    values = await within(link.read(device, path))
                except BridgeError as error:
                    assert error.reason == Reason.DEVICE_ANSWER_INVALID  # noqa: PT017
                else:
                    assert all(path.covers(at) for at in values)

    asyncio.run(ask())
