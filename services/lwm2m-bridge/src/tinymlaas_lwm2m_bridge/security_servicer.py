"""gRPC servicers of tinymlaas.bridge.v1.DeviceKeys and SecureSessions: map messages, nothing else.

Keys are asked for in threads, where they wait for the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog
from google.protobuf import empty_pb2, timestamp_pb2

from tinymlaas.bridge.v1 import security_pb2, security_pb2_grpc
from tinymlaas_servicekit import parse_name
from tinymlaas_servicekit.resource_names import PROJECT

from .core.device_keys import DeviceKey, DeviceKeys
from .core.errors import BridgeError, Reason
from .core.sessions import Session, SessionTable

log = structlog.get_logger("tinymlaas.bridge.security")

DEFAULT_PAGE, LARGEST_PAGE = 100, 1000
MAX_QUEUED_ANSWERS = 4096


class Fronts:
    """The streams of connected fronts, to tell them of sessions that must end."""

    def __init__(self, keys: DeviceKeys, sessions: SessionTable) -> None:
        self._keys = keys
        self._sessions = sessions
        self._streams: dict[str, asyncio.Queue[security_pb2.RelayResponse]] = {}
        self._opening: dict[str, str] = {}

    async def delete_key(self, identity: str) -> None:
        """Take a key back and end its sessions; a caller that leaves amid that does not keep them open."""
        await asyncio.shield(self._delete_key(identity))

    async def _delete_key(self, identity: str) -> None:
        await asyncio.to_thread(self._keys.delete, identity)
        self._end_sessions(identity)
        log.info("device key deleted", identity=identity)

    def _end_sessions(self, identity: str) -> None:
        """End the sessions of an identity that has no key any more; one that is being opened is not taken."""
        for session_id in [opening for opening, of in self._opening.items() if of == identity]:
            del self._opening[session_id]
        for session in self._sessions.of_identity(identity):
            self._sessions.closed(session.id)
            queue = self._streams.pop(session.id, None)
            # A front too slow to hear it learns at its next stream; the bridge does not take the session's datagrams any more.
            if queue is not None and not queue.full():
                queue.put_nowait(security_pb2.RelayResponse(session_id=session.id, close=True))

    async def relay(
        self, requests: AsyncIterator[security_pb2.RelayRequest]
    ) -> AsyncIterator[security_pb2.RelayResponse]:
        """One front's stream: answers for its sessions until it ends, when they are forgotten."""
        answers: asyncio.Queue[security_pb2.RelayResponse] = asyncio.Queue(MAX_QUEUED_ANSWERS)
        mine: set[str] = set()
        reader = asyncio.create_task(self._read(requests, answers, mine), name="events of a DTLS front")
        try:
            while True:
                waiting = asyncio.create_task(answers.get())
                done, _ = await asyncio.wait({waiting, reader}, return_when=asyncio.FIRST_COMPLETED)
                if waiting in done:
                    yield waiting.result()
                    continue
                waiting.cancel()
                await reader
                return
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            for session_id in mine:
                self._sessions.closed(session_id)
                self._streams.pop(session_id, None)

    async def _read(
        self,
        requests: AsyncIterator[security_pb2.RelayRequest],
        answers: asyncio.Queue[security_pb2.RelayResponse],
        mine: set[str],
    ) -> None:
        async for request in requests:
            if request.HasField("closed"):
                session_id = request.closed.session_id
                if session_id in mine:
                    mine.discard(session_id)
                    self._sessions.closed(session_id)
                    self._streams.pop(session_id, None)
            elif request.HasField("opened"):
                await answers.put(await self._open(request.opened, answers, mine))
            else:
                raise BridgeError(Reason.ARGUMENT_INVALID, "neither opened nor closed", field="event")

    async def _open(
        self,
        opened: security_pb2.SessionOpened,
        answers: asyncio.Queue[security_pb2.RelayResponse],
        mine: set[str],
    ) -> security_pb2.RelayResponse:
        refused = security_pb2.RelayResponse(session_id=opened.session_id, accepted=False)
        self._opening[opened.session_id] = opened.identity.decode("ascii", errors="replace")
        try:
            # A front that leaves amid that does not keep the sessions open that this handshake ends.
            key = await asyncio.shield(self._used(opened.identity))
        except Exception as error:  # the front's other sessions are none the worse for it
            if not isinstance(error, BridgeError) or error.reason != Reason.IDENTITY_UNKNOWN:
                log.warning("session not taken", session_id=opened.session_id, error=str(error) or type(error).__name__)
            return refused
        finally:
            has_key = self._opening.pop(opened.session_id, None) is not None
        if not has_key:
            return refused
        self._sessions.opened(
            Session(
                opened.session_id, key.identity, key.endpoint, f"coap://{opened.relay_address}", opened.peer_address
            )
        )
        self._streams[opened.session_id] = answers
        mine.add(opened.session_id)
        return security_pb2.RelayResponse(session_id=opened.session_id, accepted=True)

    async def _used(self, identity: bytes) -> DeviceKey:
        key, retired = await asyncio.to_thread(self._keys.used, identity)
        for old in retired:
            log.info("device key retired by a newer one", identity=old, endpoint=key.endpoint)
            self._end_sessions(old)
        return key


