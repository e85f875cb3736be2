"""Device keys, DTLS sessions, and what they let a device be: decisions, storage, and the stream of a front over loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import sqlalchemy as sa
from aiocoap import CON, Code, Message
from lwm2m_rig import Clock, Rig, eventually, within

from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas_lwm2m_bridge import BridgeError, Reason, SqlStore
from tinymlaas_lwm2m_bridge.core.device_keys import DeviceKeys
from tinymlaas_lwm2m_bridge.core.sessions import Session, SessionTable
from tinymlaas_lwm2m_bridge.key_store import MASTER_BYTES, SqlKeyStore, master_key
from tinymlaas_lwm2m_bridge.schema import device_keys
from tinymlaas_lwm2m_bridge.security_servicer import DeviceKeysServicer, Fronts, SecureSessionsServicer
from tinymlaas_servicekit import GrpcServer, ServiceSettings, connect

MASTER = bytes(range(MASTER_BYTES))
HERE, THERE = "coap://127.0.0.1:4001", "coap://127.0.0.1:4002"


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    """A database of the bridge."""
    return SqlStore(f"sqlite:///{tmp_path / 'bridge.db'}")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Bridges in a folder of the test's own."""
    return Rig(tmp_path)


@pytest.fixture
def clock() -> Clock:
    """The time at which keys are made and used."""
    return Clock()


@pytest.fixture
def keys(store: SqlStore, clock: Clock) -> DeviceKeys:
    """Keys on that database."""
    return DeviceKeys(SqlKeyStore(store.engine, MASTER), clock)


def reason_of(error: pytest.ExceptionInfo[BridgeError]) -> str:
    """Reason of the error that was raised."""
    return error.value.reason


def test_a_key_is_told_once_and_lies_encrypted_in_the_database(store: SqlStore, keys: DeviceKeys) -> None:
    """DO-SEC-007."""
    key, secret = keys.create("node-1")
    assert len(secret) == 16
    assert keys.resolve(key.identity.encode()) == (key, secret)
    with store.engine.connect() as connection:
        stored = connection.execute(sa.select(device_keys.c.secret)).scalar_one()
    assert secret not in stored


def test_another_master_key_or_a_swapped_row_opens_nothing(store: SqlStore, keys: DeviceKeys) -> None:
    one, _ = keys.create("node-1")
    two, _ = keys.create("node-2")
    other = DeviceKeys(SqlKeyStore(store.engine, bytes(MASTER_BYTES)), Clock())
    with pytest.raises(BridgeError) as error:
        other.resolve(one.identity.encode())
    assert reason_of(error) == Reason.KEYS_MISSING
    with store.engine.begin() as connection:
        sealed = connection.execute(
            sa.select(device_keys.c.secret).where(device_keys.c.identity == two.identity)
        ).scalar_one()
        connection.execute(device_keys.update().where(device_keys.c.identity == one.identity).values(secret=sealed))
    with pytest.raises(BridgeError) as error:
        keys.resolve(one.identity.encode())
    assert reason_of(error) == Reason.KEYS_MISSING


@pytest.mark.parametrize("identity", [b"", b"nobody", b"\xff\xfe", b"a b", b"x" * 200, b"node-1'; --"])
def test_an_identity_without_a_key_is_unknown(keys: DeviceKeys, identity: bytes) -> None:
    keys.create("node-1")
    with pytest.raises(BridgeError) as error:
        keys.resolve(identity)
    assert reason_of(error) == Reason.IDENTITY_UNKNOWN


def test_keys_have_bounded_length_and_number(keys: DeviceKeys) -> None:
    for secret in (b"short", bytes(65)):
        with pytest.raises(BridgeError) as error:
            keys.create("node-1", secret)
        assert reason_of(error) == Reason.ARGUMENT_INVALID
    for _ in range(4):
        keys.create("node-1")
    with pytest.raises(BridgeError) as error:
        keys.create("node-1")
    assert reason_of(error) == Reason.LIMIT_EXCEEDED


