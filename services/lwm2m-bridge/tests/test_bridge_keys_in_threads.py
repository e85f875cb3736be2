"""Device keys and bootstraps wait for the database in threads, several at once; the event loop and other sessions go on."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiocoap
import grpc.aio
import pytest
from aiocoap import Code, Message
from lwm2m_rig import DEADLINE_S, Artifacts, Clock, Rig, eventually, within

import postgres_server
from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas_lwm2m_bridge import (
    Account,
    BootstrapSettings,
    BootstrapState,
    Bridge,
    BridgeError,
    CoapSettings,
    SqlStore,
)
from tinymlaas_lwm2m_bridge.core.bootstrap import BootstrapRecord
from tinymlaas_lwm2m_bridge.core.device_keys import DeviceKeys
from tinymlaas_lwm2m_bridge.core.sessions import SessionTable
from tinymlaas_lwm2m_bridge.key_store import MASTER_BYTES, SqlKeyStore
from tinymlaas_lwm2m_bridge.security_servicer import DeviceKeysServicer, Fronts, SecureSessionsServicer
from tinymlaas_servicekit import GrpcServer, ServiceSettings, Unavailable, connect, patience

MASTER = bytes(range(MASTER_BYTES))
PARENT = "projects/default"


class Steered:
    """A key store whose calls a test looks at and holds: `on[method]` is called before the method, `after[method]` after it."""

    def __init__(self, store: SqlKeyStore) -> None:
        self._store = store
        self.on: dict[str, Callable[..., object]] = {}
        self.after: dict[str, Callable[..., object]] = {}
        self.in_loop: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                asyncio.get_running_loop()
                self.in_loop.append(name)
            except RuntimeError:
                pass
            self.on.get(name, lambda *_: None)(*arguments)
            result = getattr(self._store, name)(*arguments)
            self.after.get(name, lambda *_: None)(*arguments)
            return result

        return call


class Served:
    """Both servicers over loopback, on one store."""

    def __init__(self, store: Steered) -> None:
        self.store = store
        self.clock = Clock()
        self.keys = DeviceKeys(store, self.clock)
        self.sessions = SessionTable(self.keys.has)
        store.in_loop.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        fronts = Fronts(self.keys, self.sessions)

        def register(server: grpc.aio.Server) -> list[str]:
            security_pb2_grpc.add_DeviceKeysServicer_to_server(DeviceKeysServicer(self.keys, fronts, "default"), server)
            security_pb2_grpc.add_SecureSessionsServicer_to_server(SecureSessionsServicer(self.keys, fronts), server)
            return [service.full_name for service in security_pb2.DESCRIPTOR.services_by_name.values()]

        async with GrpcServer(ServiceSettings(grace_seconds=0), register) as server:
            channel = connect(server.address, None)
            self.fronts = security_pb2_grpc.SecureSessionsStub(channel)
            self.admin = security_pb2_grpc.DeviceKeysStub(channel)
            yield self
            await channel.close(None)

    async def create(self, endpoint: str = "node-1") -> bytes:
        """A new key; its identity."""
        request = security_pb2.CreateDeviceKeyRequest(parent=PARENT, endpoint=endpoint)
        return (await within(self.admin.CreateDeviceKey(request))).key.identity.encode()

    async def delete(self, identity: bytes) -> None:
        """Take a key back."""
        request = security_pb2.DeleteDeviceKeyRequest(parent=PARENT, identity=identity.decode())
        await within(self.admin.DeleteDeviceKey(request))


@pytest.fixture
def steered(tmp_path: Path) -> Iterator[Steered]:
    store = SqlStore(f"sqlite:///{tmp_path / 'bridge.db'}")
    yield Steered(SqlKeyStore(store.engine, MASTER))
    store.close()


async def opened(stream: Any, session: str, identity: bytes) -> bool:
    """Tell of a session; whether it is taken."""
    event = security_pb2.SessionOpened(session_id=session, identity=identity, relay_address=f"127.0.0.1:4{session[1:]}")
    await stream.write(security_pb2.RelayRequest(opened=event))
    answer = await within(stream.read())
    assert (answer.session_id, answer.close) == (session, False)
    return bool(answer.accepted)


async def test_no_call_of_fronts_or_administrators_waits_for_the_database_in_the_event_loop(steered: Steered) -> None:
    async with Served(steered).running() as served:
        identity = await served.create()
        await served.fronts.ResolveKey(security_pb2.ResolveKeyRequest(identity=identity))
        stream: Any = served.fronts.Relay()
        assert await opened(stream, "s001", identity)
        for endpoint in ("node-1", ""):
            request = security_pb2.ListDeviceKeysRequest(parent=PARENT, endpoint=endpoint)
            assert len((await served.admin.ListDeviceKeys(request)).keys) == 1
        await served.delete(identity)
        assert (await within(stream.read())).close
        assert steered.in_loop == []
        stream.cancel()


async def test_a_session_that_meets_a_dead_database_is_not_taken_and_the_front_s_others_stay(
    tmp_path: Path, postgresql_server: postgres_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-SEC-008."""
    store = SqlStore(postgres_server.database(postgresql_server.url, str(tmp_path)))
    async with Served(Steered(SqlKeyStore(store.engine, MASTER))).running() as served:
        identity, other = await served.create(), await served.create("node-2")
        stream: Any = served.fronts.Relay()
        assert await opened(stream, "s001", identity)
        monkeypatch.setattr(patience, "CALL_SECONDS", 0.0)
        await asyncio.to_thread(postgresql_server.crash)
        try:
            assert not await opened(stream, "s002", other)
            assert len(served.sessions) == 1
        finally:
            await asyncio.to_thread(postgresql_server.start)
        monkeypatch.undo()
        assert await opened(stream, "s003", other)
        assert len(served.sessions) == 2
        stream.cancel()
    store.close()


