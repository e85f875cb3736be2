"""Registration: lifetimes by a clock of the test's own, persistence, malformed and hostile registrations over real CoAP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiocoap
import pytest
from aiocoap import Code, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from lwm2m_rig import Clock, Rig, eventually, within

from tinymlaas_lwm2m import ObjectLink
from tinymlaas_lwm2m_bridge import (
    BridgeError,
    BridgeSettings,
    CoapSettings,
    DeviceChange,
    Reason,
    Registration,
    SqlStore,
)
from tinymlaas_lwm2m_bridge.coap.endpoint import CoapEndpoint
from tinymlaas_lwm2m_bridge.core.directory import Directory
from tinymlaas_lwm2m_bridge.core.registration import (
    RegisterQuery,
    UpdateQuery,
    parse_objects,
    parse_register,
    parse_update,
)

LINKS = b'</>;rt="oma.lwm2m";ct=11542,</1/0>,</3/0>,</9/0>,</42769/0>'


def query(endpoint: str = "node-1", lifetime_s: int = 60) -> RegisterQuery:
    return RegisterQuery(endpoint, lifetime_s, "1.1", "U", False)


def directory_of(tmp_path: Path, clock: Clock, **limits: int) -> Directory:
    return Directory(SqlStore(f"sqlite:///{tmp_path / 'b.db'}"), clock, **limits)


def test_a_storm_is_stored_whole_in_statements_of_many_rows(database_url: str) -> None:
    kinds = [parse_objects(LINKS), parse_objects(LINKS + b",</3324/0>")]
    storm = {
        f"node-{d}": Registration(
            f"id-{d}",
            f"node-{d}",
            f"coap://192.0.2.1:{d}",
            "coap://[::1]",
            60,
            "1.1",
            "U",
            False,
            kinds[d % 2],
            1.0,
            2.0,
        )
        for d in range(150)
    }
    here, elsewhere = SqlStore(database_url, "here"), SqlStore(database_url, "elsewhere")
    here.write_registrations(storm)
    assert {kept.endpoint: kept for kept in here.load_registrations()} == storm
    later = replace(storm["node-70"], id="id-later", updated_at=9.0)
    elsewhere.write_registrations({"node-70": later})
    again = {name: replace(kept, id=f"{kept.id}-again", updated_at=3.0) for name, kept in storm.items()}
    here.write_registrations(again | {"node-149": None})
    del again["node-70"], again["node-149"]
    assert {kept.endpoint: kept for kept in here.load_registrations()} == again, (
        "what another heard later is the other's"
    )
    assert elsewhere.load_registrations() == [later]
    here.close()
    elsewhere.close()


def register(directory: Directory, endpoint: str = "node-1", lifetime_s: int = 60) -> Registration:
    return directory.register(
        query(endpoint, lifetime_s), (ObjectLink(3, 0),), "coap://127.0.0.1:1", "coap://127.0.0.1:2"
    )


def test_a_registration_ends_with_its_lifetime_and_not_before(tmp_path: Path) -> None:
    """DO-REG-007."""
    clock = Clock()
    directory = directory_of(tmp_path, clock)
    register(directory, lifetime_s=60)
    clock.now += 59.9
    assert directory.expire() == []
    assert directory.get("node-1").endpoint == "node-1"
    clock.now += 0.1
    with pytest.raises(BridgeError) as caught:
        directory.get("node-1")
    assert caught.value.reason == Reason.DEVICE_UNKNOWN
    assert [lost.endpoint for lost in directory.expire()] == ["node-1"]
    assert len(directory) == 0
    assert directory.expire() == []


def test_an_update_extends_the_lifetime_and_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    clock = Clock()
    directory = directory_of(tmp_path, clock)
    before = register(directory)
    clock.now += 50
    after = directory.update(before.id, UpdateQuery(None, None), None, "coap://127.0.0.1:9", "coap://127.0.0.1:2")
    assert (after.lifetime_s, after.objects, after.address) == (60, before.objects, "coap://127.0.0.1:9")
    clock.now += 50
    assert directory.expire() == []
    assert directory.get("node-1").registered_at == before.registered_at


def test_registering_again_replaces_the_registration_and_its_id(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, Clock())
    first, second = register(directory), register(directory)
    assert first.id != second.id
    with pytest.raises(BridgeError):
        directory.update(first.id, UpdateQuery(None, None), None, "coap://127.0.0.1:1", "coap://127.0.0.1:2")
    assert len(directory) == 1


def test_registrations_survive_a_restart_with_what_is_left_of_their_lifetime(tmp_path: Path) -> None:
    clock = Clock()
    register(directory_of(tmp_path, clock))
    register(directory_of(tmp_path, clock), "node-2", 600)
    clock.now += 100
    again = directory_of(tmp_path, clock)
    assert [r.endpoint for r in again.all()] == ["node-2"]
    assert [r.endpoint for r in again.expire()] == ["node-1"]
    assert [r.endpoint for r in directory_of(tmp_path, clock).all()] == ["node-2"]


def test_a_full_directory_refuses_new_devices_but_not_known_ones(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, Clock(), max_devices=2)
    register(directory, "a")
    register(directory, "b")
    register(directory, "a")
    with pytest.raises(BridgeError) as caught:
        register(directory, "c")
    assert (caught.value.code, caught.value.metadata["limit"]) == ("RESOURCE_EXHAUSTED", "max_devices")


async def test_a_watcher_that_reads_too_slowly_is_told_so_rather_than_left_with_gaps(tmp_path: Path) -> None:
    """DO-BRIDGE-002."""
    directory = directory_of(tmp_path, Clock(), watcher_backlog=3)
    events = directory.watch()
    assert (await anext(events)).change is None
    for number in range(5):
        register(directory, f"node-{number}")
    assert [(await anext(events)).change for _ in range(3)] == [DeviceChange.REGISTERED] * 3
    with pytest.raises(BridgeError) as caught:
        await anext(events)
    assert caught.value.reason == Reason.WATCHER_TOO_SLOW


@given(st.lists(st.tuples(st.sampled_from("rued"), st.integers(0, 4), st.integers(1, 100)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_history_leaves_exactly_the_devices_that_are_alive(history: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    directory = Directory(SqlStore("sqlite://"), clock)
    alive: dict[str, tuple[str, float]] = {}
    for action, number, amount in history:
        endpoint = f"node-{number}"
        known = alive.get(endpoint)
        if action == "r":
            alive[endpoint] = (register(directory, endpoint, amount).id, clock.now + amount)
        elif action == "u" and known:
            directory.update(known[0], UpdateQuery(amount, None), None, "coap://h", "coap://l")
            alive[endpoint] = (known[0], clock.now + amount)
        elif action == "d" and known:
            directory.deregister(known[0], "coap://127.0.0.1:1")
            del alive[endpoint]
        else:
            clock.now += amount
            lost = {key for key, (_, end) in alive.items() if end <= clock.now}
            assert {registration.endpoint for registration in directory.expire()} == lost
            alive = {key: value for key, value in alive.items() if key not in lost}
        assert {registration.endpoint for registration in directory.all()} == alive.keys()


@pytest.mark.parametrize(
    ("queries", "parameter"),
    [
        ([], "ep"),
        (["ep="], "ep"),
        (["ep=a/b"], "ep"),
        (["ep=" + "x" * 129], "ep"),
        (["ep=../x"], "ep"),
        (["ep=a", "ep=b"], "ep"),
        (["ep=a", "lt=0"], "lt"),
        (["ep=a", "lt=-1"], "lt"),
        (["ep=a", "lt=1e3"], "lt"),
        (["ep=a", "lt=99999999999"], "lt"),
        (["ep=a", "b=X"], "b"),
    ],
)
def test_malformed_register_parameters_are_named(queries: list[str], parameter: str) -> None:
    """DO-REG-003."""
    with pytest.raises(BridgeError) as caught:
        parse_register(queries)
    assert (caught.value.reason, caught.value.metadata["parameter"]) == (Reason.REGISTRATION_INVALID, parameter)


def test_register_parameters_have_the_standards_defaults_and_unknown_ones_are_ignored() -> None:
    parsed = parse_register(["ep=urn:imei:123", "x=y", "Q"])
    assert parsed == RegisterQuery("urn:imei:123", 86_400, "1.0", "U", True)
    assert parse_update(["lt=5"]) == UpdateQuery(5, None)


@pytest.mark.parametrize(
    ("queries", "binding", "queue_mode"),
    [
        (["lwm2m=1.0", "b=U"], "U", False),
        (["lwm2m=1.0", "b=UQ"], "UQ", True),
        (["lwm2m=1.1", "b=U"], "U", False),
        (["lwm2m=1.1", "b=U", "Q"], "U", True),
    ],
)
def test_queue_mode_is_a_binding_of_lwm2m_1_0_and_a_parameter_of_1_1(
    queries: list[str], binding: str, queue_mode: bool
) -> None:
    parsed = parse_register(["ep=a", *queries])
    assert (parsed.binding, parsed.queue_mode) == (binding, queue_mode)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_parameters_are_taken_or_refused(queries: list[str]) -> None:
    try:
        assert parse_register(queries).lifetime_s > 0
    except BridgeError as error:
        assert error.reason in (Reason.REGISTRATION_INVALID, Reason.VERSION_UNSUPPORTED)  # noqa: PT017


def test_links_that_are_no_objects_are_refused() -> None:
    with pytest.raises(BridgeError) as caught:
        parse_objects(b"</etc/passwd>")
    assert caught.value.metadata["parameter"] == "links"


@asynccontextmanager
async def client() -> AsyncIterator[aiocoap.Context]:
    context = await aiocoap.Context.create_server_context(None, bind=("127.0.0.1", 0), transports=["udp6"])
    yield context
    await context.shutdown()


async def post(
    context: aiocoap.Context, port: int, path: tuple[str, ...], queries: list[str], payload: bytes, ct: int | None = 40
) -> Message:
    message = Message(code=Code.POST, payload=payload)
    message.unresolved_remote = f"127.0.0.1:{port}"
    message.opt.uri_path = path
    message.opt.uri_query = tuple(queries)
    message.opt.content_format = ct
    answer: Message = await within(context.request(message).response)
    return answer


@pytest.mark.parametrize(
    ("queries", "payload", "ct", "code"),
    [
        (["ep=a", "lwm2m=1.1"], LINKS, 40, Code.CREATED),
        (["ep=a"], b"", None, Code.CREATED),
        (["ep=a", "lwm2m=2.0"], LINKS, 40, Code.PRECONDITION_FAILED),
        (["lt=60"], LINKS, 40, Code.BAD_REQUEST),
        (["ep=a"], b"</3/0", 40, Code.BAD_REQUEST),
        (["ep=a"], b"</3/0>,</3/0>", 40, Code.BAD_REQUEST),
        (["ep=a"], b"\xff\xfe", 40, Code.BAD_REQUEST),
        (["ep=a"], LINKS, 50, Code.BAD_REQUEST),
        (["ep=a"], b"</3/0>," * 4000, 40, Code.REQUEST_ENTITY_TOO_LARGE),
    ],
)
async def test_register_answers_with_the_code_of_the_standard(
    tmp_path: Path, queries: list[str], payload: bytes, ct: int | None, code: Code
) -> None:
    """DO-REG-002."""
    rig = Rig(tmp_path)
    bridge = await rig.bridge()
    async with client() as context:
        answer = await post(context, rig.port, ("rd",), queries, payload, ct)
        assert answer.code is code
        assert len(bridge.directory) == (1 if code is Code.CREATED else 0)
    await bridge.close()


async def test_update_and_deregister_follow_the_location_and_unknown_ones_are_4_04(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    bridge = await rig.bridge()
    async with client() as context:
        location = (await post(context, rig.port, ("rd",), ["ep=a", "lt=60"], LINKS)).opt.location_path
        assert location[0] == "rd"
        assert (await post(context, rig.port, location, ["lt=90"], b"", None)).code is Code.CHANGED
        assert bridge.registration("a").lifetime_s == 90
        assert (await post(context, rig.port, location, ["lt=0"], b"", None)).code is Code.BAD_REQUEST
        assert (await post(context, rig.port, ("rd", "nobody"), [], b"", None)).code is Code.NOT_FOUND
        assert (await post(context, rig.port, (*location, "x"), [], b"", None)).code is Code.NOT_FOUND
        message = Message(code=Code.DELETE)
        message.unresolved_remote = f"127.0.0.1:{rig.port}"
        message.opt.uri_path = location
        assert (await within(context.request(message).response)).code is Code.DELETED
        assert len(bridge.directory) == 0
    await bridge.close()


async def test_raw_garbage_on_the_port_does_not_stop_the_bridge(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    bridge = await rig.bridge()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", rig.port))
    for datagram in (
        b"",
        b"\x00",
        b"\xff" * 1500,
        b"\x40\x02",
        b"\x48\x02\x00\x01" + b"t" * 8 + b"\xb2rd\xff",
        b"\x44\x02",
    ):
        transport.sendto(datagram)
    async with client() as context:
        assert (await post(context, rig.port, ("rd",), ["ep=a"], LINKS)).code is Code.CREATED
    transport.close()
    await bridge.close()


async def test_a_device_registers_updates_in_time_and_is_lost_when_it_vanishes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    bridge = await rig.bridge()
    device = await rig.device(lifetime_s=1)
    await within(device.registered.wait())
    first = bridge.registration("node-1")
    rig.clock.now += 0.4
    await eventually(lambda: bridge.registration("node-1").updated_at > first.updated_at, "an update arrives")
    assert bridge.registration("node-1").id == first.id
    await device.vanish()
    rig.clock.now += 1.1
    await eventually(lambda: len(bridge.directory) == 0, "the device is lost")
    await bridge.close()


async def test_a_device_whose_registration_was_forgotten_registers_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    bridge = await rig.bridge()
    device = await rig.device(lifetime_s=1)
    await within(device.registered.wait())
    first = bridge.registration("node-1")
    bridge.directory.deregister(first.id, first.address)
    await eventually(lambda: len(bridge.directory) == 1, "the device comes back")
    assert bridge.registration("node-1").id != first.id
    await device.close()
    await bridge.close()


async def test_plain_coap_beyond_loopback_is_refused_without_the_flag(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, Clock())
    with pytest.raises(BridgeError) as caught:
        await CoapEndpoint.start(directory, CoapSettings(host="0.0.0.0", port=0))
    assert caught.value.reason == Reason.PLAIN_COAP_REFUSED


async def test_two_bridges_can_not_share_a_port_in_silence(tmp_path: Path) -> None:
    """DO-SEC-003."""
    rig = Rig(tmp_path)
    bridge = await rig.bridge()
    directory = directory_of(tmp_path, Clock())
    with pytest.raises(BridgeError) as caught:
        await CoapEndpoint.start(directory, BridgeSettings(coap=CoapSettings(port=rig.port)).coap)
    assert caught.value.reason == Reason.ARGUMENT_INVALID
    await bridge.close()