def test_a_bootstrap_key_outlives_the_keys_that_bootstrap_hands_out(keys: DeviceKeys, clock: Clock) -> None:
    """DO-SEC-012: keys can be rotated by bootstrap for ever."""
    factory, _ = keys.create("node-1", bootstrap=True)
    assert factory.bootstrap
    present = ""
    for _ in range(5):
        clock.now += 1
        assert keys.used(factory.identity.encode())[1] == []
        lost, _ = keys.reissue("node-1")
        clock.now += 1
        identity, _ = keys.reissue("node-1")
        assert lost not in [key.identity for key in keys.of_endpoint("node-1")]
        clock.now += 1
        assert keys.used(identity.encode())[1] == ([present] if present else [])
        present = identity
    assert {key.identity for key in keys.of_endpoint("node-1")} == {factory.identity, present}
    clock.now += 1
    newer, _ = keys.create("node-1", bootstrap=True)
    assert keys.used(newer.identity.encode())[1] == [factory.identity]


def test_a_newer_key_retires_the_older_ones_at_its_first_use_and_not_before(store: SqlStore) -> None:
    """DO-SEC-007."""
    clock = Clock()
    keys = DeviceKeys(SqlKeyStore(store.engine, MASTER), clock)
    old, _ = keys.create("node-1")
    clock.now += 1
    new, _ = keys.create("node-1")
    assert keys.used(old.identity.encode())[1] == []
    assert keys.used(new.identity.encode())[1] == [old.identity]
    with pytest.raises(BridgeError):
        keys.resolve(old.identity.encode())
    assert [key.identity for key in keys.of_endpoint("node-1")] == [new.identity]


def test_keys_survive_a_restart(store: SqlStore, keys: DeviceKeys) -> None:
    key, secret = keys.create("node-1")
    again = DeviceKeys(SqlKeyStore(store.engine, MASTER), Clock())
    assert again.has("node-1")
    assert again.resolve(key.identity.encode())[1] == secret
    again.delete(key.identity)
    assert not again.has("node-1")


def test_the_master_key_is_made_for_its_owner_only_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state" / "master"
    first = master_key(path, make=True)
    assert path.stat().st_mode & 0o077 == 0
    assert master_key(path, make=True) == first
    path.write_text("garbage")
    with pytest.raises(BridgeError) as error:
        master_key(path, make=True)
    assert reason_of(error) == Reason.KEYS_MISSING


def test_a_session_may_be_its_own_endpoint_only() -> None:
    """DO-SEC-006."""
    table = SessionTable(lambda endpoint: True)
    table.opened(Session("s1", "node-1.a", "node-1", HERE))
    table.admit("node-1", HERE)
    with pytest.raises(BridgeError) as error:
        table.admit("node-2", HERE)
    assert reason_of(error) == Reason.IDENTITY_MISMATCH
    with pytest.raises(BridgeError) as error:
        table.admit("node-1", THERE)
    assert reason_of(error) == Reason.SESSION_REQUIRED


def test_an_endpoint_without_a_key_may_come_in_plain_unless_sessions_are_required() -> None:
    SessionTable(lambda endpoint: False).admit("node-1", HERE)
    with pytest.raises(BridgeError) as error:
        SessionTable(lambda endpoint: False, required=True).admit("node-1", HERE)
    assert reason_of(error) == Reason.SESSION_REQUIRED


def test_an_address_that_another_session_takes_over_is_no_longer_the_first_ones() -> None:
    table = SessionTable(lambda endpoint: True)
    table.opened(Session("s1", "node-1.a", "node-1", HERE))
    table.opened(Session("s2", "node-2.a", "node-2", HERE))
    table.admit("node-2", HERE)
    with pytest.raises(BridgeError):
        table.admit("node-1", HERE)
    table.closed("s1")
    table.admit("node-2", HERE)
    assert len(table) == 1


def register_over(device: socket.socket, port: int, endpoint: str, mid: int) -> Code:
    """Register from one socket, as a device does that has nothing but UDP; the code of the answer."""
    message = Message(code=Code.POST, payload=b"</1/0>,</3/0>", uri_path=("rd",), uri_query=(f"ep={endpoint}", "lt=60"))
    message.mid, message.token, message.mtype = mid, bytes([mid]), CON
    message.opt.content_format = 40
    device.sendto(message.encode(), ("127.0.0.1", port))
    return Message.decode(device.recv(2048)).code