async def test_a_key_that_is_taken_back_while_its_session_opens_opens_none(steered: Steered) -> None:
    async with Served(steered).running() as served:
        identity = await served.create()
        noting, go_on = threading.Event(), threading.Event()

        def hold(*_: object) -> None:
            noting.set()
            go_on.wait(DEADLINE_S)

        steered.after["used"] = hold
        stream: Any = served.fronts.Relay()
        opening = asyncio.create_task(opened(stream, "s001", identity))
        await eventually(noting.is_set, "the handshake is noted")
        await served.delete(identity)
        go_on.set()
        assert not await within(opening)
        assert len(served.sessions) == 0
        stream.cancel()


async def test_sessions_that_a_handshake_ends_end_though_its_front_leaves(steered: Steered) -> None:
    """DO-SEC-007."""
    async with Served(steered).running() as served:
        old = await served.create()
        served.clock.now += 1
        new = await served.create()
        stays: Any = served.fronts.Relay()
        leaves: Any = served.fronts.Relay()
        assert await opened(stays, "s001", old)
        retiring, go_on = threading.Event(), threading.Event()

        def hold(*_: object) -> None:
            retiring.set()
            go_on.wait(DEADLINE_S)

        steered.after["delete"] = hold
        opening = asyncio.create_task(opened(leaves, "s002", new))
        await eventually(retiring.is_set, "the old key is retired")
        leaves.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await within(served.fronts.ResolveKey(security_pb2.ResolveKeyRequest(identity=new)))
        go_on.set()
        told = await within(stays.read())
        assert (told.session_id, told.close) == ("s001", True)
        assert len(served.sessions) == 0
        stays.cancel()


def test_keys_wait_for_a_database_that_restarts(tmp_path: Path, postgresql_server: postgres_server.Server) -> None:
    store = SqlStore(postgres_server.database(postgresql_server.url, str(tmp_path)))
    keys = DeviceKeys(SqlKeyStore(store.engine, MASTER), Clock())
    postgresql_server.crash()
    made: list[str] = []
    creating = threading.Thread(target=lambda: made.append(keys.create("node-1")[0].identity))
    try:
        creating.start()
    finally:
        postgresql_server.start()
    creating.join(DEADLINE_S)
    assert [key.identity for key in keys.of_endpoint("node-1")] == made != []
    store.close()


