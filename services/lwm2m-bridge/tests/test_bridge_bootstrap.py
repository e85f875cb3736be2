"""The bootstrap server, packet by packet: what it writes, in which order, and what it does when a device refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiocoap
import pytest
from aiocoap import Code, Message, resource
from lwm2m_rig import Artifacts, Clock, Rig, accept_any, eventually, within

from tinymlaas_device.lwm2m_bootstrap import BootstrapSession
from tinymlaas_lwm2m import Format, SecurityMode, SecurityRes, ServerRes, decode, encode
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import (
    Account,
    BootstrapSettings,
    BootstrapState,
    Bridge,
    BridgeError,
    BridgeSettings,
    CoapSettings,
    Reason,
    SqlStore,
)
from tinymlaas_lwm2m_bridge.core.bootstrap import account_instances, parse_discovery, parse_request

Answer = Callable[[Message], Message]
GOOD = {Code.DELETE: Code.DELETED, Code.PUT: Code.CHANGED, Code.POST: Code.CHANGED}


class _Device(resource.Resource):  # type: ignore[misc]
    """Notes what it is asked and answers as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bytes]] = []
        self.answer: Answer = lambda request: Message(code=GOOD[request.code])
        self.discovery = b"</>;lwm2m=1.1,</0/0>,</1>,</3/0>"

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False

    async def render(self, request: Message) -> Message:
        self.seen.append((str(request.code), "/" + "/".join(request.opt.uri_path), request.payload))
        if request.code is Code.GET and self.discovery:
            return Message(code=Code.CONTENT, payload=self.discovery, content_format=40)
        return self.answer(request) if request.code in GOOD else Message(code=Code.METHOD_NOT_ALLOWED)


@asynccontextmanager
async def served(folder: Path, account: Account | None = None, **changes: object) -> AsyncIterator[Bridge]:
    """A bridge with a bootstrap server."""
    settings = BridgeSettings(
        coap=CoapSettings(port=0),
        bootstrap=BootstrapSettings(CoapSettings(port=0), answer_s=5.0),
        account=account or Account(""),
    )
    store = SqlStore(f"sqlite:///{folder / 'bridge.db'}")
    bridge = Bridge(store, Artifacts(), accept_any, settings, clock=Clock(), **changes)  # type: ignore[arg-type]
    await bridge.start()
    try:
        yield bridge
    finally:
        await bridge.close()


@asynccontextmanager
async def device() -> AsyncIterator[tuple[_Device, aiocoap.Context]]:
    """A device's socket: asks and is asked."""
    site = _Device()
    context = await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", 0), transports=["udp6"])
    try:
        yield site, context
    finally:
        await context.shutdown()


async def request(context: aiocoap.Context, bridge: Bridge, query: str = "ep=node-1") -> Message:
    assert bridge.bootstrap is not None
    message = Message(code=Code.POST, uri=f"{bridge.bootstrap.address}/bs?{query}")
    return await within(context.request(message).response)


async def ended(bridge: Bridge, endpoint: str = "node-1") -> tuple[BootstrapState, str]:
    def record() -> object:
        return bridge.bootstrapped(endpoint)

    def over() -> bool:
        found = bridge.bootstrapped(endpoint)
        return found is not None and found.ended_at is not None

    await eventually(over, f"the bootstrap of {endpoint} ended; it is {record()}")
    found = bridge.bootstrapped(endpoint)
    assert found is not None
    return found.state, found.failure


