"""Bootstrap: what a device is told about its server, as pure functions (LwM2M Core TS 1.1, clause 6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tinymlaas_lwm2m import CodecError, Path, SecurityMode, SecurityRes, ServerRes, Values
from tinymlaas_lwm2m.objects import SECURITY, SERVER

from .errors import BridgeError, Reason
from .registration import check_endpoint

_LINK = re.compile(r"<(/[0-9/]*)>([^,<]*)")
_FORMATS = {"110", "112", "11542", "11544"}
MAX_DISCOVERED = 4096


class BootstrapState(StrEnum):
    """How far a bootstrap is; FINISHED and FAILED end it."""

    REQUESTED = "REQUESTED"
    WRITING = "WRITING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class BootstrapRecord:
    """A device's last bootstrap. Times are seconds since the epoch; `failure` says why a failed one ended."""

    endpoint: str
    state: BootstrapState
    address: str
    requested_at: float
    ended_at: float | None = None
    failure: str = ""


class BootstrapStore(Protocol):
    """Where bootstraps are remembered."""

    def get_bootstrap(self, endpoint: str) -> BootstrapRecord | None:
        """How the last bootstrap of an endpoint went, or None."""
        ...

    def put_bootstrap(self, record: BootstrapRecord) -> None:
        """Store a bootstrap, replacing the endpoint's earlier one."""
        ...


@dataclass(frozen=True)
class Account:
    """A server that a device is given. `identity` and `secret` are those of DTLS with a pre-shared key, or empty for none."""

    server_uri: str
    short_server_id: int = 1
    lifetime_s: int = 300
    binding: str = "U"
    identity: str = ""
    secret: bytes = field(default=b"", repr=False)


def parse_request(queries: Iterable[str]) -> str:
    """Endpoint name of a Bootstrap-Request; `BridgeError` where it is malformed."""
    found: dict[str, str] = {}
    for query in queries:
        name, _, value = query.partition("=")
        if name in found:
            raise _invalid(name, "occurs twice")
        found[name] = value
    if found.get("pct", "11542") not in _FORMATS:
        raise _invalid("pct", "is not a content format that can be written here")
    return check_endpoint(found.get("ep", ""))


def parse_discovery(payload: bytes) -> tuple[frozenset[int], frozenset[int]]:
    """Instance ids of objects 0 and 1 that a Bootstrap-Discover tells (clause 6.1.7.2); `CodecError` where malformed."""
    if len(payload) > MAX_DISCOVERED:
        raise CodecError("discovery", f"more than {MAX_DISCOVERED} bytes")
    try:
        text = payload.decode("ascii")
    except UnicodeDecodeError as error:
        raise CodecError("discovery", "is not ASCII") from error
    taken: dict[int, set[int]] = {SECURITY: set(), SERVER: set()}
    for match in _LINK.finditer(text):
        target = match[1].rstrip("/")
        if not target:
            continue
        path = Path.parse(target)
        if path.object_id in taken and path.instance_id is not None:
            taken[path.object_id].add(path.instance_id)
    return frozenset(taken[SECURITY]), frozenset(taken[SERVER])


def account_instances(
    account: Account, security_taken: frozenset[int], server_taken: frozenset[int]
) -> list[tuple[Path, Values]]:
    """Instances of objects 0 and 1 to write, under ids that are free: the device's own bootstrap account stays."""
    security = Path(SECURITY, _free(security_taken))
    server = Path(SERVER, _free(server_taken))
    mode = SecurityMode.PSK if account.secret else SecurityMode.NO_SEC
    values: dict[SecurityRes, str | bool | int | bytes] = {
        SecurityRes.SERVER_URI: account.server_uri,
        SecurityRes.BOOTSTRAP_SERVER: False,
        SecurityRes.SECURITY_MODE: int(mode),
        SecurityRes.PUBLIC_KEY_OR_IDENTITY: account.identity.encode(),
        SecurityRes.SERVER_PUBLIC_KEY: b"",
        SecurityRes.SECRET_KEY: account.secret,
        SecurityRes.SHORT_SERVER_ID: account.short_server_id,
    }
    settings: dict[ServerRes, str | bool | int | bytes] = {
        ServerRes.SHORT_SERVER_ID: account.short_server_id,
        ServerRes.LIFETIME: account.lifetime_s,
        ServerRes.NOTIFICATION_STORING: True,
        ServerRes.BINDING: account.binding,
    }
    return [
        (security, {security.child(resource): value for resource, value in values.items()}),
        (server, {server.child(resource): value for resource, value in settings.items()}),
    ]


def _free(taken: frozenset[int]) -> int:
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _invalid(parameter: str, detail: str) -> BridgeError:
    return BridgeError(Reason.REGISTRATION_INVALID, f"{parameter[:40]} {detail}", parameter=parameter[:40])
