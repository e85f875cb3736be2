"""The short way of registrations and images beside aiocoap: the same answers, and nothing lost, doubled or amplified."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from coap_packets import (
    ACK,
    BLOCK1,
    BLOCK2,
    CON,
    CONTENT_FORMAT,
    ETAG,
    GET,
    LOCATION_PATH,
    NON,
    POST,
    URI_PATH,
    URI_QUERY,
    Packet,
    Wire,
    block,
    code,
)
from hypothesis import given
from hypothesis import strategies as st
from lwm2m_rig import Artifacts, Rig, digest_of, eventually, image_of, within

from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Bridge, Registration, SqlStore
from tinymlaas_lwm2m_bridge.coap import packets
from tinymlaas_lwm2m_bridge.coap.server import Packages
from tinymlaas_lwm2m_bridge.coap.sources import SMALL_BLOCK_SZX, Sources, is_loopback
from tinymlaas_lwm2m_bridge.registration_writer import RegistrationWriter

DELETE = 4
URI_HOST, UNKNOWN_ELECTIVE = 3, 2050
IMAGE = image_of(3_000)
DIGEST = digest_of(IMAGE)
LINKS = b"</3/0>,</9/0>"
EP = (URI_QUERY, b"ep=node-1")
RD = (URI_PATH, b"rd")
GOOD = (RD, EP, (URI_QUERY, b"lt=60"), (URI_QUERY, b"lwm2m=1.1"), (CONTENT_FORMAT, b"\x28"))


class Asking:
    """A device that sends one request at a time, the short way or, as a non-confirmable message, the long one."""

    def __init__(self, wire: Wire, bridge: Bridge) -> None:
        self.wire = wire
        self.bridge = bridge
        self.server = ("127.0.0.1", int(bridge.endpoint.address.rsplit(":", 1)[1]))
        self._mid = 100

    async def ask(self, kind: int, method: int, options: tuple[tuple[int, bytes], ...], payload: bytes = b"") -> Packet:
        self._mid += 1
        self.wire.send(Packet(kind, method, self._mid, b"\x07\x08", options, payload), self.server)
        answer = await self.wire.take()
        # What the long way stores slowly comes after an empty acknowledgement (RFC 7252, clause 5.2.2).
        return answer if answer.code else await self.wire.take()


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    bridge = await Rig(tmp_path, Artifacts(IMAGE)).bridge()
    wire = await Wire().open()
    yield Asking(wire, bridge)
    wire.close()
    await bridge.close()


CASES: dict[str, tuple[int, tuple[tuple[int, bytes], ...], bytes]] = {
    "register": (POST, GOOD, LINKS),
    "register without a name": (POST, (RD,), LINKS),
    "register with a name that is none": (POST, (RD, (URI_QUERY, b"ep=a b")), LINKS),
    "register with bad links": (POST, GOOD, b"</3/0"),
    "register in another format": (POST, (RD, EP, (CONTENT_FORMAT, b"")), LINKS),
    "register with an unsupported version": (POST, (RD, EP, (URI_QUERY, b"lwm2m=9.9")), LINKS),
    "update of nothing": (POST, (RD, (URI_PATH, b"nothing")), b""),
    "delete of nothing": (DELETE, (RD, (URI_PATH, b"nothing")), b""),
    "image": (GET, ((URI_PATH, b"p"), (URI_PATH, DIGEST.encode())), b""),
    "last block": (GET, ((URI_PATH, b"p"), (URI_PATH, DIGEST.encode()), (BLOCK2, block(2, False))), b""),
    "block beyond the end": (GET, ((URI_PATH, b"p"), (URI_PATH, DIGEST.encode()), (BLOCK2, block(9, False))), b""),
    "image that is there": (
        GET,
        ((ETAG, bytes.fromhex(DIGEST[:16])), (URI_PATH, b"p"), (URI_PATH, DIGEST.encode())),
        b"",
    ),
    "image that is unknown": (GET, ((URI_PATH, b"p"), (URI_PATH, b"00" * 32)), b""),
    "image that is expected": (GET, ((URI_PATH, b"p"), (URI_PATH, b"11" * 32)), b""),
}


@pytest.mark.parametrize("case", CASES)
async def test_both_ways_give_the_same_answer(asking: Asking, case: str) -> None:
    method, options, payload = CASES[case]
    asking.bridge.endpoint.packages.offer(DIGEST, IMAGE)
    asking.bridge.endpoint.packages.expect("11" * 32)
    short = await asking.ask(CON, method, options, payload)
    long = await asking.ask(NON, method, options, payload)
    assert (short.kind, long.kind) == (ACK, NON)
    assert short.code == long.code
    assert short.payload == long.payload or not short.code < code("3.00")
    # A registration has another location each time.
    assert [o for o in short.options if o[0] != LOCATION_PATH] == [o for o in long.options if o[0] != LOCATION_PATH]


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ((URI_HOST, b"bridge.example"), "2.01"),
        ((UNKNOWN_ELECTIVE, b"x"), "2.01"),
        ((BLOCK1, block(0, False)), "2.01"),
    ],
)
async def test_options_mean_what_they_mean_on_either_way(
    asking: Asking, option: tuple[int, bytes], answer: str
) -> None:
    """RFC 7252, clause 5.4.1: elective options may be passed over; Block1 takes the long way."""
    options = tuple(sorted((*GOOD, option), key=lambda given: given[0]))
    assert (await asking.ask(CON, POST, options, LINKS)).code == code(answer)


async def test_a_registration_is_updated_and_deregistered(asking: Asking) -> None:
    """DO-REG-005."""
    registered = await asking.ask(CON, POST, GOOD, LINKS)
    location = tuple((URI_PATH, value) for number, value in registered.options if number == LOCATION_PATH)
    assert (await asking.ask(CON, POST, (*location, (URI_QUERY, b"lt=77")))).code == code("2.04")
    assert asking.bridge.registration("node-1").lifetime_s == 77
    assert (await asking.ask(CON, DELETE, location)).code == code("2.02")
    assert (await asking.ask(CON, POST, location)).code == code("4.04")


async def test_a_device_is_answered_after_its_registration_is_stored(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-REG-009: what was answered survives a crash of the bridge right after."""
    go = threading.Event()
    store = asking.bridge._writer._store
    write = store.write_registrations

    def held(changes: Mapping[str, Registration | None]) -> None:
        assert go.wait(60)
        write(changes)

    monkeypatch.setattr(store, "write_registrations", held)
    asking.wire.send(Packet(CON, POST, 101, b"\x07\x08", GOOD, LINKS), asking.server)
    await eventually(lambda: len(asking.bridge.directory) == 1, "the directory has it")
    # Neither is a duplicate answered meanwhile, but what needs no store is.
    asking.wire.send(Packet(CON, POST, 101, b"\x07\x08", GOOD, LINKS), asking.server)
    asking.wire.send(Packet(CON, GET, 102, b"\x09", ((URI_PATH, b"p"), (URI_PATH, b"x"))), asking.server)
    assert (await asking.wire.take()).token == b"\x09"
    go.set()
    registered = await asking.wire.take()
    assert registered.mid == 101
    assert registered.options[-1][1].decode() == asking.bridge.registration("node-1").id