async def test_a_bootstrap_deletes_writes_one_account_and_finishes(tmp_path: Path) -> None:
    """DO-BOOT-001, DO-BOOT-002."""
    async with served(tmp_path) as bridge, device() as (site, context):
        assert (await request(context, bridge)).code is Code.CHANGED
        assert await ended(bridge) == (BootstrapState.FINISHED, "")
        assert [(code, path) for code, path, _ in site.seen] == [
            ("GET", "/"),
            ("DELETE", "/1"),
            ("DELETE", "/0"),
            ("PUT", "/0/1"),
            ("PUT", "/1/0"),
            ("POST", "/bs"),
        ]
        security = decode(Format.TLV, site.seen[3][2], LwPath(0, 1))
        assert security[LwPath(0, 1, SecurityRes.SERVER_URI)] == bridge.endpoint.address
        assert security[LwPath(0, 1, SecurityRes.SECURITY_MODE)] == SecurityMode.NO_SEC
        server = decode(Format.TLV, site.seen[4][2], LwPath(1, 0))
        assert server[LwPath(1, 0, ServerRes.LIFETIME)] == 300
        assert server[LwPath(1, 0, ServerRes.SHORT_SERVER_ID)] == security[LwPath(0, 1, SecurityRes.SHORT_SERVER_ID)]


async def test_a_device_that_can_not_be_discovered_keeps_its_account_at_instance_0(tmp_path: Path) -> None:
    """DO-BOOT-002: LwM2M 1.0 knows no Bootstrap-Discover."""
    async with served(tmp_path) as bridge, device() as (site, context):
        site.discovery = b""
        await request(context, bridge)
        assert (await ended(bridge))[0] is BootstrapState.FINISHED
        assert [path for code, path, _ in site.seen if code == "PUT"] == ["/0/1", "/1/0"]


async def test_a_device_that_refuses_the_finish_is_told_as_failed_and_may_ask_again(tmp_path: Path) -> None:
    """DO-BOOT-004."""
    async with served(tmp_path) as bridge, device() as (site, context):
        good = site.answer
        site.answer = lambda message: (
            Message(code=Code.NOT_ACCEPTABLE, payload=b"two servers") if message.code is Code.POST else good(message)
        )
        await request(context, bridge)
        state, failure = await ended(bridge)
        assert state is BootstrapState.FAILED
        assert "/bs" in failure
        assert "two servers" in failure
        site.answer = good
        await request(context, bridge)
        await eventually(lambda: bridge.bootstrapped("node-1").state is BootstrapState.FINISHED, "the second one")  # type: ignore[union-attr]


@pytest.mark.parametrize("query", ["", "ep=", "ep=a&ep=b", "ep=white%20space", "ep=node-1&pct=42"])
async def test_a_malformed_request_begins_nothing(tmp_path: Path, query: str) -> None:
    """DO-BOOT-001."""
    async with served(tmp_path) as bridge, device() as (site, context):
        assert (await request(context, bridge, query)).code is Code.BAD_REQUEST
        assert bridge.bootstrapped("node-1") is None
        assert site.seen == []


async def test_a_secure_server_comes_with_a_key_of_the_devices_own(tmp_path: Path) -> None:
    """DO-BOOT-003."""
    issued: list[str] = []

    def issue(endpoint: str) -> tuple[str, bytes]:
        issued.append(endpoint)
        return f"{endpoint}.1", b"k" * 16

    account = Account("coaps://bridge.example:5684", lifetime_s=60)
    async with served(tmp_path, account, issue_key=issue) as bridge, device() as (site, context):
        await request(context, bridge)
        await ended(bridge)
        written = decode(Format.TLV, site.seen[3][2], LwPath(0, 1))
        assert written[LwPath(0, 1, SecurityRes.SECURITY_MODE)] == SecurityMode.PSK
        assert written[LwPath(0, 1, SecurityRes.PUBLIC_KEY_OR_IDENTITY)] == b"node-1.1"
        assert written[LwPath(0, 1, SecurityRes.SECRET_KEY)] == b"k" * 16
        assert issued == ["node-1"]


async def test_a_device_that_is_not_admitted_is_given_nothing(tmp_path: Path) -> None:
    """DO-BOOT-003: who may register as an endpoint may be bootstrapped as it, nobody else."""

    def admit(endpoint: str, address: str) -> None:
        raise BridgeError(Reason.SESSION_REQUIRED, "has a key and must use it", device=endpoint)

    async with served(tmp_path, admit=admit) as bridge, device() as (site, context):
        assert (await request(context, bridge)).code is Code.FORBIDDEN
        assert site.seen == []


