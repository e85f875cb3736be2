"""Values of an install: what was asked for, how far it is, what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from .errors import BridgeError


class Transfer(StrEnum):
    """How the image travels. AUTO pulls, and pushes when the device can't pull."""

    AUTO = "AUTO"
    PULL = "PULL"
    PUSH = "PUSH"


class Step(StrEnum):
    """Steps of an install; READY, FAILED and CANCELLED end it."""

    ACCEPTED = "ACCEPTED"
    DOWNLOADING = "DOWNLOADING"
    DOWNLOADED = "DOWNLOADED"
    DELIVERED = "DELIVERED"
    INSTALLED = "INSTALLED"
    SELF_TESTING = "SELF_TESTING"
    READY = "READY"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """True where nothing follows."""
        return self in (Step.READY, Step.FAILED, Step.CANCELLED)


@dataclass(frozen=True)
class InstallRequest:
    """What the caller wants. `digest` is the sha256 (hex) of the device image."""

    install_id: str
    endpoint: str
    digest: str
    slot: int | None = None
    transfer: Transfer = Transfer.AUTO


@dataclass(frozen=True)
class Failure:
    """Why an install ended badly, in a form that can be stored."""

    code: str
    reason: str
    detail: str
    help: str
    metadata: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(error: BridgeError) -> Failure:
        """The stored form of an error."""
        return Failure(error.code, error.reason, error.detail, error.help, error.metadata)

    def error(self) -> BridgeError:
        """The error again."""
        return BridgeError(self.reason, self.detail, code=self.code, help=self.help, **self.metadata)


@dataclass(frozen=True)
class InstallRecord:
    """An install as stored. `attempts` counts transfers that were started; times are seconds since the epoch.

    `uri` is where the device was last told to fetch.

    `trace` is the context (W3C traceparent) of the call that began it, so that what is done after a restart is in its trace.
    """

    request: InstallRequest
    step: Step = Step.ACCEPTED
    slot: int | None = None
    bytes_total: int = 0
    attempts: int = 0
    uri: str = ""
    pushing: bool = False
    install_sent: bool = False
    test_sent: bool = False
    cancelled: bool = False
    failure: Failure | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    trace: str = ""


@dataclass(frozen=True)
class InstallEvent:
    """One line of an install's timeline. Bytes are those that the device holds, or that went out while it downloads."""

    install_id: str
    step: Step
    time: float
    slot: int | None = None
    bytes_done: int = 0
    bytes_total: int = 0
    detail: str = ""
    failure: Failure | None = None
