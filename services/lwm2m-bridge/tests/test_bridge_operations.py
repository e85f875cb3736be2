"""Operations of the device management interface beside Read, Write, Execute and Observe (Core TS 1.1, clause 6.3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiocoap import Code, Message
from aiocoap.optiontypes import BlockOption
from lwm2m_rig import Artifacts, Rig, within
from test_bridge_link import content, refusal, scripted

from tinymlaas_lwm2m import Format, Values, decode, encode_composite
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Reason

VALUES: Values = {LwPath(3, 0, 0): "Maker", LwPath(9, 0, 7): 3}


async def test_our_device_is_discovered_and_read_and_written_in_several_places_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Artifacts())
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    link, node = bridge.endpoint.link, bridge.registration("node-1")
    found = await within(link.discover(node, LwPath(9, 1)))
    assert {LwPath(9, 1), LwPath(9, 1, 2), LwPath(9, 1, 4), LwPath(9, 1, 7)} <= set(found)
    paths = (LwPath(3, 0, 0), LwPath(1, 0, 1))
    assert await within(link.read_several(node, paths)) == {paths[0]: "TinyMLaaS", paths[1]: 60}
    await within(link.write_several(node, {paths[1]: 90}))
    assert await within(link.read_several(node, paths[1:])) == {paths[1]: 90}
    for refused in (link.create(node, 9, 2, {LwPath(9, 2, 0): "x"}), link.delete(node, LwPath(9, 0))):
        assert (await refusal(refused)).metadata["coap_code"] == "4.05"
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("instance", [None, 4])
async def test_an_instance_is_created_under_a_chosen_id_or_one_of_the_devices_choice(instance: int | None) -> None:
    async def handler(request: Message) -> Message:
        answer = Message(code=Code.CREATED)
        if instance is None:
            answer.opt.location_path = ("3336", "7")
        return answer

    async with scripted(handler) as (link, device, site):
        base = LwPath(3336, 0 if instance is None else instance)
        made = await within(link.create(device, 3336, instance, {base.child(5750): "gps"}))
        assert made == LwPath(3336, 7 if instance is None else instance)
        sent = site.requests[0]
        assert (sent.code, sent.opt.uri_path) == (Code.POST, ("3336",))
        read_at = base if instance is None else LwPath(3336)
        assert decode(Format.TLV, sent.payload, read_at) == {base.child(5750): b"gps"}


async def test_an_instance_is_deleted() -> None:
    async def handler(request: Message) -> Message:
        return Message(code=Code.DELETED)

    async with scripted(handler) as (link, device, site):
        await within(link.delete(device, LwPath(3336, 7)))
        assert (site.requests[0].code, site.requests[0].opt.uri_path) == (Code.DELETE, ("3336", "7"))


async def test_what_was_not_asked_for_in_a_composite_answer_is_left_out() -> None:
    """DO-SEC-002."""

    async def handler(request: Message) -> Message:
        return content(encode_composite(Format.SENML_CBOR, VALUES), Format.SENML_CBOR)

    async with scripted(handler) as (link, device, site):
        assert await within(link.read_several(device, (LwPath(9),))) == {LwPath(9, 0, 7): 3}
        assert (site.requests[0].code, site.requests[0].opt.uri_path) == (Code.FETCH, ())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Message(code=Code.METHOD_NOT_ALLOWED), Reason.DEVICE_REJECTED),
        (content(b"\xff", Format.SENML_CBOR), Reason.DEVICE_ANSWER_INVALID),
        (content(b"\x80", Format.SENML_CBOR, block2=BlockOption.BlockwiseTuple(0, True, 6)), Reason.LIMIT_EXCEEDED),
    ],
)
async def test_a_composite_read_that_fails_says_why(answer: Message, reason: Reason) -> None:
    async def handler(request: Message) -> Message:
        return answer.copy()

    async with scripted(handler) as (link, device, _):
        assert (await refusal(link.read_several(device, (LwPath(9),)))).reason == reason


async def test_a_malformed_discovery_is_named() -> None:
    async def handler(request: Message) -> Message:
        return content(b"</3/0>,garbage", Format.LINK)

    async with scripted(handler) as (link, device, _):
        assert (await refusal(link.discover(device, LwPath(3)))).reason == Reason.DEVICE_ANSWER_INVALID