async def test_a_new_request_replaces_a_session_that_hangs(tmp_path: Path) -> None:
    """DO-BOOT-004."""
    async with served(tmp_path) as bridge, device() as (first, silent), device() as (second, context):
        never = asyncio.Event()

        async def hang(message: Message) -> Message:
            first.seen.append((str(message.code), "", b""))
            await never.wait()
            raise AssertionError("never")

        first.render = hang  # type: ignore[method-assign]
        await request(silent, bridge)
        await eventually(lambda: bool(first.seen), "the first session has begun")
        await request(context, bridge)
        assert (await ended(bridge))[0] is BootstrapState.FINISHED
        assert [path for _, path, _ in second.seen][-1] == "/bs"
        never.set()


async def test_how_a_bootstrap_went_outlives_the_bridge(tmp_path: Path) -> None:
    async with served(tmp_path) as bridge, device() as (_, context):
        await request(context, bridge)
        await ended(bridge)
    async with served(tmp_path) as bridge:
        record = bridge.bootstrapped("node-1")
        assert record is not None
        assert record.state is BootstrapState.FINISHED


def test_accounts_are_written_under_free_ids() -> None:
    instances = account_instances(Account("coap://[::1]"), frozenset({0, 1}), frozenset())
    assert [path for path, _ in instances] == [LwPath(0, 2), LwPath(1, 0)]


def test_a_discovery_tells_the_instances_that_are_taken() -> None:
    assert parse_discovery(b'</>;lwm2m=1.1,</0/0>;uri="coap://x",</0/2>;ssid=7,</1/5>;ssid=7,</3/0>') == (
        frozenset({0, 2}),
        frozenset({5}),
    )
    assert parse_request(["ep=node-1", "pct=112"]) == "node-1"


async def test_our_device_asks_registers_and_asks_again_when_it_is_told_to(tmp_path: Path) -> None:
    """DO-BOOT-002, DO-BOOT-005: begun by the device, then by the bridge; remembered over a reboot."""
    rig = Rig(tmp_path, Artifacts())
    bridge = await rig.bridge(bootstrap=BootstrapSettings(CoapSettings(port=0)), account=Account("", lifetime_s=123))
    assert bridge.bootstrap is not None
    port = int(bridge.bootstrap.address.rsplit(":", 1)[1])
    node = await rig.device(server_port=port, bootstrap=True)
    await within(node.registered.wait())
    first = bridge.registration("node-1")
    assert first.lifetime_s == 123
    await ended(bridge)
    rig.clock.now += 10
    await within(bridge.trigger_bootstrap("node-1"))
    await eventually(lambda: bridge.registration("node-1").id != first.id, "it has registered anew")
    record = bridge.bootstrapped("node-1")
    assert record is not None
    assert record.requested_at == rig.clock.now
    again = bridge.registration("node-1").id
    await within(node.reboot())
    await eventually(lambda: bridge.registration("node-1").id != again, "it has registered after the reboot")
    assert bridge.bootstrapped("node-1") == record or record.ended_at is None
    await node.close()
    await bridge.close()


@pytest.mark.parametrize(
    "account", [Account("coaps://127.0.0.1", identity="i", secret=b"k" * 16), Account("http://127.0.0.1")]
)
async def test_our_device_refuses_to_finish_with_a_server_that_it_can_not_use(account: Account) -> None:
    """DO-BOOT-005: and keeps asking instead of registering somewhere."""
    session = BootstrapSession("coap://127.0.0.1:5")
    for path, values in account_instances(account, frozenset({0}), frozenset()):
        message = Message(code=Code.PUT, payload=encode(Format.TLV, values, path))
        message.opt.uri_path, message.opt.content_format = path.segments, Format.TLV
        assert session.answer(message).code is Code.CHANGED
    finish = Message(code=Code.POST)
    finish.opt.uri_path = ("bs",)
    assert session.answer(finish).code is Code.NOT_ACCEPTABLE
    assert not session.finished.is_set()
    own = Message(code=Code.PUT, payload=b"")
    own.opt.uri_path, own.opt.content_format = ("0", "0"), Format.TLV
    assert session.answer(own).code is Code.METHOD_NOT_ALLOWED