async def test_a_device_with_a_key_is_refused_in_plain_and_taken_in_its_session(rig: Rig, keys: DeviceKeys) -> None:
    """DO-SEC-006."""
    keys.create("node-1")
    sessions = SessionTable(keys.has)
    bridge = await rig.bridge(admit=sessions.admit)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.bind(("127.0.0.1", 0))
        device.settimeout(30)
        assert await asyncio.to_thread(register_over, device, rig.port, "node-1", 1) is Code.FORBIDDEN
        assert len(bridge.directory) == 0
        address = f"coap://127.0.0.1:{device.getsockname()[1]}"
        sessions.opened(Session("s1", "node-1.a", "node-1", address))
        assert await asyncio.to_thread(register_over, device, rig.port, "node-2", 2) is Code.FORBIDDEN
        assert await asyncio.to_thread(register_over, device, rig.port, "node-1", 3) is Code.CREATED
    assert bridge.registration("node-1").address == address
    await bridge.close()


@pytest.fixture
async def stub(
    keys: DeviceKeys, tmp_path: Path
) -> AsyncIterator[
    tuple[security_pb2_grpc.SecureSessionsAsyncStub, security_pb2_grpc.DeviceKeysAsyncStub, SessionTable]
]:
    """Stubs of both servicers over loopback, and the sessions behind them."""
    sessions = SessionTable(keys.has)
    fronts = Fronts(keys, sessions)

    def register(server: grpc.aio.Server) -> list[str]:
        security_pb2_grpc.add_DeviceKeysServicer_to_server(DeviceKeysServicer(keys, fronts, "default"), server)
        security_pb2_grpc.add_SecureSessionsServicer_to_server(SecureSessionsServicer(keys, fronts), server)
        return [service.full_name for service in security_pb2.DESCRIPTOR.services_by_name.values()]

    async with GrpcServer(ServiceSettings(grace_seconds=0), register) as server:
        channel = connect(server.address, None)
        yield security_pb2_grpc.SecureSessionsStub(channel), security_pb2_grpc.DeviceKeysStub(channel), sessions
        await channel.close(None)


async def test_a_front_tells_of_sessions_and_hears_when_a_key_is_taken_back(stub: tuple) -> None:  # type: ignore[type-arg]
    fronts, admin, sessions = stub
    made = await admin.CreateDeviceKey(
        security_pb2.CreateDeviceKeyRequest(parent="projects/default", endpoint="node-1")
    )
    identity = made.key.identity.encode()
    resolved = await fronts.ResolveKey(security_pb2.ResolveKeyRequest(identity=identity))
    assert resolved.secret == made.secret
    stream = fronts.Relay()
    opened = security_pb2.SessionOpened(session_id="s1", identity=identity, relay_address="127.0.0.1:4001")
    await stream.write(security_pb2.RelayRequest(opened=opened))
    assert (await within(stream.read())).accepted
    sessions.admit("node-1", HERE)
    unknown = security_pb2.SessionOpened(session_id="s2", identity=b"nobody", relay_address="127.0.0.1:4002")
    await stream.write(security_pb2.RelayRequest(opened=unknown))
    assert not (await within(stream.read())).accepted
    await admin.DeleteDeviceKey(
        security_pb2.DeleteDeviceKeyRequest(parent="projects/default", identity=made.key.identity)
    )
    told = await within(stream.read())
    assert (told.session_id, told.close) == ("s1", True)
    assert len(sessions) == 0
    stream.cancel()


async def test_sessions_of_a_front_that_goes_away_are_forgotten(stub: tuple) -> None:  # type: ignore[type-arg]
    fronts, admin, sessions = stub
    made = await admin.CreateDeviceKey(
        security_pb2.CreateDeviceKeyRequest(parent="projects/default", endpoint="node-1")
    )
    stream = fronts.Relay()
    opened = security_pb2.SessionOpened(
        session_id="s1", identity=made.key.identity.encode(), relay_address="127.0.0.1:4001"
    )
    await stream.write(security_pb2.RelayRequest(opened=opened))
    assert (await within(stream.read())).accepted
    stream.cancel()
    await eventually(lambda: len(sessions) == 0, "the sessions are forgotten")


async def test_keys_are_listed_in_pages_without_their_secrets(stub: tuple) -> None:  # type: ignore[type-arg]
    _, admin, _ = stub
    for number in range(5):
        request = security_pb2.CreateDeviceKeyRequest(parent="projects/default", endpoint=f"node-{number}")
        await admin.CreateDeviceKey(request)
    seen, token = [], ""
    while True:
        page = await admin.ListDeviceKeys(
            security_pb2.ListDeviceKeysRequest(parent="projects/default", page_size=2, page_token=token)
        )
        seen += [key.endpoint for key in page.keys]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"node-{number}" for number in range(5)]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await admin.ListDeviceKeys(security_pb2.ListDeviceKeysRequest(parent="projects/other"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