class SecureSessionsServicer(security_pb2_grpc.SecureSessionsServicer):
    """What DTLS fronts ask."""

    def __init__(self, keys: DeviceKeys, fronts: Fronts) -> None:
        self._keys = keys
        self._fronts = fronts

    async def ResolveKey(
        self, request: security_pb2.ResolveKeyRequest, context: Any
    ) -> security_pb2.ResolveKeyResponse:
        """The key of an identity."""
        _, secret = await asyncio.to_thread(self._keys.resolve, request.identity)
        return security_pb2.ResolveKeyResponse(secret=secret)

    async def Relay(
        self, request_iterator: AsyncIterator[security_pb2.RelayRequest], context: Any
    ) -> AsyncIterator[security_pb2.RelayResponse]:
        """The sessions of one front."""
        async for answer in self._fronts.relay(request_iterator):
            yield answer


class DeviceKeysServicer(security_pb2_grpc.DeviceKeysServicer):
    """What administrators ask, for the devices of one project."""

    def __init__(self, keys: DeviceKeys, fronts: Fronts, project: str) -> None:
        self._keys = keys
        self._fronts = fronts
        self._project = project

    async def CreateDeviceKey(
        self, request: security_pb2.CreateDeviceKeyRequest, context: Any
    ) -> security_pb2.CreateDeviceKeyResponse:
        """A new key."""
        self._check(request.parent)
        key, secret = await asyncio.to_thread(
            self._keys.create, request.endpoint, request.secret, bootstrap=request.bootstrap
        )
        log.info("device key created", identity=key.identity, endpoint=key.endpoint)
        return security_pb2.CreateDeviceKeyResponse(key=_message(key), secret=secret)

    async def ListDeviceKeys(
        self, request: security_pb2.ListDeviceKeysRequest, context: Any
    ) -> security_pb2.ListDeviceKeysResponse:
        """Keys without their secrets."""
        self._check(request.parent)
        if request.endpoint:
            keys = await asyncio.to_thread(self._keys.of_endpoint, request.endpoint)
            return security_pb2.ListDeviceKeysResponse(keys=[_message(key) for key in keys])
        if request.page_size < 0:
            raise BridgeError(Reason.ARGUMENT_INVALID, "must not be negative", field="page_size")
        count = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await asyncio.to_thread(self._keys.page, request.page_token, count + 1)
        more = found[count - 1].identity if len(found) > count else ""
        return security_pb2.ListDeviceKeysResponse(keys=[_message(key) for key in found[:count]], next_page_token=more)

    async def DeleteDeviceKey(self, request: security_pb2.DeleteDeviceKeyRequest, context: Any) -> empty_pb2.Empty:
        """Take a key back."""
        self._check(request.parent)
        await self._fronts.delete_key(request.identity)
        return empty_pb2.Empty()

    def _check(self, parent: str) -> None:
        if parse_name(PROJECT, parent)["project"] != self._project:
            raise BridgeError(Reason.DEVICE_UNKNOWN, "this bridge has no devices of that project", project=parent)


def _message(key: DeviceKey) -> security_pb2.DeviceKey:
    message = security_pb2.DeviceKey(identity=key.identity, endpoint=key.endpoint, bootstrap=key.bootstrap)
    message.create_time.CopyFrom(_timestamp(key.created_at))
    if key.used_at is not None:
        message.use_time.CopyFrom(_timestamp(key.used_at))
    return message


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp
