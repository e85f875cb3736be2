"""The bootstrap server: `POST /bs` on a port of its own, then the server's writes (LwM2M Core TS 1.1, clause 6.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import aiocoap
import structlog
from aiocoap import Code, Message, resource

from tinymlaas_lwm2m import CodecError, Format, encode
from tinymlaas_lwm2m.objects import SECURITY, SERVER

from ..core.bootstrap import (
    Account,
    BootstrapRecord,
    BootstrapState,
    BootstrapStore,
    account_instances,
    parse_discovery,
    parse_request,
)
from ..core.directory import Admission, Clock
from ..core.errors import BridgeError, Reason
from .endpoint import CoapSettings, check_address, free_port
from .intake import Intake, interface_of
from .registrar import refusal
from .server import as_message
from .sources import Sources

log = structlog.get_logger("tinymlaas.bridge.bootstrap")

Accounts = Callable[[str], Account]
"""endpoint → the server that it is given; a `BridgeError` refuses it."""


@dataclass(frozen=True)
class BootstrapSettings:
    """Where to listen, and limits. `answer_s` bounds the wait for each answer of a device."""

    coap: CoapSettings
    answer_s: float = 30.0
    max_sessions: int = 256


class BootstrapServer:
    """Gives devices their server account. One session at a time for each endpoint; a new request replaces it."""

    def __init__(
        self, store: BootstrapStore, accounts: Accounts, admit: Admission, clock: Clock, settings: BootstrapSettings
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._admit = admit
        self._clock = clock
        self._settings = settings
        self._sessions: dict[str, asyncio.Task[None]] = {}
        self.address = ""

    async def start(self) -> None:
        """Bind and serve."""
        check_address(self._settings.coap)
        host = self._settings.coap.host
        port = free_port(host, self._settings.coap.port)
        site = resource.Site()
        site.add_resource(["bs"], _Request(self))
        self._context = await aiocoap.Context.create_server_context(site, bind=(host, port), transports=["udp6"])
        sources = Sources(asyncio.get_running_loop().time, per_second=self._settings.coap.datagrams_per_second)
        Intake(interface_of(self._context), sources).attach()
        self.address = f"coap://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("bootstrap is served", address=self.address)

    async def close(self) -> None:
        """End all sessions and free the socket."""
        for task in list(self._sessions.values()):
            task.cancel()
        await asyncio.gather(*self._sessions.values(), return_exceptions=True)
        await self._context.shutdown()

    def record(self, endpoint: str) -> BootstrapRecord | None:
        """How the last bootstrap of an endpoint went."""
        return self._store.get_bootstrap(endpoint)

    def requested(self, endpoint: str, remote: Any) -> None:
        """Begin a session with a device that asked for one."""
        address = f"coap://{remote.hostinfo}"
        self._admit(endpoint, address)
        before = self._sessions.get(endpoint)
        if before is None and len(self._sessions) >= self._settings.max_sessions:
            raise BridgeError(
                Reason.LIMIT_EXCEEDED,
                "too many bootstraps at once",
                limit="max_sessions",
                value=self._settings.max_sessions,
            )
        account = self._accounts(endpoint)
        if before is not None:
            before.cancel()
        record = BootstrapRecord(endpoint, BootstrapState.REQUESTED, address, self._clock())
        self._store.put_bootstrap(record)
        task = asyncio.create_task(self._session(record, account, remote), name=f"bootstrap of {endpoint}")
        self._sessions[endpoint] = task
        task.add_done_callback(lambda done: self._ended(endpoint, done))

    def _ended(self, endpoint: str, done: asyncio.Task[None]) -> None:
        if self._sessions.get(endpoint) is done:
            del self._sessions[endpoint]

    async def _session(self, record: BootstrapRecord, account: Account, remote: Any) -> None:
        try:
            security_taken, server_taken = await self._discover(remote)
            record = replace(record, state=BootstrapState.WRITING)
            self._store.put_bootstrap(record)
            # The device keeps its account at this server, whatever is deleted (clause 6.1.7.5).
            await self._ask(remote, Message(code=Code.DELETE), (str(SERVER),), Code.DELETED)
            await self._ask(remote, Message(code=Code.DELETE), (str(SECURITY),), Code.DELETED)
            if security_taken is None:
                # A device that can't be asked has its bootstrap account at instance 0, as is usual.
                security_taken = frozenset({0})
            for path, values in account_instances(account, security_taken, server_taken):
                message = Message(code=Code.PUT, payload=encode(Format.TLV, values, path))
                message.opt.content_format = Format.TLV
                await self._ask(remote, message, path.segments, Code.CHANGED)
            await self._ask(remote, Message(code=Code.POST), ("bs",), Code.CHANGED)
        except (BridgeError, CodecError) as error:
            log.warning("bootstrap failed", endpoint=record.endpoint, error=str(error))
            state, failure = BootstrapState.FAILED, str(error)[:200]
        else:
            log.info("bootstrapped", endpoint=record.endpoint)
            state, failure = BootstrapState.FINISHED, ""
        self._store.put_bootstrap(replace(record, state=state, ended_at=self._clock(), failure=failure))

    async def _discover(self, remote: Any) -> tuple[frozenset[int] | None, frozenset[int]]:
        """Ids of objects 0 and 1 that the bootstrap must leave free; None where the device can't tell (LwM2M 1.0)."""
        message = Message(code=Code.GET)
        message.opt.accept = Format.LINK
        try:
            answer = await self._ask(remote, message, (), Code.CONTENT)
        except BridgeError as error:
            if error.reason != Reason.DEVICE_REJECTED:
                raise
            return None, frozenset()
        security, _ = parse_discovery(answer.payload)
        return security, frozenset()

    async def _ask(self, remote: Any, message: Message, path: tuple[str, ...], expected: Code) -> Message:
        message.remote = remote
        message.opt.uri_path = path
        where = "/" + "/".join(path)
        try:
            async with asyncio.timeout(self._settings.answer_s):
                answer = await self._context.request(message, handle_blockwise=False).response
        except TimeoutError as error:
            raise BridgeError(
                Reason.DEVICE_UNREACHABLE, f"no answer in {self._settings.answer_s:g} s", path=where
            ) from error
        except (aiocoap.error.Error, OSError) as error:
            raise BridgeError(Reason.DEVICE_UNREACHABLE, f"no answer ({type(error).__name__})", path=where) from error
        if answer.code is not expected:
            text = answer.payload[:200].decode("utf-8", errors="replace")
            raise BridgeError(
                Reason.DEVICE_REJECTED, f"{where}: {answer.code} {text}", path=where, coap_code=answer.code.dotted
            )
        return answer


class _Request(resource.Resource):  # type: ignore[misc]  # aiocoap is not typed
    """POST /bs: Bootstrap-Request."""

    def __init__(self, server: BootstrapServer) -> None:
        super().__init__()
        self._server = server

    async def render_post(self, request: Message) -> Message:
        """Take the request; the session begins once this answer is on its way."""
        try:
            endpoint = parse_request(request.opt.uri_query)
            self._server.requested(endpoint, request.remote)
        except BridgeError as error:
            return as_message(refusal(error))
        return Message(code=Code.CHANGED)
