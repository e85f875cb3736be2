"""Registrations: what a device says when it comes, and how that is checked (LwM2M Core TS 1.1, clause 6.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tinymlaas_lwm2m import CodecError, ObjectLink, parse_registration

from .errors import BridgeError, Reason

DEFAULT_LIFETIME_S = 86_400
MAX_LIFETIME_S = 31_536_000
_ENDPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}")
_BINDING = re.compile(r"U|UQ|UQS|US|S|SQ|T|TQ|UT")
_VERSIONS = ("1.0", "1.1", "1.2")


@dataclass(frozen=True)
class RegisterQuery:
    """Parameters of Register, checked."""

    endpoint: str
    lifetime_s: int
    version: str
    binding: str
    queue_mode: bool


@dataclass(frozen=True)
class Registration:
    """One registered device. `address` is a CoAP URI without path; times are seconds since the epoch."""

    id: str
    endpoint: str
    address: str
    local_address: str
    lifetime_s: int
    version: str
    binding: str
    queue_mode: bool
    objects: tuple[ObjectLink, ...]
    registered_at: float
    updated_at: float

    @property
    def expires_at(self) -> float:
        """When the registration ends unless it is updated."""
        return self.updated_at + self.lifetime_s

    def has(self, object_id: int) -> bool:
        """True where the device said that it has the object."""
        return any(link.object_id == object_id for link in self.objects)

    def instances(self, object_id: int) -> list[int]:
        """Instances of an object that the device told of, ascending."""
        return sorted(
            link.instance_id for link in self.objects if link.object_id == object_id and link.instance_id is not None
        )


class DeviceChange(StrEnum):
    """Why watchers are told of a device."""

    REGISTERED = "REGISTERED"
    UPDATED = "UPDATED"
    LOST = "LOST"


def check_endpoint(endpoint: str) -> str:
    """The endpoint name; REGISTRATION_INVALID where it has not the form that is taken here."""
    if not _ENDPOINT.fullmatch(endpoint):
        raise _invalid("ep", "must be 1 to 128 letters, digits, or one of . _ : ~ -")
    return endpoint


def parse_register(queries: Iterable[str]) -> RegisterQuery:
    """Check the Uri-Query options of Register; `BridgeError` names the first that is wrong."""
    found = _queries(queries, {"ep", "lt", "lwm2m", "b", "Q", "sms", "pid"})
    endpoint = check_endpoint(found.get("ep", ""))
    version = found.get("lwm2m", "1.0")
    if version not in _VERSIONS:
        raise BridgeError(Reason.VERSION_UNSUPPORTED, f"LwM2M {version[:10]!r} is not supported", version=version[:10])
    binding = _binding(found.get("b", "U"))
    return RegisterQuery(
        endpoint=endpoint,
        lifetime_s=_lifetime(found.get("lt", str(DEFAULT_LIFETIME_S))),
        version=version,
        binding=binding,
        queue_mode="Q" in found or "Q" in binding,
    )


@dataclass(frozen=True)
class UpdateQuery:
    """Parameters of Update; None where a parameter stays as it was."""

    lifetime_s: int | None
    binding: str | None


def parse_update(queries: Iterable[str]) -> UpdateQuery:
    """Check the Uri-Query options of Update."""
    found = _queries(queries, {"lt", "b", "Q", "sms"})
    return UpdateQuery(
        lifetime_s=_lifetime(found["lt"]) if "lt" in found else None,
        binding=_binding(found["b"]) if "b" in found else None,
    )


def parse_objects(payload: bytes) -> tuple[ObjectLink, ...]:
    """Check the link list of Register or Update."""
    try:
        return parse_registration(payload)
    except CodecError as error:
        raise _invalid("links", error.detail) from error


def _queries(queries: Iterable[str], known: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for query in queries:
        name, _, value = query.partition("=")
        if name in found:
            raise _invalid(name, "occurs twice")
        if name in known:
            found[name] = value
    return found


def _lifetime(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text) or int(text) > MAX_LIFETIME_S:
        raise _invalid("lt", f"must be 1 to {MAX_LIFETIME_S} seconds")
    return int(text)


def _binding(text: str) -> str:
    if not _BINDING.fullmatch(text):
        raise _invalid("b", "must be a binding of LwM2M such as U or UQ")
    return text


def _invalid(parameter: str, detail: str) -> BridgeError:
    return BridgeError(Reason.REGISTRATION_INVALID, f"{parameter[:40]} {detail}", parameter=parameter[:40])