def test_a_key_whose_commit_went_unanswered_is_stored_once(steered: Steered) -> None:
    keys = DeviceKeys(steered, Clock())
    key, secret = keys.create("node-1")
    steered.put(key, secret)
    assert keys.resolve(key.identity.encode()) == (key, secret)


def test_keys_that_are_made_at_once_keep_their_limit(steered: Steered) -> None:
    keys = DeviceKeys(steered, Clock(), max_keys_each=4)
    counted = threading.Barrier(8)

    def together(*_: object) -> None:
        # Who counts alone goes on after a moment; without turns all have counted before one is made.
        with suppress(threading.BrokenBarrierError):
            counted.wait(0.2)

    steered.after["of_endpoint"] = together
    refused: list[str] = []

    def create() -> None:
        try:
            keys.create("node-1")
        except BridgeError as error:
            refused.append(error.reason)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(keys.of_endpoint("node-1")) == 4
    assert refused == ["LIMIT_EXCEEDED"] * 4


def test_an_endpoint_whose_last_key_goes_as_a_new_one_comes_still_has_a_key(steered: Steered) -> None:
    """DO-SEC-006: or it could register in plain."""
    keys = DeviceKeys(steered, Clock())
    old, _ = keys.create("node-1")
    creating = threading.Thread(target=keys.create, args=("node-1",))

    def meanwhile(*_: object) -> None:
        steered.after.clear()
        creating.start()
        creating.join(0.2)  # it waits its turn; without one it is through by then

    steered.after["of_endpoint"] = meanwhile
    keys.delete(old.identity)
    creating.join(DEADLINE_S)
    assert len(keys.of_endpoint("node-1")) == 1
    assert keys.has("node-1")


def test_a_refresh_that_reads_before_a_key_is_made_does_not_forget_it(steered: Steered) -> None:
    keys = DeviceKeys(steered, Clock())
    steered.after["endpoints"] = lambda: keys.create("node-1")
    keys.refresh()
    assert keys.has("node-1")


def test_a_handshake_that_the_database_breaks_off_is_gone_on_with_and_tells_of_all_that_it_retires(
    steered: Steered,
) -> None:
    """DO-SEC-007: sessions of the keys that went the first time must end too."""
    clock = Clock()
    keys = DeviceKeys(steered, clock)
    old = set()
    for _ in range(3):
        old.add(keys.create("node-1")[0].identity)
        clock.now += 1
    new, _ = keys.create("node-1")
    deleted: list[str] = []

    def breaks_off(identity: str) -> None:
        deleted.append(identity)
        if len(deleted) == 2:
            raise Unavailable("away", "DATABASE_UNAVAILABLE")

    steered.after["delete"] = breaks_off
    with pytest.raises(Unavailable):
        keys.used(new.identity.encode())
    assert set(keys.used(new.identity.encode())[1]) == old
    assert [key.identity for key in keys.of_endpoint("node-1")] == [new.identity]
    assert keys.used(new.identity.encode())[1] == []


@contextmanager
def nothing_unheard() -> Iterator[None]:
    """Asserts that no task ends with an error that nobody looks at."""
    loop = asyncio.get_running_loop()
    unheard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, told: unheard.append(told))
    try:
        yield
        gc.collect()
        assert unheard == []
    finally:
        loop.set_exception_handler(None)


@asynccontextmanager
async def bootstrapping(folder: Path, **changes: Any) -> AsyncIterator[tuple[Bridge, aiocoap.Context]]:
    """A bridge with a bootstrap server, and the socket of a device that does as it is told."""
    rig = Rig(folder, Artifacts())
    bridge = await rig.bridge(bootstrap=BootstrapSettings(CoapSettings(port=0), answer_s=5.0), **changes)
    context = await aiocoap.Context.create_server_context(_Obedient(), bind=("127.0.0.1", 0), transports=["udp6"])
    try:
        yield bridge, context
    finally:
        await context.shutdown()
        await bridge.close()