async def test_a_forged_source_gets_no_more_bytes_of_an_image_than_it_sent(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-SEC-009, for plain CoAP: until a device there has answered a request of the bridge."""
    monkeypatch.setattr(asking.bridge.endpoint.packages._sources, "_trusted", lambda host: False)
    asking.bridge.endpoint.packages.offer(DIGEST, IMAGE)
    options = ((URI_PATH, b"p"), (URI_PATH, DIGEST.encode()))
    asked = Packet(CON, GET, 101, b"\x07\x08", options)
    answer = await asking.ask(CON, GET, options)
    assert answer.code == code("2.05")
    assert len(answer.bytes()) <= len(asked.bytes())
    await asking.ask(CON, POST, GOOD, LINKS)
    read = asyncio.create_task(asking.bridge.endpoint.link.read(asking.bridge.registration("node-1"), LwPath(3, 0, 9)))
    question = await asking.wire.take_where(code=GET)
    asking.wire.send(Packet(ACK, code("4.04"), question.mid, question.token))
    assert await within(read) == {}
    assert len((await asking.ask(CON, GET, options)).payload) == 1024


async def test_a_datagram_that_aiocoap_can_not_read_is_dropped_and_the_next_one_answered(asking: Asking) -> None:
    """A path that is no UTF-8 (RFC 7252, clause 5.10), on both ways and at any length."""
    bad = ((URI_PATH, b"rd"), (URI_QUERY, b"ep=\xff\xfe"))
    for kind in (CON, NON):
        asking.wire.send(Packet(kind, POST, 1, b"\x01", bad, LINKS), asking.server)
        asking.wire.transport.sendto(b"\x40", asking.server)
        asking.wire.transport.sendto(bytes(5000), asking.server)
        asking.wire.transport.sendto(b"\x40\x02\x00\x01" + bytes(4000), asking.server)
    assert (await asking.ask(CON, POST, GOOD, LINKS)).code == code("2.01")


async def test_a_store_that_fails_is_told_as_5_03_and_tried_again(tmp_path: Path) -> None:
    failures = [OSError("disk full")]
    store = SqlStore(f"sqlite:///{tmp_path / 'b.db'}")

    class Failing:
        def load_registrations(self) -> list[Registration]:
            return store.load_registrations()

        def write_registrations(self, changes: Mapping[str, Registration | None]) -> None:
            if failures:
                raise failures.pop()
            store.write_registrations(changes)

    writer = RegistrationWriter(Failing(), retry_s=0.001)
    await writer.start()
    registration = Registration("1", "node-1", "coap://a", "coap://b", 60, "1.1", "U", False, (), 1.0, 1.0)
    writer.put_registration(registration)
    with pytest.raises(OSError, match="disk full"):
        await within(asyncio.shield(writer.written()))
    await within(asyncio.shield(writer.written()))
    assert store.load_registrations() == [registration]
    writer.delete_registration("node-1")
    await writer.close()
    assert store.load_registrations() == []
    store.close()


def test_a_host_that_has_proven_nothing_gets_small_blocks_and_few_answers() -> None:
    """DO-SEC-009, DO-SEC-011: a forged source address is no weapon against who has it."""
    now = [0.0]
    sources = Sources(lambda: now[0], per_second=10, burst=20)
    images = Packages(sources)
    images.offer(DIGEST, IMAGE)
    assert len(images.block(DIGEST, "192.0.2.1", (), None).payload) == 16 << SMALL_BLOCK_SZX
    assert sum(sources.allow("192.0.2.1") for _ in range(100)) == 20
    now[0] += 1.0
    assert sum(sources.allow("192.0.2.1") for _ in range(100)) == 10
    assert sources.dropped == 170
    assert sources.allow("192.0.2.2")
    sources.verify("192.0.2.1")
    assert len(images.block(DIGEST, "192.0.2.1", (), None).payload) == 1024
    assert len(images.block(DIGEST, "192.0.2.1", (), (64, 2)).payload) == 64
    assert len(images.block(DIGEST, "192.0.2.2", (), (64, 2)).payload) == 32
    assert all(sources.allow("::ffff:127.0.0.1") for _ in range(100))


def test_hosts_are_forgotten_rather_than_kept_without_end() -> None:
    sources = Sources(lambda: 0.0, limit=10)
    for number in range(256):
        sources.allow(f"192.0.2.{number}")
        sources.verify(f"192.0.2.{number}")
    assert len(sources._left) == len(sources._verified) == 10


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.3.2.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("192.0.2.1", False), ("fe80::1%eth0", False)],
)
def test_loopback_addresses_are_known_in_each_form(host: str, local: bool) -> None:
    assert is_loopback(host) is local


@given(st.binary(max_size=200))
def test_any_datagram_is_read_or_left_to_aiocoap(data: bytes) -> None:
    """RFC 7252, clause 3: no exception, whatever comes."""
    packets.parse_request(b"\x40\x02\x00\x01" + data)
    packets.parse_request(data)


@given(
    st.binary(max_size=8),
    st.integers(0, 65_535),
    st.lists(st.binary(max_size=255).filter(lambda value: value.isascii()), max_size=6),
    st.binary(max_size=64),
)
def test_what_an_independent_writer_wrote_is_read(token: bytes, mid: int, names: list[bytes], payload: bytes) -> None:
    options = (*((URI_PATH, name) for name in names), (CONTENT_FORMAT, b"\x28"))
    found = packets.parse_request(Packet(CON, POST, mid, token, options, payload).bytes())
    assert found is not None
    assert (found.mid, found.token, found.payload) == (mid, token, payload)
    assert (found.path, found.content_format) == ([name.decode() for name in names], 40)


@pytest.mark.parametrize(
    ("data", "plausible"),
    [
        (Packet(CON, POST, 1, b"12345678", GOOD, LINKS).bytes(), True),
        (Packet(ACK, 0, 1).bytes(), True),
        (Packet(ACK, 0, 1, b"t").bytes(), False),
        (Packet(CON, GET, 1, b"", ((URI_PATH, bytes(300)), (URI_QUERY, bytes(13)))).bytes(), True),
        (Packet(CON, GET, 1, b"", ((URI_PATH, b""),) * 64).bytes(), True),
        (Packet(CON, GET, 1, b"", ((URI_PATH, b""),) * 65).bytes(), False),
        (b"\x40\x01\x00\x01\xff", False),
        (b"\x40\x01\x00\x01\xb2r", False),
        (b"\x49\x01\x00\x01" + bytes(9), False),
        (b"\x80\x01\x00\x01", False),
        (b"\x40\x01\x00\x01\xe0\x00", False),
        (b"\x40\x01\x00\x01\xf0", False),
        (b"", False),
    ],
)
def test_what_is_no_message_goes_no_further(data: bytes, plausible: bool) -> None:
    """DO-SEC-002: RFC 7252, clause 3; a datagram full of options would cost aiocoap a hundred milliseconds."""
    assert packets.plausible(data) is plausible


@given(st.binary(max_size=80))
def test_what_is_read_here_is_plausible(data: bytes) -> None:
    if packets.parse_request(data) is not None:
        assert packets.plausible(data)


def test_an_acknowledgement_is_read_by_an_independent_reader() -> None:
    request = packets.Request(GET, 7, b"\x01", [], [], [], None, None, b"")
    written = packets.acknowledgement(request, code("2.05"), [(4, b"e" * 8), (12, b"\x2a"), (60, b"z" * 20)], b"body")
    expected = Packet(ACK, code("2.05"), 7, b"\x01", ((4, b"e" * 8), (12, b"\x2a"), (60, b"z" * 20)), b"body")
    assert Packet.of(written) == expected
