"""The bootstrap server: `POST /bs` on a port of its own, then the server's writes (LwM2M Core TS 1.1, clause 6.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
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
from ..in_threads import carried_out
from .endpoint import CoapSettings, check_address, free_port
from .intake import Intake, interface_of
from .registrar import refusal
from .server import as_message
from .sources import Sources

log = structlog.get_logger("tinymlaas.bridge.bootstrap")

Accounts = Callable[[str], Account]
"""endpoint → the server that it is given; a `BridgeError` refuses it. Called in a thread: it may wait for a database."""

THREADS = 2
"""Each holds a connection to the database while it works."""


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
        self._threads = ThreadPoolExecutor(THREADS, "bootstraps")
        self._closing = False
        self._beginning: set[str] = set()
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
        self._closing = True
        for task in list(self._sessions.values()):
            task.cancel()
        await asyncio.gather(*self._sessions.values(), return_exceptions=True)
        await self._context.shutdown()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def requested(self, endpoint: str, remote: Any) -> None:
        """Begin a session with a device that asked for one. A `BridgeError` refuses it; other errors are the database's."""
        address = f"coap://{remote.hostinfo}"
        self._admit(endpoint, address)
        if endpoint in self._beginning:
            raise BridgeError(Reason.LIMIT_EXCEEDED, "its bootstrap is about to begin", limit="requests", value=1)
        known = endpoint in self._sessions
        if not known and len(self._sessions.keys() | self._beginning) >= self._settings.max_sessions:
            raise BridgeError(
                Reason.LIMIT_EXCEEDED,
                "too many bootstraps at once",
                limit="max_sessions",
                value=self._settings.max_sessions,
            )
        self._beginning.add(endpoint)
        try:
            await self._begin(endpoint, address, remote)
        finally:
            self._beginning.discard(endpoint)

    async def _begin(self, endpoint: str, address: str, remote: Any) -> None:
        account = await carried_out(self._threads, partial(self._accounts, endpoint))
        before = self._sessions.get(endpoint)
        if before is not None:
            before.cancel()
            await asyncio.wait({before})  # it writes nothing any more
        record = BootstrapRecord(endpoint, BootstrapState.REQUESTED, address, self._clock())
        await self._remember(record)
        if self._closing:
            return
        task = asyncio.create_task(self._session(record, account, remote), name=f"bootstrap of {endpoint}")
        self._sessions[endpoint] = task
        task.add_done_callback(lambda done: self._ended(endpoint, done))

    def _ended(self, endpoint: str, done: asyncio.Task[None]) -> None:
        if self._sessions.get(endpoint) is done:
            del self._sessions[endpoint]

    async def _remember(self, record: BootstrapRecord) -> None:
        await carried_out(self._threads, partial(self._store.put_bootstrap, record))

    async def _session(self, record: BootstrapRecord, account: Account, remote: Any) -> None:
        try:
            await self._remember(await self._bootstrap(record, account, remote))
        except Exception as error:  # such as a database that is away: there is nobody to tell, and no record
            log.warning("bootstrap broke off", endpoint=record.endpoint, error=str(error) or type(error).__name__)

    async def _bootstrap(self, record: BootstrapRecord, account: Account, remote: Any) -> BootstrapRecord:
        """Write the account; how that has ended."""
        try:
            security_taken, server_taken = await self._discover(remote)
            record = replace(record, state=BootstrapState.WRITING)
            await self._remember(record)
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
        return replace(record, state=state, ended_at=self._clock(), failure=failure)

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
            await self._server.requested(endpoint, request.remote)
        except BridgeError as error:
            return as_message(refusal(error))
        except Exception as error:  # the database's: a device asks again after 5.03
            log.warning("bootstrap can't begin", error=str(error) or type(error).__name__)
            return Message(code=Code.SERVICE_UNAVAILABLE)
        return Message(code=Code.CHANGED)