class _Obedient(aiocoap.resource.Resource):  # type: ignore[misc]
    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False

    async def render(self, request: Message) -> Message:
        if request.code is Code.GET:
            return Message(code=Code.CONTENT, payload=b"</>;lwm2m=1.1,</0/0>,</1>", content_format=40)
        return Message(code=Code.DELETED if request.code is Code.DELETE else Code.CHANGED)


async def ask(context: aiocoap.Context, bridge: Bridge) -> Code:
    assert bridge.bootstrap is not None
    message = Message(code=Code.POST, uri=f"{bridge.bootstrap.address}/bs?ep=node-1")
    return (await within(context.request(message).response)).code


async def test_a_bootstrap_waits_for_the_database_in_a_thread_and_begins_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued: list[str] = []

    def issue(endpoint: str) -> tuple[str, bytes]:
        assert threading.current_thread() is not threading.main_thread()
        issued.append(endpoint)
        return f"{endpoint}.1", b"k" * 16

    account = Account("coaps://bridge.example:5684")
    async with bootstrapping(tmp_path, account=account, issue_key=issue) as (bridge, context):
        begun, go_on = threading.Event(), threading.Event()
        put = bridge._store.put_bootstrap

        def hang(record: BootstrapRecord) -> None:
            assert threading.current_thread() is not threading.main_thread()
            begun.set()
            assert go_on.wait(DEADLINE_S)
            put(record)

        monkeypatch.setattr(bridge._store, "put_bootstrap", hang)
        first = asyncio.create_task(ask(context, bridge))
        await eventually(begun.is_set, "the request is noted")
        assert await ask(context, bridge) is Code.SERVICE_UNAVAILABLE
        assert not first.done()
        go_on.set()
        assert await within(first) is Code.CHANGED
        assert issued == ["node-1"]
        await eventually(lambda: _state(bridge) is BootstrapState.FINISHED, "the bootstrap ends")


@pytest.mark.parametrize("state", [BootstrapState.WRITING, BootstrapState.FINISHED])
async def test_a_bootstrap_whose_database_goes_away_ends_and_may_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: BootstrapState
) -> None:
    async with bootstrapping(tmp_path) as (bridge, context):
        put, away = bridge._store.put_bootstrap, [state]

        def breaks_off(record: BootstrapRecord) -> None:
            if record.state in away:
                away.clear()
                raise Unavailable("away", "DATABASE_UNAVAILABLE")
            put(record)

        monkeypatch.setattr(bridge._store, "put_bootstrap", breaks_off)
        with nothing_unheard():
            assert await ask(context, bridge) is Code.CHANGED
            assert bridge.bootstrap is not None
            sessions = bridge.bootstrap._sessions
            await eventually(lambda: not away and not sessions, "the session has ended")
        assert _state(bridge) is not state
        assert await ask(context, bridge) is Code.CHANGED
        await eventually(lambda: _state(bridge) is BootstrapState.FINISHED, "the second one")


async def test_a_device_whose_bootstrap_can_not_be_noted_is_told_to_ask_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bootstrapping(tmp_path) as (bridge, context):

        def away(record: BootstrapRecord) -> None:
            raise Unavailable("away", "DATABASE_UNAVAILABLE")

        with monkeypatch.context() as broken:
            broken.setattr(bridge._store, "put_bootstrap", away)
            assert await ask(context, bridge) is Code.SERVICE_UNAVAILABLE
        assert await ask(context, bridge) is Code.CHANGED
        await eventually(lambda: _state(bridge) is BootstrapState.FINISHED, "the bootstrap ends")


def _state(bridge: Bridge) -> BootstrapState | None:
    found = bridge.bootstrapped("node-1")
    return None if found is None else found.state
